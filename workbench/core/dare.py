"""DARE and the merge back to the base (paper, Eq. 5-6), on tensors.

    delta  = sft - start
    dare   : each entry of delta is dropped with probability p; survivors are divided by (1 - p)
    merged = alpha * base + (1 - alpha) * (start + dare(delta))

Which entries are dropped depends on (seed, tensor name, flat index) alone. The mask is no stream of
random numbers but a hash of the index, so it is the same in any order, in any chunks, on any number of
threads, and on a CPU or a GPU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

CHUNK = 1 << 17
"""Entries handled together: all temporaries of a chunk stay in a core's cache."""


@dataclass(frozen=True)
class Recipe:
    """What a merge depends on beside its inputs.

    Raises:
        ValueError: alpha outside [0, 1], drop_rate outside [0, 1), or NaN.
    """

    alpha: float
    drop_rate: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}; 1 returns the base")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate must be in [0, 1), got {self.drop_rate}; 0 keeps every change")


def chunks(num_entries: int) -> Iterator[slice]:
    """Consecutive pieces of a flattened tensor."""
    for at in range(0, num_entries, CHUNK):
        yield slice(at, min(at + CHUNK, num_entries))


def keep_mask(seed: int, name: str, drop_rate: float, piece: slice, device: torch.device | str = "cpu") -> Tensor:
    """True where an entry of the flattened tensor `name` survives: (piece.stop - piece.start,) bool.

    Each entry's index is hashed to 32 uniform bits by two rounds of a multiply-xorshift permutation
    (constants: https://github.com/skeeto/hash-prospector, "triple32"), keyed before each round. An entry
    is dropped where the bits, as a fraction of 2^32, lie under `drop_rate`.
    """
    digest = sha256(f"{seed}:{name}".encode()).digest()
    high = piece.start >> 32
    keys = [int.from_bytes(digest[8 * i : 8 * i + 4], "little", signed=True) for i in range(2)]
    keys[1] ^= (high * 0x9E3779B1) & 0x7FFFFFFF
    first = _signed(piece.start & 0xFFFFFFFF)
    bits = torch.arange(piece.stop - piece.start, dtype=torch.int32, device=device)
    bits += first
    scratch = torch.empty_like(bits)
    for key in keys:
        bits ^= key
        _permute(bits, scratch)
    threshold = min(math.floor(drop_rate * 2**32 + 0.5), 2**32 - 1) - 2**31
    return bits >= threshold


def _signed(word: int) -> int:
    """An unsigned 32-bit word as the int32 of the same bits."""
    return word - 2**32 if word >= 2**31 else word


def _permute(bits: Tensor, scratch: Tensor) -> None:
    """triple32 in place on int32; shifts of int32 keep the sign, so the bits they bring in are masked off."""
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB), (14, None)):
        torch.bitwise_right_shift(bits, shift, out=scratch)
        scratch &= (1 << (32 - shift)) - 1
        bits ^= scratch
        if factor is not None:
            bits *= _signed(factor)


def dare(delta: Tensor, drop_rate: float, seed: int, name: str) -> Tensor:
    """Drop entries of delta with probability `drop_rate` and divide the others by (1 - drop_rate).

    DARE (Yu et al. 2024, arXiv 2311.03099, Eq. 4). Any shape; float32 inside, the caller's dtype out.
    mergekit's `dare_linear` rescales to keep each tensor's L1 norm instead; this is the paper's 1/(1-p).
    """
    Recipe(0.0, drop_rate, seed)
    flat, out = delta.flatten(), torch.empty_like(delta).flatten()
    for piece in chunks(flat.numel()):
        keep = keep_mask(seed, name, drop_rate, piece, delta.device)
        out[piece] = flat[piece].float() * keep / (1 - drop_rate)
    return out.view(delta.shape)


def tuned_piece(start: Tensor, sft: Tensor, recipe: Recipe, name: str, piece: slice) -> Tensor:
    """start + dare(sft - start) in float32, for one piece of the flattened weights.

    Written so that nothing is lost where nothing should change: a kept entry is
    sft + (sft - start) * p / (1 - p), which is sft itself at p = 0; a dropped one is start itself.
    """
    start, tuned = start.float(), sft.float()
    if not recipe.drop_rate:
        return tuned
    keep = keep_mask(recipe.seed, name, recipe.drop_rate, piece, start.device)
    boosted = torch.add(tuned, tuned - start, alpha=recipe.drop_rate / (1 - recipe.drop_rate))
    return torch.where(keep, boosted, start)


def blend(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """alpha * base + (1 - alpha) * tuned in float32; base itself at alpha = 1, tuned itself at alpha = 0."""
    if alpha == 1:
        return base.float()
    if alpha == 0:
        return tuned
    return torch.add((1 - alpha) * tuned, base.float(), alpha=alpha)


def merge_tensor(base: Tensor, start: Tensor, sft: Tensor, recipe: Recipe, name: str) -> Tensor:
    """One weight of the merged model (Eq. 6), in the base's dtype. All shapes equal; CPU or GPU.

    Raises:
        ValueError: shapes differ.
    """
    if not base.shape == start.shape == sft.shape:
        raise ValueError(
            f"{name}: shapes differ: base {list(base.shape)}, start {list(start.shape)}, sft {list(sft.shape)}"
        )
    shape = base.shape
    out = torch.empty_like(base, memory_format=torch.contiguous_format).flatten()
    base, start, sft = base.flatten(), start.flatten(), sft.flatten()
    for piece in chunks(out.numel()):
        tuned = tuned_piece(start[piece], sft[piece], recipe, name, piece)
        out[piece] = blend(base[piece], tuned, recipe.alpha)
    return out.view(shape)


def expected_distance(d_d: float, d_delta: float, delta_delta: float, alpha: float, drop_rate: float) -> float:
    """Expected |merged - base| over masks, from |d|^2, <d, delta> and |delta|^2 with d = start - base.

    E|merged - base|^2 = (1 - alpha)^2 (|d|^2 + 2 <d, delta> + |delta|^2 / (1 - p)); its square root.
    """
    return (1 - alpha) * math.sqrt(max(0.0, d_d + 2 * d_delta + delta_delta / (1 - drop_rate)))
