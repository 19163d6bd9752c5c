"""What a run will take, before it starts: memory by phase, tokens, GPU hours, disk. Imports no torch.

Hours are FLOP / (peak FLOP/s x utilisation): 6 N T for T tokens trained through N weights (8 N T with gradient
checkpointing, 4 N T for adapters), 2 N T for tokens read or written while generating, 8 N T for the importance of
layers. Utilisation, the share of solutions that is kept and, without the model's tokenizer, the length of a token are
assumptions, and named as such.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from workbench import memory
from workbench.config import RunConfig
from workbench.core.methods import checkpoints_kept, earlier_share, kinds_made
from workbench.engines import BATCH
from workbench.jobs import TaskSource
from workbench.machine import Gpu, Machine, processes_of
from workbench.memory import Memory
from workbench.plan import phases_of
from workbench.settings import facts
from workbench.shapes import Shape, chars_per_token, find_shape, tokens_of
from workbench.tasks import check_source

TRAINING, GENERATING = 0.30, 0.05
"""Assumed utilisation of the GPU's peak: generation is bound by memory, not by arithmetic."""
KEPT = 0.5
"""Assumed share of sampled solutions that is correct and kept."""
SOLUTION_CHARS = 300
"""Assumed length of a solution where the train task has no worked ones to measure."""
LONGEST = 3
"""The longest batch's questions, in mean questions (the longest of GSM8K has 985 characters, the mean 235)."""
ROW_BYTES = 300
"""Of a recorded answer beside its texts."""


@dataclass(frozen=True)
class TaskFacts:
    """How many questions a task has, and how long they are in characters."""

    train: int
    test: int
    question_chars: float
    solution_chars: float | None


@dataclass(frozen=True)
class PhaseEstimate:
    """One kind of phase, over the whole run."""

    memory: Memory
    limit_gib: float
    """What there is for it: of each GPU (with vLLM the share it is given), on a CPU of the machine."""
    tokens: float
    gpu_hours: float


@dataclass(frozen=True)
class Estimate:
    """A whole run."""

    phases: Mapping[str, PhaseEstimate]
    disk_gb: Mapping[str, float]
    prompt_tokens: int
    """Of a sampling prompt with its worked examples, in the mean."""
    context: int
    """Longest prompt and answer that the sampling model takes."""
    longest_example: int
    """That fine-tuning can meet, in tokens."""
    machine: Machine

    @property
    def gpu_hours(self) -> float:
        return sum(phase.gpu_hours for phase in self.phases.values())

    @property
    def total_disk_gb(self) -> float:
        return sum(self.disk_gb.values())


def facts_of(source: TaskSource) -> TaskFacts:
    """Of a task: counted from its rows where they are here, else the shipped facts; these have the lengths of a known
    one."""
    known = facts("tasks").get(source.task, {})
    counts, texts = {}, []
    for split in ("train", "test"):
        try:
            task = check_source(source, split)
        except ValueError:
            task = None
        counts[split] = len(task.questions) if task else known.get(split, 0)
        texts += task.questions if task else ()
    if known:
        return TaskFacts(counts["train"], counts["test"], known["question_chars"], known.get("solution_chars"))
    solutions = [len(question.solution) for question in texts if question.solution]
    return TaskFacts(
        counts["train"],
        counts["test"],
        sum(len(question.text) for question in texts) / max(1, len(texts)),
        sum(solutions) / len(solutions) if solutions else None,
    )


def estimate(config: RunConfig, machine: Machine, kind: str) -> Estimate | None:
    """What `config` takes on `machine` with engine `kind`; None where the model's shape cannot be had."""
    shape = find_shape(config.model)
    teacher = find_shape(config.teacher.model) if config.teacher.model and not config.teacher.url else shape
    if shape is None or teacher is None:
        return None
    work = _Work.of(config)
    phases = _Phases(config, shape, teacher, machine, kind, work)
    return Estimate(
        phases=phases.all(),
        disk_gb=disk(config, shape, work, on_gpu=bool(machine.gpus)),
        prompt_tokens=work.shots + work.question,
        context=min(teacher.context, memory.context_of(teacher, config.engine)) if kind == "vllm" else teacher.context,
        longest_example=phases.longest_example,
        machine=machine,
    )


