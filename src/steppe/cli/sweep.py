"""What `steppe demo`, `train` and `bench` do."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from steppe.benchmark.execution import Execution, make_executor
from steppe.benchmark.executor import Outcome
from steppe.benchmark.plan import read_plans
from steppe.benchmark.presets import DEMO
from steppe.benchmark.protocol import ALL, Job, jobs
from steppe.benchmark.selection import selection
from steppe.benchmark.shared_disk import local_locks
from steppe.benchmark.store import FAILURE, Status, Store, forget_failure, record_failure, status
from steppe.benchmark.sweep import Request, Sweep
from steppe.benchmark.together import Ending, follow, leading
from steppe.cli.commands import Bench, Demo, Train
from steppe.cli.only import limited, parse_only
from steppe.data import DomainDataset, open_dataset
from steppe.errors import SteppeError
from steppe.report import load_runs, print_choices, print_selections, print_table, select, summarise, write_page
from steppe.report.runs import Runs
from steppe.training.config import RunConfig, Settings, run_name
from steppe.training.losses import NonFiniteLossError
from steppe.training.machine import Machine
from steppe.training.progress import Display, plain_console
from steppe.training.recipes import parse
from steppe.training.team import team_of
from steppe.training.trainer import Trainer

SOME_FAILED = 1


def run_demo(options: Demo, command: str) -> int:
    """The preset comparison on the embedded set."""
    settings = DEMO.settings
    if options.steps is not None:
        settings = replace(
            settings,
            steps=options.steps,
            eval_every=max(1, options.steps * settings.eval_every // settings.steps),
            warmup=options.steps * settings.warmup // settings.steps,
        )
    request = Request(
        algorithms=DEMO.algorithms,
        held_out=DEMO.held_out,
        seeds=_seeds(options.seeds),
        settings=settings,
        command=command,
    )
    return _sweep([open_dataset(DEMO.dataset)], request, machine=options.machine, out=options.out)


def run_bench(options: Bench, datasets: Sequence[DomainDataset], command: str) -> int:
    """The comparison that was asked for."""
    request = Request(
        algorithms=options.algorithms,
        held_out=options.held_out,
        seeds=_seeds(options.seeds),
        settings=options.settings,
        selections=tuple(selection(name) for name in dict.fromkeys(options.selection)),
        search=options.search,
        command=command,
    )
    return _sweep(
        datasets,
        request,
        machine=options.machine,
        out=options.out,
        only=parse_only(options.only),
        execution=options.execution,
    )


def _seeds(count: int) -> range:
    if count < 1:
        raise SteppeError(f"seeds must be at least 1, got {count}")
    return range(count)


def run_train(options: Train, dataset: DomainDataset, command: str) -> int:
    """One run."""
    console = plain_console()
    fields = {name: getattr(options.settings, name) for name in Settings.__dataclass_fields__}
    config = RunConfig(
        dataset=options.dataset,
        held_out=options.held_out,
        algorithm=options.algorithm,
        seed=options.seed,
        validation_domain=options.validation_domain,
        **fields,
    )
    for note in config.notes:
        console.print(f"note: {note}", soft_wrap=True)
    (job,) = jobs(Store(options.out), dataset, [config])
    team = team_of(options.machine.device)
    try:
        with Display(console) as display:
            trainer = Trainer(
                config, out=job.directory, dataset=dataset, machine=options.machine, report=display, command=command
            )
            if team.main:
                forget_failure(job.directory)
            result = trainer.fit()
    except NonFiniteLossError as error:
        if team.main:
            record_failure(job.directory, error, command)
            print(f"error: {error}", file=sys.stderr)
        return SOME_FAILED
    except SteppeError:
        raise
    except Exception as error:
        if not team.alone:  # one process is lost, which the run is not to blame for
            raise
        record_failure(job.directory, error, command)
        raise
    content = result.content
    validation = f"{100 * content['validation_accuracy']:.1f} % in validation"
    average = content.get("average")
    console.print(
        f"{content['algorithm']}, "
        + (
            f"selected at step {content['selected_step']} of {content['steps']} by {validation}"
            if average is None
            else f"the mean of steps {average['start']} to {average['end']} of {content['steps']}, {validation}"
        )
    )
    console.print(f"  held out, {content['held_out']}: {100 * result.held_out_accuracy:.1f} %")
    if options.validation_domain is not None:
        chosen = next(row for row in content["checkpoints"] if row["step"] == content["selected_step"])
        also = chosen["cross_validation_accuracy"][options.validation_domain]
        console.print(f"  held out too, {options.validation_domain}: {100 * also:.1f} %")
    console.print(f"  in domain: {100 * result.in_domain_accuracy:.1f} %")
    console.print(f"  {result.path}", soft_wrap=True)
    return 0


def _sweep(
    datasets: Sequence[DomainDataset],
    request: Request,
    *,
    machine: Machine,
    out: Path,
    only: Mapping[str, Sequence[str]] = MappingProxyType({}),
    execution: Execution | None = None,
) -> int:
    team = team_of(machine.device)
    if not team.main:
        return follow(team, {dataset.spec: dataset for dataset in datasets}, machine, request.command)
    with nullcontext(Ending()) if team.alone else leading(team) as ending:
        ending.status = _walk(datasets, request, machine, Store(out), only, execution or Execution())
    return ending.status


def _walk(
    datasets: Sequence[DomainDataset],
    request: Request,
    machine: Machine,
    store: Store,
    only: Mapping[str, Sequence[str]],
    execution: Execution,
) -> int:
    console = plain_console()
    parts = _parts(datasets, request, only)
    sweeps = [
        Sweep(store, dataset, part, say=lambda line: console.print(line, soft_wrap=True)) for dataset, part in parts
    ]
    store.create()
    if warning := local_locks(store.root):
        console.print(f"note: {warning}", soft_wrap=True)
    directories: set[Path] = set()
    failed = False
    for sweep in sweeps:
        failed |= _run(sweep, machine, execution, console, directories)
    failed |= not _show(console, store, sweeps, directories)
    return SOME_FAILED if failed else 0


def _parts(
    datasets: Sequence[DomainDataset], request: Request, only: Mapping[str, Sequence[str]]
) -> list[tuple[DomainDataset, Request]]:
    """The data sets of the sweep, each with what is compared on it, as far as ``--only`` keeps them.

    Raises:
        SteppeError: ``--only`` names what the sweep does not have.
    """
    names = {dataset.spec: dataset.name for dataset in datasets}
    wanted = limited(only, "dataset", list(names.values()), spelt=lambda value: names.get(_spec(value), value))
    algorithms = [parse(algorithm).name for algorithm in request.algorithms]
    rules = limited(only, "selection", [rule.name for rule in request.selections])
    request = replace(
        request,
        algorithms=limited(only, "algorithm", algorithms, spelt=lambda value: parse(value).name),
        seeds=[int(seed) for seed in limited(only, "seed", [str(seed) for seed in request.seeds])],
        selections=tuple(rule for rule in request.selections if rule.name in rules),
        whole=request.selections,
    )
    kept = [dataset for dataset in datasets if dataset.name in wanted]
    domains = {dataset.spec: _domains(dataset, request.held_out) for dataset in kept}
    known = list(dict.fromkeys(domain for found in domains.values() for domain in found))
    parts = [
        (dataset, replace(request, held_out=limited(only, "held-out", domains[dataset.spec], known=known)))
        for dataset in kept
    ]
    return [(dataset, part) for dataset, part in parts if part.held_out or "held-out" not in only]


def _domains(dataset: DomainDataset, held_out: Sequence[str]) -> list[str]:
    return [*held_out] if ALL not in held_out or ALL in dataset.domains else [*dataset.domains]


def _spec(value: str) -> str:
    """A folder as a data set names it."""
    return str(Path(value).expanduser().absolute())


def _run(sweep: Sweep, machine: Machine, execution: Execution, console: Console, directories: set[Path]) -> bool:
    """Do the runs of a sweep that are not done; whether some failed. Their directories are added to ``directories``."""
    rounds = sweep.rounds()
    planned = next(rounds, [])
    states = {job.directory: status(job.directory) for job in planned}
    retry_failed = execution.retry_failed
    _announce(console, sweep, states, retry_failed=retry_failed)
    for note in sweep.notes:
        console.print(f"note: {note}", soft_wrap=True)
    learns = sweep.request.search.kind == "tpe"
    failed = False
    with (
        Display(console, runs=sweep.total if learns else len(planned)) as display,
        make_executor(execution, sweep.dataset, machine, display, sweep.request.command) as executor,
    ):
        while planned:
            directories.update(states)
            missing = [job for job in planned if _is_missing(job, states[job.directory], retry_failed=retry_failed)]
            failed |= not retry_failed and "failed" in states.values()
            for _ in range(len(planned) - len(missing)):
                display.run_over()
            for outcome in executor.run(missing):
                failed |= outcome.status == "failed"
                display.say(_told(outcome, sweep))
                display.run_over()
            planned = next(rounds, [])
            states = {job.directory: status(job.directory) for job in planned}
    return failed


def _is_missing(job: Job, state: Status, *, retry_failed: bool) -> bool:
    if state == "pruned":
        return job.stop is None
    return state != "finished" and (retry_failed or state != "failed")


def _told(outcome: Outcome, sweep: Sweep) -> str:
    """What became of a run, in a line."""
    job = outcome.job
    name = ", ".join([run_name(job.config), *sweep.draws(job)])
    if outcome.status == "pruned":
        return f"{name}: pruned"
    if outcome.result is None:
        record = job.directory / FAILURE
        return f"{name}: failed; {record if record.exists() else outcome.error}"
    return (
        f"{name}: {100 * outcome.result.held_out_accuracy:.1f} % on {job.config.held_out}, "
        f"{100 * outcome.result.in_domain_accuracy:.1f} % in domain"
    )


def _announce(console: Console, sweep: Sweep, states: Mapping[Path, Status], *, retry_failed: bool) -> None:
    dataset = sweep.dataset
    pictures = sum(dataset.size(domain) for domain in dataset.domains)
    console.print(
        f"{dataset.name}: {pictures} pictures of {len(dataset.classes)} classes in {len(dataset.domains)} domains "
        f"({', '.join(dataset.domains)})"
    )
    counts = Counter(states.values())
    again = "failed before and tried again" if retry_failed else "failed before (--retry-failed tries again)"
    notes: dict[Status, str] = {
        "finished": "finished already",
        "partial": "to be continued",
        "failed": again,
        "running": "at work in another process",
        "damaged": "with a damaged result, to be made again",
        "newer": "with a result of a later steppe",
        "pruned": "pruned before",
    }
    told = [f"{counts[state]} {note}" for state, note in notes.items() if counts[state]]
    runs = "1 run" if len(states) == 1 else f"{len(states)} runs"
    if sweep.request.search.kind == "tpe":
        runs = f"a search of {sweep.request.search.count} trials for each of {len(sweep.cells)}; first {runs}"
    console.print(runs + (f", of which {', '.join(told)}" if told else ""))


def _show(console: Console, store: Store, sweeps: Sequence[Sweep], directories: set[Path]) -> bool:
    """The table of these runs; the page of all runs in the store. Whether each number to be selected is there."""
    found = load_runs(store.root)
    runs = Runs(
        (run for run in found if run.path in directories),
        root=found.root,
        failures=[failure for failure in found.failures if failure.path in directories],
        problems=[problem for problem in found.problems if problem.path.parent in directories],
        pruned=[path for path in found.pruned if path in directories],
    )
    plans = [sweep.plan for sweep in sweeps if sweep.plan is not None]
    rules = sweeps[0].request.selections
    selected = [select(runs, plans, rule.name) for rule in rules]
    summaries = [summarise(one.runs) for one in selected]
    console.print()
    print_table(summaries[0], console)
    if len(rules) > 1:
        print_selections({rule.title: one for rule, one in zip(rules, summaries, strict=True)}, console)
    print_choices(selected[0].choices, console)
    if select(found, read_plans(store.root)[0]).runs:
        console.print(f"\npage: {write_page(store.root)}", soft_wrap=True)
    return len(selected[0].choices) == sum(len(plan.cells) for plan in plans)
