"""A comparison on one data set, round by round: what to run next, until there is nothing left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steppe.benchmark.options import SearchOptions
from steppe.benchmark.plan import Cell, Plan, PlannedDraw, draws_of, plan_directory, write_plan
from steppe.benchmark.protocol import Job, crossed, jobs, leave_one_domain_out
from steppe.benchmark.ranges import SETTINGS, Space, space_of
from steppe.benchmark.search import AsGiven, Found, Proposal, RandomDraws, Search, TreeParzen
from steppe.benchmark.selection import Selection, Trained, TrainingDomainValidation
from steppe.benchmark.store import Store, status
from steppe.data import DomainDataset
from steppe.data.splits import seed_hash
from steppe.errors import SteppeError
from steppe.training.config import RunConfig, Settings, config_id
from steppe.training.hyper import split
from steppe.training.pruning import read_pruned
from steppe.training.recipes import parse
from steppe.training.results import read_result
from steppe.training.words import Value


@dataclass(frozen=True)
class Request:
    """What is compared.

    Attributes:
        algorithms: sums of words.
        held_out: domains, or ``all``.
        seeds: the trials.
        settings: everything else about a run.
        selections: the rules of model selection; the table is the first one's.
        search: whether hyper-parameters are searched, and how.
        command: the command line, for the records.
        whole: the rules of the sweep that this is a part of, where it is limited to some of them.
    """

    algorithms: Sequence[str]
    held_out: Sequence[str]
    seeds: Sequence[int]
    settings: Settings
    selections: tuple[Selection, ...] = (TrainingDomainValidation(),)
    search: SearchOptions = dataclasses.field(default_factory=SearchOptions)
    command: str = ""
    whole: tuple[Selection, ...] = ()

    @property
    def rules(self) -> tuple[Selection, ...]:
        """The rules of the whole sweep."""
        return self.whole or self.selections

    @property
    def objective(self) -> Selection:
        """The rule whose score a search that learns maximises: the first of the whole sweep."""
        return self.rules[0]

    @property
    def plain(self) -> bool:
        """Whether each number of the table is a run's own: no search, and its selected checkpoint."""
        return self.search.kind is None and self.rules == (TrainingDomainValidation(),)

    @property
    def crosses(self) -> bool:
        """Whether runs are needed that hold out two domains."""
        learning = (self.objective,) if self.search.kind == "tpe" else ()
        return any(rule.crosses for rule in (*self.selections, *learning))


