"""A worker that is a process of this machine, as its driver holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Pipe

from steppe.benchmark.executors.budget import oom_kills
from steppe.benchmark.executors.events import Ended, Event, Lost, Refused, Setup, Stopped, Told
from steppe.benchmark.protocol import Job

MEASURED_STEPS = 3
"""Steps after which a run holds about what it will hold: gradients, optimizer state and activations have been made."""

END_SECONDS = 2.0
"""How long a worker that has closed its end of the socket may take to end by itself."""

_PROGRAM = "from steppe.benchmark.executors.process_worker import main; main()"
_TAIL = 4000


class WorkerProcess:
    """Starts a process with an interpreter of its own, which shares nothing with this one but a socket.

    It leads a process group of its own, so that Ctrl-C reaches the driver alone and what the worker has started ends
    with it. When the driver is gone, however it went, the socket is closed, and the worker stops by itself.

    Args:
        place: see :class:`~steppe.benchmark.executors.agenda.Worker`.
        setup: sent to it at once.
        threads: of torch, OpenMP and MKL.
        gpu: the value of ``CUDA_VISIBLE_DEVICES``; ``None`` leaves it as it is.
    """

    def __init__(self, place: int, setup: Setup, *, threads: int, gpu: str | None) -> None:
        self.place = place
        self.measured = False
        self.connection, there = Pipe()
        self._begun = 0
        self._kills = oom_kills()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
        }
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with there:
            # -P: a file called random.py in the current directory is not Python's.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[there.fileno()],
                process_group=0,
                env=environment,
            )
        with suppress(OSError):
            self.connection.send(setup)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def begin(self, job: Job) -> None:
        """Hand it a run."""
        self.connection.send(job)

    def stop(self) -> None:
        """Ask it to write a checkpoint and to end."""
        with suppress(OSError):
            self.connection.send(None)

    def hear(self) -> list[Event]:
        """What it told since the last time; does not wait."""
        heard: list[Event] = []
        try:
            ended = self._has_ended()  # asked first: what it told before its end is read in full below
            while self.connection.poll():
                event: Event = self.connection.recv()
                heard.append(event)
                self._note(event)
                if isinstance(event, Stopped | Refused):
                    return heard
            if ended:
                heard.append(self._lost())
        except (EOFError, OSError):
            heard.append(self._lost())
        return heard

    def end(self) -> None:
        """End it and everything it started, at once."""
        self._kill()
        self._process.wait()
        self.connection.close()
        self._output.close()

    def _note(self, event: Event) -> None:
        match event:
            case Told("begin", _, named):
                self._begun = dict(named)["step"]
            case Told("advance", (step, _)):
                self.measured |= step >= self._begun + MEASURED_STEPS
            case Ended("finished"):
                self.measured = True

    def _has_ended(self) -> bool:
        """Whether the process is over; unlike ``Popen.poll`` this leaves its number taken."""
        if self._process.returncode is not None or not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.poll() is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _kill(self) -> None:
        """Kill the process and what it has started, unless it was waited for: its number may be another's then."""
        if self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _lost(self) -> Lost:
        until = time.monotonic() + END_SECONDS
        while not self._has_ended() and time.monotonic() < until:
            time.sleep(0.01)
        self._kill()
        status = self._process.wait()
        memory = status == -signal.SIGKILL and oom_kills() > self._kills
        if status >= 0:
            reason = f"its worker ended with status {status}"
        else:
            reason = f"its worker was killed by {signal.Signals(-status).name}"
        if memory:
            reason += ", as memory had run out"
        elif status not in (-signal.SIGKILL, -signal.SIGTERM) and (tail := self._tail()):
            reason += f" ({tail})"
        return Lost(reason, memory)

    def _tail(self) -> str:
        """The last line that it wrote. Read without moving the offset, which is the worker's as well."""
        descriptor = self._output.fileno()
        size = os.fstat(descriptor).st_size
        text = os.pread(descriptor, _TAIL, max(0, size - _TAIL)).decode(errors="replace")
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
