"""How far a merge lies from base and from sft, for any alpha and p, from six sums per tensor.

With d = start - base, delta = sft - start, and kept = delta * m / q, where m is 1 with probability
q = 1 - p: every distance of interest is |A d + B delta + C kept| with numbers A, B, C. An entry is
y0 = A d + B delta where it was dropped and y1 = y0 + (C / q) delta where it was kept, so

    E|x|^2   = sum of p y0^2 + q y1^2
    Var|x|^2 = p q * sum of (y1^2 - y0^2)^2

and both are polynomials in the sums that `kernel.pair_moments` takes. `widget/merge_lab.js` holds the
same formula for the browser; a test holds the two equal.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def distance(moments: ArrayLike, drop_rate: float, d: ArrayLike, delta: ArrayLike, kept: ArrayLike) -> NDArray:
    """Expected |d_n * d + delta_n * delta + kept_n * kept| over masks, and its standard deviation.

    moments: (tensors, 6), the sums d.d, d.delta, delta.delta, d^2.delta^2, d.delta^3, delta^4; `d`,
    `delta`, `kept`: the factors A, B, C, (tensors,) or one for all. Returns (2, tensors).
    """
    dd, de, ee, ddee, deee, eeee = np.asarray(moments, dtype=float).T
    a, b, c = (np.asarray(factor, dtype=float) for factor in (d, delta, kept))
    q = 1 - drop_rate
    square = a * a * dd + 2 * a * (b + c) * de + (b * b + 2 * b * c + c * c / q) * ee
    u, v = 2 * a * c / q, (c / q) * (2 * b + c / q)
    variance = drop_rate * q * (u * u * ddee + 2 * u * v * deee + v * v * eeee)
    mean = np.sqrt(np.maximum(square, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(mean > 0, np.sqrt(np.maximum(variance, 0.0)) / (2 * mean), 0.0)
    return np.stack([mean, spread])


def from_base(moments: ArrayLike, alpha: ArrayLike, drop_rate: float, towards: str) -> NDArray:
    """Expected |merged - base| by tensor, and its standard deviation over seeds: (2, tensors)."""
    alpha = np.asarray(alpha, dtype=float)
    return distance(moments, drop_rate, 1 - (alpha if towards == "base" else 0 * alpha), 0.0, 1 - alpha)


def from_sft(moments: ArrayLike, alpha: ArrayLike, drop_rate: float, towards: str) -> NDArray:
    """Expected |merged - sft| by tensor, and its standard deviation over seeds: (2, tensors)."""
    alpha = np.asarray(alpha, dtype=float)
    return distance(moments, drop_rate, -(alpha if towards == "base" else 0 * alpha), -1.0, 1 - alpha)
