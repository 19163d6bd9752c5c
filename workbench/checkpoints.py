"""Model directories: safetensors files read tensor by tensor, without torch.

A checkpoint is a directory with `config.json` and either `model.safetensors` or shards with
`model.safetensors.index.json`. Pickle files are refused: opening one can run code.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

PROJECT = Path(__file__).parents[1]
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
NUMPY_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""The floating-point types, as numpy holds them; bfloat16 as the bits."""
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
MERGE_REPORT = "merge.json"
"""Beside a merge's weights: what they can be made again from."""
HEAD = "lm_head.weight"
BUFFER = re.compile(r"(?:.*[._])?(?:inv_freq|(?:cos|sin)_cached|masked_bias|causal_mask|position_ids|embed_positions)")
MASK = re.compile(r".*att(?:n|ention)\.bias")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte, from the beginning of the file."""
    num_bytes: int

    @property
    def num_entries(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True)
class Description:
    """What is known of a checkpoint without reading its weights."""

    path: Path
    num_parameters: int
    bytes: int
    dtype: str
    architecture: str
    tied: bool
    """Whether the embedding is the head too; a config.json that does not say leaves it to whether there is a head."""
    vocab_size: int | None


class Tensors:
    """Tensors in safetensors files, memory-mapped; nothing is read until it is touched."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._maps: dict[Path, mmap.mmap] = {}

    def buffer(self, name: str) -> memoryview:
        """The bytes of a tensor, as they are in the file."""
        entry = self.entries[name]
        if entry.file not in self._maps:
            with entry.file.open("rb") as file:
                self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return memoryview(self._maps[entry.file])[entry.start : entry.start + entry.num_bytes]

    def values(self, name: str, piece: slice) -> NDArray:
        """A piece of a flattened tensor as the kernels take it: float32, or the uint16 bits of bfloat16."""
        array = np.frombuffer(self.buffer(name), NUMPY_TYPES[self.entries[name].dtype])[piece]
        return array if array.dtype in (np.uint16, np.float32) else array.astype(np.float32)


class CheckpointReader(Tensors):
    """The tensors of a checkpoint, but for those that transformers makes anew and never saves again.

    Old files hold them: Llama-2's `rotary_emb.inv_freq`, GPT-2's masks. A model with code of its own may need them.

    Raises:
        ValueError: not a checkpoint, pickle files only, a missing shard, a truncated or corrupt file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = read_object(path / "config.json")
        super().__init__(entry for file in _files(path) for entry in read_entries(file))
        self._check_index()
        buffers = [entry.name for entry in self.entries.values() if _is_buffer(entry)]
        if buffers and not needs_own_code(path):
            for name in buffers:
                del self.entries[name]

    @cached_property
    def description(self) -> Description:
        """Size, type and architecture."""
        sizes: dict[str, int] = {}
        for entry in self.entries.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.num_entries
        return Description(
            path=self.path,
            num_parameters=sum(sizes.values()),
            bytes=sum(entry.num_bytes for entry in self.entries.values()),
            dtype=max(sizes, key=sizes.get),
            architecture=(self.config.get("architectures") or ["unknown"])[0],
            tied=self._is_tied(),
            vocab_size=self.config.get("vocab_size"),
        )

    def _is_tied(self) -> bool:
        """By config.json, that of the text model first; where it is silent, the default is that of the model's class,
        and most that leave the head out tie it."""
        text = self.config.get("text_config") or {}
        said = text.get("tie_word_embeddings", self.config.get("tie_word_embeddings"))
        return HEAD not in self.entries if said is None else bool(said)

    def _check_index(self) -> None:
        """Every tensor that the index promises must be in its shard."""
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            for name, file in read_object(index)["weight_map"].items():
                if name not in self.entries:
                    raise ValueError(f"{self.path / file} has no tensor {name!r}, which the index says is there")


def describe(path: Path) -> Description:
    """Size, type and architecture of a model directory."""
    return CheckpointReader(path).description


def is_removed(path: Path) -> bool:
    """Whether a directory holds a merge whose weights were removed; `merging.files.restore` makes them again."""
    return (path / MERGE_REPORT).is_file() and not (path / "model.safetensors").exists()


def weights_lock(path: Path) -> FileLock:
    """Held while a merge's weights are removed or made again."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _is_buffer(entry: Entry) -> bool:
    """Whether a tensor is a table of positions or a causal mask, (1, 1, n, n): no model of transformers saves it."""
    is_mask = entry.shape[:2] == (1, 1) and len(entry.shape) == 4 and MASK.fullmatch(entry.name)
    return bool(is_mask or BUFFER.fullmatch(entry.name))


