"""The paper's tables as an overlay."""

import pytest

from workbench import charts
from workbench.paper import TABLES, paper_frame, table

ROWS = """table,model,train_task,checkpoint,task,accuracy
3,Some-Model-1B,gsm8k,Base,gsm8k,10.5
3,Some-Model-1B,gsm8k,SFT 1,gsm8k,20
3,Some-Model-1B,math,SFT 1,gsm8k,30
3,Other-1B,gsm8k,SFT 1,gsm8k,40
"""
AS_PRINTED = """table,model,train_task,checkpoint,task,accuracy
2,Qwen2.5-0.5B-I,gsm8k,Base,GSM8K,1
2,Qwen2.5-0.5B-I,gsm8k,SFT,GSM8K,2
2,Qwen2.5-0.5B-I,gsm8k,Merged,GSM8K,3
2,Qwen2.5-0.5B-I,math,SFT,MATH,4
2,Qwen2.5-0.5B-I,,SFT,SAT-Math,5
3,Qwen2.5-0.5B-I,,SFT1,SVAMP,6
3,Qwen2.5-0.5B-I,,Merge3,MMLU-STEM,7
3,Llama2-7B,,Merge1,SVAMP,8
"""


def test_rows_as_the_paper_prints_them_lie_over_the_runs_they_are_of(tmp_path):
    """Table 2 is distillation, table 3 self-improvement with a train task that is not stated."""
    (tmp_path / "t.csv").write_text(AS_PRINTED)

    def found(model, train_task, **options):
        rows = paper_frame(model, train_task, tmp_path / "t.csv", **options)
        return [(row.table, row.checkpoint, row.task, round(100 * row.accuracy)) for row in rows.itertuples()]

    ours = [("3", "SFT 1", "svamp", 6), ("3", "Merge 3", "mmlu_stem", 7)]
    assert found("Qwen/Qwen2.5-0.5B-Instruct", "gsm8k") == found("Qwen/Qwen2.5-0.5B-Instruct", "math") == ours
    assert found("/my/qwen2.5-0.5b-instruct", "gsm8k", taught=True) == [
        ("2", "Base", "gsm8k", 1),
        ("2", "SFT 1", "gsm8k", 2),
        ("2", "Merge 1", "gsm8k", 3),
        ("2", "SFT 1", "sat_math", 5),
    ]
    assert found("meta-llama/Llama-2-7b-hf", "math") == [("3", "Merge 1", "svamp", 8)]
    assert found("Qwen/Qwen2.5-0.5B", "gsm8k") == []


def test_the_rows_of_a_model_and_task_are_drawn_beside_the_run_as_the_papers(tmp_path):
    from pandas import DataFrame

    (tmp_path / "t.csv").write_text(ROWS)
    theirs = paper_frame("somebody/some-model-1b", "gsm8k", tmp_path / "t.csv")
    assert list(theirs["accuracy"]) == [0.105, 0.2]
    row = {"kind": "base", "iteration": 0, "task": "gsm8k", "domain": "ID", "num_questions": 8}
    evals = DataFrame([row | {"accuracy": 0.5, "ci_low": 0.2, "ci_high": 0.8}])
    figure = charts.accuracy_by_checkpoint(evals, ["Base", "SFT 1"], theirs)
    (drawn,) = (trace for trace in figure.data if trace.name == "gsm8k in the paper")
    assert (list(drawn.x), list(drawn.y)) == (["Base", "SFT 1"], [10.5, 20.0])


def test_a_bad_file_is_one_sentence(tmp_path):
    (tmp_path / "t.csv").write_text(ROWS.replace("40", "400"))
    with pytest.raises(ValueError, match="0 to 100, got 400.* in row 4"):
        paper_frame("x", "gsm8k", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(ROWS.replace("3,Other", "4,Other"))
    with pytest.raises(ValueError, match=r"table must be 2 \(distillation\) or 3 .*, got 4 in row 4"):
        paper_frame("x", "gsm8k", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(ROWS.replace("Base", "Round 1"))
    with pytest.raises(ValueError, match="checkpoint must be Base, SFT or Merged, .* got Round 1 in row 1"):
        paper_frame("x", "gsm8k", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("model\nx\n")
    with pytest.raises(ValueError, match="lacks the column table"):
        paper_frame("x", "gsm8k", tmp_path / "t.csv")


def test_the_shipped_file_can_be_read():
    assert list(paper_frame("x", "gsm8k", TABLES)["accuracy"]) == []


def test_a_table_has_n_and_interval_and_the_papers_value_beside(tmp_path):
    from pandas import DataFrame

    (tmp_path / "t.csv").write_text(ROWS)
    theirs = paper_frame("Some-Model-1B", "gsm8k", tmp_path / "t.csv")
    row = {"run_id": "a", "kind": "base", "iteration": 0, "num_questions": 8, "ci_low": 0.2, "ci_high": 0.8}
    evals = DataFrame(
        [
            row | {"task": "gsm8k", "domain": "ID", "accuracy": 0.5},
            row | {"task": "asdiv", "domain": "OOD", "accuracy": 0.4},
        ]
    )
    arms = DataFrame([{"run_id": "a", "arm": "vanilla", "seed": 3}])
    about, said = {"method": "vanilla", "seed": 3, "checkpoint": "Base"}, "(20.0 to 80.0), n = 8"
    ours = {"gsm8k": f"50.0 {said}", "gsm8k, paper": "10.5", "asdiv": f"40.0 {said}"}
    assert table(evals, arms, theirs).to_dict("records") == [about | ours]
    assert "gsm8k, paper" not in table(evals, arms, theirs[:0])
    assert table(evals, arms[:0], theirs).empty
