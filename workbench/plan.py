"""What a run does: its phases in order, each with its complete input."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.config import RunConfig
from workbench.core.methods import MADE_BY, PHASES, earlier_share, kinds_made, start_of
from workbench.jobs import (
    AnalyzeJob,
    Baseline,
    Checkpoint,
    EvaluateJob,
    MergeJob,
    SampleJob,
    Section,
    SftJob,
    TaskSource,
)
from workbench.rundir import PhaseDir, RunDir


def plan(run: RunDir, config: RunConfig, base: str, threads: int) -> Iterator[tuple[PhaseDir, Section]]:
    """Every phase of a run: the base is evaluated, then each iteration goes through its method's phases."""
    jobs = _Jobs(run, config, base, threads)
    make = {"sample": jobs.sample, "sft": jobs.sft, "merge": jobs.merge, "evaluate": jobs.evaluate,
            "analyze": jobs.analyze}  # fmt: skip
    yield run.phase(0, "evaluate"), jobs.evaluate(0)
    for iteration in range(1, config.iterations + 1):
        for phase in phases_of(config):
            yield run.phase(iteration, phase), make[phase](iteration)


def phases_of(config: RunConfig) -> tuple[str, ...]:
    """What each iteration goes through: no analysis if it is off, no sampling if nothing would learn from it."""
    left_out = {"analyze": not config.analyze.enabled, "sample": config.data.real_share == 1}
    return tuple(phase for phase in PHASES[config.method] if not left_out.get(phase, False))


def checkpoint_path(run: RunDir, iteration: int, kind: str, base: str) -> Path:
    """Where a checkpoint of a run is, or will be."""
    if kind == "base":
        return Path(base)
    maker = {made: phase for phase, made in MADE_BY.items()}
    return run.phase(iteration, maker[kind]).checkpoint


@dataclass(frozen=True)
class _Jobs:
    """Makes the jobs of one run."""

    run: RunDir
    config: RunConfig
    base: str
    threads: int

    def checkpoint(self, iteration: int, kind: str) -> Checkpoint:
        """A checkpoint of the run, made or still to be made."""
        path = checkpoint_path(self.run, iteration, kind, self.base)
        return Checkpoint(checkpoint_id=self.run.checkpoint_id(iteration, kind), kind=kind, path=str(path))

    def start(self, iteration: int) -> Checkpoint:
        """What an iteration samples from and fine-tunes."""
        if iteration == 1 and self.config.start:
            return Checkpoint(checkpoint_id=self.run.checkpoint_id(0, "start"), kind="start", path=self.config.start)
        return self.checkpoint(*start_of(self.config.method, iteration))

    def source(self, task: str) -> TaskSource:
        return TaskSource(task=task, datasets=self.config.datasets)

    def sample(self, iteration: int) -> SampleJob:
        return SampleJob(
            model=self.start(iteration),
            trust_remote_code=self.config.trust_remote_code,
            train_task=self.source(self.config.train_task),
            num_questions=self.config.num_questions,
            iteration=iteration,
            seed=self.config.seed,
            prompt=self.config.prompt,
            sample=self.config.sample,
            teacher=self.config.teacher,
            monitor=self.config.monitor,
            first_result=str(self.run.phase(1, "sample").result) if iteration > 1 else None,
            engine=self.config.engine,
            threads=self.threads,
        )

    def sft(self, iteration: int) -> SftJob:
        share = earlier_share(self.config.method, self.config.data.mixture_share)
        before = [str(self.run.phase(t, "sample").solutions) for t in range(1, iteration)] if share else []
        return SftJob(
            start=self.start(iteration),
            trust_remote_code=self.config.trust_remote_code,
            solutions=(str(self.run.phase(iteration, "sample").solutions),),
            earlier=tuple(before),
            earlier_share=share if before else 1.0,
            data=self.config.data,
            train_task=self.source(self.config.train_task),
            num_questions=self.config.num_questions,
            sample=self.config.sample,
            iteration=iteration,
            seed=self.config.seed,
            prompt=self.config.prompt,
            sft=self.config.sft,
            threads=self.threads,
        )

    def merge(self, iteration: int) -> MergeJob:
        return MergeJob(
            base=self.checkpoint(0, "base"),
            start=self.start(iteration),
            sft=self.checkpoint(iteration, "sft"),
            merge=self.config.merge,
            seed=self.config.seed + iteration,
            iteration=iteration,
            threads=self.threads,
            **self.importance(iteration),
        )

    def importance(self, iteration: int) -> dict[str, Any]:
        """What a merge needs to weigh layers by importance, which is then measured before it, not after."""
        if self.config.merge.profile != "importance":
            return {}
        return {"analyze": self.analyze(iteration), "importance": str(self.run.phase(iteration, "analyze").path)}

    def evaluate(self, iteration: int) -> EvaluateJob:
        if iteration:
            found = [self.checkpoint(iteration, kind) for kind in kinds_made(self.config.method)]
        else:
            found = [self.checkpoint(0, "base"), *([self.start(1)] if self.config.start else [])]
        base = Baseline(
            checkpoint_id=self.run.checkpoint_id(0, "base"), outcomes=str(self.run.phase(0, "evaluate").outcomes)
        )
        return EvaluateJob(
            checkpoints=tuple(found),
            trust_remote_code=self.config.trust_remote_code,
            baseline=base if iteration == 1 else None,
            id_task=self.source(self.config.train_task),
            ood_tasks=tuple(self.source(task) for task in self.config.eval_tasks),
            iteration=iteration,
            seed=self.config.seed,
            solutions=(str(self.run.phase(iteration, "sample").solutions),) if iteration else (),
            num_questions=self.config.num_questions,
            sample=self.config.sample,
            prompt=self.config.prompt,
            evaluate=self.config.evaluate,
            engine=self.config.engine,
            threads=self.threads,
        )

    def analyze(self, iteration: int) -> AnalyzeJob:
        settings = self.config.analyze
        return AnalyzeJob(
            base=self.checkpoint(0, "base"),
            start=self.start(iteration),
            checkpoints=tuple(self.checkpoint(iteration, kind) for kind in kinds_made(self.config.method)),
            trust_remote_code=self.config.trust_remote_code,
            reasoning=self.source(settings.task or self.config.train_task),
            solutions=(str(self.run.phase(iteration, "sample").solutions),),
            text=settings.text,
            base_importance=None if self.config.start else str(self.run.phase(1, "analyze").path),
            analyze=settings,
            prompt=self.config.prompt,
            seed=self.config.seed,
            threads=self.threads,
        )
