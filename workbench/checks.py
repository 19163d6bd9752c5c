"""What would make a run fail, said before it starts; nothing here imports torch."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from workbench import checkpoints, preflight
from workbench.config import RayConfig, RunConfig, SftConfig, TeacherConfig
from workbench.core.methods import PHASES
from workbench.engines import engine_kind
from workbench.examples import check_text
from workbench.jobs import TaskSource
from workbench.machine import this_machine
from workbench.mergeable import check_base
from workbench.prompting import open_prompts, sampling_format
from workbench.settings import NotHere, facts
from workbench.tasks import TASKS, check_source, check_worked, draw_questions, recorded_rows


def check(config: RunConfig, root: Path) -> list[str]:
    """Everything that would make this run fail, a sentence each; empty when it can start."""
    wrong, missing = findings(config, root)
    if wrong or missing:
        return [*wrong, *missing]
    if config.on == "ray":  # the nodes' memory is not this machine's; `cluster.checks.look_around` sees the nodes
        return preflight.elsewhere(config, root)
    return preflight.problems(config, this_machine(root), engine_kind(config.engine), root)


def findings(config: RunConfig, root: Path) -> tuple[list[str], list[str]]:
    """What is wrong with the settings anywhere, and what they need that is not on this machine; a sentence each."""
    wrong, missing = [], []
    for value, test in [
        (config.model, checkpoints.check_model),
        *([(config.start, _check_start)] if config.start else []),
        (config, _check_code),
        *([(config, _check_merge)] if "merge" in PHASES[config.method] else []),
        (TaskSource(task=config.train_task, datasets=config.datasets), _check_train),
        *((TaskSource(task=t, datasets=config.datasets), _check_test) for t in config.eval_tasks),
        *([(config, _check_analysis)] if config.analyze.enabled else []),
        *([(config.teacher, _check_teacher)] if config.teacher.model else []),
        (config.engine, engine_kind),
        *([(config.ray, _check_cluster)] if config.on == "ray" else []),
        (config.sft, _check_training),
        (config, _check_prompts),
        (root, check_writable),
    ]:
        try:
            test(value)
        except NotHere as error:
            missing.append(str(error))
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    return list(dict.fromkeys(wrong)), list(dict.fromkeys(missing))


def remarks(config: RunConfig, *, missing_ok: bool = False) -> list[str]:
    """What a person should know of a config that passes `check`: rows of task files that cannot be used, files of a
    named task that have other rows than its source, first rows that are no sample of a test set.

    With `missing_ok`, tasks whose rows are not on this machine are passed over.
    """
    wanted = [(config.train_task, "train"), *((t, "test") for t in (config.train_task, *config.eval_tasks))]
    found, some = [], config.evaluate.num_questions
    for name, split in wanted:
        if split == "test" and some and name in TASKS and TASKS[name].order:
            found.append(
                f"{name}, test: evaluate.num_questions takes the first {some}, and the rows stand {TASKS[name].order}"
            )
        try:
            task = check_source(TaskSource(task=name, datasets=config.datasets), split)
        except NotHere:
            if not missing_ok:
                raise
            continue
        if task is None:
            continue
        recorded = recorded_rows(name, split)
        if recorded and task.num_rows not in (recorded, facts("tasks")[name].get("whole", {}).get(split)):
            found.append(
                f"{name}, {split}: the file here has {task.num_rows:,} rows, {TASKS[name].hub or 'its edition'} has "
                f"{recorded:,}: these are not the same questions"
            )
        if task.problems:
            used = f"{len(task.questions)} of {task.num_rows} rows are used"
            found.append(f"{task.name}, {split}: {used}; {'; '.join(task.problems[:3])}")
    return found


def _check_code(config: RunConfig) -> None:
    """Code that a model brings along is run where that was asked for."""
    for name in filter(None, (config.model, config.start)):
        checkpoints.check_code(name, config.trust_remote_code)
    if config.teacher.model and not config.teacher.url:
        checkpoints.check_code(config.teacher.model, config.teacher.trust_remote_code, "teacher.trust_remote_code")


def _check_merge(config: RunConfig) -> None:
    """Weights that cannot be merged, as far as they are here: the runner looks at what it fetches or makes again."""
    models = [Path(checkpoints.absolute_model(name)) for name in (config.model, config.start) if name]
    if all(path.is_dir() and not checkpoints.is_removed(path) for path in models):
        check_base(*models)


def _check_start(name: str) -> None:
    if checkpoints.check_model(name) is None:
        raise ValueError(f"start must be a local model directory, got {name!r}")


def _check_analysis(config: RunConfig) -> None:
    """The texts that were named must be there; without names there is always something to take."""
    if config.analyze.task:
        check_worked(TaskSource(task=config.analyze.task, datasets=config.datasets))
    if config.analyze.text:
        check_text(config.analyze.text)


def _check_teacher(teacher: TeacherConfig) -> None:
    """A teacher's directory must hold a model, its server must answer."""
    if not teacher.url:
        checkpoints.check_model(teacher.model)
        return
    import httpx

    try:
        httpx.get(f"{teacher.url.rstrip('/')}/models", timeout=5)  # without a key: whatever it answers, it is there
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NotHere(
            f"{teacher.url} cannot be reached ({type(error).__name__}); start the teacher's server first"
        ) from error


