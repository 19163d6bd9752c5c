"""Tell the store how a run ended whose runner could not: `python -m workbench.last_words RUN_DIR`."""

import logging
import sys
from pathlib import Path

from workbench import store
from workbench.rundir import RunDir, store_path

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    run = RunDir(Path(sys.argv[1]).absolute())
    try:
        store.ingest(store_path(run.path.parents[1]), run, {})
    except (OSError, ValueError) as error:
        logging.getLogger("workbench.last_words").warning("%s", error)
