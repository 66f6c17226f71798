"""What is shown of several runs at a time."""

from __future__ import annotations

import io

from rich.console import Console

from steppe.training.progress import Display, Silent, lane


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def tell(display: Display) -> None:
    first, second = lane(display, 0), lane(display, 1)
    first.begin("erm, line held out", step=0, total=10)
    second.begin("sam, line held out", step=4, total=20)
    first.advance(5, 0.25)
    second.advance(11, 0.75)
    first.evaluated(5, 0.5, 0.25, 0.1)
    second.evaluated(12, 0.75, 0.5, 0.2)
    second.say("a line of the second")


def test_in_a_log_each_line_names_its_own_run() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Display(console, runs=4) as display:
        tell(display)
    assert shown(console).splitlines() == [
        "erm, line held out: from the start",
        "sam, line held out: from step 4",
        "erm, line held out: step 5/10, loss 0.250, validation 50.0 %, 0.100 s/step",
        "sam, line held out: step 12/20, loss 0.500, validation 75.0 %, 0.200 s/step",
        "a line of the second",
    ]


def test_in_a_terminal_each_worker_has_a_bar_and_keeps_it() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Display(console, runs=4, done=1) as display:
        tell(display)
        lane(display, 1).begin("disam, fluent held out", step=0, total=30)
        display.run_over()
        bars = {task.description: (task.completed, task.total) for task in display._bars.tasks}
    assert bars == {"all runs": (2, 4), "erm, line held out": (5, 10), "disam, fluent held out": (0, 30)}


def test_a_report_without_parts_is_told_everything() -> None:
    silent = Silent()
    assert lane(silent, 3) is silent
