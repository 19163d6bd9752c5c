"""A merge as a model directory for others: weights, verification report and model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core.recipe import Recipe
from workbench.labdir import LabConfig
from workbench.merging.files import merge_checkpoints
from workbench.merging.stream import Models


def export(
    models: Models, recipe: Recipe, directory: Path, scores: Sequence[dict[str, Any]], lab: LabConfig
) -> dict[str, Any]:
    """Write the merge, so that `from_pretrained` and vLLM load it; return its report.

    Raises:
        ValueError: the directory exists and is not empty.
    """
    sides = (models.base.path, models.start.path, models.sft.path)
    report = merge_checkpoints(*sides, {directory: recipe})[0]
    (directory / "README.md").write_text(card(report, recipe, scores, lab), encoding="utf-8")
    return report


def card(report: dict[str, Any], recipe: Recipe, scores: Sequence[dict[str, Any]], lab: LabConfig) -> str:
    """The model card: what was merged, how, and what was measured."""
    by_layer = ", by layer " + ", ".join(f"{alpha:.3g}" for alpha in recipe.layer_alphas) if recipe.layer_alphas else ""
    moved, expected = report["moved_from_base"], _number(report["moved_from_base_expected"])
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merge, dare, self-improvement]",
        "---",
        f"# {directory_title(recipe)}",
        "",
        f"A fine-tuned checkpoint merged back towards its {recipe.towards} "
        "(Iterative Model Merging, arXiv 2503.02103, Eq. 5-6):",
        "",
        "    merged = alpha * base + (1 - alpha) * (start + dare(sft - start))",
        "",
        "| | |",
        "|---|---|",
        f"| base | `{report['base']}` |",
        f"| start | `{report['start']}` |",
        f"| sft | `{report['sft']}` |",
        f"| alpha | {recipe.alpha:g}{by_layer} |",
        f"| p (drop rate), achieved | {recipe.drop_rate:g}, {_share(report['drop_rate_achieved'])} |",
        f"| rule, towards, seed | {recipe.rule}, {recipe.towards}, {recipe.seed} |",
        f"| distance from base, expected | {moved:.4g}, {expected} |",
        f"| sha256 of the weights | `{report['sha256']['model.safetensors']}` |",
        "",
        "`merge.json` holds the whole report; `workbench remake DIRECTORY` makes deleted weights again from it.",
    ]
    if scores:
        lines += [
            "",
            "## Measured",
            "",
            "| task | domain | split | accuracy, % (95 % interval) | n |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {s['task']} | {s['domain']} | {s['split']} | {100 * s['accuracy']:.1f} "
            f"({100 * s['ci_low']:.1f} to {100 * s['ci_high']:.1f}) | {s['num_questions']} |"
            for s in scores
        ]
    if lab.run_id:
        lines += ["", f"From iteration {lab.iteration} of run `{lab.run_id}`."]
    return "\n".join(lines) + "\n"


def directory_title(recipe: Recipe) -> str:
    """A heading for the card."""
    return f"Merge: alpha {recipe.alpha:g}, p {recipe.drop_rate:g}"


def _share(value: float | None) -> str:
    return "nothing had changed" if value is None else f"{value:.4f}"


def _number(value: float | None) -> str:
    return "not defined for this rule" if value is None else f"{value:.4g}"
