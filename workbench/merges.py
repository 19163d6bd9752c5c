"""What was measured in a merge lab, as tables: one row per merge, paired comparisons, flipped questions."""

from collections.abc import Sequence
from math import sqrt

import pandas as pd
from pandas import DataFrame

from workbench.core.statistics import holm, paired_difference, smallest_detectable_difference, wilson_interval
from workbench.labdir import BASE, SFT, point_id

BASE_ID, SFT_ID = point_id(BASE, 0), point_id(SFT, 0)
Z = 1.959964
"""97.5 % quantile of the normal distribution."""


def points(evals: DataFrame) -> DataFrame:
    """One row per merge and domain-mean: point_id, alpha, drop_rate, seed, label, id, ood, *_low, *_high, n_id, n_ood.

    evals: rows of `store.merges_frame` of one split. id, ood: mean accuracy over the domain's tasks; the
    interval is Wilson's for one task, and the normal one of the mean (tasks as strata) for several.
    """
    rows = []
    for name, group in evals.groupby("point_id", sort=False):
        row = {"point_id": name} | {key: group[key].iloc[0] for key in ("alpha", "drop_rate", "seed", "label", "merge")}
        for domain, key in (("ID", "id"), ("OOD", "ood")):
            mine = group[group["domain"] == domain]
            row |= dict(zip((key, f"{key}_low", f"{key}_high"), _mean(mine), strict=True))
            row[f"n_{key}"] = int(mine["num_questions"].sum())
        rows.append(row)
    columns = ["point_id", "alpha", "drop_rate", "seed", "label", "merge", "id", "id_low", "id_high", "n_id"]
    return DataFrame(rows, columns=[*columns, "ood", "ood_low", "ood_high", "n_ood"])


def measured(evals: DataFrame, num_questions: int) -> set[str]:
    """The merges whose every validation task has that many questions, or all it has."""
    mine = evals[evals["split"] == "validation"]
    most = mine.groupby("task")["num_questions"].transform("max").clip(upper=num_questions)
    full = (mine["num_questions"] >= most) & (most >= num_questions)
    return set(mine["point_id"]) - set(mine.loc[~full, "point_id"])


def _mean(evals: DataFrame) -> tuple[float | None, float | None, float | None]:
    """Mean accuracy over tasks with its 95 % interval."""
    if evals.empty:
        return None, None, None
    if len(evals) == 1:
        one = evals.iloc[0]
        return one["accuracy"], *wilson_interval(one["num_correct"], one["num_questions"])
    p, n, k = evals["accuracy"], evals["num_questions"], len(evals)
    half = Z * sqrt((p * (1 - p) / n).sum()) / k
    return p.mean(), max(0.0, p.mean() - half), min(1.0, p.mean() + half)


def pareto(table: DataFrame) -> DataFrame:
    """The merges that no other beats on both ID and OOD, by rising OOD."""
    known = table.dropna(subset=["id", "ood"]).sort_values(["ood", "id"], ascending=[False, False])
    return known[known["id"] > known["id"].cummax().shift(fill_value=-1.0)][::-1]


def comparison(outcomes: DataFrame, domains: dict[str, str], chosen: Sequence[str]) -> DataFrame:
    """Each chosen merge against base and against sft, on the same questions of each domain.

    outcomes: rows of `store.merge_outcomes_frame`; domains: task -> ID or OOD. Columns: point_id, domain,
    against (base, sft), num_questions, accuracy, difference with ci_low and ci_high (Bonett and Price),
    p_value (exact McNemar), p_holm (corrected over the whole table), smallest (the least difference that
    this n could have shown). Questions of several tasks are pooled.
    """
    right = outcomes.pivot_table(
        index=["task", "question_id"], columns="point_id", values="is_correct", aggfunc="first"
    )
    domain = pd.Series([domains[task] for task, _ in right.index], index=right.index)
    rows = []
    for name in (c for c in chosen if c in right):
        for where in ("ID", "OOD"):
            for against, reference in (("base", BASE_ID), ("sft", SFT_ID)):
                if reference not in right or reference == name:
                    continue
                both = right.loc[domain == where, [reference, name]].dropna().astype(bool)
                if both.empty:
                    continue
                found = paired_difference(both[reference], both[name])
                rows.append(
                    {
                        "point_id": name,
                        "domain": where,
                        "against": against,
                        "num_questions": found.num_questions,
                        "accuracy": both[name].mean(),
                        "difference": found.value,
                        "ci_low": found.ci_low,
                        "ci_high": found.ci_high,
                        "p_value": found.p_value,
                        "smallest": smallest_detectable_difference(found.num_questions),
                    }
                )
    table = DataFrame(rows)
    return table.assign(p_holm=holm(list(table["p_value"]))) if len(table) else table


def flips(outcomes: DataFrame, first: str, second: str) -> DataFrame:
    """The questions on which two merges differ: task, question, reference, and both texts; gained ones first."""
    sides = [outcomes[outcomes["point_id"] == name].set_index(["task", "question_id"]) for name in (first, second)]
    both = sides[0].join(sides[1][["text", "answer", "is_correct"]].add_suffix("_second"), how="inner")
    changed = both[both["is_correct"].astype(bool) != both["is_correct_second"].astype(bool)]
    columns = ["question", "reference", "text", "answer", "is_correct", "text_second", "answer_second"]
    return changed[columns].sort_values("is_correct", kind="stable").reset_index()


def presentable(table: DataFrame, labels: dict[str, str]) -> DataFrame:
    """A comparison in words and per cent, for the screen, CSV and LaTeX."""
    per_cent = {key: (100 * table[key]).round(1) for key in ("accuracy", "difference", "ci_low", "ci_high", "smallest")}
    interval = [f"{low:+.1f} to {high:+.1f}" for low, high in zip(per_cent["ci_low"], per_cent["ci_high"], strict=True)]
    return DataFrame(
        {
            "merge": table["point_id"].map(labels),
            "domain": table["domain"],
            "n": table["num_questions"],
            "accuracy, %": per_cent["accuracy"],
            "against": table["against"],
            "difference": per_cent["difference"],
            "95 % interval": interval,
            "p (McNemar)": table["p_value"],
            "p (Holm)": table["p_holm"],
            "smallest detectable": per_cent["smallest"],
        }
    )


def latex(table: DataFrame, caption: str) -> str:
    """A presentable comparison as a LaTeX table (package booktabs)."""
    rows = table.copy()
    for name in ("p (McNemar)", "p (Holm)"):
        rows[name] = [f"{value:.3g}" for value in rows[name]]
    cells = [
        [str(cell).replace("%", r"\%").replace("_", r"\_") for cell in row] for row in rows.itertuples(index=False)
    ]
    head = " & ".join(name.replace("%", r"\%") for name in rows.columns)
    body = "\n".join("  " + " & ".join(row) + r" \\" for row in cells)
    columns = "ll" + "r" * (len(rows.columns) - 2)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        f"  {head} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