def absolute_model(name: str) -> str:
    """A local model directory as an absolute path, also one given relative to the project; else the name."""
    for path in (Path(name).expanduser(), PROJECT / name):
        if path.is_dir():
            return str(path.absolute())
    return name


def check_model(name: str) -> Description | None:
    """What a model is, or None for a hub name, which is not fetched.

    Raises:
        ValueError: a path that does not exist, or no usable checkpoint there.
    """
    path = Path(absolute_model(name))
    if is_removed(path):  # made again by whoever needs it; it has its base's shapes
        base = check_model(read_object(path / MERGE_REPORT).get("base", ""))
        return replace(base, path=path) if base else None
    if path.is_dir():
        return describe(path)
    parts = name.split("/")
    if name.startswith((".", "~", "/")) or len(parts) > 2 or not all(parts) or parts[0] == "data":
        raise ValueError(
            f"no model directory {name!r}; give a directory with config.json and *.safetensors, or a hub name"
        )
    return None


def resolve_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """The directory of a model, fetched from the Hugging Face hub where it is not local; its code where it is trusted.

    Raises:
        ValueError: no such directory or hub model, or the hub cannot be reached.
    """
    if check_model(name) is not None:
        return Path(absolute_model(name))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, allow_patterns=HUB_FILES + ["*.py"] * trust_remote_code))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {name!r} is no local directory and could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); check the name and the network, or give a directory"
        ) from error
    describe(path)
    return path


def needs_own_code(path: Path) -> bool:
    """Whether a model brings code along that its loading would have to run: its type is none of transformers' own.

    Without importing transformers; where it names its folders otherwise, transformers itself says so later.
    """
    config, package = read_object(path / "config.json"), find_spec("transformers")
    if "auto_map" not in config or package is None:
        return False
    known = Path(package.origin).parent / "models" / str(config.get("model_type", "")).replace("-", "_")
    return not config.get("model_type") or not known.is_dir()


def check_code(name: str, trust_remote_code: bool, setting: str = "trust_remote_code") -> None:
    """Raise ValueError where a model here needs its own code, and that is not trusted."""
    if check_model(name) is not None and not trust_remote_code and needs_own_code(Path(absolute_model(name))):
        raise ValueError(
            f"{name} brings Python code along that loading it would run here, with your files, keys and network: read "
            f"it, and set {setting} to true if you trust it, or choose a model that transformers knows"
        )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that must be there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is no model directory: it has no {path.name}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        files = [path / name for name in sorted(set(read_object(index)["weight_map"].values()))]
        for file in files:
            if file.parent != path:
                raise ValueError(f"{index} names {str(file)!r}, which is not beside it; its shards must be")
            if not file.exists():
                raise ValueError(f"shard {file.name} is missing from {path}; the index names {len(files)} shards")
        return files
    if (path / "model.safetensors").exists():
        return [path / "model.safetensors"]
    if (path / "adapter_model.safetensors").exists():
        raise ValueError(f"{path} is a LoRA adapter; it can be merged as the sft side, and is no model by itself")
    if any(file for pattern in PICKLES for file in path.glob(pattern)):
        raise ValueError(
            f"{path} holds pickle files only ({', '.join(PICKLES)}), which can run code when opened; convert it to "
            "safetensors"
        )
    if is_removed(path):
        raise ValueError(f"the weights of {path} were removed to save space; make them again: workbench remake {path}")
    raise ValueError(f"{path} has no model.safetensors; weights in other forms are neither fetched nor opened")


def read_entries(file: Path) -> list[Entry]:
    """The header of one safetensors file, checked against its size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise ValueError(f"{file} is truncated or no safetensors file: its header is cut off")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file} is corrupt: its header is not JSON") from error
    header.pop("__metadata__", None)
    entries = []
    for name, info in header.items():
        begin, end = info["data_offsets"]
        shape = tuple(info["shape"])
        if begin < 0 or min(shape, default=0) < 0:
            raise ValueError(f"{file} is corrupt: tensor {name!r} begins at {begin} and has shape {list(shape)}")
        if 8 + length + end > size:
            raise ValueError(f"{file} is truncated: tensor {name!r} ends behind the end of the file")
        if end - begin != prod(shape) * ITEM_BYTES.get(info["dtype"], -1):
            raise ValueError(f"{file} is corrupt: tensor {name!r} has {end - begin} bytes for shape {list(shape)}")
        entries.append(Entry(name, info["dtype"], shape, file, 8 + length + begin, end - begin))
    return entries
