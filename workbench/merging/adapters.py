"""LoRA adapter directories, read as if they were folded into the checkpoint they were trained on.

W + scaling * B A  is made piece by piece in float32, when it is asked for; no folded model is written.
Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import math
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.checkpoints import (
    HEAD,
    NUMPY_TYPES,
    CheckpointReader,
    Description,
    Entry,
    Tensors,
    read_entries,
    read_object,
)
from workbench.mergeable import embeddings

PREFIX = "base_model.model."
WITHOUT_BEARING = {
    "peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "lora_dropout", "modules_to_save",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying",
    "megatron_core", "qalora_group_size", "eva_config", "runtime_config",
}  # fmt: skip
"""Settings whose every value is right: they are read here, or the file's tensors show what came of them. Of any other
setting, known or not, PEFT's default (null, false, empty) leaves the adapter plain, and no other value is taken."""
PLAIN = {"bias": ("none",), "init_lora_weights": (True, "true", "gaussian", "eva", "orthogonal", "mica")}
"""Values beside the empty ones that leave the adapter plain. PEFT begins there with B A = 0, or at random, on the base
as it is; with pissa, olora, corda, loftq and lora_ga it takes what A and B begin with out of the base first
(https://github.com/huggingface/peft/blob/v0.19.0/src/peft/tuners/lora/layer.py, update_layer)."""
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
"""Model types whose layers are transformers' Conv1D: (columns, rows), whatever fan_in_fan_out says."""
KNOWN = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a LoRA adapter."""
    return (path / "adapter_config.json").is_file()


class AdapterReader:
    """The tensors of `start` with a LoRA adapter folded in; read like a `CheckpointReader`.

    Raises:
        ValueError: no LoRA adapter, a variant that is not read here, or it does not fit `start`.
    """

    def __init__(self, path: Path, start: CheckpointReader) -> None:
        self.path, self.start, self.config = path, start, start.config
        self.settings: dict[str, Any] = read_object(path / "adapter_config.json")
        self._refuse_unknown()
        self.file = path / "adapter_model.safetensors"
        if not self.file.is_file():
            raise ValueError(f"{path} has no adapter_model.safetensors (pickle files are not opened)")
        self.tensors = Tensors(read_entries(self.file))
        self.low_rank: dict[str, dict[str, Entry]] = {}
        self.replaced: dict[str, Entry] = {}
        for name, entry in self.tensors.entries.items():
            self._place(name.removeprefix(PREFIX), entry)
        self.scaling = {name: self._scaling(name, sides) for name, sides in self.low_rank.items()}
        self.entries = {name: self._folded_entry(entry) for name, entry in start.entries.items()}

    def _refuse_unknown(self) -> None:
        settings, cure = self.settings, "is not supported; give the model it is folded into, where PEFT can do that"
        if settings.get("peft_type") != "LORA":
            raise ValueError(f"{self.path} is a {settings.get('peft_type')} adapter; only LORA can be merged")
        for key, value in settings.items():
            word = value.lower() if isinstance(value, str) else value
            if value and key not in WITHOUT_BEARING and word not in PLAIN.get(key, ()):
                raise ValueError(f"{self.path}: {key} = {value} {cure}")
        if (kind := self.config.get("model_type")) in TRANSPOSED:
            raise ValueError(f"{self.path}: fan_in_fan_out, as the layers of a {kind} have it, {cure}")

    def _place(self, name: str, entry: Entry) -> None:
        """Sort one tensor of the adapter file to the weight it changes."""
        found = KNOWN.fullmatch(name)
        target = f"{found['module']}.weight" if found else name
        if entry.dtype not in NUMPY_TYPES:
            raise ValueError(f"{entry.file}: tensor {entry.name!r} is {entry.dtype}, not {', '.join(NUMPY_TYPES)}")
        if self.start.description.tied and target in (HEAD, *embeddings(self.start)):
            raise ValueError(
                f"{entry.file}: tensor {entry.name!r} changes {target!r}, and {self.start.path} ties embedding and "
                "head: adapters that train either are not supported; give the folded model and a base with a head apart"
            )
        if target not in self.start.entries:
            raise ValueError(
                f"{entry.file}: tensor {entry.name!r} changes {target!r}, which {self.start.path} lacks; adapters of "
                "embeddings and heads are not supported, give the model with the adapter folded in"
            )
        rows, columns = (*self.start.entries[target].shape, 0)[:2]
        if found:
            self.low_rank.setdefault(target, {})[found["side"]] = entry
            wanted = columns if found["side"] == "A" else rows
            fits = entry.shape[1 if found["side"] == "A" else 0] == wanted
        else:
            self.replaced[target] = entry
            fits = entry.shape == self.start.entries[target].shape
        if not fits:
            raise ValueError(
                f"{entry.file}: tensor {entry.name!r} is {list(entry.shape)}, which does not fit {target!r} "
                f"{list(self.start.entries[target].shape)} of {self.start.path}; was it trained on another base?"
            )

    def _folded_entry(self, entry: Entry) -> Entry:
        changed = entry.name in self.low_rank or entry.name in self.replaced
        return Entry(entry.name, "F32", entry.shape, self.file, 0, 4 * entry.num_entries) if changed else entry

    @property
    def description(self) -> Description:
        """That of the checkpoint the adapter belongs to."""
        return self.start.description

    def buffer(self, name: str) -> memoryview:
        """The bytes of a tensor that the adapter leaves alone."""
        return self.start.buffer(name)

    def values(self, name: str, piece: slice) -> NDArray:
        """A piece of a flattened tensor, the adapter folded in."""
        if name in self.replaced:
            return as_float32(self.tensors.values(self.replaced[name].name, piece))
        if name not in self.low_rank:
            return self.start.values(name, piece)
        columns = self.start.entries[name].shape[1]
        first, last = piece.start // columns, -(-piece.stop // columns)
        a, b, scaling = self._factors[name]
        change = (scaling * (b[first:last] @ a)).ravel()
        return (
            as_float32(self.start.values(name, piece))
            + change[piece.start - first * columns :][: piece.stop - piece.start]
        )

    @cached_property
    def _factors(self) -> dict[str, tuple[NDArray, NDArray, float]]:
        """A (rank, columns), B (rows, rank) in float32 and the scaling, by weight."""
        return {
            name: (self._matrix(sides["A"]), self._matrix(sides["B"]), self.scaling[name])
            for name, sides in self.low_rank.items()
        }

    def _matrix(self, entry: Entry) -> NDArray:
        return as_float32(self.tensors.values(entry.name, slice(None))).reshape(entry.shape)

    def _scaling(self, name: str, sides: dict[str, Entry]) -> float:
        """lora_alpha / r, or over its root with rslora; a pattern may give a module an alpha of its own."""
        for one, other in ("AB", "BA"):
            if other not in sides:
                raise ValueError(
                    f"{self.file} has {sides[one].name!r} without its lora_{other}; it was not saved whole"
                )
        rank, module = sides["A"].shape[0], name.removesuffix(".weight")
        if sides["B"].shape[1] != rank:
            raise ValueError(
                f"{self.file}: the ranks of {sides['A'].name!r} and its lora_B differ; it was not saved whole"
            )
        try:
            patterns = (self.settings.get("alpha_pattern") or {}).items()
            own = [alpha for key, alpha in patterns if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)]
            alpha = own[0] if own else self.settings["lora_alpha"]
            return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
        except (AttributeError, KeyError, TypeError, ZeroDivisionError, re.error) as error:
            raise ValueError(
                f"{self.path / 'adapter_config.json'} gives {module} no scaling ({type(error).__name__}: {error}): "
                f"lora_alpha must be a number, alpha_pattern map names or patterns of modules to numbers"
            ) from error


def as_float32(values: NDArray) -> NDArray:
    """float32 from what `values` gives; bfloat16 is the upper half of a float32."""
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values
