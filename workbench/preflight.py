"""Whether a run fits into this machine's memory and disk, and which setting to change where it does not.

Imports no torch. Memory is not reckoned for a model whose shape is not to be had: it is let through.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import checkpoints
from workbench.config import DataConfig, MergeConfig, RunConfig, SftConfig
from workbench.core.methods import checkpoints_kept
from workbench.estimate import PhaseEstimate, estimate
from workbench.machine import Machine, read_hosts, this_machine
from workbench.memory import Memory, trained_item
from workbench.settings import build_config

TRIED_GIB = 2.0
"""A phase this small is tried on a CPU whatever is free, for the system can make room: the pocket runs are."""
PARTS = ("weights", "gradients", "optimizer", "activations", "kv_cache", "other")


def problems(config: RunConfig, machine: Machine, kind: str, root: Path) -> list[str]:
    """A sentence for each phase that does not fit, and one for the disk; empty where all of it does."""
    found, said = estimate(config, machine, kind), [_hosts_sentence(config.sft), _adapters_sentence(config)]
    if found is None:
        said.append(_disk_sentence("this run needs", config, machine, root, _sizes_by_weights(config, machine)))
    else:
        said += [_memory_sentence(config, machine, kind, phase, need) for phase, need in found.phases.items()]
        said.append(_disk_sentence("this run needs", config, machine, root, found.disk_gb))
    return [sentence for sentence in said if sentence]


def elsewhere(config: RunConfig, root: Path) -> list[str]:
    """As `problems`, for a run on a cluster: what can be said from here."""
    hosts = "sft.hostfile is for DeepSpeed's launcher; on a Ray cluster leave it out" if config.sft.hostfile else ""
    return [sentence for sentence in (hosts, _adapters_sentence(config), disk_problem([config], root)) if sentence]


def disk_problem(configs: Sequence[RunConfig], root: Path) -> str:
    """A sentence where several runs do not fit on the disk together; empty where they do.

    Runs that differ in their method alone share the first fine-tuned checkpoint.
    """
    machine, sizes, seen = this_machine(root), dict[str, float](), set[str]()
    for config in configs:
        found = estimate(config, machine, "transformers")  # the engine writes nothing
        mine = dict(found.disk_gb if found else _sizes_by_weights(config, machine))
        same = config.model_copy(update={"method": "imm", "merge": MergeConfig(), "data": DataConfig()})
        same = f"{same.model_dump_json()} {config.data.real_share}"
        if same in seen and mine:
            mine["checkpoints"] *= 1 - 1 / checkpoints_kept(config.method, config.iterations, config.keep)
        seen.add(same)
        for name, size in mine.items():
            sizes[name] = max(sizes.get(name, 0), size) if name.startswith("optimizer") else sizes.get(name, 0) + size
    return _disk_sentence(f"these {len(configs)} runs need", configs[0], machine, root, sizes)


def exceeds(need: PhaseEstimate, machine: Machine) -> bool:
    """Whether a phase needs more than there is."""
    if machine.gpus:
        return need.memory.total > need.limit_gib * 1.001 or need.memory.host > machine.memory_gib
    return need.memory.total > max(TRIED_GIB, need.limit_gib)


def parts_of(memory: Memory) -> str:
    """ "weights 0.9, optimizer 7.4, ..." in GiB, what is nothing left out."""
    sizes = [(name.replace("kv_", "KV "), getattr(memory, name)) for name in PARTS]
    return ", ".join(f"{name} {size:.1f}" for name, size in sizes if size >= 0.05)


def _memory_sentence(config: RunConfig, machine: Machine, kind: str, phase: str, need: PhaseEstimate) -> str:
    if not exceeds(need, machine):
        return ""
    cure = _cure(config, machine, kind, phase)
    if machine.gpus and need.memory.total <= need.limit_gib * 1.001:
        return (
            f"phase {phase} needs {need.memory.host:.1f} GiB of the host's memory beside the GPUs' and "
            f"{machine.memory_gib:.1f} GiB are free; {cure}"
        )
    room = "each GPU gives it" if machine.gpus else "of this machine's memory are free:"
    there = f"{room} {need.limit_gib:.1f} GiB" if machine.gpus else f"{need.limit_gib:.1f} GiB {room[:-1]}"
    return f"phase {phase} needs {need.memory.total:.1f} GiB ({parts_of(need.memory)}) and {there}; {cure}"


def _hosts_sentence(sft: SftConfig) -> str:
    """What is wrong with the host file."""
    try:
        if sft.hostfile:
            read_hosts(Path(sft.hostfile))
    except ValueError as error:
        return str(error)
    return ""


def _adapters_sentence(config: RunConfig) -> str:
    """Which of the weights that are to have adapters the model has not, as far as its files are here."""
    model = Path(checkpoints.absolute_model(config.model))
    if config.sft.lora is None or not model.is_dir():
        return ""
    names = [
        e.name.removesuffix(".weight")
        for e in checkpoints.CheckpointReader(model).entries.values()
        if len(e.shape) == 2
    ]
    for target in config.sft.lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            return f"sft.lora.target_modules: {target!r} is no weight of {config.model}, which has {known}"
    return ""


def _cure(config: RunConfig, machine: Machine, kind: str, phase: str) -> str:
    """The first change of settings with which the phase fits, and what it then needs."""
    for change in _changes(config, machine, kind, phase):
        other = build_config(config.model_dump(mode="json"), change)
        found = estimate(other, machine, kind)
        if found and (phase not in found.phases or not exceeds(found.phases[phase], machine)):
            words = " and ".join(f"{name}={_word(value)}" for name, value in change.items())
            return f"set {words}" + (
                f" ({found.phases[phase].memory.total:.1f} GiB)" if phase in found.phases else " to go without it"
            )
    more = "more GPUs with sft.zero=3, " if phase == "sft" and machine.gpus else ""
    return f"no setting makes it fit here: take a larger machine, {more}or a smaller model"


def _word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


def _changes(config: RunConfig, machine: Machine, kind: str, phase: str) -> Iterator[dict[str, Any]]:
    """Changes worth trying, those first that change no result."""
    if phase == "sft":
        yield from _training_changes(config, machine)
    elif phase == "analyze":
        yield {"analyze.batch_size": 1}
        yield {"analyze.batch_size": 1, "analyze.max_length": 256}
        yield {"analyze.enabled": False}
    elif phase in ("sample", "evaluate"):
        if kind == "vllm":
            if len(machine.gpus) > 1:
                yield {"engine.tensor_parallel": len(machine.gpus)}
            yield from ({"engine.max_model_len": length} for length in (4096, 2048, 1024))
        else:
            yield from ({"engine.batch_size": size} for size in (128, 64, 32, 16, 8, 4, 2, 1))


def _training_changes(config: RunConfig, machine: Machine) -> Iterator[dict[str, Any]]:
    sft, size = config.sft, config.sft.batch_size
    batches = []
    while size > 1 and size % 2 == 0:
        size //= 2
        batches.append({"sft.batch_size": size, "sft.accumulation": sft.accumulation * sft.batch_size // size})
    keep = {"sft.gradient_checkpointing": True}
    yield keep
    yield from batches
    least = (batches[-1] if batches else {}) | keep
    yield least
    if len(machine.gpus) > 1:
        yield {"sft.zero": 3}
        yield least | {"sft.zero": 3}
    if machine.gpus:
        yield {"sft.zero": 3, "sft.offload": "optimizer"}
        yield least | {"sft.zero": 3, "sft.offload": "all"}
    lora = {"sft.lora": {"rank": 16}} | ({"sft.zero": 0, "sft.offload": "none"} if sft.zero else {})
    yield lora
    yield lora | least


def _sizes_by_weights(config: RunConfig, machine: Machine) -> dict[str, float]:
    """GB on disk of a model that is here but of a kind whose shape is not known; nothing of one that is not here."""
    model = checkpoints.check_model(config.model)
    if model is None:
        return {}
    kept = checkpoints_kept(config.method, config.iterations, config.keep) * model.bytes
    trained = trained_item(on_gpu=bool(machine.gpus))
    return {
        "checkpoints": kept / 1e9,
        "optimizer, while training": 2 * (trained + 12) * model.num_parameters / 1e9,
    }


def _disk_sentence(who: str, config: RunConfig, machine: Machine, root: Path, sizes: Mapping[str, float]) -> str:
    need = sum(sizes.values())
    if need <= machine.disk_gb:
        return ""
    parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
    less = f"lower iterations ({config.iterations})"
    less = f"or {less}" if config.keep == "needed" or config.method != "imm" else f"{less}, or set keep=needed"
    return (
        f"not enough disk space in {root}: {who} {need:.1f} GB ({parts}) and {machine.disk_gb:.1f} GB "
        f"are free; free some (`workbench gc --dry-run` lists what can go), set WORKBENCH_HOME elsewhere, {less}"
    )
