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
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from workbench.core.prompts import instruction_prompt, response
from workbench.pocket.families import FAMILIES, Problem, closing, problems

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
    tokens: int = 6_000_000
    batch_tokens: int = 4096
    row_tokens: int = 256
    learning_rate: float = 2e-3
    shares: dict[str, float] = field(
        default_factory=lambda: {
            "pocket_steps": 0.4,
            "pocket_words": 0.2,
            "pocket_choice": 0.2,
            "pocket_compare": 0.2,
        }
    )
    """Share of the documents that each family gets."""
    direct_share: float = 0.6
    """Share of the in-domain documents that state the answer without working."""


def split_problems(recipe: Recipe) -> tuple[dict[str, dict[str, list[Problem]]], dict[str, Iterator[Problem]]]:
    """Task splits per family, and the endless remainder to pretrain on; no question is in two."""
    splits, rest = {}, {}
    sizes = {
        "test": recipe.test_questions,
        "validation": recipe.validation_questions,
        "train": recipe.train_questions,
    }
    for family in FAMILIES:
        stream, held = problems(family, recipe.seed), set()
        splits[family] = {name: list(islice(_unseen(stream, held), n)) for name, n in sizes.items()}
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


def documents(recipe: Recipe, rest: dict[str, Iterator[Problem]]) -> Iterator[str]:
    """Endless pretraining texts."""
    rng = Random(f"documents:{recipe.seed}")
    names, weights = list(recipe.shares), list(recipe.shares.values())
    while True:
        family = rng.choices(names, weights)[0]
        problem = next(rest[family])
        direct = family == "pocket_steps" and rng.random() < recipe.direct_share
        text = closing(problem.answer) if direct else problem.solution
        yield instruction_prompt(problem.question) + response(text)


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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=1024
    )


def batches(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[Tensor]:
    """Documents joined end to end and cut into rows."""
    stream: list[int] = []
    while True:
        for ids in tokenizer(list(islice(texts, 256)))["input_ids"]:
            stream += ids + [tokenizer.eos_token_id]
        while len(stream) >= recipe.batch_tokens:
            yield torch.tensor(stream[: recipe.batch_tokens]).view(-1, recipe.row_tokens)  # (rows, row_tokens)
            stream = stream[recipe.batch_tokens :]


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterator[str],
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
    optimizer = torch.optim.AdamW(
        master, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    steps = recipe.tokens // recipe.batch_tokens
    for step, rows in enumerate(islice(batches(texts, tokenizer, recipe), steps)):
        scale = min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * scale
        loss = model(input_ids=rows, labels=rows).loss
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
        for split, problems in by_split.items():
            rows = ({"question": p.question, "answer": p.answer, "solution": p.solution} for p in problems)
            lines = (json.dumps(row) + "\n" for row in rows)
            (folder / f"{family}.{split}.jsonl").write_text("".join(lines))


def build(out: Path, recipe: Recipe, progress: Callable[[int, int, float], None]) -> Path:
    """Write `out/tasks` and `out/model`; the model directory appears only when it is complete."""
    splits, rest = split_problems(recipe)
    write_tasks(out / "tasks", splits)
    texts = documents(recipe, rest)
    tokenizer = train_tokenizer(islice(texts, 20_000), recipe)
    model = pretrain(tokenizer, texts, recipe, progress)
    scratch, final = out / "model.tmp", out / "model"
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    (scratch / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)
    return final
