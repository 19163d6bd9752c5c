"""The process of a run's `sample` and `evaluate` phases: they follow one another on one engine that stays warm.

The runner writes a phase's directory on a line of standard input; the word `rest` lets training have the
memory in between, and once it does, the file `.rest` in the run's directory is removed. What a phase prints
goes to its own log. Run as `python -m workbench.phases.warm RUN_DIR`.
"""

import logging
import os
import sys
from pathlib import Path

from workbench.config import RunConfig
from workbench.core import methods
from workbench.engines import WARM
from workbench.jobs import EvaluateJob, SampleJob
from workbench.phases import evaluate, sample
from workbench.phases.process import run_phase
from workbench.redact import redact_output, redacted
from workbench.rundir import ERROR, RunDir, read_json

PHASES = {"sample": (SampleJob, sample.run), "evaluate": (EvaluateJob, evaluate.run)}
REST = "rest"


def main() -> None:
    """Do what is asked for until the runner closes its end; a phase that fails ends the process, saying why."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    run, looked = RunDir(Path(sys.argv[1])), False
    for line in sys.stdin:
        if line.strip() == REST:
            WARM.rest()
            (run.path / ".rest").unlink(missing_ok=True)
            continue
        path = Path(line.strip())
        write_to(path / "phase.log")
        problem = None if looked else misfit(run)
        if problem := problem or run_phase(path, *PHASES[path.name]):
            sys.exit(f"{ERROR}{problem}")
        looked = True
    WARM.close()


def misfit(run: RunDir) -> str | None:
    """Why what this run fine-tunes could not be merged with its base: better said before anything is generated."""
    written = read_json(run.config)
    config = RunConfig.model_validate(written["config"])
    if "merge" not in methods.PHASES[config.method]:
        return None
    from workbench.phases.saved_again import check_saved_again  # torch, which a run with an adopted start may not need

    try:
        check_saved_again(Path(written["base"]["path"]), config.trust_remote_code)
    except ValueError as error:
        return redacted(str(error))
    return None


def write_to(log: Path) -> None:
    """Send standard output and error to a file from here on, that of child processes too."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


if __name__ == "__main__":
    main()
