"""Tables of measured merges, held against plain statistics."""

import pandas as pd
import pytest

from workbench import merge_charts, merges
from workbench.config import MergeConfig
from workbench.core.statistics import paired_difference, wilson_interval
from workbench.labdir import BASE, SFT, label, point_id

MIX = MergeConfig(alpha=0.5, drop_rate=0.2)
NAMES = [point_id(merge, 0) for merge in (BASE, SFT, MIX)]
RIGHT = {
    ("id", NAMES[0]): "0010100000", ("id", NAMES[1]): "1111111010", ("id", NAMES[2]): "1111111110",
    ("far", NAMES[0]): "1111110000", ("far", NAMES[1]): "1000000000", ("far", NAMES[2]): "1111100000",
    ("other", NAMES[0]): "1110000000", ("other", NAMES[1]): "0000000000", ("other", NAMES[2]): "1111000000",
}  # fmt: skip
DOMAINS = {"id": "ID", "far": "OOD", "other": "OOD"}


def outcomes():
    return pd.DataFrame(
        {"point_id": name, "task": task, "question_id": f"q{n}", "is_correct": bit == "1", "text": f"{name} {n}",
         "answer": "1", "question": f"question {n}", "reference": "1"}
        for (task, name), bits in RIGHT.items() for n, bit in enumerate(bits)
    )  # fmt: skip


def evals():
    rows = []
    for (task, name), bits in RIGHT.items():
        merge = dict(zip(NAMES, (BASE, SFT, MIX), strict=True))[name]
        right, n = bits.count("1"), len(bits)
        low, high = wilson_interval(right, n)
        row = {
            "point_id": name,
            "task": task,
            "domain": DOMAINS[task],
            "seed": 0,
            "label": label(merge, 0),
            "merge": "{}",
        }
        row |= {"alpha": merge.alpha, "drop_rate": merge.drop_rate, "split": "validation", "num_questions": n}
        rows.append(row | {"num_correct": right, "accuracy": right / n, "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)


def test_points_have_means_and_intervals():
    table = merges.points(evals()).set_index("point_id")
    assert list(table["id"]) == pytest.approx([0.2, 0.8, 0.9])
    assert list(table["ood"]) == pytest.approx([0.45, 0.05, 0.45])
    assert (table["id_low"][NAMES[2]], table["id_high"][NAMES[2]]) == pytest.approx(wilson_interval(9, 10))
    assert table["n_ood"][NAMES[0]] == 20
    half = 1.959964 * ((0.5 * 0.5 + 0.4 * 0.6) / 10) ** 0.5 / 2
    assert table["ood_high"][NAMES[2]] == pytest.approx(0.45 + half)


def test_the_front_holds_what_nothing_beats():
    frame = pd.DataFrame(
        {"point_id": list("abcde"), "id": [0.9, 0.8, 0.7, 0.85, 0.8], "ood": [0.1, 0.5, 0.6, 0.4, 0.3]}
    )
    assert list(merges.pareto(frame)["point_id"]) == ["a", "d", "b", "c"]


def test_a_comparison_is_paired_and_corrected():
    table = merges.comparison(outcomes(), DOMAINS, [NAMES[2]])
    assert [(row.domain, row.against) for row in table.itertuples()] == [
        ("ID", "base"), ("ID", "sft"), ("OOD", "base"), ("OOD", "sft"),
    ]  # fmt: skip
    bits = lambda name, *tasks: [bit == "1" for task in tasks for bit in RIGHT[task, name]]  # noqa: E731
    expected = paired_difference(bits(NAMES[1], "far", "other"), bits(NAMES[2], "far", "other"))
    row = table.iloc[3]
    assert (row["difference"], row["p_value"]) == pytest.approx((expected.value, expected.p_value))
    assert row["num_questions"] == 20 and row["smallest"] == pytest.approx(0.3)
    assert (table["p_holm"] >= table["p_value"] - 1e-12).all()
    shown = merges.presentable(table, dict.fromkeys(NAMES, "mine_50 %"))
    assert r"mine\_50 \% & ID" in merges.latex(shown, "c")


def test_flips_show_both_texts_gained_first():
    changed = merges.flips(outcomes(), NAMES[0], NAMES[2])
    assert len(changed) == 9 and list(changed["is_correct"]) == [False] * 8 + [True]
    assert changed["text_second"][0].startswith(NAMES[2])


def test_measured_wants_every_task_in_full():
    frame = evals()
    assert merges.measured(frame, 10) == set(NAMES)
    assert merges.measured(frame, 11) == set()
    frame.loc[0, "num_questions"] = 9
    assert merges.measured(frame, 10) == set(NAMES[1:])


def test_the_surface_colours_measured_places_only():
    table = merges.points(evals())
    marks = [trace for trace in merge_charts.surface(table).data if trace.type == "scatter"]
    assert [sorted(zip(m.x, m.y, strict=True)) for m in marks] == [[(0, 0), (0.5, 0.2), (1, 0)]] * 2
    assert len(merge_charts.front(table).data) == 4
