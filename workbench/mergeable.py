"""What merging, and comparing weights, asks of checkpoints: one shape, and weights that are plain numbers. No torch.

Whoever opens checkpoints for that asks here, and so does what starts a run that will merge, before it starts.
"""

from pathlib import Path

import numpy as np

from workbench.checkpoints import HEAD, NUMPY_TYPES, CheckpointReader, Tensors
from workbench.core.layers import part_of
from workbench.core.recipe import chunks

PLAIN = f"merging and weight change need {', '.join(NUMPY_TYPES)}; give a copy of the model that is not quantised"


def check_sides(base: CheckpointReader, *others: CheckpointReader) -> None:
    """Raise ValueError, naming file and tensor, where checkpoints cannot be merged."""
    check_comparable(base, *others)
    for reader in (base, *others):
        if settings := reader.config.get("quantization_config"):
            method = settings.get("quant_method", "of no named method")
            raise ValueError(f"{reader.path / 'config.json'} has a quantization_config ({method}), and {PLAIN}")
        if HEAD in reader.entries and (base.description.tied or reader.description.tied):
            _check_tied(reader)


def check_comparable(one: CheckpointReader, *others: CheckpointReader) -> None:
    """Raise ValueError, naming file and tensor, where checkpoints cannot be compared weight by weight."""
    for reader in (one, *others):
        _check_plain(reader)
    for other in others:
        check_same_shapes(one, other)


def check_base(path: Path, start: Path | None = None) -> None:
    """Raise ValueError where what is fine-tuned from a model could not be merged back to it.

    What only transformers can tell, by building the model, is `phases.saved_again`' to say.
    """
    check_sides(CheckpointReader(path), *([CheckpointReader(start)] if start else []))


def check_same_shapes(base: CheckpointReader, other: CheckpointReader) -> None:
    """Raise ValueError, naming file and tensor, where two checkpoints are not of one shape.

    A `lm_head.weight` that only one of two tied models writes out is no difference.
    """
    names = {base.description.architecture, other.description.architecture}
    if len(names) > 1:
        raise ValueError(
            f"{other.path} is a {other.description.architecture}, but the base {base.path} is a "
            f"{base.description.architecture}; only checkpoints of one architecture can be merged"
        )
    for reader, against in ((other, base), (base, other)):
        for name, entry in reader.entries.items():
            match = against.entries.get(name)
            if match is None:
                if name == HEAD and reader.description.tied:
                    continue
                raise ValueError(f"{against.path} has no tensor {name!r}, which {reader.path} has")
            if match.shape != entry.shape:
                raise ValueError(
                    f"tensor {name!r} is {list(entry.shape)} in {entry.file} but {list(match.shape)} in "
                    f"{match.file}; both must come from the same base (was the vocabulary resized?)"
                )
            if match.dtype != entry.dtype and not {match.dtype, entry.dtype} <= NUMPY_TYPES.keys():
                raise ValueError(
                    f"tensor {name!r} is {entry.dtype} in {entry.file} but {match.dtype} in {match.file}; what is no "
                    "floating-point weight is copied, so all sides must have one type"
                )


def embeddings(reader: CheckpointReader) -> list[str]:
    """The tensors that can be the input embedding: outside the layers, a row for each token."""
    rows = reader.description.vocab_size
    return [
        name
        for name, entry in reader.entries.items()
        if part_of(name, entry.shape) == (None, "embeddings") and entry.shape[0] == (rows or entry.shape[0])
    ]


def _check_plain(reader: CheckpointReader) -> None:
    """Quantised weights are codes: their mean is no weight. Of whole numbers, only masks and tables of indices pass."""
    for name, entry in reader.entries.items():
        is_weight = name.endswith("weight") or part_of(name, entry.shape)[0] is not None
        if entry.dtype not in NUMPY_TYPES and (is_weight or entry.dtype.startswith("F")):
            raise ValueError(f"{entry.file}: {name} is {entry.dtype}, and {PLAIN}")


def _check_tied(reader: CheckpointReader) -> None:
    """A head beside a tied embedding must be that embedding: transformers takes any other for a head of its own."""
    if not any(_are_equal(reader, name, HEAD) for name in embeddings(reader)):
        raise ValueError(
            f"{reader.entries[HEAD].file} has an {HEAD} unlike its embedding, while the model's config.json says "
            "tie_word_embeddings, and transformers loads the two apart; set that to false in the config.json of base, "
            "start and sft, each of which must then hold a head"
        )


def _are_equal(tensors: Tensors, one: str, other: str) -> bool:
    """Whether two tensors hold the same."""
    left, right = tensors.entries[one], tensors.entries[other]
    return (left.shape, left.dtype) == (right.shape, right.dtype) and all(
        np.array_equal(tensors.values(one, piece), tensors.values(other, piece))
        for piece in chunks(0, left.num_entries)
    )
