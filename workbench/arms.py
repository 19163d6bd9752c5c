"""Runs as the arms of a comparison: what each is called, and what its seeds come to together."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame

from workbench import store
from workbench.core.methods import arm_name
from workbench.core.statistics import crossed_bootstrap

ALIKE = (
    "method", "seed", "group", "threads", "gpus", "iterations", "stop_if_worse", "datasets", "data.real_share",
    "teacher.model", "sft.save_every_steps", "sft.gradient_checkpointing", "engine.batch_size",
)  # fmt: skip
"""Settings in which runs of an arm may differ: they are in its name, or change no accuracy."""
CALLED = {"merge.alpha": "α", "merge.drop_rate": "p"}


def arms_frame(db: Path, run_ids: Sequence[str]) -> DataFrame:
    """What each run is called among others: run_id, arm (method, what it learned from, and where runs of one differ in
    other settings those), taught (by a teacher), seed, grouped ("" or the comparison it belongs to)."""
    frame = store.query(
        db,
        """
        SELECT run_id, seed, coalesce(config->>'$.group', '') AS grouped, config
        FROM runs WHERE list_contains(?, run_id) ORDER BY run_id
        """,
        [list(run_ids)],
    )
    whole = [_flat(json.loads(text)) for text in frame["config"]]
    arms = [_arm(config) for config in whole]
    for arm in set(arms):
        mine = [number for number, name in enumerate(arms) if name == arm]
        for number, words in zip(mine, _apart([_telling(whole[number]) for number in mine]), strict=True):
            arms[number] = " ".join([arm, *words])
    taught = [bool(config.get("teacher.model")) and config.get("data.real_share") != 1 for config in whole]
    return frame.assign(arm=arms, taught=taught)[["run_id", "arm", "taught", "seed", "grouped"]]


def _arm(config: Mapping[str, Any]) -> str:
    """A run's arm by its settings (`_flat`), before others are told apart from it."""
    return arm_name(config["method"], config.get("data.real_share") or 0, config.get("teacher.model"))


def _apart(configs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each config the settings in which they differ, in words; what an older run does not know of is none."""
    names = [name for name in configs[0] if all(name in config for config in configs)]
    differing = [name for name in names if len({json.dumps(config[name]) for config in configs}) > 1]
    return [[f"{CALLED.get(name, name)} {_said(config[name])}" for name in differing] for config in configs]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {part}" for name, part in value.items() if part)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _telling(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that may tell it from others of its arm: not those that its method does not use."""
    unused = ALIKE + (() if config["method"] == "imm" else ("merge.",))
    unused += () if config["method"] == "mixture" else ("data.mixture_share",)
    return {name: value for name, value in config.items() if not name.startswith(unused)}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under dotted names; adapters and factors by module are one."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= {f"{name}.{part}": v for part, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return found


def seeds_pooled(db: Path, arms: DataFrame) -> DataFrame:
    """ID and mean OOD accuracy of each arm by iteration, over its seeds, each with n and interval.

    arms: `arms_frame`. Interval: bootstrap over seeds and questions (`core.statistics.crossed_bootstrap`).
    Only the runs that are `counting`, and what all of an arm's have measured. Columns as `domain_means`, with the arm
    as run_id, and num_seeds.
    """
    arms = counting(db, arms)
    answers = store.query(
        db,
        """
        SELECT o.run_id, e.iteration, e.kind, e.domain, o.task, o.question_id, o.question, o.is_correct
        FROM outcomes o JOIN evals e USING (run_id, checkpoint_id, task)
        WHERE o.sample = 0 AND list_contains(?, o.run_id)
        """,
        [list(arms["run_id"])],
    ).merge(arms, on="run_id")
    rows = []
    for key, mine in answers.groupby(["arm", "iteration", "kind", "domain"], sort=True):
        runs = sorted(arms.loc[arms["arm"] == key[0], "run_id"])
        wanted = answers.loc[(answers["arm"] == key[0]) & (answers["domain"] == key[3]), "task"].nunique()
        tasks = [_by_seed(side, runs) for _, side in mine.groupby("task")]
        if len(tasks) < wanted or any(task is None for task in tasks):
            continue
        mean, low, high = crossed_bootstrap(tasks)
        about = dict(zip(("run_id", "iteration", "kind", "domain"), key, strict=True))
        about |= {"num_tasks": len(tasks), "num_seeds": len(runs), "n": sum(task.size for task in tasks)}
        rows.append(about | {"accuracy": mean, "ci_low": low, "ci_high": high})
    return DataFrame(rows)


def counting(db: Path, arms: DataFrame) -> DataFrame:
    """The rows of `arms_frame` that count when seeds are pooled.

    Of runs with one seed that is the one that has measured most; none that failed or was stopped before what another
    seed of its arm has measured.
    """
    about = store.query(
        db,
        """
        SELECT run_id, status IN ('failed', 'stopped') AS gave_up,
               (SELECT count(*) FROM outcomes o WHERE o.run_id = r.run_id AND o.sample = 0) AS measured
        FROM runs r WHERE list_contains(?, run_id)
        """,
        [list(arms["run_id"])],
    )
    found = arms.merge(about, on="run_id").sort_values(["measured", "run_id"])
    found = found.drop_duplicates(["arm", "seed"], keep="last")
    is_short = found["gave_up"] & (found["measured"] < found.groupby("arm")["measured"].transform("max"))
    return found.loc[~is_short, list(arms.columns)]


def _by_seed(answers: DataFrame, runs: Sequence[str]) -> np.ndarray | None:
    """(runs, questions) of right and wrong; None where a run has not answered yet."""
    table = answers.pivot(index="run_id", columns=["question_id", "question"], values="is_correct").reindex(list(runs))
    table = table.dropna(axis=1)
    return table.to_numpy(dtype=bool) if table.shape[1] else None


def groups_frame(db: Path) -> DataFrame:
    """The comparisons, newest first: grouped, run_ids, arms (how many runs of them are done and how many there are)."""
    return store.query(
        db,
        """
        SELECT config->>'$.group' AS grouped, list(run_id ORDER BY run_id) AS run_ids,
               count(*) FILTER (status = 'done') AS num_done, count(*) AS num_runs, any_value(train_task) AS train_task
        FROM runs WHERE config->>'$.group' IS NOT NULL GROUP BY ALL ORDER BY grouped DESC
        """,
    )


def latest(db: Path) -> DataFrame:
    """Of each arm the newest finished run, with its comparison's other seeds; on the base and train task of the newest
    of all. Columns as `arms_frame`."""
    runs = store.query(
        db, "SELECT run_id, model, train_task, config FROM runs WHERE status = 'done' ORDER BY created_at, run_id"
    )
    configs = [_flat(json.loads(text)) for text in runs["config"]]
    runs = runs.assign(arm=[_arm(config) for config in configs], grouped=[config.get("group") for config in configs])
    about = runs[["model", "train_task"]]
    runs = runs[(about == about.tail(1).squeeze()).all(axis=1)]
    newest = runs.drop_duplicates("arm", keep="last").set_index("arm")
    is_newest = runs["run_id"] == runs["arm"].map(newest["run_id"])
    beside = runs["grouped"].notna() & (runs["grouped"] == runs["arm"].map(newest["grouped"]))
    return arms_frame(db, list(runs.loc[is_newest | beside, "run_id"]))
