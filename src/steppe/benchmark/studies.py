"""Optuna studies in files: one for each data set, algorithm, held-out domain and seed of a sweep. Imports optuna."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from steppe.benchmark.plan import locked
from steppe.benchmark.ranges import Space, default_draw
from steppe.data.splits import seed_hash
from steppe.training.files import make_directory, output_error
from steppe.training.words import Value

NAME = "steppe"
VALUES = "values"
STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A trial's number and its hyper-parameters, setting → value."""

    number: int
    values: Mapping[str, Value]


@dataclass(frozen=True)
class BelowMedian:
    """Whether a run is to be stopped: Optuna's median rule, asked where the run is, through the study's file.

    Attributes:
        journal: the study's file.
        number: the run's trial.
    """

    journal: Path
    number: int

    def __call__(self, step: int, accuracy: float) -> bool:
        """Note the accuracy of a step; whether the run's best so far is below the median of finished trials there."""
        with _opened(self.journal, _quiet) as study:
            trials = study.get_trials(deepcopy=False)
            if self.number >= len(trials) or trials[self.number].state.is_finished():
                return False
            _report(study, trials[self.number], [(step, accuracy)])
            return bool(study.pruner.prune(study, study.get_trials(deepcopy=False)[self.number]))


def next_trial(journal: Path, space: Space, *, count: int, seed: int, say: Say) -> Trial | None:
    """The trial to make now: the one that was begun and not told, or else a new one; ``None`` after ``count``."""
    with _opened(journal, say) as study:
        trials = study.get_trials(deepcopy=False)
        begun = [trial for trial in trials if not trial.state.is_finished()]
        if begun:
            return _trial(begun[0])
        number = len(trials)
        if number >= count:
            return None
        distributions = {name: searched.range.distribution() for name, searched in space.items()}
        values = default_draw(space) if number == 0 else _suggested(trials, distributions, seed_hash(seed, number))
        # In one line of the journal: a process that is killed has begun the whole trial, or none.
        inside = {name: value for name, value in values.items() if _contains(distributions[name], value)}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=inside,
                distributions={name: distributions[name] for name in inside},
                user_attrs={VALUES: values},
            )
        )
        return Trial(number, values)


def tell_trial(
    journal: Path, number: int, state: str, score: float | None, curve: Sequence[tuple[int, float]], *, say: Say
) -> None:
    """Put down what became of a trial, unless that has been done."""
    with _opened(journal, say) as study:
        trials = study.get_trials(deepcopy=False)
        if number >= len(trials) or trials[number].state.is_finished():
            return
        if state != "failed":
            _report(study, trials[number], curve)
        if state == "finished":
            study.tell(number, score)
        else:
            study.tell(number, state=STATES[state])


def all_trials(journal: Path, *, say: Say) -> list[Trial]:
    """Every trial, by number."""
    with _opened(journal, say) as study:
        return [_trial(trial) for trial in study.get_trials(deepcopy=False)]


def _suggested(
    trials: Sequence[FrozenTrial], distributions: dict[str, BaseDistribution], seed: int
) -> dict[str, Value]:
    """TPE's next proposal after these trials; made aside, so that nothing half is ever in the file."""
    sampler = optuna.samplers.TPESampler(seed=seed)
    aside = optuna.create_study(direction="maximize", sampler=sampler)
    aside.add_trials(trials)
    return dict(aside.ask(distributions).params)


def _report(study: optuna.Study, trial: FrozenTrial, curve: Sequence[tuple[int, float]]) -> None:
    live = optuna.trial.Trial(study, trial._trial_id)
    for step, accuracy in curve:
        if step not in trial.intermediate_values:
            live.report(accuracy, step)


def _contains(distribution: BaseDistribution, value: Value) -> bool:
    """Whether a default lies in the range; weight decay's 0 does not. TPE then models it without that trial."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:
        return False


def _trial(trial: FrozenTrial) -> Trial:
    return Trial(trial.number, dict(trial.user_attrs[VALUES]))


@contextmanager
def _opened(journal: Path, say: Say) -> Iterator[optuna.Study]:
    """The study in a file, held while it is looked at; one that is damaged is renamed and begun again.

    Raises:
        OutputError: the file cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    make_directory(journal.parent)
    with locked(journal):
        try:
            try:
                study = _load(journal)
            except OSError:
                raise
            except Exception as error:  # a damaged journal can fail in any way: its lines, their order, their content
                aside = journal.with_name(journal.name + ".damaged")
                journal.replace(aside)
                what = f"{type(error).__name__}: {error}"
                say(f"warning: {journal} is damaged ({what}); kept as {aside.name}, and begun again")
                study = _load(journal)
            yield study
        except OSError as error:
            raise output_error(journal, error) from error


def _load(journal: Path) -> optuna.Study:
    lock: Any = _Lock(journal)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal), lock_obj=lock)),
        study_name=NAME,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(),
    )
    for trial in study.get_trials(deepcopy=False):
        trial.user_attrs[VALUES]
    return study


class _Lock:
    """What a journal's writer holds: let go of by the operating system when the process is killed, unlike Optuna's."""

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(f".{journal.name}.writing")
        self._file: IO[Any] | None = None

    def acquire(self) -> bool:
        self._file = self._path.open("a")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        assert self._file is not None
        self._file.close()


def _quiet(message: str) -> None:
    """Where a run is trained there is nobody to tell; the process that searches finds the same."""
