"""Wall time of a run and its parts."""

from __future__ import annotations

import time


class Stopwatch:
    """Wall time: of the lap, and in total since it was last asked for."""

    def __init__(self) -> None:
        self._lap = self._total = time.perf_counter()

    def split(self) -> float:
        """Seconds since the last lap began."""
        return time.perf_counter() - self._lap

    def lap(self) -> float:
        """Seconds since the last lap began; a new one begins."""
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds

    def total(self) -> float:
        """Seconds since this was last called."""
        now = time.perf_counter()
        seconds, self._total = now - self._total, now
        return seconds
