"""Phase `merge`: stream base, start and sft from disk, write the merged checkpoint, report what was done.

Weights are memory-mapped and handled in pieces that fit a core's cache; the output file is laid out
first and filled in place. Neither a model nor a tensor is ever held in memory.
"""

import errno
import json
import mmap
import os
import shutil
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.checkpoints import CheckpointReader, Entry, check_same_shapes
from workbench.core.dare import CHUNK, Recipe, blend, expected_distance, tuned_piece
from workbench.events import Emit
from workbench.jobs import MergeJob
from workbench.phases.process import main
from workbench.rundir import PhaseDir

TORCH_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TASK_ENTRIES = 16 * CHUNK
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass
class Sums:
    """What the report is made of; sums over entries, in float64 across pieces."""

    d_d: float = 0.0
    d_delta: float = 0.0
    delta_delta: float = 0.0
    kept_delta: float = 0.0
    """|dare(delta)|^2."""
    moved: float = 0.0
    """|merged - base|^2."""
    num_changed: int = 0
    """Entries in which sft differs from start."""
    num_dropped: int = 0
    """Those of them that were dropped."""
    num_bad: int = 0
    """NaN or infinite entries of the result."""
    unlike_base: int = 0
    unlike_sft: int = 0

    def add(self, other: "Sums") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def merge_checkpoints(
    base: Path,
    start: Path,
    sft: Path,
    out: Path,
    recipe: Recipe,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write `out` = alpha * base + (1 - alpha) * (start + dare(sft - start)); return the report.

    `progress(done, total)` counts tensors. The result has the base's tensors and dtypes and the sft's
    tokenizer and configuration; it is the same byte for byte with any number of threads.

    Raises:
        ValueError: models that do not fit each other, a broken file, or `out` exists and is not empty.
        OSError: no space; nothing is left under the final name.
    """
    started = time.time()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} exists and is not empty; choose another output directory")
    readers = [CheckpointReader(path) for path in (base, start, sft)]
    for reader in readers[1:]:
        check_same_shapes(readers[0], reader)
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        for file in sft.iterdir():
            if file.suffix in (".json", ".txt", ".model", ".jinja") and file.name not in WEIGHT_FILES:
                shutil.copy2(file, scratch)
        sums, counts = _write_weights(readers, scratch / "model.safetensors", recipe, threads, progress)
        report = _report(sums, recipe, readers, scratch / "model.safetensors") | counts
        report |= {"seconds": time.time() - started, "base": str(base), "start": str(start), "sft": str(sft)}
        (scratch / "merge.json").write_text(json.dumps(report, indent=2) + "\n")
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            need = readers[0].description.bytes / 1e9
            raise OSError(errno.ENOSPC, f"no space for the merged checkpoint: {need:.1f} GB in {out}") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def _write_weights(
    readers: list[CheckpointReader],
    file: Path,
    recipe: Recipe,
    threads: int | None,
    progress: Callable[[int, int], None],
) -> tuple[Sums, dict[str, int]]:
    """Lay the output file out, then fill it piece by piece on a pool of threads."""
    base = readers[0]
    tied = base.description.tied
    entries = [entry for name, entry in base.entries.items() if not (tied and name == "lm_head.weight")]
    floats = [entry for entry in entries if entry.dtype in TORCH_TYPES]
    places, target = _lay_out(file, entries)
    for entry in entries:
        if entry.dtype not in TORCH_TYPES:
            at = places[entry.name]
            target[at : at + entry.num_bytes] = readers[2].buffer(entry.name)
    tasks = [
        (entry, slice(at, min(at + TASK_ENTRIES, entry.num_entries)))
        for entry in floats
        for at in range(0, entry.num_entries, TASK_ENTRIES)
    ]
    total, seen = Sums(), set()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            done = pool.map(lambda task: _merge_task(readers, target, places[task[0].name], *task, recipe), tasks)
            for (entry, _), sums in zip(tasks, done, strict=True):
                total.add(sums)
                if entry.name not in seen:
                    seen.add(entry.name)
                    progress(len(seen), len(floats))
    finally:
        torch.set_num_threads(before)
    return total, {
        "num_tensors_merged": len(floats),
        "num_tensors_copied": len(entries) - len(floats),
        "num_tensors_tied": len(base.entries) - len(entries),
    }


def _lay_out(file: Path, entries: list[Entry]) -> tuple[dict[str, int], mmap.mmap]:
    """Create the safetensors file with its header and its full size on disk; where each tensor's bytes go."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in sorted(entries, key=lambda e: (-e.num_bytes // max(1, e.num_entries), e.name)):
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.num_bytes],
        }
        at += entry.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb+") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.flush()
        # Space is taken now: a page of a sparse file that finds no room later would kill the process.
        os.posix_fallocate(stream.fileno(), 0, 8 + len(text) + at)
        target = mmap.mmap(stream.fileno(), 0)
    places = {e.name: 8 + len(text) + header[e.name]["data_offsets"][0] for e in entries}
    return places, target


