"""Which merge to try next, for ID and OOD accuracy at once: Optuna's TPE on everything measured so far."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import FloatDistribution

from workbench.config import MergeConfig

SPACE = {"alpha": FloatDistribution(0, 1, step=0.05), "drop_rate": FloatDistribution(0, 0.95, step=0.05)}
FIRST = 5
"""Points drawn at random before the model of what is good is trusted."""


def domain_means(scores: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(ID, mean OOD) accuracy of a point; a domain that was not measured counts 0."""
    by_domain = {domain: [s["accuracy"] for s in scores if s["domain"] == domain] for domain in ("ID", "OOD")}
    return tuple(sum(values) / len(values) if values else 0.0 for values in by_domain.values())


def next_merge(points: Sequence[Mapping[str, Any]], seed: int) -> MergeConfig:
    """The next (alpha, p), given the points measured (rows of points.jsonl); the same for the same input.

    Two objectives, no weighting: the sampler looks for the Pareto front (multi-objective TPE, Ozaki et
    al. 2022, https://doi.org/10.1613/jair.1.13188).
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    tried = set()
    for point in points:
        merge = MergeConfig.model_validate(point["merge"])
        if merge != MergeConfig(alpha=merge.alpha, drop_rate=merge.drop_rate):
            continue
        values = {"alpha": merge.alpha, "drop_rate": min(merge.drop_rate, 0.95)}
        tried.add((round(merge.alpha, 2), round(merge.drop_rate, 2)))
        study.add_trial(
            optuna.trial.create_trial(params=values, distributions=SPACE, values=domain_means(point["scores"]))
        )
    for _ in range(50):  # a point that was measured tells nothing new
        trial = study.ask(SPACE)
        alpha, drop_rate = round(trial.params["alpha"], 2), round(trial.params["drop_rate"], 2)
        if (alpha, drop_rate) not in tried:
            break
    return MergeConfig(alpha=alpha, drop_rate=drop_rate)
