"""The two searches behind their one interface, with made-up scores."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path

import pytest

from steppe.benchmark.ranges import default_draw, draw_seed, random_draw, space_of
from steppe.benchmark.search import AsGiven, Found, Proposal, RandomDraws, Search, TreeParzen
from steppe.training.words import Value

SPACE = space_of("coral+disam", "emoji")


def score(values: Mapping[str, Value]) -> float:
    """Best at a learning rate of 1e-4 without weight decay."""
    return 1 - abs(float(values["lr"]) - 1e-4) * 1e3 - float(values.get("weight_decay", 0))


def searched(search: Search, most: int = 100) -> list[Proposal]:
    made: list[Proposal] = []
    while len(made) < most and (proposals := search.ask()):
        for proposal in proposals:
            made.append(proposal)
            search.tell(proposal.number, Found("finished", score(proposal.values)))
    return made


def parzen(path: Path, count: int = 14, **options: object) -> TreeParzen:
    return TreeParzen(SPACE, count, seed=7, journal=path / "deep" / "study.journal", **options)  # type: ignore[arg-type]


def told(proposals: list[Proposal]) -> list[tuple[int, dict[str, Value]]]:
    return [(proposal.number, dict(proposal.values)) for proposal in proposals]


def test_without_a_search_the_settings_are_as_given() -> None:
    search = AsGiven()
    assert told(search.ask()) == [(0, {})]
    search.tell(0, Found("finished"))
    assert search.ask() == []


def test_random_draws_are_there_at_once_and_asked_again_until_told() -> None:
    search = RandomDraws(SPACE, 4, seed=3)
    expected = [default_draw(SPACE), *(random_draw(SPACE, draw_seed(number, 3)) for number in (1, 2, 3))]
    assert [proposal.values for proposal in search.ask()] == expected
    search.tell(2, Found("failed"))
    assert [proposal.number for proposal in search.ask()] == [0, 1, 3]
    assert [proposal.number for proposal in searched(search)] == [0, 1, 3]
    assert search.ask() == []
    assert [proposal.number for proposal in search.asked()] == [0, 1, 2, 3]


def test_tpe_begins_with_the_defaults_stays_in_range_and_repeats_itself(tmp_path: Path) -> None:
    first = searched(parzen(tmp_path / "first"))
    assert [proposal.number for proposal in first] == list(range(14))
    assert first[0].values == default_draw(SPACE)
    for proposal in first[1:]:
        assert set(proposal.values) == set(SPACE)
        assert 1e-5 <= float(proposal.values["lr"]) <= 10**-3.5
        assert proposal.values["batch_per_domain"] in range(8, 46)
    assert told(searched(parzen(tmp_path / "again"))) == told(first)
    other = TreeParzen(SPACE, 14, seed=8, journal=tmp_path / "other.journal")
    assert told(searched(other))[1:] != told(first)[1:]
    json.dumps([proposal.values for proposal in first])


def test_tpe_learns(tmp_path: Path) -> None:
    made = searched(parzen(tmp_path, 40))
    early, late = ([score(one.values) for one in part] for part in (made[1:11], made[-10:]))
    assert sum(late) > sum(early)


@pytest.mark.parametrize("stopped", [1, 5, 12])
def test_tpe_goes_on_where_it_was_stopped(stopped: int, tmp_path: Path) -> None:
    whole = told(searched(parzen(tmp_path / "whole")))
    made = searched(parzen(tmp_path / "parts"), stopped)
    (begun,) = parzen(tmp_path / "parts").ask()  # this process ends before it tells
    assert told([begun]) == [whole[stopped]]
    made += searched(parzen(tmp_path / "parts"))
    assert told(made) == whole
    assert told(parzen(tmp_path / "parts").asked()) == whole
    assert parzen(tmp_path / "parts").ask() == []
    longer = searched(parzen(tmp_path / "parts", 16))
    assert [proposal.number for proposal in longer] == [14, 15]


def test_what_is_told_twice_counts_once(tmp_path: Path) -> None:
    whole = told(searched(parzen(tmp_path / "whole")))
    search = parzen(tmp_path / "twice")
    made = []
    while proposals := search.ask():
        (proposal,) = proposals
        made.append(proposal)
        search.tell(proposal.number, Found("finished", score(proposal.values)))
        search.tell(proposal.number, Found("failed"))
        parzen(tmp_path / "twice").tell(proposal.number, Found("finished", 0.0))
    assert told(made) == whole


def work(path: Path, answer: multiprocessing.SimpleQueue[list[int]]) -> None:
    answer.put([proposal.number for proposal in searched(parzen(path))])


def test_processes_that_search_the_same_make_the_same_trials(tmp_path: Path) -> None:
    whole = told(searched(parzen(tmp_path / "whole")))
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.SimpleQueue[list[int]] = context.SimpleQueue()
    children = [context.Process(target=work, args=(tmp_path / "shared", answers)) for _ in range(2)]
    for child in children:
        child.start()
    seen = [answers.get() for _ in children]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert told(parzen(tmp_path / "shared").asked()) == whole
    assert set(seen[0]) | set(seen[1]) == set(range(14))


def test_a_damaged_study_is_named_and_made_again_the_same(tmp_path: Path) -> None:
    whole = told(searched(parzen(tmp_path)))
    journal = tmp_path / "deep" / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:9], lines[9][:20], *lines[10:]]))
    said: list[str] = []
    assert told(searched(parzen(tmp_path, say=said.append))) == whole
    (message,) = said
    assert str(journal) in message
    assert "damaged" in message
    assert journal.with_name("study.journal.damaged").exists()


# --- pruning: the median rule, by hand ---


def prunes(search: TreeParzen, curves: list[list[float]]) -> list[int | None]:
    """After which evaluation each trial is stopped; ``None`` where it is not."""
    found: list[int | None] = []
    for curve in curves:
        (proposal,) = search.ask()
        assert proposal.stop is not None
        stop = next((number for number, value in enumerate(curve) if proposal.stop(10 * (number + 1), value)), None)
        seen = [(10 * (number + 1), value) for number, value in enumerate(curve[: None if stop is None else stop + 1])]
        search.tell(
            proposal.number, Found("finished", max(curve), seen) if stop is None else Found("pruned", None, seen)
        )
        found.append(stop)
    return found


def test_below_the_median_of_five_finished_trials_a_trial_is_stopped(tmp_path: Path) -> None:
    five = [[0.1, 0.6], [0.2, 0.7], [0.3, 0.8], [0.4, 0.5], [0.5, 0.4]]  # medians 0.3 and 0.6
    late = [
        [0.29, 0.9],  # below at the first evaluation
        [0.3, 0.59],  # not below at the first; its best, 0.59, is at the second
        [0.31, 0.6],
        [0.1, 0.1],
    ]
    assert prunes(parzen(tmp_path), [*five, *late]) == [None] * 5 + [0, 1, None, 0]


def test_a_stopped_trial_is_asked_about_again_by_a_run_that_was_killed(tmp_path: Path) -> None:
    search = parzen(tmp_path)
    prunes(search, [[0.5, 0.5]] * 5)
    (proposal,) = search.ask()
    assert proposal.stop is not None
    assert [proposal.stop(10, 0.4), proposal.stop(10, 0.4)] == [True, True]
    search.tell(proposal.number, Found("pruned", None, [(10, 0.4)]))
    assert proposal.stop(20, 0.1) is False, "it is told: there is nothing to stop"


def test_runs_that_were_there_before_count_in_the_median(tmp_path: Path) -> None:
    search = parzen(tmp_path)
    for _ in range(5):  # nobody was asked about their evaluations
        (proposal,) = search.ask()
        search.tell(proposal.number, Found("finished", 0.5, [(10, 0.5), (20, 0.5)]))
    (proposal,) = search.ask()
    assert proposal.stop is not None
    assert proposal.stop(10, 0.4)


def test_without_pruning_nobody_asks(tmp_path: Path) -> None:
    (proposal,) = parzen(tmp_path, prune=False).ask()
    assert proposal.stop is None