@dataclass(frozen=True)
class _Work:
    """How much there is to read and write, in tokens."""

    question: int
    solution: int
    shots: int
    """Of the worked examples before a question."""
    solutions: int
    """Sampled in an iteration."""
    trained: tuple[int, ...]
    """Examples that each iteration's fine-tuning learns from."""
    answers: int
    """Of one checkpoint in evaluation."""
    answer_question: int
    chars: float
    """Of a question and its answer."""

    @classmethod
    def of(cls, config: RunConfig) -> "_Work":
        found = {
            name: facts_of(TaskSource(task=name, datasets=config.datasets))
            for name in (config.train_task, *config.eval_tasks)
        }
        train, model, sample = found[config.train_task], config.model, config.sample
        chars = train.solution_chars or SOLUTION_CHARS
        question, solution = tokens_of(train.question_chars, model), tokens_of(chars, model)
        asked = max(0, train.train - sample.few_shot)
        asked = min(asked, config.num_questions or asked)
        solutions = asked * len(sample.temperatures) * sample.num_samples
        share, real = earlier_share(config.method, config.data.mixture_share), config.data.real_share
        trained = []
        for iteration in range(1, config.iterations + 1):
            own = KEPT * solutions * (1 + share * (iteration - 1))
            trained.append(asked if real == 1 else own + min(asked, own * real / (1 - real)))
        settings, answers = config.evaluate, 0
        for name, task in found.items():
            count = min(task.test, settings.num_questions or task.test)
            sampled = name == config.train_task or settings.sampled_tasks == "all"
            more = min(count, settings.sampled_questions or count) * settings.num_samples if sampled else 0
            answers += count + more
        return cls(
            question=question,
            solution=min(solution, sample.max_new_tokens),
            shots=sample.few_shot * (question + solution),
            solutions=0 if real == 1 else solutions,
            trained=tuple(ceil(count) for count in trained),
            answers=answers,
            answer_question=tokens_of(sum(t.question_chars for t in found.values()) / len(found), model),
            chars=train.question_chars + chars,
        )


@dataclass(frozen=True)
class _Phases:
    """The phases of one run."""

    config: RunConfig
    shape: Shape
    teacher: Shape
    machine: Machine
    kind: str
    work: _Work

    def all(self) -> dict[str, PhaseEstimate]:
        made = {"sample": self.sample, "sft": self.sft, "merge": self.merge, "evaluate": self.evaluate,
                "analyze": self.analyze}  # fmt: skip
        there = [phase for phase in phases_of(self.config) if phase != "sample" or not self.config.teacher.url]
        return {phase: made[phase]() for phase in dict.fromkeys([*there, "evaluate"])}

    @property
    def gpu(self) -> Gpu | None:
        """The smallest one, which decides."""
        return min(self.machine.gpus, key=lambda gpu: gpu.memory_gib, default=None)

    @property
    def room(self) -> float:
        return self.gpu.memory_gib if self.gpu else self.machine.memory_gib

    def sample(self) -> PhaseEstimate:
        work, sample = self.work, self.config.sample
        length = work.shots + LONGEST * work.question + sample.max_new_tokens
        read = work.solutions / len(sample.temperatures) / sample.num_samples * work.question
        tokens = self.config.iterations * (read + work.solutions * work.solution)
        return self._generating(self.teacher, work.solutions, length, tokens)

    def evaluate(self) -> PhaseEstimate:
        work = self.work
        length = LONGEST * work.answer_question + self.config.evaluate.max_new_tokens
        checkpoints = 1 + self.config.iterations * len(kinds_made(self.config.method))
        answer = min(work.solution, self.config.evaluate.max_new_tokens)
        return self._generating(
            self.shape, work.answers, length, checkpoints * work.answers * (work.answer_question + answer)
        )

    def _generating(self, shape: Shape, asked: int, length: int, tokens: float) -> PhaseEstimate:
        engine, gib = self.config.engine, self.gpu.memory_gib if self.gpu else None
        rows = max(1, min(asked, engine.batch_size or BATCH[self.kind]))
        host = self.machine.memory_gib
        found = memory.generating(shape, engine, self.kind, rows=rows, length=length, gpu_gib=gib, host_gib=host)
        share = engine.gpu_memory if gib and self.kind == "vllm" else 1.0
        return self._made(found, tokens, 2 * shape.num_parameters * tokens / GENERATING, share)

    def sft(self) -> PhaseEstimate:
        sft = self.config.sft
        processes, here = processes_of(sft, len(self.machine.gpus))
        found = memory.training(
            self.shape,
            sft,
            processes=processes,
            here=here,
            on_gpu=self.gpu is not None,
            length=self.longest_example,
        )
        tokens = sft.epochs * sum(self.work.trained) * min(self.work.question + self.work.solution, sft.max_length)
        factor = (4 if sft.lora else 6) + (2 if sft.gradient_checkpointing else 0)
        return self._made(found, tokens, factor * self.shape.num_parameters * tokens / TRAINING)

    @property
    def longest_example(self) -> int:
        """In tokens: a sampled solution ends at sample.max_new_tokens, an example at sft.max_length."""
        real = LONGEST * self.work.solution if self.config.data.real_share else 0
        response = max(real, self.config.sample.max_new_tokens)
        return min(self.config.sft.max_length, LONGEST * self.work.question + response)

    def merge(self) -> PhaseEstimate:
        return self._made(memory.merging(on_gpu=self.gpu is not None), 0, 0)

    def analyze(self) -> PhaseEstimate:
        settings = self.config.analyze
        found = memory.analyzing(self.shape, settings, on_gpu=self.gpu is not None)
        tokens = self.config.iterations * 2 * settings.num_examples * (self.work.question + self.work.solution)
        return self._made(found, tokens, 8 * self.shape.num_parameters * tokens / TRAINING)

    def _made(self, found: Memory, tokens: float, flops: float, share: float = 1.0) -> PhaseEstimate:
        """`flops` at full use of the GPU's peak."""
        return PhaseEstimate(found, share * self.room, tokens, flops / (self.machine.peak[1] * 1e12) / 3600)


