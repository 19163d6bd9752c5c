"""Importance of every linear weight of a Qwen2.5-0.5B-shaped model against a bare forward and backward, in turns.

    python benchmarks/layers.py [--rounds 3] [--examples 16] [--layers 24] [--dtype float32]

bare: the loss of each batch and `backward()` into the gradients of the decoder's linear weights (embedding
and head get none). checkpointed: the same with gradient checkpointing. ours: `analysis.importance.measure`,
with its bootstrap. Each is a process of its own, in turns; timed without imports and making the model. Memory
is the growth of the peak of RssAnon over the model: gradients, activations, everything.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from transformers import Qwen2Config, Qwen2ForCausalLM

from workbench.analysis.backward import decoder_layers, linear_weights, make_batches
from workbench.analysis.importance import measure
from workbench.config import AnalyzeConfig
from workbench.examples import Example

LENGTHS, BATCH, VOCABULARY = (96, 192), 4, 151_936


def make_model(layers, dtype):
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=VOCABULARY, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers,
                         num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    return Qwen2ForCausalLM(config).to(getattr(torch, dtype)).eval().requires_grad_(False)


def make_examples(count):
    """Random tokens; the second half of each carries the loss."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(*LENGTHS, (count,), generator=rng).sort().values.tolist()
    return [Example(torch.randint(VOCABULARY, (n,), generator=rng).tolist(), n // 2) for n in lengths]


def bare(model, examples):
    """Gradients of the sum over examples of their mean loss, in the model's own type."""
    for layer in decoder_layers(model)[1]:
        for module in linear_weights(layer).values():
            module.weight.requires_grad_(True)
    for batch in make_batches(examples, BATCH):
        wanted = batch.targets != -100
        shares = (1 / wanted.sum(1, keepdim=True)).expand_as(wanted)[wanted]
        hidden = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state[wanted]
        losses = cross_entropy(model.lm_head(hidden).float(), batch.targets[wanted], reduction="none")
        (losses * shares).sum().backward()


class Memory(threading.Thread):
    """The peak of this process's RssAnon."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0, False

    def run(self):
        while not self.done:
            self.peak = max(self.peak, self.now())
            time.sleep(0.01)

    @staticmethod
    def now():
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def work(which, arguments):
    """One measurement, printed as JSON."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, examples = make_model(arguments.layers, arguments.dtype), make_examples(arguments.examples)
    measure_small(model)
    before, memory = Memory.now(), Memory()
    memory.start()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        if which == "ours":
            settings = AnalyzeConfig(batch_size=BATCH)
            measure(model, Path(scratch), examples, settings, seed=0, scratch=Path(scratch))
        else:
            if which == "checkpointed":
                model.train()  # the model has no dropout
                model.enable_input_require_grads()
                model.gradient_checkpointing_enable()
            bare(model, examples)
    seconds, memory.done = time.perf_counter() - began, True
    memory.join()
    linear = sum(w.weight.numel() for layer in decoder_layers(model)[1] for w in linear_weights(layer).values())
    size = model.dtype.itemsize
    sys.stdout.write(json.dumps({"seconds": seconds, "grown": memory.peak - before,
                      "model": size * model.num_parameters(), "gradients": size * linear}))  # fmt: skip


def measure_small(model):
    """A few tokens through the model, so that no one pays for first calls."""
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 8, dtype=torch.long))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments)
        return
    kinds = ("bare", "checkpointed", "ours")
    found = {kind: [] for kind in kinds}
    for _ in range(arguments.rounds):
        for kind in kinds:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", kind]
            found[kind].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    one = found["ours"][0]
    table = Table("", "seconds", "times bare", "memory beside the model, MB")
    table.title = (
        f"{arguments.examples} texts of {LENGTHS[0]} to {LENGTHS[1]} tokens, {arguments.dtype}, model "
        f"{one['model'] / 1e6:.0f} MB, gradients of its linear weights {one['gradients'] / 1e6:.0f} MB"
    )
    middle = {kind: statistics.median(run["seconds"] for run in found[kind]) for kind in kinds}
    for kind in kinds:
        times = [run["seconds"] for run in found[kind]]
        memory = max(run["grown"] for run in found[kind]) / 1e6
        ratio = f"{middle[kind] / middle['bare']:.2f}"
        table.add_row(kind, f"{middle[kind]:.1f} ({min(times):.1f} to {max(times):.1f})", ratio, f"{memory:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
