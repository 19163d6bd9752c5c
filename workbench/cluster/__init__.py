"""A run on a Ray cluster: the same phases, their work spread over nodes. Only what is in here imports ray.

`workbench.runner` follows, on the machine of whoever launched the run; `cluster.job` is the runner in the cluster,
which alone writes the run's files. What it starts knows by an environment variable that there is a cluster.
"""

import os

from workbench.config import RayConfig

GPUS = "WORKBENCH_RAY_GPUS"
"""Beside it: how many GPUs the cluster had when the run began there; with any, its work goes to GPUs to the end."""
MARK = "WORKBENCH_RAY"
"""In the environment of the runner in the cluster and its phases: the settings, as JSON."""


def here() -> RayConfig | None:
    """The settings of the cluster that this phase may spread its work over; None on a machine of its own."""
    text = os.environ.get(MARK)
    return RayConfig.model_validate_json(text) if text else None
