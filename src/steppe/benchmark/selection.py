"""Model selection over runs: which hyper-parameters and which checkpoint give the number of a table.

The three rules of DomainBed (Gulrajani and Lopez-Paz 2021, section 3; ``domainbed/model_selection.py``). Each is given
all draws of hyper-parameters for one data set, algorithm, held-out domain and trial seed, and answers with one of them
and one of its checkpoints; the table then averages over trial seeds. In all of them the number is the accuracy on the
held-out domain's answer (DomainBed's split ``in``), and of draws with the same score the last one is taken, as
DomainBed does.

The weights that a run leaves behind (``model.safetensors``) are always those of :class:`TrainingDomainValidation`; what
another rule takes from a run is a line of its table of checkpoints. Light: needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from steppe.benchmark.options import SelectionName
from steppe.errors import SteppeError, unknown_name
from steppe.training.results import RESULT
from steppe.training.words import Value

SHOWN_MISSING = 5
NOTHING: Mapping[str, float] = {}


class MissingRunsError(SteppeError):
    """Runs that a selection needs are not finished, or do not say what it needs."""


class Checkpoint(NamedTuple):
    """A row of a run's table of checkpoints; accuracies are fractions in [0, 1].

    Attributes:
        step: after which step it was measured.
        validation_accuracy: mean over the source domains, on the pictures that select (``out``; strict:
            ``validation``).
        held_out_accuracy: on the held-out domain's answer (``in``; strict: ``test``).
        held_out_accuracy_all: on all pictures of the held-out domain.
        in_domain_accuracy: mean over the source domains, on pictures that were not trained on.
        held_out_validation_accuracy: on the held-out domain's pictures that are not its answer (``out``; strict:
            ``validation``): for the oracle alone. ``None`` in results of version 1.
        cross_validation_accuracy: of a run that holds out two domains, each of the two → its accuracy there (``in``;
            strict: ``validation``).
    """

    step: int
    validation_accuracy: float
    held_out_accuracy: float
    held_out_accuracy_all: float
    in_domain_accuracy: float
    held_out_validation_accuracy: float | None = None
    cross_validation_accuracy: Mapping[str, float] = NOTHING


@dataclass(frozen=True)
class Trained:
    """A finished run, as far as selection is concerned.

    Attributes:
        path: its directory.
        id: of its config.
        domains: of its data set.
        checkpoints: in the order of their steps.
        complete: whether these are all of them; a result of version 1 has the selected one only.
    """

    path: Path
    id: str
    domains: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    complete: bool = True

    @classmethod
    def of(cls, path: Path, content: Mapping[str, Any]) -> Trained:
        """The run in ``path`` with this ``result.json``."""
        rows = content.get("checkpoints")
        complete = rows is not None
        if rows is None:
            rows = [{**content, "step": content["selected_step"]}]
        return cls(path, str(content["id"]), tuple(content["accuracy"]), tuple(map(_checkpoint, rows)), complete)


def _checkpoint(row: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        row["step"],
        row["validation_accuracy"],
        row["held_out_accuracy"],
        row["held_out_accuracy_all"],
        row["in_domain_accuracy"],
        row.get("held_out_validation_accuracy"),
        row.get("cross_validation_accuracy", NOTHING),
    )


@dataclass(frozen=True)
class Draw:
    """One choice of hyper-parameters, and what became of its runs.

    Attributes:
        number: 0 for the defaults.
        values: what was drawn, setting → value.
        held_out: the domain that the answer is about.
        run: the run that holds out this domain alone; ``None`` where it is not finished.
        crossed: other domain → the run that holds out both, as far as they are finished.
        lost: why there will be no run: ``failed`` or ``pruned``. Such a draw is passed over.
    """

    number: int
    held_out: str
    run: Trained | None
    values: Mapping[str, Value] = field(default_factory=dict)
    crossed: Mapping[str, Trained] = field(default_factory=dict)
    lost: str = ""


@dataclass(frozen=True)
class Chosen:
    """What a selection answers.

    Attributes:
        draw: the hyper-parameters.
        run: their run.
        checkpoint: the row of its table that was chosen; ``checkpoint.held_out_accuracy`` is the number.
        score: what it was chosen by.
    """

    draw: Draw
    run: Trained
    checkpoint: Checkpoint
    score: float


class Selection(Protocol):
    """A rule of model selection."""

    @property
    def name(self) -> SelectionName:
        """As on the command line."""

    @property
    def title(self) -> str:
        """As in a table."""

    @property
    def crosses(self) -> bool:
        """Whether it needs runs that hold out two domains."""

    def best(self, draw: Draw) -> tuple[float, Checkpoint]:
        """The score of a draw, and the checkpoint that it belongs to.

        Raises:
            MissingRunsError: a run is missing, or does not say what the rule needs.
        """

    def choose(self, draws: Sequence[Draw]) -> Chosen:
        """The draw with the largest score; the last one of those that share it. Lost draws are passed over.

        Raises:
            MissingRunsError: a run of some draw is missing, or all are lost; the message says which.
        """


class _Rule:
    """What the three rules share: the choice among draws."""

    def best(self, draw: Draw) -> tuple[float, Checkpoint]:
        raise NotImplementedError

    def choose(self, draws: Sequence[Draw]) -> Chosen:
        """See :class:`Selection`."""
        found: list[Chosen] = []
        missing: list[str] = []
        for draw in sorted((draw for draw in draws if not draw.lost), key=lambda draw: draw.number):
            try:
                score, checkpoint = self.best(draw)
            except MissingRunsError as error:
                missing.append(str(error))
            else:
                assert draw.run is not None, "a draw with a score has a run"
                found.append(Chosen(draw, draw.run, checkpoint, score))
        if missing:
            more = f"\nand {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
            raise MissingRunsError("\n".join(missing[:SHOWN_MISSING]) + more)
        if not found:
            lost = ", ".join(f"draw {draw.number} {draw.lost}" for draw in draws) or "there is no draw"
            raise MissingRunsError(f"nothing to select from: {lost}")
        return best_of(found)


def best_of(found: Sequence[Chosen]) -> Chosen:
    """The one with the largest score; of equal ones the last draw, which DomainBed's sorted list has in front."""
    return max(found, key=lambda one: (one.score, one.draw.number))


