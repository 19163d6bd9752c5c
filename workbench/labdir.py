"""The merge lab: one base, start and sft, and every merge of them that was tried.

<home>/labs/<lab_id>/
  lab.json                  what is merged and what it is measured on
  moments.json              the sums behind the sliders, by tensor (`core.distances`)
  requests.jsonl            what was asked for: points, a search, an export, or to stop
  points.jsonl              every evaluated merge, as it lands
  outcomes.jsonl            its answers, question by question
  status.json               what the lab's process is doing
  process.json, lab.log     that process (`phases.sweep`), which keeps its engine warm for a while
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import Field

from workbench.config import EngineConfig, MergeConfig, PromptConfig, RayConfig, SampleConfig, Section
from workbench.events import read_lines
from workbench.jobs import TaskSource
from workbench.rundir import RUN_ID, read_json

Split = Literal["validation", "test"]


class LabConfig(Section):
    """What a lab merges and measures."""

    base: str
    start: str
    sft: str
    id_task: TaskSource | None
    ood_tasks: tuple[TaskSource, ...]
    run_id: str | None = None
    iteration: int | None = None
    seed: int = 0
    num_questions: int | None = None
    sample: SampleConfig = SampleConfig(few_shot=0)
    """Of the run: which train questions it drew, so that others can be used for tuning."""
    prompt: PromptConfig = PromptConfig()
    max_new_tokens: int = 512
    engine: EngineConfig = EngineConfig()
    threads: int | None = None
    trust_remote_code: bool = False
    ray: RayConfig | None = None
    """The cluster that its points are measured on; None: this machine."""


class Point(Section):
    """Evaluate one merge."""

    kind: Literal["point"] = "point"
    merge: MergeConfig
    seed: int = Field(0, ge=0, lt=2**32)
    num_questions: int = Field(200, ge=1)
    split: Split = "validation"
    beside: bool = False
    """Do not wait for the machine's place; work on one core beside whatever runs."""


class Search(Section):
    """Let an optimiser choose the next merges, for ID and OOD at once."""

    kind: Literal["search"] = "search"
    num_points: int = Field(12, ge=1, le=1000)
    seed: int = Field(0, ge=0, lt=2**32)
    num_questions: int = Field(200, ge=1)
    beside: bool = False


class Export(Section):
    """Write a merge to a directory."""

    kind: Literal["export"] = "export"
    merge: MergeConfig
    seed: int = Field(0, ge=0, lt=2**32)
    directory: str


@dataclass(frozen=True)
class LabDir:
    """The directory of a lab."""

    path: Path

    @property
    def lab_id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "lab.json"

    @property
    def moments(self) -> Path:
        return self.path / "moments.json"

    @property
    def requests(self) -> Path:
        return self.path / "requests.jsonl"

    @property
    def points(self) -> Path:
        return self.path / "points.jsonl"

    @property
    def outcomes(self) -> Path:
        return self.path / "outcomes.jsonl"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def log(self) -> Path:
        return self.path / "lab.log"


def point_id(merge: MergeConfig, seed: int) -> str:
    """The key of a merge in its lab: readable, and different for different settings."""
    text = f"a{merge.alpha:g}-p{merge.drop_rate:g}-s{seed}"
    plain = MergeConfig(alpha=merge.alpha, drop_rate=merge.drop_rate)
    return text if merge == plain else f"{text}-{sha256(merge.model_dump_json().encode()).hexdigest()[:6]}"


def label(merge: MergeConfig, seed: int | None = None) -> str:
    """A merge in a few words."""
    words = [f"alpha {merge.alpha:g}", f"p {merge.drop_rate:g}"]
    if merge.profile == "points":
        words[0] = "alpha " + " ".join(f"{point:g}" for point in merge.points)
    words += [merge.rule] if merge.rule != "dare" else []
    words += ["alpha by importance"] if merge.profile == "importance" else []
    words += ["alpha by inverse change"] if merge.profile == "inverse_change" else []
    words += ["towards start"] if merge.towards == "start" else []
    words += [f"{module} x {factor:g}" for module, factor in sorted(merge.modules.items())]
    return ", ".join(words + ([f"seed {seed}"] if seed is not None else []))


BASE = MergeConfig(alpha=1.0, drop_rate=0.0)
SFT = MergeConfig(alpha=0.0, drop_rate=0.0)
"""The ends between which merges lie."""


def find_lab(root: Path, lab_id: str) -> LabDir:
    """The lab of that id.

    Raises:
        ValueError: not an id (never a path), or no such lab.
    """
    lab = LabDir(root / "labs" / lab_id)
    if not RUN_ID.fullmatch(lab_id) or not lab.config.is_file():
        raise ValueError(f"no lab {lab_id!r} in {root / 'labs'}")
    return lab


def all_labs(root: Path) -> list[LabDir]:
    """Every lab of a home."""
    return [LabDir(path.parent) for path in sorted((root / "labs").glob("*/lab.json"))]


def read_config(lab: LabDir) -> LabConfig:
    """What the lab merges and measures."""
    written = read_json(lab.config)
    written.pop("created_at")
    return LabConfig.model_validate(written)


def requests_left(lab: LabDir) -> list[tuple[int, Point | Search | Export]]:
    """What was asked for since the last cancel and is not done, by its line in `requests.jsonl`."""
    rows, _ = read_lines(lab.requests)
    last = max((n for n, row in enumerate(rows) if row["kind"] == "cancel"), default=-1)
    done = (read_json(lab.status) or {}).get("requests_done", 0)
    kinds = {"point": Point, "search": Search, "export": Export}
    left = []
    for number, row in enumerate(rows):
        if number > last and number >= done:
            fields = {key: value for key, value in row.items() if key != "asked_at"}
            left.append((number, kinds[row["kind"]].model_validate(fields)))
    return left
