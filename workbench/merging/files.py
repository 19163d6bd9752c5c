"""Merged checkpoints on disk: written whole or not at all, with a report from which they can be made again."""

import errno
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.checkpoints import MERGE_REPORT as REPORT
from workbench.checkpoints import is_removed, weights_lock
from workbench.core.distances import from_base
from workbench.core.recipe import Recipe
from workbench.merging.stream import Models, Part, Progress, Totals, merged_parts, open_models, pair_moments

Parts = Callable[..., Iterator[Part]]
WEIGHTS = "model.safetensors"
KEPT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".py")
NOT_COPIED = (WEIGHTS, f"{WEIGHTS}.index.json", REPORT, "adapter_config.json")


def merge_checkpoints(
    base: Path, start: Path, sft: Path, outputs: Mapping[Path, Recipe], *,
    threads: int | None = None, progress: Progress = lambda done, total: None, parts: Parts = merged_parts,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write one merged checkpoint per recipe, in one pass over the inputs; return their reports.

    `sft` may be a LoRA adapter directory trained on `start`. A result has the base's tensors and dtypes and
    the sft's tokenizer and configuration; it is the same byte for byte with any number of threads. The
    report is also written beside the weights, as merge.json. `parts` may be another maker of the same parts.

    Raises:
        ValueError: models that do not fit each other, a broken file, NaN or infinity, or an output that exists and is
            not empty; nothing is left under a final name.
        OSError: no space; nothing is left under a final name.
    """
    started, models = time.time(), open_models(base, start, sft)
    recipes, totals, seen = list(outputs.values()), [Totals() for _ in outputs], 0
    with _new_directories(outputs, models) as scratch, ExitStack() as stack:
        files = [stack.enter_context(_WeightsFile(folder / WEIGHTS, models)) for folder in scratch]
        for part in parts(models, recipes, threads=threads):
            for file, total, array, found in zip(files, totals, part.arrays, part.totals, strict=True):
                file.append(array)
                total += found
            if part.is_last:
                progress(seen := seen + 1, len(models.merged))
        reports = []
        for folder, file, recipe, total in zip(scratch, files, recipes, totals, strict=True):
            _copy_companions(models, folder)
            report = {"base": str(base), "start": str(start), "sft": str(sft), "recipe": asdict(recipe)}
            report |= _checks(models, recipe, total) | file.finish() | {"seconds": time.time() - started}
            (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            reports.append(report)
    return reports


def remake(directory: Path, *, threads: int | None = None) -> dict[str, Any]:
    """Make a merged checkpoint's deleted weights again from its merge.json, and check that they are the same.

    Raises:
        ValueError: no merge.json, the weights are still there, or its inputs have changed since.
    """
    try:
        report = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{directory} has no {REPORT}: it is not a merge of this workbench") from None
    if (directory / WEIGHTS).exists():
        raise ValueError(f"{directory / WEIGHTS} is still there; nothing to make again")
    restore(*(Path(report[side]) for side in ("base", "start", "sft")), threads=threads)
    recipe = recipe_of(report)
    scratch = directory.with_name(f".{directory.name}.again")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        again = merge_checkpoints(*(Path(report[side]) for side in ("base", "start", "sft")), {scratch: recipe},
                                  threads=threads)[0]  # fmt: skip
        if again["sha256"] != report["sha256"]:
            raise ValueError(
                f"{directory}: the weights differ from the first ones; base, start or sft has changed, or an earlier "
                "version merged their buffers too: merge them anew"
            )
        written = (directory / REPORT).stat()
        os.utime(scratch / WEIGHTS, ns=(written.st_atime_ns, written.st_mtime_ns))  # they are no newer than they were
        (scratch / WEIGHTS).replace(directory / WEIGHTS)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def restore(*directories: Path, threads: int | None = None) -> list[Path]:
    """Make again the weights of those directories that are merges without them; which these were.

    Raises:
        ValueError: they cannot be made the same again.
    """
    made = []
    for directory in dict.fromkeys(directories):
        if is_removed(directory):
            with weights_lock(directory):
                if is_removed(directory):  # another process may have been first
                    remake(directory, threads=threads)
                    made.append(directory)
    return made


def recipe_of(report: Mapping[str, Any]) -> Recipe:
    """The recipe in a report."""
    found = report["recipe"]
    factors = tuple((module, factor) for module, factor in found["module_factors"])
    return Recipe(**found | {"layer_alphas": tuple(found["layer_alphas"]), "module_factors": factors})


@contextmanager
def _new_directories(outputs: Mapping[Path, Recipe], models: Models) -> Iterator[list[Path]]:
    """Directories beside the outputs, renamed to them when all went well and removed otherwise."""
    for out in outputs:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"{out} exists and is not empty; choose another output directory")
    scratch = [out.with_name(f".{out.name}.tmp") for out in outputs]
    try:
        for folder in scratch:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        yield scratch
        for folder, out in zip(scratch, outputs, strict=True):
            if out.exists():
                out.rmdir()
            folder.rename(out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            need = len(scratch) * models.base.description.bytes / 1e9
            raise OSError(
                errno.ENOSPC, f"no space for {len(scratch)} merged checkpoint(s), {need:.1f} GB, in {scratch[0].parent}"
            ) from error
        raise
    finally:
        for folder in scratch:
            shutil.rmtree(folder, ignore_errors=True)


class _WeightsFile:
    """One safetensors file, written from its beginning to its end, and hashed on the way."""

    def __init__(self, path: Path, models: Models) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for entry in models.copied + models.merged:
            offsets = [end, end := end + entry.num_bytes]
            header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head, self.size = struct.pack("<Q", len(text)) + text, 8 + len(text) + end
        self.path, self.models, self.hash = path, models, sha256()

    def __enter__(self) -> "_WeightsFile":
        self.hashing = ThreadPoolExecutor(1)
        self.hashed = self.hashing.submit(self.hash.update, self.head)
        self.stream = self.path.open("wb")
        try:
            os.posix_fallocate(self.stream.fileno(), 0, self.size)  # a full disk shows before any work
        except OSError:
            self.__exit__()
            raise
        self.stream.write(self.head)
        for entry in self.models.copied:
            self.append(self.models.sft.buffer(entry.name))
        return self

    def __exit__(self, *error: object) -> None:
        self.hashing.shutdown()
        self.stream.close()

    def append(self, data: bytes | memoryview | NDArray) -> None:
        """Write what comes next, while another thread hashes it."""
        self.hashed.result()
        self.hashed = self.hashing.submit(self.hash.update, data)
        self.stream.write(data)

    def finish(self) -> dict[str, Any]:
        """Write out the file; its size and hash."""
        self.hashed.result()
        self.stream.flush()
        return {"bytes": self.size, "sha256": {WEIGHTS: self.hash.hexdigest()}}


def _copy_companions(models: Models, folder: Path) -> None:
    """Configuration and tokenizer: the sft's; those that an adapter directory lacks, its start's."""
    for source in (models.start.path, models.sft.path):
        if source == models.start.path and (models.sft.path / "config.json").is_file():
            continue
        for file in source.iterdir():
            if file.suffix in KEPT_SUFFIXES and file.name not in NOT_COPIED and not file.name.endswith(".index.json"):
                shutil.copy2(file, folder)


def _checks(models: Models, recipe: Recipe, total: Totals) -> dict[str, Any]:
    """What was done, against what should have been: the verification report."""
    found = total.named()
    report = {key: getattr(recipe, key) for key in ("alpha", "drop_rate", "seed")}
    report |= {key: found[key] for key in ("num_changed", "num_rounded")}
    return report | {
        "num_parameters": sum(entry.num_entries for entry in models.merged),
        "num_tensors_merged": len(models.merged),
        "num_tensors_copied": len(models.copied),
        "num_tensors_tied": models.num_tied,
        "drop_rate_achieved": found["num_dropped"] / found["num_changed"] if found["num_changed"] else None,
        "delta_norm": found["delta_delta"] ** 0.5,
        "delta_norm_after_dare": found["kept_kept"] ** 0.5,
        "moved_from_base": found["moved_moved"] ** 0.5,
        "moved_from_base_expected": _expected_move(models, recipe, found),
        "identical_to_base": found["unlike_base"] == 0,
        "identical_to_sft": found["unlike_sft"] == 0,
    }


def _expected_move(models: Models, recipe: Recipe, found: Mapping[str, float]) -> float | None:
    """E|merged - base| of the recipe; None for rules that are no linear function of a random mask."""
    if recipe.rule != "dare":
        return None
    if not recipe.layer_alphas and not recipe.module_factors:
        moments = [[found["d_d"], found["d_delta"], found["delta_delta"], 0.0, 0.0, 0.0]]
        return float(from_base(moments, recipe.alpha, recipe.drop_rate, recipe.towards)[0, 0])
    moments = pair_moments(models)
    alphas = [recipe.alpha_of(name) for name in moments]
    by_tensor = from_base(np.stack(list(moments.values())), alphas, recipe.drop_rate, recipe.towards)[0]
    return float(np.sqrt((by_tensor**2).sum()))
