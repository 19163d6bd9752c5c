"""The merge, its report's sums and the statistics of a pair of checkpoints, compiled for the CPU by numba.

Each kernel goes once over flat pieces of the weights, entry by entry, with everything in registers.
bfloat16 weights come as the uint16 of the same bits. The arithmetic of the
merge is float32, without fused operations, so its result has the same bytes on every machine. Sums are
float64 and may be reassociated, which lets the compiler vectorise them.

`core.dare` says what is computed and holds the same arithmetic for tensors on a GPU.
"""

import threading

import numpy as np
from llvmlite import ir
from numba import float32, njit, types, uint16, uint32
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

SUMS = ("d_d", "d_delta", "delta_delta", "kept_kept", "d_kept", "moved_moved")
"""What `merge` sums in float64: products of d = start - base, delta, kept = dare(delta), merged - base."""
COUNTS = ("num_changed", "num_dropped", "num_rounded", "num_not_finite", "unlike_base", "unlike_sft")
"""What it counts: entries in which sft differs from start, those of them dropped, results that the output's
dtype cannot hold exactly, NaN or infinite ones, and those that differ from base or sft."""
MOMENTS = ("d_d", "d_delta", "delta_delta", "dd_deltadelta", "d_deltadeltadelta", "delta_4")
"""What `pair_moments` sums: products of d and delta up to fourth order."""
_own = threading.local()


@intrinsic
def _float_of(typing_context, bits):  # noqa: ARG001 - numba's signature
    """The float32 of these 32 bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def _bits_of(typing_context, value):  # noqa: ARG001
    """The 32 bits of a float32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


def _load(weight):
    """A weight as float32."""


@overload(_load, inline="always")
def _load_for(weight):
    if isinstance(weight, types.Integer):
        return lambda weight: _float_of(uint32(weight) << uint32(16))
    return lambda weight: weight


def _rounded(value, like):
    """A float32 in the type of `like`: itself, or the nearest bfloat16 (ties to even; NaN stays NaN)."""


@overload(_rounded, inline="always")
def _rounded_for(value, like):
    if isinstance(like, types.Integer):

        def to_bfloat16(value, like):
            bits = _bits_of(value)
            nearest = (bits + uint32(0x7FFF) + ((bits >> uint32(16)) & uint32(1))) >> uint32(16)
            is_nan = (bits & uint32(0x7FFFFFFF)) > uint32(0x7F800000)
            return uint16((bits >> uint32(16)) | uint32(0x40)) if is_nan else uint16(nearest)

        return to_bfloat16
    return lambda value, like: value


@njit(inline="always")
def _permute(x):
    """triple32 of https://github.com/skeeto/hash-prospector."""
    # numba widens every sum and product of 32-bit integers; each is cut back at once.
    x = uint32(uint32(x ^ (x >> uint32(17))) * uint32(0xED5AD4BB))
    x = uint32(uint32(x ^ (x >> uint32(11))) * uint32(0xAC4C1B51))
    x = uint32(uint32(x ^ (x >> uint32(15))) * uint32(0x31848BAB))
    return uint32(x ^ (x >> uint32(14)))


