"""One point of a sweep where it is measured: a task on some node, whose process keeps its engine for the next."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from workbench.labdir import LabConfig, Point
from workbench.merging.stream import open_models
from workbench.phases.measuring import Measuring, Rows


def measure(
    config: LabConfig, importance: list[float] | None, request: Point, answered: Rows
) -> tuple[list[dict[str, Any]], Rows, float]:
    """A point's scores, its fresh answers, and the seconds it took."""
    started, fresh = time.time(), []
    torch.set_num_threads(config.threads or 1)
    measuring = _measuring(config)
    measuring.importance = importance
    scores = measuring.measure(request, answered, fresh.extend, lambda done, total: None)
    return scores, fresh, time.time() - started


@lru_cache(1)
def _measuring(config: LabConfig) -> Measuring:
    return Measuring(config, open_models(Path(config.base), Path(config.start), Path(config.sft)), None)
