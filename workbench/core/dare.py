"""DARE and the merge back to the base (paper, Eq. 5-6).

    delta  = sft - start
    dare   : each entry of delta is dropped with probability p; survivors are divided by (1 - p)
    merged = alpha * base + (1 - alpha) * (start + dare(delta))

Which entries are dropped depends on (seed, tensor name, flat index) alone. The mask is no stream of
random numbers but a hash of the index, so it is the same in any order, in any chunks, on any number of
threads, and on a CPU or a GPU.

Here is what is computed, as torch operations, which is also what runs on a GPU. `core.kernel` holds the
same arithmetic compiled for the CPU; a test holds the two equal bit by bit.
"""

import torch
from torch import Tensor

from workbench.core.recipe import Recipe, chunks, drop_threshold, mask_keys


def keep_mask(seed: int, name: str, drop_rate: float, piece: slice, device: torch.device | str = "cpu") -> Tensor:
    """True where an entry of the flattened tensor `name` survives: (piece.stop - piece.start,) bool.

    Each entry's index is hashed to 32 uniform bits by two rounds of a multiply-xorshift permutation
    (constants: https://github.com/skeeto/hash-prospector, "triple32"), keyed before each round. An entry
    is dropped where the bits, read as a signed number, lie under (p - 1/2) * 2^32.
    """
    bits = torch.arange(piece.stop - piece.start, dtype=torch.int32, device=device)
    bits += _signed(piece.start & 0xFFFFFFFF)
    scratch = torch.empty_like(bits)
    for key in mask_keys(seed, name, piece.start):
        bits ^= _signed(key)
        _permute(bits, scratch)
    return bits >= drop_threshold(drop_rate) - 2**31


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
    for piece in chunks(0, flat.numel()):
        keep = keep_mask(seed, name, drop_rate, piece, delta.device)
        out[piece] = flat[piece].float() * keep / (1 - drop_rate)
    return out.view(delta.shape)


def merge_tensor(base: Tensor, start: Tensor, sft: Tensor, recipe: Recipe, name: str) -> Tensor:
    """One weight of the merged model (Eq. 6), in the base's dtype. All shapes equal; CPU or GPU.

    For the rule "dare", the only one that needs nothing but the entry itself. Written so that nothing is
    lost where nothing should change: a kept entry is sft + (sft - start) * p / (1 - p), which is sft
    itself at p = 0, a dropped one is start itself, and where base and tuned agree so does the result.

    Raises:
        ValueError: shapes differ, or another rule.
    """
    if not base.shape == start.shape == sft.shape:
        raise ValueError(
            f"{name}: shapes differ: base {list(base.shape)}, start {list(start.shape)}, sft {list(sft.shape)}"
        )
    if recipe.rule != "dare":
        raise ValueError(f"{recipe.rule} looks at whole tensors; workbench.merging has it")
    shape, alpha, towards = base.shape, recipe.alpha_of(name), start if recipe.towards == "start" else base
    out = torch.empty_like(base, memory_format=torch.contiguous_format).flatten()
    towards, start, sft = towards.flatten(), start.flatten(), sft.flatten()
    for piece in chunks(0, out.numel()):
        target, origin, tuned = towards[piece].float(), start[piece].float(), sft[piece].float()
        keep = keep_mask(recipe.seed, name, recipe.drop_rate, piece, base.device)
        tuned = torch.where(keep, tuned + (tuned - origin) * recipe.boost, origin)
        if alpha == 1:
            tuned = target
        elif alpha > 0:
            tuned = tuned + (target - tuned) * alpha
        out[piece] = tuned
    return out.view(shape)