@njit(nogil=True, error_model="numpy", cache=True)
def _merge(base, target, start, sft, out, tuned, first, key0, key1, threshold, trim, boost, alpha, scale):
    plain, whole = (alpha == float32(0)) & (scale == float32(1)), (alpha == float32(1)) & (scale == float32(1))
    changed = dropped = rounded = broken = off_base = off_sft = uint32(0)
    for i in range(base.size):
        b, goal, s, t = _load(base[i]), _load(target[i]), _load(start[i]), _load(sft[i])
        delta = t - s
        bits = _permute(uint32(_permute(uint32(uint32(first + uint32(i)) ^ key0)) ^ key1))
        keep = (uint32(bits ^ uint32(0x80000000)) >= threshold) & (abs(delta) >= trim)
        kept = t + delta * boost if keep else s
        blended = scale * kept + alpha * (goal - kept)
        exact = goal if whole else (kept if plain else blended)
        stored = _rounded(exact, out[i])
        merged = _load(stored)
        out[i], tuned[i] = stored, kept
        moved = delta != float32(0)
        changed = uint32(changed + uint32(moved))
        dropped = uint32(dropped + uint32(moved & (not keep)))
        rounded = uint32(rounded + uint32(merged != exact))
        broken = uint32(broken + uint32((_bits_of(merged) & uint32(0x7F800000)) == uint32(0x7F800000)))
        off_base = uint32(off_base + uint32(merged != b))
        off_sft = uint32(off_sft + uint32(merged != t))
    return changed, dropped, rounded, broken, off_base, off_sft


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc"})
def _merge_sums(base, start, sft, tuned, out, sums):
    dd = de = ee = kk = dk = mm = 0.0
    for i in range(base.size):
        b, s = _load(base[i]), _load(start[i])
        d, e = np.float64(s - b), np.float64(_load(sft[i]) - s)
        kept, moved = np.float64(tuned[i] - s), np.float64(_load(out[i]) - b)
        dd += d * d
        de += d * e
        ee += e * e
        kk += kept * kept
        dk += d * kept
        mm += moved * moved
    for place, value in enumerate((dd, de, ee, kk, dk, mm)):
        sums[place] += value


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc"})
def _pair_moments(base, start, sft, sums):
    dd = de = ee = ddee = deee = eeee = 0.0
    for i in range(base.size):
        s = _load(start[i])
        d, e = np.float64(s - _load(base[i])), np.float64(_load(sft[i]) - s)
        product, square = d * e, e * e
        dd += d * d
        de += product
        ee += square
        ddee += product * product
        deee += product * square
        eeee += square * square
    for place, value in enumerate((dd, de, ee, ddee, deee, eeee)):
        sums[place] += value


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc"})
def _dots(left, right, sums):
    ll = lr = rr = 0.0
    for i in range(left.size):
        x, y = np.float64(_load(left[i])), np.float64(_load(right[i]))
        ll += x * x
        lr += x * y
        rr += y * y
    for place, value in enumerate((ll, lr, rr)):
        sums[place] += value


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc"})
def _difference(left, right, sums):
    dd = ll = 0.0
    for i in range(left.size):
        x, y = np.float64(_load(left[i])), np.float64(_load(right[i]))
        dd += (y - x) * (y - x)
        ll += x * x
    sums[0] += dd
    sums[1] += ll


@njit(nogil=True, cache=True)
def _count_magnitudes(start, sft, high, counts):
    """Count |delta| by its upper 16 bits; with `high` given, those within that class by their lower 15."""
    for i in range(start.size):
        bits = _bits_of(_load(sft[i]) - _load(start[i])) & uint32(0x7FFFFFFF)
        if high < 0:
            counts[bits >> uint32(15)] += 1
        elif bits >> uint32(15) == high:
            counts[bits & uint32(0x7FFF)] += 1


def merge(
    base: NDArray, target: NDArray, start: NDArray, sft: NDArray, out: NDArray, *, first: int, keys: tuple[int, int],
    threshold: int, trim: float, boost: float, alpha: float, scale: float, sums: NDArray, counts: NDArray,
) -> None:  # fmt: skip
    """Fill `out` with scale * tuned + alpha * (target - tuned); add to `sums` (SUMS) and `counts` (COUNTS).

    All five: (entries,), float32 or the bits of bfloat16; `target` is base or start. tuned is
    sft + boost * (sft - start) where the hash of the entry's index (`first` + its place) reaches
    `threshold` and |sft - start| reaches `trim`, else start.
    """
    numbers = (uint32(keys[0]), uint32(keys[1]), uint32(threshold), float32(trim), float32(boost), float32(alpha))
    tuned = _scratch(out.size)
    counts += _merge(base, target, start, sft, out, tuned, uint32(first), *numbers, float32(scale))
    _merge_sums(base, start, sft, tuned, out, sums)


def _scratch(size: int) -> NDArray:
    """Room for `size` float32, the same again for each call of a thread: fresh pages cost more than the sums."""
    if getattr(_own, "room", np.empty(0)).size < size:
        _own.room = np.empty(size, np.float32)
    return _own.room[:size]


def pair_moments(base: NDArray, start: NDArray, sft: NDArray) -> NDArray:
    """MOMENTS of one piece: (6,) float64."""
    sums = np.zeros(len(MOMENTS))
    _pair_moments(base, start, sft, sums)
    return sums


def dots(left: NDArray, right: NDArray) -> NDArray:
    """|left|^2, <left, right>, |right|^2: (3,) float64."""
    sums = np.zeros(3)
    _dots(left, right, sums)
    return sums


def difference(left: NDArray, right: NDArray) -> NDArray:
    """|right - left|^2 and |left|^2: (2,) float64."""
    sums = np.zeros(2)
    _difference(left, right, sums)
    return sums


def count_magnitudes(start: NDArray, sft: NDArray, counts: NDArray, high: int = -1) -> None:
    """Add to `counts` (65536,) how many |sft - start| have which upper 16 bits (of 31); with `high`, to
    `counts` (32768,) how many of that upper part have which lower 15 bits."""
    _count_magnitudes(start, sft, high, counts)
