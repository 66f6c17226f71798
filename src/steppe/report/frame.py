"""The runs of a store as a data frame, for questions that no table here answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steppe.report.runs import SEED_FIELDS, Run
from steppe.report.settings import settings_of

if TYPE_CHECKING:
    import polars

MEASURED = (
    *("held_out_accuracy", "held_out_accuracy_all", "in_domain_accuracy", "validation_accuracy"),
    *("selected_step", "steps", "seconds_per_step", "seconds"),
)


def run_frame(runs: Sequence[Run]) -> polars.DataFrame:
    """One row a run: its coordinates, what was measured, and every setting (hyper-parameters as ``hyper.<name>``).

    Accuracies are fractions in [0, 1]. A setting that a run does not have is null; a column whose values are of several
    kinds is text.
    """
    import polars

    rows = [_row(run) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    return polars.DataFrame({name: polars.Series(name, values, strict=False) for name, values in columns.items()})


def _row(run: Run) -> dict[str, Any]:
    coordinates = {name: getattr(run, name) for name in ("id", "dataset", "algorithm", "held_out")}
    seeds = {name: run.config[name] for name in SEED_FIELDS if name in run.config}
    measured = {name: run.result.get(name) for name in MEASURED}
    return {**coordinates, **seeds, **measured, **settings_of(run.config), "path": run.path.as_posix()}


def _column(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    simple = kinds <= {int} or kinds <= {float} or kinds <= {bool}
    return values if simple else [None if value is None else str(value) for value in values]
