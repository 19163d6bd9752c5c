"""Measured importance, kept in a file, and held against weight change. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core.layers import WHOLE
from workbench.core.superficiality import superficiality, verdict

SETS = ("reasoning", "plain")


@dataclass(frozen=True)
class Importance:
    """By layer and module; `modules[0]` stands for the whole layer."""

    modules: list[str]
    values: NDArray  # (layers, modules)
    draws: NDArray  # (replicates, layers, modules), with other examples

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer and module, with its share of the sum over layers; 95 % intervals over examples."""
        columns = {
            "importance": (self.values, self.draws, ("ci_low", "ci_high")),
            "share": (_shares(self.values), _shares(self.draws), ("share_low", "share_high")),
        }
        rows = [{"layer": layer, "module": module} for layer in range(len(self.values)) for module in self.modules]
        for name, (values, draws, ends) in columns.items():
            low, high = np.percentile(draws, [2.5, 97.5], axis=0)
            for key, array in zip((name, *ends), (values, low, high), strict=True):
                for row, number in zip(rows, array.ravel().tolist(), strict=True):
                    row[key] = number
        return rows

    def save(self, path: Path) -> None:
        """Write `path`, whole or not at all."""
        scratch = path.with_name(f".{path.name}.tmp.npz")
        np.savez(scratch, modules=self.modules, values=self.values, draws=self.draws.astype(np.float32))
        scratch.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Importance":
        """What `save` wrote."""
        with np.load(path) as found:
            return cls(found["modules"].tolist(), found["values"], found["draws"])


def _shares(values: NDArray) -> NDArray:
    """Of the sum over layers: (..., layers, modules) in and out; zeros where nothing matters."""
    total = values.sum(-2, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values, float), where=total > 0)


def measured_importance(place: Path) -> list[float] | None:
    """The importance of each layer for reasoning that was kept in a directory."""
    file = place / "importance.reasoning.npz"
    return Importance.load(file).values[:, 0].tolist() if file.exists() else None


def indices(measured: Path, changes: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The superficiality index for each set whose importance is in a directory, with its verdict."""
    change, found = [row["change"] for row in changes if row["module"] == WHOLE], []
    for name in SETS:
        if (file := measured / f"importance.{name}.npz").exists():
            importance = Importance.load(file)
            layers = importance.values[:, 0].tolist()
            index = superficiality(layers, importance.draws[:, :, 0], change, seed)
            found.append(
                {"text_set": name} | vars(index) | {"is_sure": index.is_sure, "verdict": verdict(layers, change, index)}
            )
    return found
