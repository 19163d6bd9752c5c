"""Our greedy accuracy beside lm-evaluation-harness's: same model, prompts, questions, stop text and length.

    python benchmarks/lm_eval_agreement.py --lm-eval .venv-lm-eval/bin/lm_eval --datasets data/datasets

The harness asks and extracts as its task gsm8k does: `strict-match` takes what follows `####`,
`flexible-extract` the last number of the text. Its answers are compared with ours text by text, and where
only the verdicts differ, the cause is counted. `pip install lm-eval` into an environment of its own.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
STOP = "\nQuestion:"


def main(
    lm_eval: Annotated[Path, typer.Option(help="The harness's command.")],
    datasets: Annotated[Path, typer.Option(help="Folder with gsm8k/test.jsonl.")],
    model: Annotated[Path, typer.Option(help="A model directory.")] = ROOT / "data/pocket/model",
    questions: Annotated[int, typer.Option(help="Questions of each set, the first ones.")] = 500,
    length: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
) -> None:
    """Both on GSM8K's rows and on pocket_steps."""
    from workbench.core.statistics import wilson_interval

    table = Table(
        "set", "n", "same text", "ours", "strict-match", "flexible-extract", "verdicts that differ (flexible)"
    )
    for name in ("gsm8k", "pocket_steps"):
        rows = asked(name, datasets)[:questions]
        mine, theirs = ours(model, rows, length), harness(lm_eval, model, name, rows, length)
        same = sum(a["text"] == t["text"] for a, t in zip(mine, theirs, strict=True))
        causes = Counter(
            cause(a, t) for a, t in zip(mine, theirs, strict=True) if a["is_correct"] != t["flexible-extract"]
        )
        cells = [
            [a["is_correct"] for a in mine],
            *([t[k] for t in theirs] for k in ("strict-match", "flexible-extract")),
        ]
        words = []
        for right in cells:
            low, high = wilson_interval(sum(right), len(right))
            words.append(f"{100 * sum(right) / len(right):.1f} ({100 * low:.1f} to {100 * high:.1f})")
        table.add_row(
            name, str(len(rows)), str(same), *words, "; ".join(f"{n} {c}" for c, n in causes.items()) or "none"
        )
    Console(width=180).print(table)


def asked(name: str, datasets: Path) -> list[dict[str, str]]:
    """A task's test questions in our plain format, with their references."""
    from workbench.core.prompts import Prompts
    from workbench.jobs import TaskSource
    from workbench.tasks import load_questions

    task = load_questions(TaskSource(task=name, datasets=str(datasets)), "test")
    return [{"prompt": Prompts().prompt(q.text), "reference": q.reference} for q in task.questions]


def ours(model: Path, rows: list[dict[str, str]], length: int) -> list[dict[str, Any]]:
    """Greedy answers of the transformers engine, graded."""
    from workbench.core.answers import grade
    from workbench.engines import Request
    from workbench.engines.transformers import TransformersEngine

    engine = TransformersEngine(model, "float32", 2)
    made = engine.generate([Request(r["prompt"]) for r in rows], max_new_tokens=length, stop=(STOP,))
    found = []
    for row, answer in zip(rows, made, strict=True):
        verdict = grade(answer.text, row["reference"], "number", answer.finished)
        found.append({"text": answer.text, "finished": answer.finished, **vars(verdict)})
    return found


def harness(lm_eval: Path, model: Path, name: str, rows: list[dict[str, str]], length: int) -> list[dict[str, Any]]:
    """The harness's answers and verdicts, by its two filters."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "task.yaml").write_text(json.dumps(described(name, place / "rows.jsonl", length)))  # JSON is YAML
        command = [str(lm_eval), "--model", "hf", "--model_args", f"pretrained={model},dtype=float32"]
        command += ["--tasks", f"wb_{name}", "--include_path", folder, "--device", "cpu", "--batch_size", "64"]
        done = subprocess.run(
            [*command, "--log_samples", "--output_path", str(place / "out")], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        (file,) = place.glob("out/**/samples_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
    found: list[dict[str, Any]] = [{} for _ in rows]
    for sample in samples:
        mine = found[sample["doc_id"]]
        mine["text"] = sample["resps"][0][0].strip()
        mine[sample["filter"]] = bool(sample["exact_match"])
        mine[f"{sample['filter']} answer"] = sample["filtered_resps"][0]
    return found


def described(name: str, rows: Path, length: int) -> dict[str, Any]:
    """The task as the harness wants it, with the filters and the metric of its own gsm8k (version 3)."""

    def extraction(label: str, **options: Any) -> dict[str, Any]:
        return {"name": label, "filter": [{"function": "regex", **options}, {"function": "take_first"}]}

    return {
        "task": f"wb_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{reference}}",
        "generation_kwargs": {"until": [STOP], "do_sample": False, "max_gen_toks": length},
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": False,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
        "filter_list": [
            extraction("strict-match", regex_pattern="#### (\\-?[0-9\\.\\,]+)"),
            extraction("flexible-extract", group_select=-1, regex_pattern="(-?[$0-9.,]{2,})|(-?[0-9]+)"),
        ],
    }


def cause(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Why two verdicts on a question differ."""
    if mine["text"] != theirs["text"]:
        return "other text"
    if not mine["finished"]:
        return "cut off: no answer for us, its last number for the harness"
    return f"ours by rule {mine['rule']}, the harness by the last number"


if __name__ == "__main__":
    typer.run(main)
