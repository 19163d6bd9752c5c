"""The one supervisor of a home: gives places in the order of the queue, starts runners, sees how they end.

Started by whoever needs it (`queueing.ensure`) as `python -m workbench.supervisor HOME/queue`; a lock keeps it
single, and everything it knows is in files, so one that was killed is replaced by the next without a trace. It
ends when the queue has been empty for a while. Imports no torch and no store.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from workbench import alerts, launch, queueing
from workbench.machine import gpu_holders
from workbench.processes import end_group, is_alive, is_alive_here, processes_of, record_process, start_detached
from workbench.queueing import Grant, QueueDir, Ticket
from workbench.redact import redact_output
from workbench.rundir import RunDir, last_status, read_json

logger = logging.getLogger("workbench.supervisor")
LOOK_EVERY_S = 0.3
IDLE_S = 20.0
START_S = 60.0
"""A lab that was given a place and is gone before it took it, or a runner that is not there yet."""
ADOPT_EVERY_S = 30.0
GPU_FREE_S = 60.0
"""How long a stopped run's GPUs are kept from others while the driver still counts its processes there."""
STOP_AFTER_S = 8.0
"""A run that was asked to stop and is still there is ended."""
FOLLOWED_S = 10.0
"""Who followed a run on a cluster for so long and is gone was killed, and is replaced; one that ends at once is not."""


