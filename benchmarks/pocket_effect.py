"""What self-improvement did to the pocket model: every checkpoint against the base, question by question.

    workbench run --preset pocket
    workbench run --preset pocket --set method=vanilla
    python benchmarks/pocket_effect.py RUN [RUN ...]

Prints accuracies in per cent and, behind them, the paired difference to the base with its 95 % interval
(Bonett and Price) and the exact McNemar p-value, Holm-corrected over each run's table.
"""

import sys

from rich.console import Console
from rich.table import Table

from workbench import rundir, store
from workbench.core.statistics import holm, paired_difference
from workbench.report import checkpoint_name


def differences(db, run_id):
    """(checkpoint, task, accuracy, PairedDifference) for every checkpoint but the base, in order."""
    outcomes = store.query(db, "SELECT * FROM outcomes WHERE sample = 0 AND run_id = ? ORDER BY question_id", [run_id])
    order = store.evals_frame(db, run_id)
    base = {task: rows for task, rows in outcomes[outcomes["iteration"] == 0].groupby("task")}
    for row in order[order["iteration"] > 0].itertuples():
        mine = outcomes[(outcomes["checkpoint_id"] == row.checkpoint_id) & (outcomes["task"] == row.task)]
        same = base[row.task].merge(mine, on="question_id", suffixes=("_base", ""))
        found = paired_difference(same["is_correct_base"], same["is_correct"])
        yield checkpoint_name(row.kind, row.iteration), f"{row.domain} {row.task}", row.accuracy, found


def per_cent(difference):
    """ "+4.2 (+1.0 to +7.4)"."""
    return f"{100 * difference.value:+.1f} ({100 * difference.ci_low:+.1f} to {100 * difference.ci_high:+.1f})"


def main(run_ids):
    """Print one table per run."""
    console, db = Console(), rundir.store_path(rundir.home())
    for run_id in run_ids:
        found = list(differences(db, run_id))
        corrected = holm([difference.p_value for *_, difference in found])
        tasks = list(dict.fromkeys(task for _, task, *_ in found))
        table = Table("", *tasks, title=f"{run_id} (n = {found[0][3].num_questions} per task)")
        for name in dict.fromkeys(name for name, *_ in found):
            cells = [
                f"{100 * accuracy:.1f}  {per_cent(difference)} p={p:.1g}"
                for (who, _, accuracy, difference), p in zip(found, corrected, strict=True)
                if who == name
            ]
            table.add_row(name, *cells)
        console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
