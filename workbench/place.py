"""A place in the queue for work that is no run: a lab or an analysis, whose process is this one."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from workbench.processes import Workplace, record_process
from workbench.queueing import Grant, Ticket, ensure, remove_ticket, ticket_of, write_ticket

POLL_S = 0.3


@contextmanager
def take_place(
    place: Workplace, root: Path, kind: Literal["lab", "analysis"], waiting: Callable[[], None] = lambda: None
) -> Iterator[Grant]:
    """Wait in the queue for the whole machine, for work whose process is this one; leave it at the end.

    `waiting` is called at every look and may raise to give up.
    """
    name = f"{kind}-{'-'.join(place.path.relative_to(root).parts[1:])}"[:120]
    mine = Ticket(name=name, kind=kind, path=str(place.path), order=time.time())
    record_process(place, os.getpid())
    write_ticket(root, mine)
    try:
        while True:
            ensure(root)
            ticket = ticket_of(root, name)
            if ticket is None:  # somebody took it away
                record_process(place, os.getpid())
                write_ticket(root, mine)
            elif ticket.granted:
                if ticket.granted.gpus:
                    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ticket.granted.gpus)
                yield ticket.granted
                return
            waiting()
            time.sleep(POLL_S)
    finally:
        remove_ticket(root, name)