class Supervisor:
    """The loop over the queue of one home."""

    def __init__(self, root: Path, lock: FileLock) -> None:
        self.root, self.lock, self.since = root, lock, time.time()
        self.watch = alerts.Watch(root)
        self.stopping: dict[str, float] = {}
        """Since when, by this process's clock, runs are being stopped."""
        self.pids: dict[str, set[int]] = {}
        """The processes of runs that are being stopped and have GPUs."""
        self.wrong: dict[str, str] = {}
        """What went wrong last, by where."""

    def main(self) -> None:
        """Look after the queue until it has been empty for a while."""
        idle_since, adopted_at = time.monotonic(), float("-inf")
        while self.is_the_one():
            began = time.process_time()
            if time.monotonic() - adopted_at > ADOPT_EVERY_S:
                adopted_at = time.monotonic()
                self.attempt("adopting", self.adopt)
            if self.attempt("looking", self.look) is not False:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > IDLE_S and self.may_end():
                return
            worked = time.process_time() - began
            time.sleep(min(max(LOOK_EVERY_S, 20 * worked), 2.0))  # hundreds that wait cost 5 % of a core
        logger.info("another one supervises this home, or its queue was removed")

    def attempt(self, what: str, action: Callable[[], bool | None]) -> bool | None:
        """Do something that may fail without keeping the rest from being done; a failure is logged once."""
        try:
            found = action()
        except Exception as error:  # nobody else minds the queue, and the next look may succeed
            if self.wrong.get(what) != str(error):
                logger.exception("%s failed", what)
            self.wrong[what] = str(error)
            return None
        self.wrong.pop(what, None)
        return found

    def is_the_one(self) -> bool:
        """Whether this process is the recorded supervisor: the lock says nothing where its file was removed."""
        try:
            return (read_json(QueueDir.of(self.root).process) or {}).get("pid") == os.getpid()
        except ValueError:
            return False

    def may_end(self) -> bool:
        """Give up the place of the supervisor, unless somebody has come meanwhile."""
        with queueing.locked(self.root):
            if queueing.tickets(self.root):
                return False
            QueueDir.of(self.root).process.unlink(missing_ok=True)  # an alert may keep the process for a moment
            self.lock.release()
            return True

    def adopt(self) -> None:
        """Take over runs that wait or work and have no ticket: one was lost, or an earlier version started them."""
        with queueing.locked(self.root):
            for path in queueing.put_aside_unreadable(self.root):
                logger.warning("a ticket that cannot be read is now %s", path)
            there = queueing.tickets(self.root)
            known = {ticket.name for ticket in there}
            for run in launch.unfinished(self.root):
                if run.run_id not in known:
                    self.attempt(run.run_id, lambda run=run: self.adopt_run(run))
        for ticket in there:
            if ticket.kind == "run" and not ticket.granted:
                self.attempt(ticket.name, lambda ticket=ticket: self.drop_dead(ticket))

    def adopt_run(self, run: RunDir) -> None:
        """Give a run that waits or works a ticket; the caller holds the lock."""
        ticket = launch.ticket(run)
        if is_alive_here(run):
            gpus, cores = queueing.wanted(ticket)
            grant = Grant(gpus=queueing.free(self.root).gpus[:gpus], cores=cores, at=time.time())
            ticket = ticket.model_copy(update={"granted": grant})
        elif launch.observed_status(run)[0] != "queued":
            return
        queueing.write_ticket(self.root, ticket)
        logger.info("%s is taken into the queue again", run.run_id)

    def look(self) -> bool:
        """One look: free what is over, end what does not stop, start what can start; whether anybody is there."""
        there = queueing.tickets(self.root)
        for ticket in there:
            if ticket.kind != "run":
                self.attempt(ticket.name, lambda ticket=ticket: self.drop_dead(ticket))
            elif ticket.granted:
                self.attempt(ticket.name, lambda ticket=ticket: self.mind_run(ticket))
        self.attempt("starting", self.start_next)
        self.watch.look([RunDir(Path(t.path)) for t in there if t.granted and t.kind == "run"])
        return bool(there)

    def drop_dead(self, ticket: Ticket) -> bool:
        """Forget a lab or analysis whose process is gone, or a run that waits for nothing; whether it was forgotten."""
        if ticket.kind == "run":
            run = RunDir(Path(ticket.path))
            if run.config.exists() and last_status(run)["status"] == "queued":
                return False
            logger.info("%s no longer waits", ticket.name)
        elif is_alive(ticket.place):
            return False
        queueing.remove_ticket(self.root, ticket.name)
        return True

    def mind_run(self, ticket: Ticket) -> None:
        """See whether a run is over, and whether one that was asked to stop does."""
        run = RunDir(Path(ticket.path))
        if is_alive(run):
            self.see_stop(run, bool(ticket.granted.gpus))
            return
        over_at = self.stopping.setdefault(run.run_id, time.monotonic())
        if time.time() - ticket.granted.at < START_S and not run.process.exists():
            return
        end_group(run, timeout_s=0)  # a phase may have outlived its runner
        if held := self.pids.get(run.run_id, set()) & gpu_holders():
            if time.monotonic() - over_at < GPU_FREE_S:
                return  # the driver takes a moment to clear up, and nobody gets these GPUs before
            text = f"{run.run_id} is over, and the driver still counts its processes {sorted(held)} on GPUs"
            self.watch.once("alarm", run.run_id, f"{text} {', '.join(ticket.granted.gpus)}; look at nvidia-smi")
        self.stopping.pop(run.run_id, None)
        self.pids.pop(run.run_id, None)
        if run.config.exists():
            self.watch.see_alarms(run)
        self.close(run, ticket)

    def see_stop(self, run: RunDir, has_gpus: bool) -> None:
        """End a run that was asked to stop a while ago and is still there."""
        if last_status(run)["status"] != "stopping":
            self.stopping.pop(run.run_id, None)
            return
        if has_gpus:
            self.pids[run.run_id] = self.pids.get(run.run_id, set()) | {p.pid for p in processes_of(run)}
        if time.monotonic() - self.stopping.setdefault(run.run_id, time.monotonic()) > STOP_AFTER_S:
            logger.info("%s does not stop; ending it", run.run_id)
            end_group(run, timeout_s=0)

    def close(self, run: RunDir, ticket: Ticket) -> None:
        """Write down how a run ended that could not say it itself, tell it, and give its place to others."""
        failure = None
        with queueing.locked(self.root):
            if queueing.ticket_of(self.root, run.run_id) != ticket:
                return  # it has been resumed meanwhile, and waits again
            if run.config.exists():
                written, (status, error) = last_status(run), launch.observed_status(run)
                if ticket.elsewhere and written["status"] == "running" and self.follow_again(run, ticket):
                    return
                if status == "queued" and not run.process.exists() and ticket.granted.at < self.since:
                    logger.info("%s was given a place by a supervisor that ended before it started it", run.run_id)
                    queueing.write_ticket(self.root, ticket.model_copy(update={"granted": None}))
                    return
                if status == "queued":
                    status, error = "failed", f"The runner of {run.run_id} did not start; what it said is in {run.log}"
                if written["status"] != status:
                    launch.write_status(run, status, error, iteration=written["iteration"], phase=written["phase"])
                    threading.Thread(target=self.record, args=(run,)).start()  # somebody may hold the store for long
                failure = error or "" if status == "failed" else None
            if failure is not None:
                self.watch.failed(run, failure)
            queueing.remove_ticket(self.root, ticket.name)
        logger.info("%s is over", run.run_id)
        if failure is not None:
            self.pause_after(run)

    def follow_again(self, run: RunDir, ticket: Ticket) -> bool:
        """Start another follower of a run whose work goes on elsewhere; the caller holds the lock."""
        if time.time() - ticket.granted.at < FOLLOWED_S:
            return False
        run.process.unlink(missing_ok=True)
        grant = ticket.granted.model_copy(update={"at": time.time()})
        queueing.write_ticket(self.root, ticket.model_copy(update={"granted": grant}))
        start_detached("workbench.runner", run)
        logger.info("%s has lost its follower, and has another", run.run_id)
        return True

    def record(self, run: RunDir) -> None:
        """Tell the store what a runner could not, in another process: this one stays small."""
        subprocess.run([sys.executable, "-m", "workbench.last_words", str(run.path)], stdin=subprocess.DEVNULL)

    def pause_after(self, run: RunDir) -> None:
        """After a failure the queue goes on, unless it was asked not to."""
        if not queueing.settings_of(self.root).continue_on_error:
            queueing.change_settings(self.root, paused=True, why=f"{run.run_id} failed")

    def start_next(self) -> None:
        """Give places in the order of the queue; who does not fit is waited for, so that nobody is overtaken."""
        with queueing.locked(self.root):
            settings, is_full = queueing.settings_of(self.root), False
            for ticket in queueing.tickets(self.root):
                if ticket.granted or ticket.held or settings.paused and ticket.kind == "run":
                    continue
                if is_full and not ticket.elsewhere:
                    continue
                if ticket.kind == "run" and self.drop_dead(ticket):
                    continue
                left, (gpus, cores) = queueing.free(self.root), queueing.wanted(ticket)
                if gpus > len(left.gpus) or cores > left.cores:
                    is_full = True
                    continue
                grant = Grant(gpus=left.gpus[:gpus], cores=cores, at=time.time())
                if ticket.kind == "run":
                    run = RunDir(Path(ticket.path))
                    run.process.unlink(missing_ok=True)
                queueing.write_ticket(self.root, ticket.model_copy(update={"granted": grant}))
                if ticket.kind == "run":
                    start_detached("workbench.runner", run)
                logger.info("%s has %d GPUs and %d cores", ticket.name, gpus, cores)


def main() -> int:
    """Supervise the home whose queue directory is named on the command line; at most one process does."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write down the webhook's address
    place = QueueDir(Path(sys.argv[1]).absolute())
    lock = queueing.supervisor_lock(place.path.parent)
    try:
        lock.acquire(timeout=2)  # one that is about to end lets go within a moment
    except Timeout:
        return 0
    record_process(place, os.getpid())
    logger.info("supervisor %d", os.getpid())
    Supervisor(place.path.parent, lock).main()
    logger.info("nobody waits or works; ending")
    return 0


if __name__ == "__main__":
    sys.exit(main())
