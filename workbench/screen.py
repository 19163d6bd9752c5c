"""What the pages share: words for states, the picked run, and actions whose errors become one sentence."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from workbench import launch
from workbench.config import RunConfig
from workbench.report import merge_lines
from workbench.rundir import RunDir, all_runs
from workbench.settings import build_config, load_settings

STATUS = {
    "queued": "○ queued",
    "running": "● running",
    "done": "✓ done",
    "failed": "✕ failed",
    "stopped": "■ stopped",
}
STATUS_COLOUR = {"queued": "gray", "running": "blue", "done": "green", "failed": "red", "stopped": "gray"}


def preset_config(name: str, changes: dict[str, Any] | None = None) -> RunConfig:
    """A preset, with changes under short or dotted names."""
    return build_config(load_settings(name), changes)


def attempt(action: Callable[[], Any]) -> Any:
    """The action's value, or None after showing what is wrong."""
    try:
        return action()
    except (ValueError, OSError) as error:
        st.error(str(error))
        return None


def launch_and_watch(config: RunConfig, home: Path) -> None:
    """Start a run and go to its live page."""
    run_id = attempt(lambda: launch.launch(config, home))
    if run_id:
        watch(run_id)


def watch(run_id: str) -> None:
    """Go to a run's live page."""
    st.session_state["run"] = run_id
    st.switch_page(Path(__file__).parents[1] / "pages" / "live.py")


def pick_run(home: Path) -> RunDir | None:
    """The run named in the address or picked before, else the newest; a box to pick another."""
    runs = [run.run_id for run in reversed(all_runs(home))]
    if not runs:
        return None
    wanted = st.session_state.pop("run", None) or st.query_params.get("run")
    index = runs.index(wanted) if wanted in runs else 0
    chosen = st.sidebar.selectbox("Run", runs, index=index)
    st.query_params["run"] = chosen
    return RunDir(home / "runs" / chosen)


def observed(runs: pd.DataFrame, home: Path) -> pd.DataFrame:
    """Runs with the status they really have: one whose runner is gone has failed."""
    live = runs["status"].isin(["queued", "running"])
    status = [
        launch.observed_status(RunDir(home / "runs" / run_id))[0] if is_live else status
        for run_id, status, is_live in zip(runs["run_id"], runs["status"], live, strict=True)
    ]
    return runs.assign(status=status)


def wait_for(file: Path, status: dict[str, Any], text: str) -> None:
    """Say what is awaited; draw the page anew once the file is there."""
    if file.exists():
        st.rerun()
    if status["error"]:
        st.error(status["error"])
    else:
        st.info(text)


def merge_report(report: dict[str, Any]) -> None:
    """What a merge did, against what it should have done; alarms stand out."""
    for line in merge_lines(report):
        (st.warning if line.startswith("WARNING") else st.markdown)(line)
    st.caption(f"sha256 {report['sha256']['model.safetensors']}")
    st.json(report, expanded=False)


def accuracies(evals: pd.DataFrame) -> pd.DataFrame:
    """Accuracies by merge and task in per cent, with n and interval."""
    return pd.DataFrame(
        {
            "merge": evals["label"],
            "task": evals["task"],
            "domain": evals["domain"],
            "accuracy, %": (100 * evals["accuracy"]).round(1),
            "95 % from": (100 * evals["ci_low"]).round(1),
            "to": (100 * evals["ci_high"]).round(1),
            "n": evals["num_questions"],
        }
    )


def short_model(model: str) -> str:
    """The last two parts of a model's path or name."""
    return "/".join(Path(model).parts[-2:])


def per_cent(curve: Sequence[float] | float | None) -> list[float]:
    """A list of fractions in per cent; empty where there is none."""
    return [] if curve is None or isinstance(curve, float) else [100 * value for value in curve if value is not None]


def ago(time: datetime) -> str:
    """How long ago a UTC time was, in the largest fitting unit."""
    return f"{duration((datetime.now(UTC).replace(tzinfo=None) - time).total_seconds())} ago"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3.5 h, 2 d."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 129_600 else f"{seconds / 86_400:.0f} d"
