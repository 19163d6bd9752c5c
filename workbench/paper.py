"""The paper's own figures (arXiv 2503.02103), to be laid over a run of the same model and task.

Table 2 is distillation: Base, SFT and Merged, one iteration. Table 3 is self-improvement on SVAMP, ASDiv, MathQA and
MMLU-STEM: Base, SFT1, Merge1, ... Merge3; on which task its models were trained is not stated.
"""

import re
from pathlib import Path

import pandas as pd
from pandas import DataFrame

from workbench.charts import checkpoint_labels

TABLES = Path(__file__).parents[1] / "data" / "paper" / "tables.csv"
COLUMNS = ("table", "model", "train_task", "checkpoint", "task", "accuracy")
DISTILLATION, SELF_IMPROVEMENT = "2", "3"


def paper_frame(model: str, train_task: str, file: Path = TABLES, *, taught: bool = False) -> DataFrame:
    """The rows for a base model (directory or hub name; its last part counts) and train task, accuracy as a fraction,
    checkpoints and tasks as runs call them: of self-improvement, or of distillation for a run that was `taught`.

    Raises:
        ValueError: the file lacks a column, or a table, checkpoint or accuracy is none.
    """
    frame = pd.read_csv(file, dtype={name: str for name in COLUMNS[:-1]})
    if missing := [name for name in COLUMNS if name not in frame]:
        raise ValueError(f"{file} lacks the column {missing[0]}; its columns must be {', '.join(COLUMNS)}")
    accuracy, labels = pd.to_numeric(frame["accuracy"], errors="coerce"), frame["checkpoint"].map(_label)
    tasks = frame["task"].str.casefold().str.replace("-", "_")  # MMLU-STEM is mmlu_stem
    for name, is_right, allowed in (
        ("table", frame["table"].isin([DISTILLATION, SELF_IMPROVEMENT]), "2 (distillation) or 3 (self-improvement)"),
        ("checkpoint", labels.notna(), "Base, SFT or Merged, or SFT1, Merge1 and so on"),
        ("accuracy", accuracy.between(0, 100), "in per cent, 0 to 100"),
    ):
        if len(bad := frame[name][~is_right]):
            raise ValueError(f"{file}: {name} must be {allowed}, got {bad.iloc[0]} in row {bad.index[0] + 1}")
    mine = frame["model"].map(_plain) == _plain(Path(model).name)
    mine &= (frame["train_task"] == train_task) | frame["train_task"].isna()  # table 3 does not say which
    mine &= frame["table"] == (DISTILLATION if taught else SELF_IMPROVEMENT)
    said = {"accuracy": accuracy / 100, "checkpoint": labels, "task": tasks}
    return frame.assign(**said)[mine].reset_index(drop=True)


def _plain(model: str) -> str:
    """A model's name without what the paper shortens: Qwen2.5-0.5B-I is -Instruct, Llama2-7B is Llama-2-7b-hf."""
    return re.sub("-i$", "-instruct", str(model).casefold()).replace("llama-2", "llama2").removesuffix("-hf")


def _label(printed: str) -> str | None:
    """A checkpoint as the charts call it: SFT1 is SFT 1, and of the one iteration of table 2 SFT and Merged are the
    first; None for what is none."""
    if printed == "Base":
        return printed
    found = re.fullmatch(r"(SFT|Merge) ?([1-9]\d*)?", "Merge" if printed == "Merged" else str(printed))
    return f"{found[1]} {found[2] or 1}" if found else None


def table(accuracies: DataFrame, arms: DataFrame, theirs: DataFrame) -> DataFrame:
    """Table 2 (of runs that were taught) or 3 (of others) in per cent with 95 % intervals and n: a row for each
    checkpoint of each run, a column per task.

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
