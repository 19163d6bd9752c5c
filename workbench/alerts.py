"""Telling somebody who is not watching: a run failed, stalls, or raised an alarm such as a collapse.

What to do is in <home>/alerts.toml; without it, alerts are written down and nobody is called.

    webhook = "env:WORKBENCH_WEBHOOK"    # a URL, or the environment variable that holds it; gets a JSON object by POST
    command = ["notify-send", "workbench"]   # the sentence is its last argument
    stalled_minutes = 15                 # without an event for so long, a run counts as stalled; 0: never

Every alert is a line of <home>/queue/alerts.jsonl with what came of it. The supervisor sends them, once each.
"""

import json
import logging
import os
import subprocess
import threading
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from workbench.config import Section
from workbench.events import append_lines, read_lines
from workbench.queueing import QueueDir
from workbench.rundir import RunDir, last_status

logger = logging.getLogger(__name__)
SEND_S = 15
LOOK_EVERY_S = 5.0
ENVIRONMENT = "env:"


class AlertConfig(Section):
    """Whom to tell, and after how long a silence."""

    webhook: str | None = None
    command: tuple[str, ...] = ()
    stalled_minutes: float = Field(15.0, ge=0)


def read_config(root: Path) -> AlertConfig:
    """What alerts.toml says; the defaults where there is none.

    Raises:
        ValueError: it cannot be read, naming the setting.
    """
    path = root / "alerts.toml"
    try:
        return AlertConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return AlertConfig()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path}: {name}: {first['msg']}; known are {', '.join(AlertConfig.model_fields)}, and a URL with a "
            f"secret in it belongs into the environment: webhook = {ENVIRONMENT}NAME"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def send(config: AlertConfig, alert: Mapping[str, Any]) -> list[str]:
    """Deliver an alert; what went wrong, a sentence each, without the address, which may hold a secret."""
    problems = []
    if config.webhook:
        import httpx

        url = config.webhook
        if url.startswith(ENVIRONMENT):
            url = os.environ.get(url.removeprefix(ENVIRONMENT), "")
        set_at = f" ({config.webhook})" if config.webhook.startswith(ENVIRONMENT) else ""
        try:
            text = alert["text"]
            done = httpx.post(url, json={**alert, "content": text}, timeout=SEND_S)  # Slack reads text, Discord content
            if not done.is_success:
                problems.append(f"webhook: answered {done.status_code}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            unset = "" if url else "; it is not set where the supervisor was started"
            problems.append(f"webhook{set_at}: {type(error).__name__}{unset}")
    if config.command:
        try:
            done = subprocess.run(
                [*config.command, alert["text"]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SEND_S,
                env=os.environ | {"WORKBENCH_ALERT": json.dumps(alert)},
            )
            if done.returncode:
                problems.append(f"command {config.command[0]}: exit code {done.returncode}")
        except (OSError, subprocess.TimeoutExpired) as error:
            problems.append(f"command {config.command[0]}: {type(error).__name__}")
    return problems


def tell(root: Path, kind: str, run_id: str | None, text: str, of: float | None = None) -> list[str]:
    """Send an alert and write down what came of it; what went wrong. `of`: when it happened."""
    alert = {"ts": time.time(), "kind": kind, "run_id": run_id, "text": text, "of": of}
    try:
        config = read_config(root)
        problems, called = send(config, alert), bool(config.webhook or config.command)
    except ValueError as error:
        problems, called = [str(error)], True
    append_lines(QueueDir.of(root).alerts, [alert | {"sent": called and not problems, "problems": problems}])
    for problem in problems:
        logger.warning("%s", problem)
    return problems


class Watch:
    """What the supervisor keeps an eye on in the runs that work."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rows, _ = read_lines(QueueDir.of(root).alerts)
        self.told = {tuple(row.get(key) for key in ("kind", "run_id", "text", "of")) for row in rows}
        self.offsets: dict[Path, int] = {}
        self.looked_at = 0.0

    def look(self, runs: list[RunDir]) -> None:
        """Alarms that phases raised, and phases that have been silent for too long."""
        if time.monotonic() - self.looked_at < LOOK_EVERY_S:
            return
        self.looked_at = time.monotonic()
        for run in runs:
            self.see_alarms(run)
            status = last_status(run)
            if status["status"] != "running" or not status["since"]:
                continue
            place = run.phase(status["iteration"], status["phase"]) if status["phase"] else None
            self.see_stall(run, status["since"], [place.events, place.job] if place else [])

    def see_alarms(self, run: RunDir) -> None:
        """Alarms of every phase: the last words of one are often alarms, and the next has begun since."""
        for place in run.phases():
            events, self.offsets[place.events] = read_lines(place.events, self.offsets.get(place.events, 0))
            for event in events:
                if event["name"] == "alert":
                    self.once("alarm", run.run_id, f"{run.run_id}, iteration {place.iteration}: {event['text']}")

    def see_stall(self, run: RunDir, since: float, files: list[Path]) -> None:
        """Say that a run is silent, once for each silence."""
        try:
            minutes = read_config(self.root).stalled_minutes
        except ValueError:
            minutes = AlertConfig().stalled_minutes
        last = max([since, *(file.stat().st_mtime for file in files if file.exists())])
        if minutes and time.time() - last > 60 * minutes:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(last))
            self.once(
                "stall", run.run_id,
                f"{run.run_id} has said nothing since {stamp}, for more than {minutes:g} minutes. Look at it: "
                f"workbench show {run.run_id}. End it and go on: workbench stop {run.run_id}, workbench resume "
                f"{run.run_id}",
            )  # fmt: skip

    def failed(self, run: RunDir, error: str | None) -> None:
        """Say that a run has failed; a resumed one that fails in the same way has failed again."""
        since = last_status(run)["since"]
        self.once("failure", run.run_id, f"{run.run_id} failed. {error or ''}".strip(), since)

    def once(self, kind: str, run_id: str, text: str, of: float | None = None) -> None:
        """Tell it in the background, unless it was told; a slow address holds up nothing.

        `of`: when it happened, where the same words may be due again.
        """
        if (kind, run_id, text, of) in self.told:
            return
        self.told.add((kind, run_id, text, of))
        threading.Thread(target=tell, args=(self.root, kind, run_id, text, of)).start()