def disk(config: RunConfig, shape: Shape, work: _Work, *, on_gpu: bool) -> dict[str, float]:
    """GB that the run writes: what stays, and what is there for a while."""
    size, sft = shape.num_parameters, config.sft
    trained = shape.lora_parameters(sft.lora.rank, sft.lora.target_modules) if sft.lora else size
    per_checkpoint = shape.item_bytes * size
    adapters = config.iterations * 4 * trained if sft.lora else 0  # kept in fp32
    # Two at a time: the older goes when the newer is there. ZeRO-3 writes the gathered weights too.
    item = memory.trained_item(on_gpu=on_gpu)
    saved = 2 * trained * (item + 12 + (item if sft.zero == 3 else 0))
    states, analyze = 0, config.analyze
    if analyze.enabled:
        length = min(work.question + work.solution, analyze.max_length)
        states = analyze.num_examples * length * (shape.layers + 1) * shape.hidden * 4
    checkpoints = 1 + config.iterations * len(kinds_made(config.method))
    rows = config.iterations * work.solutions + checkpoints * work.answers
    texts = 2 * rows * (work.chars + ROW_BYTES)  # in the run's files, and again in the store
    return {
        "checkpoints": (checkpoints_kept(config.method, config.iterations, config.keep) * per_checkpoint + adapters)
        / 1e9,
        "optimizer, while training": max(saved, states) / 1e9,
        "solutions and answers": texts / 1e9,
    }


def assumptions(machine: Machine, model: str) -> list[str]:
    """What the figures rest on, a sentence each."""
    name, peak = machine.peak
    asked = "measured with its tokenizer" if chars_per_token(model) != 3.0 else "assumed, its tokenizer is not here"
    return [
        f"GPU hours: 6 N T trained, 2 N T generated, at {peak:g} TFLOP/s ({name}), of which {TRAINING:.0%} in training "
        f"and {GENERATING:.0%} in generation are assumed to be used",
        f"{KEPT:.0%} of the solutions are assumed to be kept, and to be as long as the train task's own",
        f"{chars_per_token(model):.1f} characters a token ({asked})",
        "memory is that of the longest examples that the settings allow, and was not checked against a GPU yet",
    ]
