"""A worker that is a Ray actor, as its driver holds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from steppe.benchmark.executors.connection import summary
from steppe.benchmark.executors.events import Event, Lost
from steppe.benchmark.protocol import Job

LOOK_SECONDS = 1.0
"""How often a run is asked how far it is."""


class RemoteWorker:
    """An actor, as its driver holds it."""

    def __init__(self, place: int, ray: Any, actor: Any, sent: Callable[[Job], tuple[Job, str]]) -> None:
        self.place = place
        self._ray = ray
        self._actor = actor
        self._sent = sent
        self._host = ""
        self._hello: Any = actor.hello.remote()
        self._work: Any = None
        self._look: Any = None
        self._looked = 0.0

    def begin(self, job: Job) -> None:
        """Hand it a run."""
        self._work = self._actor.work.remote(*self._sent(job))

    def look(self) -> None:
        """Ask how far it is, unless that was asked a moment ago; of an idle one, whether it is still there."""
        if self._look is None and self._hello is None and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self._look = self._actor.look.remote()

    def pending(self) -> list[Any]:
        """References to the answers that are still to come."""
        return [ref for ref in (self._hello, self._work, self._look) if ref is not None]

    def hear(self, ref: Any) -> list[Event]:
        """The events in an answer that has come."""
        if ref not in self.pending():  # it was heard together with another one
            return []
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            if ref == self._look and self._work is not None:  # the answer that counts will tell, too
                self._look = None
                return []
            self._hello = self._work = self._look = None
            return [Lost(self._reason(error))]
        if ref == self._hello:
            self._hello = None
            self._host, event = answer
            return [event]
        if ref == self._work:
            told, event = answer
            earlier = [] if self._look is None else self._heard_before(self._look)
            self._work = self._look = None
            return [*earlier, *told, event]
        self._look = None
        return list(answer)

    def _heard_before(self, look: Any) -> list[Event]:
        """The answer to a question that was asked before the run ended, which must not get lost."""
        try:
            return list(self._ray.get(look, timeout=LOOK_SECONDS))
        except self._ray.exceptions.RayError:
            return []

    def stop(self) -> None:
        """Ask it to write a checkpoint and to end."""
        with suppress(Exception):
            self._actor.stop.remote()

    def end(self) -> None:
        """End it at once."""
        with suppress(Exception):
            self._ray.kill(self._actor)

    def _reason(self, error: Exception) -> str:
        away = isinstance(error, self._ray.exceptions.ActorUnavailableError)
        why = "it cannot be reached any more" if away else summary(str(error))
        return f"its worker{self._host and ' on ' + self._host} was lost: {why}"
