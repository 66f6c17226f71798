"""The program of a worker process."""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

from steppe.benchmark.executors.bench import WorkBench
from steppe.benchmark.executors.events import Event, Ready, Refused, Setup, Stopped, Telling, Told
from steppe.benchmark.protocol import Job
from steppe.errors import SteppeError
from steppe.training.interruption import stop_soon

GRACE_SECONDS = 60.0
"""How long a worker without a driver may take to write its checkpoint, before it ends whatever it is at."""


def main() -> None:
    """Do what the driver at the other end of the socket, whose descriptor is the first argument, says."""
    connection: Connection[Event, Setup | Job | None] = Connection(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver says when to stop; during a run both signals save it
    orders: queue.SimpleQueue[Setup | Job | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, orders), daemon=True).start()
    tell = _Tell(connection)
    setup = orders.get()
    if not isinstance(setup, Setup):
        return
    report = Telling(tell)
    try:
        bench = WorkBench(setup, report)
    except SteppeError as error:
        tell(Refused.because(error))
        return
    tell(Ready())
    while isinstance(job := orders.get(), Job):
        event = bench.work(job, report)
        tell(event)
        if isinstance(event, Stopped | Refused):
            return


def _listen(connection: Connection[Event, Setup | Job | None], orders: queue.SimpleQueue[Setup | Job | None]) -> None:
    """Pass orders on. An order to stop, or the end of the driver, reaches a run at its next step."""
    while True:
        try:
            order = connection.recv()
        except (EOFError, OSError):
            last = threading.Timer(GRACE_SECONDS, os._exit, (1,))
            last.daemon = True
            last.start()
            order = None
        except Exception:  # an order of which this interpreter makes no sense; the driver reads the last line
            traceback.print_exc()
            os._exit(1)
        orders.put(order)
        if order is None:
            stop_soon()
            return


class _Tell:
    """Sends events to a driver that may be slow, or gone."""

    def __init__(self, connection: Connection[Event, Setup | Job | None]) -> None:
        self._connection = connection

    def __call__(self, event: Event) -> None:
        if isinstance(event, Told) and event.method == "advance" and not self._can_take():
            return  # a driver that is stopped for a while must not stop the run, too
        with suppress(OSError):
            self._connection.send(event)

    def _can_take(self) -> bool:
        return bool(select.select([], [self._connection], [], 0)[1])
