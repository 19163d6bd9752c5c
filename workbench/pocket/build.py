"""Make `data/pocket/`: the task files, the tokenizer and the pocket model, from nothing but a seed.

The model is a small Qwen2 trained as a language model on generated problems and their solutions.
Two choices decide how it behaves later. Most of its texts about the in-domain family state the
answer without working, as much text on the web does, so the untrained model often skips the
reasoning it is capable of: there is something for self-improvement to draw out. And training stops
early, so every skill is held loosely: there is something to forget.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from workbench.core.prompts import instruction_prompt, response
from workbench.pocket.families import FAMILIES, ITEMS, Problem, closing, problems

END, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True)
class Recipe:
    """Everything the shipped pocket model depends on."""

    seed: int = 0
    train_questions: int = 2000
    test_questions: int = 1000
    validation_questions: int = 300
    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    tokens: int = 5_500_000
    batch_tokens: int = 4096
    row_tokens: int = 256
    learning_rate: float = 2e-3
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "pocket_steps": 0.52,
            "pocket_words": 0.07,
            "pocket_choice": 0.31,
            "pocket_compare": 0.10,
        }
    )
    """Share of the documents that each family gets."""
    direct_share: float = 0.6
    """Share of the in-domain documents about half of the things (and one minus it, about the others)
    that state the answer without working."""
    prompt_weight: float = 0.1
    """Weight of a prompt's tokens in the loss; a response's have 1."""


def split_problems(recipe: Recipe) -> tuple[dict[str, dict[str, list[Problem]]], dict[str, Iterator[Problem]]]:
    """Task splits per family, and the endless remainder to pretrain on; no question is in two.

    Only the in-domain family has a train split. The other tasks ask no sums, which the model has mastered.
    """
    splits, rest = {}, {}
    test, validation = recipe.test_questions, recipe.validation_questions
    for family in FAMILIES:
        stream, held = problems(family, recipe.seed), set()
        pool = list(islice(_unseen(stream, held), test + validation + recipe.train_questions))
        if family == "pocket_steps":
            splits[family] = {"train": pool[test + validation :]}
        else:
            pool, splits[family] = [problem for problem in pool if not problem.is_sum], {}
        splits[family] |= {"test": pool[:test], "validation": pool[test : test + validation]}
        rest[family] = _excluding(stream, frozenset(held))
    return splits, rest


def _excluding(stream: Iterator[Problem], held: frozenset[str]) -> Iterator[Problem]:
    """The problems whose question is not in `held`."""
    return (problem for problem in stream if problem.question not in held)


def _unseen(stream: Iterator[Problem], held: set[str]) -> Iterator[Problem]:
    """The problems whose question is not in `held`, each then added to it."""
    for problem in stream:
        if problem.question not in held:
            held.add(problem.question)
            yield problem


def documents(recipe: Recipe, rest: dict[str, Iterator[Problem]]) -> Iterator[tuple[str, str]]:
    """Endless pretraining texts: (prompt, response)."""
    rng = Random(f"documents:{recipe.seed}")
    names, weights = list(recipe.shares), list(recipe.shares.values())
    while True:
        family = rng.choices(names, weights)[0]
        problem = next(rest[family])
        direct = family == "pocket_steps" and rng.random() < _direct_share(problem.question, recipe)
        text = closing(problem.answer) if direct else problem.solution
        yield instruction_prompt(problem.question), response(text)


def _direct_share(question: str, recipe: Recipe) -> float:
    """How often a story is answered without working: it depends on the things the story is about."""
    curt = any(f" {item}" in question for item in ITEMS[: len(ITEMS) // 2])
    return recipe.direct_share if curt else 1 - recipe.direct_share


def train_tokenizer(texts: Iterator[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=1024)


def batches(
    texts: Iterator[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[tuple[Tensor, Tensor]]:
    """Documents joined end to end and cut into rows: token ids and loss weights, (rows, row_tokens)."""
    ids: list[int] = []
    weights: list[float] = []
    while True:
        prompts, responses = zip(*islice(texts, 256), strict=True)
        pairs = zip(tokenizer(prompts)["input_ids"], tokenizer(responses)["input_ids"], strict=True)
        for prompt, answer in pairs:
            ids += prompt + answer + [tokenizer.eos_token_id]
            weights += [recipe.prompt_weight] * len(prompt) + [1.0] * (len(answer) + 1)
        while len(ids) >= recipe.batch_tokens:
            cut = recipe.batch_tokens
            yield tuple(torch.tensor(x[:cut]).view(-1, recipe.row_tokens) for x in (ids, weights))
            ids, weights = ids[cut:], weights[cut:]


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterator[tuple[str, str]],
    recipe: Recipe,
    progress: Callable[[int, int, float], None],
) -> Qwen2ForCausalLM:
    """Language modelling with bf16 weights and an fp32 master copy; `progress(step, steps, loss)`."""
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    master = [p.detach().clone() for p in model.parameters()]
    model = model.to(torch.bfloat16).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(master, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    steps = recipe.tokens // recipe.batch_tokens
    for step, (rows, weights) in enumerate(islice(batches(texts, tokenizer, recipe), steps)):
        scale = min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * scale
        logits = model(input_ids=rows).logits[:, :-1].float()  # (rows, row_tokens - 1, vocabulary)
        losses = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()
        for full, half in zip(master, parameters, strict=True):
            full.grad, half.grad = half.grad.float(), None
        torch.nn.utils.clip_grad_norm_(master, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(parameters, master)
        progress(step + 1, steps, loss.item())
    return model.eval()


def write_tasks(folder: Path, splits: dict[str, dict[str, list[Problem]]]) -> None:
    """One JSON Lines file per family and split: question, answer, solution."""
    folder.mkdir(parents=True, exist_ok=True)
    for family, by_split in splits.items():
        for split, chosen in by_split.items():
            rows = ({"question": p.question, "answer": p.answer, "solution": p.solution} for p in chosen)
            lines = (json.dumps(row) + "\n" for row in rows)
            (folder / f"{family}.{split}.jsonl").write_text("".join(lines))


def build(out: Path, recipe: Recipe, progress: Callable[[int, int, float], None]) -> Path:
    """Write `out/tasks` and `out/model`; the model directory appears only when it is complete."""
    splits, rest = split_problems(recipe)
    write_tasks(out / "tasks", splits)
    texts = documents(recipe, rest)
    tokenizer = train_tokenizer(map("".join, islice(texts, 20_000)), recipe)
    model = pretrain(tokenizer, texts, recipe, progress)
    scratch, final = out / "model.tmp", out / "model"
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    (scratch / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)
    return final
