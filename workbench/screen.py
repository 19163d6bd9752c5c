"""What the pages share: words for states, tables, and actions whose errors become one sentence."""

import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from workbench import chosen_runs, launch, ledger, queueing, store
from workbench.config import RunConfig
from workbench.events import read_lines
from workbench.paths import confine, confine_config, writable
from workbench.redact import redacted
from workbench.report import merge_lines
from workbench.rundir import RunDir
from workbench.rundir import home as current_home
from workbench.settings import build_config, load_preset

logger = logging.getLogger(__name__)
STATUS = {
    "queued": "○ queued",
    "running": "● running",
    "stopping": "◐ stopping",
    "done": "✓ done",
    "failed": "✕ failed",
    "stopped": "■ stopped",
}
STATUS_COLOUR = {
    "queued": "gray",
    "running": "blue",
    "stopping": "orange",
    "done": "green",
    "failed": "red",
    "stopped": "gray",
}
DOUBLE_CLICK_S = 5.0
LOG_BYTES = 1_000_000
SAID_LENGTH = 500
MOST_ROWS = 25
"""Longer tables scroll."""
LOOKS = {r"^p \(": "%.2g", "^change$|difference|− base": "%+.1f", "%|from$|to$|smallest": "%.1f"}
"""How numbers look, by the name of their column: p-values, changes in points, per cent."""
TRUST_LABEL = "Run code that the model brings along"
TRUST_HELP = (
    "Some models come with Python code of their own (auto_map in their config.json). If you switch this on, that code "
    "runs on this machine as the account of the workbench: it can read and change files, use keys and the network. "
    "Switch it on only for a model whose code you have read, or whose author you trust. Off, such a model is refused."
)


def preset_config(name: str | None, changes: dict[str, Any] | None = None) -> RunConfig:
    """A preset, or none, with changes under short or dotted names; its paths lead to where the screen may go."""
    return confine_config(build_config(load_preset(name), changes), current_home())


def ask_trust(value: bool, key: str, whose: str = "") -> bool:
    """Whether code that a model brings along may run, with what that means."""
    trusted = st.toggle(TRUST_LABEL + whose, value, key=key, help=TRUST_HELP)
    if trusted:
        st.warning("Its code will run here with the workbench's files, keys and network. Have you read it?", icon="⚠️")
    return trusted


def places(**names: str | None) -> dict[str, str | None] | None:
    """Models and texts that somebody named; None, after showing what is wrong, where one leads elsewhere."""
    return attempt(lambda: {what: name and confine(name, current_home(), what) for what, name in names.items()})


def place_to_write(name: str) -> Path | None:
    """The directory that somebody named for a checkpoint; None, after showing why, where the screen may not write."""
    exports, roots = current_home() / "exports", writable(current_home())
    given = attempt(lambda: confine(str(exports / Path(name).expanduser()), current_home(), "Write it to", roots))
    return Path(given) if given else None


def plain(text: str) -> str:
    """A text as Markdown that shows it as it is: no link, no picture from elsewhere, no formula comes of it."""
    return re.sub(r"([\\`*\[\]$])", r"\\\1", text)


def attempt(action: Callable[[], Any]) -> Any:
    """The action's value, or None after showing what is wrong."""
    try:
        return action()
    except store.StoreBusy as busy:
        st.warning(plain(str(busy)), icon="⏳")
    except (ValueError, OSError) as error:
        st.error(plain(str(error)))
    return None


def guarded(draw: Callable[[], Any]) -> Any:
    """Draw a page or a part of one. What nobody foresaw becomes one sentence, and its traceback goes into a log."""
    try:
        return draw()
    except store.StoreBusy as busy:
        st.warning(plain(str(busy)), icon="⏳")
    except Exception as error:  # nobody after us could: Streamlit would show the traceback
        said = redacted(f"{type(error).__name__}: {error}").splitlines()[0][:SAID_LENGTH].rstrip(".!")
        st.error(
            f"This part of the page could not be drawn: {plain(said)}. Its traceback is in {plain(write_down(error))}; "
            "runs go on, and nothing is lost."
        )
    return None


def write_down(error: Exception) -> str:
    """Put a traceback, without secrets, at the end of the screen's log; where that is."""
    log, text = current_home() / "screen.log", redacted("".join(traceback.format_exception(error)))
    try:
        if log.exists() and log.stat().st_size > LOG_BYTES:  # a page that fails every two seconds fills no disk
            log.replace(log.with_name("screen.log.1"))
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n{text}\n")
    except OSError:
        logger.error("%s", text)
        return "the output of the server"
    return str(log)


