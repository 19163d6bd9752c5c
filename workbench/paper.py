"""The paper's own figures (tables 2 and 3 of arXiv 2503.02103), to be laid over a run of the same model and task."""

from pathlib import Path

import pandas as pd
from pandas import DataFrame

from workbench.charts import checkpoint_labels

TABLES = Path(__file__).parents[1] / "data" / "paper" / "tables.csv"
COLUMNS = ("table", "model", "train_task", "checkpoint", "task", "accuracy")


def paper_frame(model: str, train_task: str, file: Path = TABLES) -> DataFrame:
    """The rows for a base model (directory or hub name; its last part counts) and train task, accuracy as a fraction.

    Raises:
        ValueError: the file lacks a column, or an accuracy is no percentage.
    """
    frame = pd.read_csv(file, dtype={name: str for name in COLUMNS[:-1]})
    if missing := [name for name in COLUMNS if name not in frame]:
        raise ValueError(f"{file} lacks the column {missing[0]}; its columns must be {', '.join(COLUMNS)}")
    accuracy = pd.to_numeric(frame["accuracy"], errors="coerce")
    if len(bad := frame["accuracy"][~accuracy.between(0, 100)]):
        raise ValueError(f"{file}: accuracy must be in per cent, 0 to 100, got {bad.iloc[0]} in row {bad.index[0] + 1}")
    name = Path(model).name.casefold()
    mine = (frame["model"].str.casefold() == name) & (frame["train_task"] == train_task)
    return frame.assign(accuracy=accuracy / 100)[mine].reset_index(drop=True)


def table(accuracies: DataFrame, arms: DataFrame, theirs: DataFrame) -> DataFrame:
    """Table 2 or 3 in per cent with 95 % intervals and n: a row for each checkpoint of each run, a column per task.

    accuracies: `evals.accuracy_frame`; arms: `arms.arms_frame`; theirs: rows of `paper_frame` of one table. What the
    paper prints, without n or interval, has columns of its own.
    """
    rows = accuracies.merge(arms, on="run_id")
    rows = rows.assign(checkpoint=checkpoint_labels(rows))
    tasks = rows.sort_values(["domain", "task"])["task"].unique()
    printed = {(row.checkpoint, row.task): f"{100 * row.accuracy:.1f}" for row in theirs.itertuples()}
    lines = []
    for (_, arm, seed, checkpoint), mine in rows.groupby(["run_id", "arm", "seed", "checkpoint"], sort=False):
        ours = {
            row.task: f"{100 * row.accuracy:.1f} ({100 * row.ci_low:.1f} to {100 * row.ci_high:.1f}), "
            f"n = {row.num_questions}"
            for row in mine.itertuples()
        }
        line = {"method": arm, "seed": seed, "checkpoint": checkpoint}
        for task in tasks:
            line[task] = ours.get(task, "")
            if task in set(theirs["task"]):
                line[f"{task}, paper"] = printed.get((checkpoint, task), "")
        lines.append(line)
    return DataFrame(lines)
