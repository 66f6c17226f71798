"""The program that measures what the methods cost, as a process, on networks that take milliseconds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
HAS_PEERS = importlib.util.find_spec("pytorch_optimizer") is not None


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "methods.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def rows(markdown: str) -> dict[str, list[str]]:
    """The cells of every row of the tables, by the row's name."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a module of the benchmarks, which are programs rather than a package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_figures_are_written_as_they_come_and_a_table_is_made_of_them(tmp_path: Path, load) -> None:
    out, page = tmp_path / "results.jsonl", tmp_path / "table.md"
    asked = ["--tiny", "--models", "gpt2", "--methods", "sam", "gsam", "disam", "--pairs", "2", "--out", out]
    first = run(*asked, "--markdown", page)
    assert first.returncode == 0, first.stderr

    figures = [json.loads(line) for line in out.read_text().splitlines()]
    value = {(f["by"], f["method"], f["quantity"]): f["value"] for f in figures}
    assert len(value) == len(figures)
    assert all(f["machine"] and f["versions"] and f["date"] and f["commit"] for f in figures)
    for name, copies in (("sam", 1), ("gsam", 2), ("disam", 1)):
        assert value["steppe", name, "memory"]["held"] == pytest.approx(copies, abs=0.05)
        assert value["steppe", name, "memory"]["peak"] == pytest.approx(copies, abs=0.05)
        step = value["steppe", name, "step"]
        assert 0 < step["low"] <= step["median"] <= step["high"]
        assert step["pairs"] == 2
        assert value["steppe", name, "launches"]["operations"] > value["steppe", "erm", "launches"]["operations"]
    assert value["steppe", "disam", "objective"]["added"] > 0

    expected = ["method", "---", "erm", "sam", "gsam", "disam (2 × 32 tokens)"]
    if HAS_PEERS:
        expected += ["pytorch_optimizer: SAM", "pytorch_optimizer: GSAM"]
        assert ("steppe", "gsam", "own") in value
        # It clones the weights anew at each step, so it holds none in between.
        assert value["pytorch_optimizer", "SAM", "memory"]["held"] == 0
        assert value["pytorch_optimizer", "SAM", "memory"]["peak"] == pytest.approx(1, abs=0.05)
    assert list(rows(page.read_text())) == expected
    assert page.read_text() == first.stdout

    # What is there is not measured again; a figure that is missing is.
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:-1]) + "\n")
    again = run(*asked)
    assert again.returncode == 0, again.stderr
    assert f"{len(lines) - 1} figures are there, 1 to measure" in again.stderr
    rewritten = out.read_text().splitlines()
    assert rewritten[:-1] == lines[:-1]
    assert len(rewritten) == len(lines)
    assert list(rows(again.stdout)) == expected
    assert load("results").Results.read(out).markdown() == again.stdout.rstrip()


def test_the_own_part_of_every_method_is_counted_on_every_network(tmp_path: Path) -> None:
    """Also of those that add noise to an embedding, where there is one."""
    out = tmp_path / "results.jsonl"
    found = run("--tiny", "--quantities", "launches", "--no-peers", "--out", out)
    assert found.returncode == 0, found.stderr
    assert "failed" not in found.stderr
    counted = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({(f["model"], f["method"]) for f in counted}) == len(counted) == 3 * 17
    assert all(f["value"]["operations"] > 0 for f in counted)


def test_what_misses_its_target_is_bold(load) -> None:
    cells, contender = load("results")._cells, load("contenders").METHODS["sam"]
    ratio = {"low": 2.0, "high": 2.1, "pairs": 20, "steps": 1, "a_median": 2.0, "b_median": 1.0}
    met = cells({"step": {"median": 2.03, **ratio}, "memory": {"held": 1.004, "peak": 1.004}}, contender)
    missed = cells({"step": {"median": 2.04, **ratio}, "memory": {"held": 1.004, "peak": 1.4}}, contender)
    assert met == {"step": "2.030 [2.000, 2.100] (≤ 2.03)", "held": "1.00 (≤ 1)", "peak": "1.00 (≤ 1)"}
    assert missed == {"step": "**2.040 [2.000, 2.100]** (≤ 2.03)", "held": "1.00 (≤ 1)", "peak": "**1.40** (≤ 1)"}


def test_memory_is_found_wherever_an_optimizer_keeps_it(load) -> None:
    memory = load("memory")
    kept, shared, closed_over = torch.zeros(10), torch.zeros(20), torch.zeros(5)

    class Keeper:
        def __init__(self) -> None:
            self.by_name = {"kept": [kept, shared[:3]], "whole": shared}
            self.call = lambda: closed_over

    assert memory.bytes_of(memory.tensors_of(Keeper())) == 4 * (10 + 20 + 5)
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.zeros(3)
    assert memory.bytes_of(memory.tensors_of([parameter])) == 4 * (3 + 3)


def test_the_peak_is_the_most_in_use_at_once(load) -> None:
    def step() -> None:
        first = torch.empty(1000)
        del first
        second, third = torch.empty(800), torch.empty(700)
        del second, third
        torch.empty(900)

    assert load("memory").peak_bytes(step, lambda: None, 5, torch.device("cpu")) == 5 + 4 * 1500


def test_gpt2_has_the_size_of_the_small_one_and_looks_only_back(load) -> None:
    module = load("gpt2")
    with torch.device("meta"):
        assert sum(p.numel() for p in module.GPT2().parameters()) == 124_439_808
    model = module.GPT2(vocabulary=11, context=8, width=8, layers=2, heads=2)
    tokens = torch.randint(11, (3, 8))
    logits = model(tokens)
    assert logits.shape == (3, 8, 11)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    assert torch.equal(model(changed)[:, :5], logits[:, :5])
    assert not torch.allclose(model(changed)[:, 5:], logits[:, 5:])


def test_a_sequence_counts_with_the_mean_over_its_tokens(load) -> None:
    logits, y = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    expected = torch.stack([-logits[n].log_softmax(-1)[torch.arange(5), y[n]].mean() for n in range(2)])
    sample_losses = load("workloads").sample_losses
    torch.testing.assert_close(sample_losses(logits, y), expected)
    torch.testing.assert_close(sample_losses(logits[:, 0], y[:, 0]), -logits[:, 0].log_softmax(-1)[[0, 1], y[:, 0]])