@dataclass(frozen=True)
class TrainingDomainValidation(_Rule):
    """The hyper-parameters and the checkpoint with the largest accuracy on the source domains' validation pictures.

    DomainBed's *training-domain validation set*: looks at the ``out`` split (strict: ``validation``) of the domains
    trained on, the mean over the domains, at every checkpoint; the earliest one in a tie. The held-out domain has no
    part in it.
    """

    name: SelectionName = "training"
    title: str = "training-domain validation set"
    crosses: bool = False

    def best(self, draw: Draw) -> tuple[float, Checkpoint]:
        """See :class:`Selection`."""
        return _first_best(_run(draw).checkpoints, lambda one: one.validation_accuracy)


@dataclass(frozen=True)
class LeaveOneDomainOut(_Rule):
    """The hyper-parameters and the step with the largest accuracy on domains held out one by one beside the held-out.

    DomainBed's *leave-one-domain-out cross-validation*: for each other domain a run with the same hyper-parameters
    holds out both; it looks at that other domain's ``in`` split (strict: ``validation``, so that the concepts of the
    answer are not seen), at equal steps of all these runs, the mean over the other domains; the earliest step in a tie.
    The number is of the run that holds out the held-out domain alone, at that step. The held-out domain's pictures
    have no part in the choice. A run serves both of the domains that it holds out.
    """

    name: SelectionName = "leave-one-out"
    title: str = "leave-one-domain-out cross-validation"
    crosses: bool = True

    def best(self, draw: Draw) -> tuple[float, Checkpoint]:
        """See :class:`Selection`."""
        run = _run(draw)
        others = [domain for domain in run.domains if domain != draw.held_out]
        if len(others) < 2:
            raise SteppeError(
                f"leave-one-domain-out cross-validation needs three domains, and there are {len(run.domains)}: "
                "choose another --selection"
            )
        lacking = [domain for domain in others if domain not in draw.crossed]
        if lacking:
            raise MissingRunsError(
                f"draw {draw.number}: no finished run holds out {draw.held_out} and {', nor '.join(lacking)}"
            )
        runs = [draw.crossed[domain] for domain in others]
        for each in (run, *runs):
            _check_complete(each, self.title)
        by_step = [{one.step: one for one in each.checkpoints} for each in runs]
        scored = []
        for one in run.checkpoints:
            rows = [steps.get(one.step) for steps in by_step]
            seen = [
                row.cross_validation_accuracy.get(domain) if row is not None else None
                for domain, row in zip(others, rows, strict=True)
            ]
            if all(value is not None for value in seen):
                scored.append((float(np.sum(np.array(seen, dtype=np.float64)) / len(others)), one))
        if not scored:
            raise MissingRunsError(
                f"draw {draw.number}: the runs that hold out {draw.held_out} share no step at which all were measured"
            )
        return max(scored, key=lambda pair: pair[0])


@dataclass(frozen=True)
class Oracle(_Rule):
    """The hyper-parameters with the largest accuracy on validation pictures of the held-out domain itself.

    DomainBed's *test-domain validation set*: looks at the ``out`` split (strict: ``validation``) of the held-out
    domain, at the last checkpoint only (no early stopping). No rule for practice: it says what selection costs.
    """

    name: SelectionName = "oracle"
    title: str = "test-domain validation set (oracle)"
    crosses: bool = False

    def best(self, draw: Draw) -> tuple[float, Checkpoint]:
        """See :class:`Selection`."""
        run = _run(draw)
        _check_complete(run, self.title)
        last = max(run.checkpoints, key=lambda one: one.step)
        assert last.held_out_validation_accuracy is not None, "a complete table has it"
        return last.held_out_validation_accuracy, last


_RULES: tuple[Selection, ...] = (TrainingDomainValidation(), LeaveOneDomainOut(), Oracle())
SELECTIONS: Mapping[str, Selection] = {rule.name: rule for rule in _RULES}
"""The rules by their names on the command line."""


def selection(name: str) -> Selection:
    """The rule of that name.

    Raises:
        SteppeError: there is none (with near matches).
    """
    if name not in SELECTIONS:
        raise unknown_name("selection", name, SELECTIONS)
    return SELECTIONS[name]


def _run(draw: Draw) -> Trained:
    if draw.run is None:
        raise MissingRunsError(f"draw {draw.number}: no finished run holds out {draw.held_out} alone")
    return draw.run


def _check_complete(run: Trained, rule: str) -> None:
    if not run.complete:
        raise MissingRunsError(
            f"{run.path / RESULT} is of version 1, which has no table of checkpoints, and {rule} needs one; "
            "delete it to train the run again"
        )


def _first_best(rows: Sequence[Checkpoint], value: Callable[[Checkpoint], float]) -> tuple[float, Checkpoint]:
    best = max(rows, key=value)  # the first of those that share the largest value
    return value(best), best