def live(draw: Callable[[], Any], every_s: float | None) -> None:
    """Draw a part of a page now, and again by itself every so often."""
    st.fragment(lambda: guarded(draw), run_every=every_s)()


def show_delay(db: Path) -> None:
    """Say who keeps runs from recording, while somebody does."""
    if said := store.held_by(db):
        st.warning(said, icon="⏳")


def launch_and_watch(config: RunConfig, home: Path) -> None:
    """Start a run and go to its live page."""
    run_id = attempt(lambda: launch.launch(config, home, once_s=DOUBLE_CLICK_S))
    if run_id:
        chosen_runs.watch([run_id])


def observed(runs: pd.DataFrame, home: Path) -> pd.DataFrame:
    """Runs with the status they really have: one whose runner is gone has failed. Who waits has a supervisor."""
    queueing.ensure(home)
    live = runs["status"].isin(launch.ACTIVE)
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
        st.error(plain(status["error"]))
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


def show_alerts(notes: pd.DataFrame, names: Mapping[str, str] | None = None) -> None:
    """What the runs raised the alarm about: one box for one run, for several a line that opens and names them.

    notes: `evals.alerts_frame`; names: run_id -> what to call it, of several runs.
    """
    alerts = notes[notes["kind"] == "alert"]
    if alerts.empty:
        return
    if names is None or len(names) == 1:
        lines = [f"Iteration {row.iteration}: {plain(row.text)}" for row in alerts.itertuples()]
        st.warning(lines[0] if len(lines) == 1 else "\n".join(f"- {line}" for line in lines), icon="⚠️")
        return
    called = alerts["run_id"].map(names or {}).fillna(alerts["run_id"])
    with st.expander(f"⚠️ {len(alerts)} alerts in {alerts['run_id'].nunique()} runs"):
        table(alerts.assign(run=called)[["run", "iteration", "text"]], "alerts", wide=["text"])


def alerts_told(home: Path) -> pd.DataFrame:
    """The latest alerts that somebody was told, or should have been: when, what, and what came of it."""
    rows, _ = read_lines(home / "queue" / "alerts.jsonl")
    words = {True: "sent", False: "written down"}
    return pd.DataFrame(
        {
            "when": [ago(datetime.fromtimestamp(row["ts"], UTC).replace(tzinfo=None)) for row in rows[:-11:-1]],
            "alert": [row["text"] for row in rows[:-11:-1]],
            "came of it": ["; ".join(row["problems"]) or words[row["sent"]] for row in rows[:-11:-1]],
        }
    )


def table(frame: pd.DataFrame, key: str, *, wide: Sequence[str] = (), none: str = "–", **looks: Any) -> Any:
    """A frame as a table; `wide`: its long texts, `none`: what stands where nothing is known."""
    numbers = {
        name: st.column_config.NumberColumn(format=look)
        for name in frame.select_dtypes("number")
        for look in [next((look for pattern, look in LOOKS.items() if re.search(pattern, name)), None)]
        if look
    }
    texts = {name: st.column_config.TextColumn(width="large") for name in wide}
    columns = numbers | texts | looks.pop("column_config", {})
    return st.dataframe(frame, hide_index=True, placeholder=none, column_config=columns, key=key, **looks)


def words_table(frame: pd.DataFrame, key: str) -> None:
    """A frame of words, numbers among them: names on the left, the rest on the right."""
    numbers = [name for name in frame.columns if name not in ledger.NAMES]
    right = {name: st.column_config.TextColumn(alignment="right") for name in numbers}
    height = "content" if len(frame) <= MOST_ROWS else "auto"
    table(frame, key, column_config=right, height=height)


def pick_row(shown: pd.DataFrame, which: pd.DataFrame, key: str, **looks: Any) -> int | None:
    """A table of which one row can be selected; the number of that row.

    which: what tells the rows from others. Where other rows stand there, nothing is selected any more: Streamlit would
    keep the number, and with it another row, or none.
    """
    digest = sha256(pd.util.hash_pandas_object(which.astype(str)).values.tobytes()).hexdigest()[:8]
    found = table(shown, f"{key}-{digest}", on_select="rerun", selection_mode="single-row", **looks)
    return next((row for row in found.selection.rows if row < len(shown)), None)


def short_model(model: str) -> str:
    """The last two parts of a model's path or name."""
    return "/".join(Path(model).parts[-2:])


def per_cent(curve: Sequence[float] | float | None) -> list[float]:
    """A list of fractions in per cent; empty where there is none."""
    if np.ndim(curve) == 0:  # None, or what pandas has for it
        return []
    values = np.ma.filled(np.ma.asarray(curve, dtype=float), np.nan)  # DuckDB masks what is missing in a list
    return [100 * value for value in values.tolist() if not np.isnan(value)]


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
