"""The process of a run's `sample` and `evaluate` phases: they follow one another on one engine that stays warm.

The runner writes a phase's directory on a line of standard input; the word `rest` lets training have the
memory in between, and once it does, the file `.rest` in the run's directory is removed. What a phase prints
goes to its own log. Run as `python -m workbench.phases.warm RUN_DIR`.
"""

import logging
import os
import sys
from pathlib import Path

from workbench.engines import WARM
from workbench.jobs import EvaluateJob, SampleJob
from workbench.phases import evaluate, sample
from workbench.phases.process import run_phase
from workbench.redact import redact_output
from workbench.rundir import ERROR

PHASES = {"sample": (SampleJob, sample.run), "evaluate": (EvaluateJob, evaluate.run)}
REST = "rest"


def main() -> None:
    """Do what is asked for until the runner closes its end; a phase that fails ends the process, saying why."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for line in sys.stdin:
        if line.strip() == REST:
            WARM.rest()
            Path(sys.argv[1], ".rest").unlink(missing_ok=True)
            continue
        path = Path(line.strip())
        write_to(path / "phase.log")
        if problem := run_phase(path, *PHASES[path.name]):
            sys.exit(f"{ERROR}{problem}")
    WARM.close()


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
