"""A worker that is a Ray actor: the class that Ray makes an instance of on some node."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from steppe.benchmark.executors.bench import WorkBench
from steppe.benchmark.executors.events import Event, Mailbox, Ready, Refused, Setup, Telling, Told
from steppe.benchmark.executors.exchange import Exchange, work_through
from steppe.benchmark.protocol import Job
from steppe.benchmark.shared_disk import check_shared
from steppe.errors import SteppeError
from steppe.training.interruption import stop_soon


class Actor:
    """Works in one thread; in others it says how far it is, and is told to stop.

    Args:
        setup: what the driver said.
        exchange: the address of the object store through which runs travel; ``None``: the driver's store is on a disk
            that this node sees, too.
        environment: variables that must be as they are for the driver.
        folder: the driver's current one, so that a relative path means the same here, where the disk is shared.
    """

    def __init__(self, setup: Setup, exchange: str | None, environment: Mapping[str, str], folder: str) -> None:
        os.environ.update(environment)
        with suppress(OSError):
            os.chdir(folder)
        self._setup = setup
        self._exchange = None if exchange is None else Exchange(exchange)
        self._mailbox = Mailbox()
        self._report = Telling(self._mailbox.put)
        self._bench: WorkBench | None = None
        self._shared: set[Path] = set()

    def hello(self) -> tuple[str, Ready | Refused]:
        """Open the data set; the name of this machine, and whether runs can come."""
        try:
            self._bench = WorkBench(self._setup, self._report)
        except SteppeError as error:
            return platform.node(), Refused.because(error)
        return platform.node(), Ready()

    def work(self, job: Job, where: Path | str) -> tuple[list[Told], Event]:
        """Do one run; what it told since it was last looked at, and how it ended.

        Args:
            job: the run, with the absolute path of its directory.
            where: the file that shows whether the disk is shared; with an exchange, the run's name there.
        """
        assert self._bench is not None
        try:
            if self._exchange is not None:
                event: Event = work_through(self._exchange, str(where), job, self._bench, self._report)
            else:
                self._check_shared(Path(where))
                event = self._bench.work(job, self._report)
        except SteppeError as error:
            event = Refused.because(error)
        return self._mailbox.take(), event

    def look(self) -> list[Told]:
        """What the run told since the last time."""
        return self._mailbox.take()

    def stop(self) -> None:
        """Have the run write a checkpoint and end."""
        stop_soon()

    def _check_shared(self, probe: Path) -> None:
        if probe in self._shared:
            return
        check_shared(probe)
        self._shared.add(probe)
