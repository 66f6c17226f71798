from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe.benchmark.executors import budget
from steppe.benchmark.executors.budget import MARGIN, MemoryBudget, available_memory, cores, held_memory, parse_memory
from steppe.errors import SteppeError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("6GB", 6 * 10**9),
        ("6GiB", 6 * 2**30),
        ("1.5 g", 1_500_000_000),
        ("512mb", 512_000_000),
        ("7", 7),
        ("2TB", 2 * 10**12),
    ],
)
def test_amounts_of_memory(text: str, count: int) -> None:
    assert parse_memory(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "6 pints", "1e9", "6GBB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(SteppeError, match="expected an amount of memory such as 6GB"):
        parse_memory(text)


@given(
    free=st.integers(0, 1000),
    need=st.integers(1, 300),
    candidate=st.integers(0, 400),
    working=st.lists(st.integers(0, 400), max_size=6),
)
def test_when_all_have_grown_to_what_they_need_there_is_memory_for_all(
    free: int, need: int, candidate: int, working: list[int]
) -> None:
    before, budget.available_memory = budget.available_memory, lambda: free
    try:
        room = MemoryBudget(need).room(candidate, working)
    finally:
        budget.available_memory = before
    # The machine as a whole: what is free now and what these workers hold must carry all of them, grown.
    held = sum(working) + candidate
    grown = sum(max(need, one) for one in [*working, candidate])
    assert room == (not working or free + held >= grown)


def test_nothing_is_known_before_the_first_run_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: 1000)
    measured = MemoryBudget(None)
    assert measured.need is None
    assert measured.room(0, [])
    assert not measured.room(0, [10])
    measured.saw(400)
    measured.saw(300)
    assert measured.need == MARGIN * 400
    assert measured.room(0, [500])
    assert measured.room(0, [500, 500]), "they hold what they need already"
    assert not measured.room(0, [100, 0])


def test_what_processes_hold_is_what_they_allocated() -> None:
    program = "x = bytearray(200_000_000); x[::4096] = b'1' * len(x[::4096]); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 200_000_000 < held_memory(child.pid) < 300_000_000
        assert held_memory(os.getpid()) > held_memory(child.pid), "a process and its children"
        child.communicate(b"\n")
    assert held_memory(child.pid) == 0


def test_a_mapped_file_belongs_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"1" * 200_000_000)
    program = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ);"
        "sum(pages[::4096]); print(flush=True); input()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert psutil.Process(child.pid).memory_info().rss > 200_000_000
        assert 0 < held_memory(child.pid) < 50_000_000
        child.communicate(b"\n")


def test_this_machine() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 0 < available_memory() <= budget.total_memory()