class Sweep:
    """The runs of a :class:`Request` on one data set.

    ::

        sweep = Sweep(store, dataset, request)
        for jobs in sweep.rounds():
            ...  # run those that are not finished

    Args:
        store: where the runs belong.
        dataset: the data.
        request: what is compared.
        say: is told of files that had to be mended.

    Attributes:
        cells: what hyper-parameters are chosen for, in the order in which they are run.

    Raises:
        SteppeError: something about the request is wrong; nothing has been written.
    """

    def __init__(
        self, store: Store, dataset: DomainDataset, request: Request, *, say: Callable[[str], None] = print
    ) -> None:
        self.store, self.dataset, self.request = store, dataset, request
        self._say = say
        if request.crosses and len(dataset.domains) < 3:
            raise SteppeError(
                f"leave-one-domain-out cross-validation holds out two domains, and {dataset.name!r} has "
                f"{len(dataset.domains)}: nothing would be left to train on; choose another --selection"
            )
        configs = leave_one_domain_out(
            dataset,
            algorithms=request.algorithms,
            held_out=request.held_out,
            seeds=request.seeds,
            settings=request.settings,
        )
        pairs = [pair for config in configs for pair in crossed(config, dataset.domains).values()]
        jobs(store, dataset, [*configs, *(pairs if request.crosses else ())])  # what is wrong is said now
        fingerprint = dataset.fingerprint()
        self._base = {
            Cell(dataset.name, fingerprint, config.algorithm, config.held_out, config.seed): config
            for config in configs
        }
        self.cells = tuple(self._base)
        self._fixed = fixed_settings(request.settings, request.search.fixed)
        self._spaces: dict[str, Space] = {}
        if request.search.kind is not None:
            self._spaces = {cell.algorithm: self._space(cell.algorithm) for cell in self.cells}
        self._id = self._identity()
        self._planned: dict[Cell, dict[int, PlannedDraw]] = {cell: {} for cell in self.cells}
        self._plan: Plan | None = None
        self._searches = {cell: self._search(cell) for cell in self.cells}

    @property
    def total(self) -> int:
        """How many runs there will be in all, but for those that two cells share or a search does not come to."""
        pairs = len(self.dataset.domains) - 1 if self.request.crosses else 0
        return len(self.cells) * self.request.search.count * (1 + pairs)

    @property
    def notes(self) -> list[str]:
        """What a user may not have meant, a sentence each: of the settings as they are given."""
        return list(dict.fromkeys(note for config in self._base.values() for note in config.notes))

    @property
    def plan(self) -> Plan | None:
        """What belongs to this request, once its rounds are over; ``None`` where the runs speak for themselves."""
        return None if self._plan is None else self._plan.limited(self.cells, self.request.search.count)

    def rounds(self) -> Iterator[list[Job]]:
        """Jobs that can be run at the same time, again and again; each is to be done when the next are asked for.

        The first are all that there are so far, those of an earlier call of the same sweep included.
        """
        first = True
        while True:
            new = {cell: search.ask() for cell, search in self._searches.items()}
            if not first and not any(new.values()):
                return
            yield self._begin({cell: search.asked() for cell, search in self._searches.items()} if first else new)
            first = False
            for cell, proposals in new.items():
                for proposal in proposals:
                    self._tell(cell, proposal.number)

    def draws(self, job: Job) -> list[str]:
        """What tells a job from others that are called the same: the draws it belongs to."""
        if self.request.search.kind is None:
            return []
        path = job.directory.relative_to(self.store.root)
        found = {draw.number for planned in self._planned.values() for draw in planned.values() if path in draw.paths}
        return [f"draw {number}" for number in sorted(found)]

    def _begin(self, asked: Mapping[Cell, Sequence[Proposal]]) -> list[Job]:
        """The jobs of these proposals, which are put down in the plan."""
        wanted = [(cell.seed, proposal.number, cell, proposal) for cell, found in asked.items() for proposal in found]
        wanted.sort(key=lambda each: each[:2])  # whole rows of the table come before the next seed, and the next draw
        configs: list[RunConfig] = []
        places: list[tuple[Cell, Proposal, str | None]] = []
        for _, _, cell, proposal in wanted:
            config = with_values(self._base[cell], proposal.values)
            pairs = crossed(config, self.dataset.domains) if self.request.crosses else {}
            configs += [config, *pairs.values()]
            places += [(cell, proposal, None), *((cell, proposal, other) for other in pairs)]
        found = jobs(self.store, self.dataset, configs)
        batch: dict[Path, Job] = {}
        for job, (cell, proposal, other) in zip(found, places, strict=True):
            path = job.directory.relative_to(self.store.root)
            if other is None:
                self._planned[cell][proposal.number] = PlannedDraw(proposal.number, proposal.values, path, {})
                # Pruned by validation accuracy, which only this rule maximises.
                prunes = self.request.objective == TrainingDomainValidation()
                batch.setdefault(job.directory, replace(job, stop=proposal.stop if prunes else None))
            else:
                draw = self._planned[cell][proposal.number]
                self._planned[cell][proposal.number] = replace(draw, crossed={**draw.crossed, other: path})
                batch.setdefault(job.directory, job)
        if not self.request.plain:
            self._write_plan()
        return list(batch.values())

    def _tell(self, cell: Cell, number: int) -> None:
        search = self._searches[cell]
        search.tell(number, self._found(cell, number) if isinstance(search, TreeParzen) else Found("finished"))

    def _found(self, cell: Cell, number: int) -> Found:
        rule = self.request.objective
        planned = self._planned[cell][number]
        (draw,) = draws_of(cell, {number: planned}, crosses=rule.crosses, trained=self._trained, lost=self._lost)
        if draw.lost == "pruned":
            return Found("pruned", curve=read_pruned(self.store.root / planned.run) or ())
        if draw.lost:
            return Found("failed")
        score, _ = rule.best(draw)
        assert draw.run is not None, "a draw with a score has a run"
        return Found("finished", score, [(one.step, one.validation_accuracy) for one in draw.run.checkpoints])

    def _trained(self, path: Path) -> Trained | None:
        state = status(self.store.root / path)
        result = read_result(self.store.root / path) if state == "finished" else None
        return None if result is None else Trained.of(result.path, result.content)

    def _lost(self, path: Path) -> str:
        state = status(self.store.root / path)
        return {"failed": "failed", "newer": "failed", "pruned": "pruned"}.get(state, "")

    def _write_plan(self) -> None:
        space = {
            self.dataset.name: {
                algorithm: {
                    name: {"range": one.range.text, "source": one.source, "default": one.default}
                    for name, one in found.items()
                }
                for algorithm, found in self._spaces.items()
            }
        }
        plan = Plan(
            id=self._id,
            search=self.request.search.kind or "",
            selection=tuple(rule.name for rule in self.request.rules),
            command=self.request.command,
            settings=self._settings(),
            space=space,
            cells=self._planned,
        )
        self._plan = write_plan(self.store.root, plan, say=self._say)

    def _search(self, cell: Cell) -> Search:
        options = self.request.search
        if options.kind is None:
            return AsGiven()
        space = self._spaces[cell.algorithm]
        if options.kind == "random":
            return RandomDraws(space, options.count, cell.seed)
        # Absolute: the runs ask it where they are trained, which may be in another directory.
        where = plan_directory(self.store.root, self._id).absolute() / "studies" / cell.dataset / cell.fingerprint
        return TreeParzen(
            space,
            options.count,
            seed=seed_hash("tpe", cell.dataset, cell.algorithm, cell.held_out, cell.seed),
            journal=where / cell.algorithm / cell.held_out / f"{cell.seed}.journal",
            prune=options.prune,
            say=self._say,
        )

    def _space(self, algorithm: str) -> Space:
        recipe = parse(algorithm)
        fixed = [name for name in self._fixed if name in SETTINGS or recipe.takes(name)]
        return space_of(algorithm, self.dataset.name, fixed)

    def _identity(self) -> str:
        """The hash of how is searched. Not of how far, so that a longer search goes on with a shorter one's plan."""
        options = self.request.search
        how: dict[str, Any] = {"search": options.kind, "fixed": sorted(self._fixed), "settings": self._settings()}
        if options.kind == "tpe":
            how |= {"maximised": self.request.objective.name, "prune": options.prune}
        return config_id(how)

    def _settings(self) -> dict[str, Any]:
        drawn = set() if self.request.search.kind is None else set(SETTINGS) - set(self._fixed)
        plain = dataclasses.asdict(self.request.settings)
        return {name: value for name, value in plain.items() if name not in drawn}


def fixed_settings(settings: Settings, named: Sequence[str]) -> list[str]:
    """What a search leaves alone: what is named, what differs from its default, and hyper-parameters that are given.

    Raises:
        SteppeError: a name is neither a searched setting nor a hyper-parameter.
    """
    default = Settings()
    changed = [name for name in SETTINGS if getattr(settings, name) != getattr(default, name)]
    for name in named:
        if name not in SETTINGS:
            _check_hyper(name)
    return list(dict.fromkeys([*named, *changed, *settings.given]))


def with_values(config: RunConfig, values: Mapping[str, Value]) -> RunConfig:
    """The run with these settings and hyper-parameters (those with a dot) in place of its own."""
    hyper = {name: value for name, value in values.items() if "." in name}
    fields: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    return replace(config, **fields, hyper={**config.hyper, **hyper})


def _check_hyper(name: str) -> None:
    try:
        split(name)
    except SteppeError as error:
        known = ", ".join(SETTINGS)
        raise SteppeError(f"fixed: {name} is none of the settings that are searched ({known}); {error}") from error
