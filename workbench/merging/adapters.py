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

from workbench.checkpoints import CheckpointReader, Description, Entry, Tensors, read_entries, read_object

PREFIX = "base_model.model."
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
        file = path / "adapter_model.safetensors"
        if not file.is_file():
            raise ValueError(f"{path} has no adapter_model.safetensors (pickle files are not opened)")
        self.tensors = Tensors(read_entries(file))
        self.low_rank: dict[str, dict[str, Entry]] = {}
        self.replaced: dict[str, Entry] = {}
        for name, entry in self.tensors.entries.items():
            self._place(name.removeprefix(PREFIX), entry)
        self.entries = {name: self._folded_entry(entry) for name, entry in start.entries.items()}

    def _refuse_unknown(self) -> None:
        settings = self.settings
        if settings.get("peft_type") != "LORA":
            raise ValueError(f"{self.path} is a {settings.get('peft_type')} adapter; only LORA can be merged")
        for key, plain in (("use_dora", False), ("fan_in_fan_out", False), ("bias", "none"), ("lora_bias", False)):
            if settings.get(key, plain) != plain:
                raise ValueError(f"{self.path}: {key} = {settings[key]} is not supported; fold it with PEFT first")

    def _place(self, name: str, entry: Entry) -> None:
        """Sort one tensor of the adapter file to the weight it changes."""
        found = KNOWN.fullmatch(name)
        target = f"{found['module']}.weight" if found else name
        if target not in self.start.entries:
            raise ValueError(f"{entry.file}: tensor {entry.name!r} changes {target!r}, which {self.start.path} lacks")
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
        return Entry(entry.name, "F32", entry.shape, self.path, 0, 4 * entry.num_entries) if changed else entry

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
            name: (self._matrix(sides["A"]), self._matrix(sides["B"]), self._scaling(name, sides["A"].shape[0]))
            for name, sides in self.low_rank.items()
        }

    def _matrix(self, entry: Entry) -> NDArray:
        return as_float32(self.tensors.values(entry.name, slice(None))).reshape(entry.shape)

    def _scaling(self, name: str, rank: int) -> float:
        """lora_alpha / r, or over its root with rslora; a pattern may give a module an alpha of its own."""
        module = name.removesuffix(".weight")
        patterns = self.settings.get("alpha_pattern") or {}
        own = [alpha for key, alpha in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)]
        alpha = own[0] if own else self.settings["lora_alpha"]
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def as_float32(values: NDArray) -> NDArray:
    """float32 from what `values` gives; bfloat16 is the upper half of a float32."""
    return (values.astype(np.uint32) << 16).view(np.float32) if values.dtype == np.uint16 else values