def _merge_task(
    readers: list[CheckpointReader], target: mmap.mmap, place: int, entry: Entry, part: slice, recipe: Recipe
) -> Sums:
    """Merge one part of one tensor into the output file."""
    weights = [_entries_of(r.buffer(entry.name), r.entries[entry.name].dtype) for r in readers]
    kind = TORCH_TYPES[entry.dtype]
    out = torch.frombuffer(target, dtype=kind, count=entry.num_entries, offset=place)
    total = Sums()
    for at in range(part.start, part.stop, CHUNK):
        piece = slice(at, min(at + CHUNK, part.stop))
        base, start, sft = (w[piece] for w in weights)
        tuned = tuned_piece(start, sft, recipe, entry.name, piece)
        out[piece] = blend(base, tuned, recipe.alpha)
        total.add(_sums(base, start, sft, tuned, out[piece]))
    return total


def _entries_of(buffer: memoryview, dtype: str) -> Tensor:
    """A tensor's bytes as a flat tensor, without a copy."""
    return torch.frombuffer(buffer, dtype=TORCH_TYPES[dtype])


def _sums(base: Tensor, start: Tensor, sft: Tensor, tuned: Tensor, merged: Tensor) -> Sums:
    """The report's sums over one piece."""
    base, start, sft, merged = base.float(), start.float(), sft.float(), merged.float()
    delta, d, kept, moved = sft - start, start - base, tuned - start, merged - base
    changed = delta != 0
    return Sums(
        d_d=torch.dot(d, d).item(),
        d_delta=torch.dot(d, delta).item(),
        delta_delta=torch.dot(delta, delta).item(),
        kept_delta=torch.dot(kept, kept).item(),
        moved=torch.dot(moved, moved).item(),
        num_changed=int(changed.sum()),
        num_dropped=int((changed & (kept == 0)).sum()),
        num_bad=int((~torch.isfinite(merged)).sum()),
        unlike_base=int((moved != 0).sum()),
        unlike_sft=int((merged != sft).sum()),
    )


def _report(sums: Sums, recipe: Recipe, readers: list[CheckpointReader], file: Path) -> dict[str, Any]:
    """The verification report of a merge."""
    expected = expected_distance(sums.d_d, sums.d_delta, sums.delta_delta, recipe.alpha, recipe.drop_rate)
    with file.open("rb") as stream:
        digest = file_digest(stream, "sha256").hexdigest()
    return {
        "alpha": recipe.alpha,
        "drop_rate": recipe.drop_rate,
        "seed": recipe.seed,
        "num_parameters": readers[0].description.num_parameters,
        "bytes": file.stat().st_size,
        "num_changed": sums.num_changed,
        "drop_rate_achieved": sums.num_dropped / sums.num_changed if sums.num_changed else None,
        "delta_norm": sums.delta_delta**0.5,
        "delta_norm_after_dare": sums.kept_delta**0.5,
        "moved_from_base": sums.moved**0.5,
        "moved_from_base_expected": expected,
        "num_not_finite": sums.num_bad,
        "identical_to_base": sums.unlike_base == 0,
        "identical_to_sft": sums.unlike_sft == 0,
        "sha256": {file.name: digest},
    }


def run(job: MergeJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Merge into `checkpoint/`, anew where an earlier attempt was cut off."""
    shutil.rmtree(place.checkpoint, ignore_errors=True)
    return merge_checkpoints(
        Path(job.base.path),
        Path(job.start.path),
        Path(job.sft.path),
        place.checkpoint,
        Recipe(job.alpha, job.drop_rate, job.seed),
        threads=job.threads,
        progress=lambda done, total: emit("progress", step=done, total=total, unit="tensors"),
    )


if __name__ == "__main__":
    main(MergeJob, run)
