"""The command ``steppe``: parses, calls, prints."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from steppe.errors import SteppeError
from steppe.training.team import disband, is_agreed, launched, leads

WRONG_INPUT = 2
BY_SIGNAL = 128


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 some runs failed, 2 the input is wrong, 130 interrupted."""
    raise SystemExit(run(list(sys.argv[1:] if argv is None else argv)))


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit status; ``SystemExit`` for help and for options that do not parse."""
    together = launched() > 1
    launch = ["torchrun", "--nproc-per-node", str(launched()), "-m"] if together else []
    command = shlex.join([*launch, "steppe", *arguments])
    try:
        if arguments == ["--version"]:
            from steppe import __version__

            print(f"steppe {__version__}")
            return 0
        from steppe.cli.parse import parse

        status = parse(arguments).run(command)
        sys.stdout.flush()
        if together:
            disband()
        return status
    except BrokenPipeError:
        # Whoever read the output (head, a pager) has seen enough; Python must not complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BY_SIGNAL + signal.SIGPIPE
    except SteppeError as error:
        _complain(f"error: {error}", error)
        return WRONG_INPUT
    except KeyboardInterrupt as error:
        _complain(f"stopped; the same command continues where this one left off:\n  {command}", error)
        return BY_SIGNAL + int(getattr(error, "signum", signal.SIGINT))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("steppe"):
            raise
        _complain(f"error: the command line needs {error.name!r}, which is not installed: pip install 'steppe[bench]'")
        return WRONG_INPUT


def _complain(message: str, error: BaseException | None = None) -> None:
    """Of processes that were launched together the first one says what concerns them all."""
    if leads():
        print(message, file=sys.stderr)
    elif error is None or not is_agreed(error):
        print(f"process {os.environ['RANK']}: {message}", file=sys.stderr)