def _check_cluster(settings: RayConfig) -> None:
    """Ray is an extra; a cluster's dashboard must answer."""
    if find_spec("ray") is None:
        raise NotHere("on is ray, which is not installed here: pip install -e '.[cluster]', or set on to machine")
    from workbench.cluster.checks import check_address  # ray

    check_address(settings.address)


def _check_training(sft: SftConfig) -> None:
    """ZeRO is DeepSpeed's, which is an extra; a host file must be there."""
    if sft.zero and find_spec("deepspeed") is None:
        raise NotHere(
            f"sft.zero is {sft.zero}, which needs DeepSpeed, and that is not installed: pip install -e '.[train]', "
            "or set sft.zero to 0"
        )
    if sft.hostfile and not Path(sft.hostfile).expanduser().is_file():
        raise NotHere(f"no host file {sft.hostfile!r} here; sft.hostfile must name a DeepSpeed host file")


def _check_prompts(config: RunConfig) -> None:
    """A model that is asked in its chat format must have one; examples chosen by hand must be there."""
    task = check_source(TaskSource(task=config.train_task, datasets=config.datasets), "train")
    if task is not None:
        draw_questions(task.questions, config.num_questions, config.sample, config.seed)
    else:
        _check_number(config)
    if checkpoints.check_model(config.model) is not None:
        open_prompts(config.prompt, Path(checkpoints.absolute_model(config.model))).prompt("?")
    if config.teacher.model and not config.teacher.url and checkpoints.check_model(config.teacher.model) is not None:
        asked = sampling_format(config.prompt, config.teacher)
        open_prompts(asked, Path(checkpoints.absolute_model(config.teacher.model))).prompt("?")


def _check_number(config: RunConfig) -> None:
    """Of a data set that is still to be fetched, the size is known."""
    count = recorded_rows(config.train_task, "train")
    if count and config.num_questions and config.num_questions > count - config.sample.few_shot:
        raise ValueError(
            f"num_questions is {config.num_questions}, but {config.train_task} has {count - config.sample.few_shot} "
            f"train questions to sample beside {config.sample.few_shot} worked examples"
        )


def _check_train(source: TaskSource) -> None:
    check_source(source, "train")
    check_source(source, "test")


def _check_test(source: TaskSource) -> None:
    check_source(source, "test")


def check_writable(root: Path) -> None:
    """Raise ValueError where runs cannot be written."""
    try:
        (root / "runs").mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=root / "runs").close()
    except OSError as error:
        raise ValueError(
            f"cannot write to {root}: {error.strerror}; set WORKBENCH_HOME to a directory you can write"
        ) from error
