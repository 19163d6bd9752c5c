"""Merging a Qwen2.5-0.5B-shaped pair: this workbench, mergekit, and plain reading and writing, in turns.

    python -m venv .venv-mergekit && .venv-mergekit/bin/pip install mergekit==0.1.5
    python benchmarks/merge.py --mergekit .venv-mergekit/bin/mergekit-yaml [--rounds 3] [--folder DIR]

Each is a process of its own, timed whole, imports included. Memory is the peak of RssAnon: what a process
holds beside memory-mapped files. Makes 494M-parameter bf16 checkpoints (1 GB each) in a folder first.
Last, both merge at p = 0 and the results are compared: mergekit's `linear` is the same formula there.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

ALPHA, DROP_RATE = 0.5, 0.2
HIDDEN, INNER, LAYERS, KEYS, VOCABULARY = 896, 4864, 24, 128, 151_936
COPY = """
import sys
for source in sys.argv[1:3]:
    with open(source, "rb") as file:
        while block := file.read(1 << 24):
            last = block if len(block) == 1 << 24 else last
with open(sys.argv[3], "wb") as file:
    for _ in range(int(sys.argv[4]) >> 24):
        file.write(last)
"""


def shapes():
    """Every tensor of Qwen2.5-0.5B by name."""
    found = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        rows = {"q_proj": HIDDEN, "k_proj": KEYS, "v_proj": KEYS}
        attention = {f"self_attn.{name}.weight": (n, HIDDEN) for name, n in rows.items()}
        attention |= {f"self_attn.{name}.bias": (n,) for name, n in rows.items()}
        attention["self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        mlp = {f"mlp.{name}.weight": (INNER, HIDDEN) for name in ("gate_proj", "up_proj")}
        mlp["mlp.down_proj.weight"] = (HIDDEN, INNER)
        norms = {f"{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in (attention | mlp | norms).items()}
    return found


def make_pair(folder):
    """base/ and sft/, random; sft a small step from base."""
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16",
        "tie_word_embeddings": True, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    }  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=rng) for name, shape in shapes().items()}
    for side in ("base", "sft"):
        if side == "sft":
            base = {name: x + 4e-4 * torch.randn(x.shape, generator=rng) for name, x in base.items()}
        (folder / side).mkdir(parents=True)
        (folder / side / "config.json").write_text(json.dumps(config))
        tensors = {name: x.bfloat16() for name, x in base.items()}
        save_file(tensors, folder / side / "model.safetensors", metadata={"format": "pt"})


def measured(command, out):
    """Wall seconds and peak RssAnon in MB of a command that writes `out`, which is removed first."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(exist_ok=True)
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"{command[0]} failed:\n{process.stderr.read()[-2000:]}")
    return seconds, peak / 1e6


def anonymous_bytes(pid):
    """Memory of a process that is no file, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def mergekit_command(program, folder, out, method, p):
    """mergekit's command for the merge that recipe (ALPHA, p) describes."""
    tuned = {"model": str(folder / "sft"), "parameters": {"weight": 1 - ALPHA}}
    if method == "dare_linear":
        tuned["parameters"]["density"] = 1 - p
        models, extra = [tuned], {"base_model": str(folder / "base"), "parameters": {"normalize": False}}
    else:
        models, extra = [{"model": str(folder / "base"), "parameters": {"weight": ALPHA}}, tuned], {}
    config = folder / f"{method}.json"  # JSON is YAML
    config.write_text(json.dumps({"merge_method": method, "models": models, "dtype": "bfloat16"} | extra))
    return [program, str(config), str(out), "--lazy-unpickle"]


def our_command(folder, out, p):
    return [
        str(Path(sys.executable).with_name("workbench")), "merge", "--base", str(folder / "base"), "--sft",
        str(folder / "sft"), "--out", str(out), "--alpha", str(ALPHA), "--drop-rate", str(p),
    ]  # fmt: skip


def compare_linear(program, folder):
    """Largest difference between both tools at p = 0, in steps of bfloat16."""
    measured(our_command(folder, folder / "out" / "ours", 0), folder / "out" / "ours")
    measured(mergekit_command(program, folder, folder / "out" / "theirs", "linear", 0), folder / "out" / "theirs")
    ours = load_file(folder / "out" / "ours" / "model.safetensors")
    theirs = {}
    for file in (folder / "out" / "theirs").glob("*.safetensors"):
        theirs |= load_file(file)
    steps = [(x.view(torch.int16).int() - theirs[name].view(torch.int16).int()).abs() for name, x in ours.items()]
    return max(int(x.max()) for x in steps), sum(int((x > 0).sum()) for x in steps) / sum(x.numel() for x in steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="path of mergekit-yaml; without it only ours and the copy are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made and kept (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "sft" / "model.safetensors").exists():
            make_pair(folder)
        weights, out = folder / "base" / "model.safetensors", folder / "out" / "merged"
        size = str(weights.stat().st_size)
        target = str(folder / "out" / "copy")
        commands = {
            "read both, write one": [
                sys.executable,
                "-c",
                COPY,
                *[str(folder / s / weights.name) for s in ("base", "sft")],
                target,
                size,
            ],
            "workbench merge": our_command(folder, out, DROP_RATE),
        }
        if options.mergekit:
            commands["mergekit dare_linear"] = mergekit_command(options.mergekit, folder, out, "dare_linear", DROP_RATE)
        measured(commands["workbench merge"], out)  # compiles the kernels once, as on any machine
        found = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                found[name].append(measured(command, out))
        report(found)
        if options.mergekit:
            steps, share = compare_linear(options.mergekit, folder)
            Console().print(
                f"p = 0 against mergekit linear: at most {steps} bf16 step(s) apart, {100 * share:.2f} % differ"
            )


def report(found):
    """Medians, and the ratio to ours within each round."""
    table = Table("", "seconds", "all rounds", "times ours", "peak RssAnon, MB")
    for name, rounds in found.items():
        seconds = [s for s, _ in rounds]
        ratios = [s / ours for s, (ours, _) in zip(seconds, found["workbench merge"], strict=True)]
        table.add_row(
            name, f"{statistics.median(seconds):.2f}", ", ".join(f"{s:.2f}" for s in seconds),
            f"{statistics.median(ratios):.2f}", f"{max(m for _, m in rounds):.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
