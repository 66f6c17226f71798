"""Figures that others published, to stand beside one's own: marked as such, and in no rank and no test.

They ship with steppe, a row a figure, in two files:

- ``published/published.csv``: the tables of the DISAM paper (Zhang et al., ICLR 2024) and of the TRAM paper (Sherborne
  et al., ICLR 2024);
- ``published/domainbed.csv``: the figures of DomainBed (Gulrajani and Lopez-Paz, ICLR 2021) with selection on the
  training domains' validation pictures, from ``results.tex`` of its repository's records of 2020-10-06.

A figure is shown only for the same data set and the same measure (on the held-out domain, or in domain), for the
network that DomainBed prescribes, and only where own runs are as long as DomainBed's: a run cut short is no
reproduction of anything. What else differs is said.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from steppe.report.ranking import names
from steppe.report.statistics import Comparison, Estimate

FILES = ("published.csv", "domainbed.csv")
AVERAGE = "avg"

DISAM, DOMAINBED = "DISAM (ICLR 2024)", "DomainBed (ICLR 2021)"

MEASURES: Mapping[tuple[str, str], str] = {
    (DISAM, "1 in-domain"): "in-domain",
    (DISAM, "1 out-of-domain"): "held-out",
    (DISAM, "5 convergence consistency"): "held-out",
    **{(DISAM, str(number)): "held-out" for number in (6, 7, 8, 9, 10)},
    (DOMAINBED, "training-domain validation"): "held-out",
}
"""(paper, table) -> the measure it shows. Other tables are of another network (CLIP) or of another question."""

STEPS = 5001
"""Steps of a run in DomainBed, whose protocol all these figures follow; `LONGER` where there are more."""
LONGER = {"domainnet": 15001}
NETWORKS = {"rotatedmnist": "mnist_cnn", "coloredmnist": "mnist_cnn"}
"""The network where it is not ResNet-50."""

DOMAINS: Mapping[str, Mapping[str, str]] = {
    "pacs": {"a": "Art", "artpainting": "Art", "c": "Cartoon", "p": "Photo", "s": "Sketch"},
    "vlcs": {
        **{"c": "Caltech", "caltech101": "Caltech", "l": "LabelMe", "s": "Sun", "sun09": "Sun"},
        **{"v": "Pascal", "voc2007": "Pascal", "pascalvoc": "Pascal"},
    },
    "officehome": {"a": "Art", "c": "Clipart", "p": "Product", "r": "Real World", "real": "Real World"},
    "terraincognita": {f"location{number}": f"L{number}" for number in (100, 38, 43, 46)},
    "domainnet": {"clip": "Clipart", "info": "Infograph", "paint": "Painting", "quick": "Quickdraw"},
}
"""Data set -> a domain as it may be called -> as the files call it. Equal names need no entry."""


@dataclass(frozen=True)
class Figure:
    """One algorithm of one paper on one data set.

    Attributes:
        algorithm: as the paper writes it.
        source: paper and table.
        values: own name of a held-out domain -> the published mean and its ±; fractions.
        average: over the held-out domains.
    """

    algorithm: str
    source: str
    values: Mapping[str, Estimate]
    average: Estimate | None


@dataclass(frozen=True)
class Published:
    """What may stand beside one's own figures, and what has to be said with it."""

    figures: tuple[Figure, ...]
    notes: tuple[str, ...]


def published(comparison: Comparison, measure: str = "held-out") -> Published:
    """The published figures of a comparison's data set, for the algorithms that were run in it.

    Args:
        comparison: own runs.
        measure: ``held-out`` or ``in-domain``.
    """
    dataset = _letters(re.sub(r"@\d+$", "", comparison.dataset))
    rows = [row for row in _rows() if _letters(row["dataset"]) == dataset and _measure(row) == measure]
    if not rows:
        return Published((), (f"Nothing is published here for {comparison.name}.",))
    steps = sorted({int(run.result.get("steps", 0)) for run in comparison.runs})
    full = LONGER.get(dataset, STEPS)
    if not steps or steps[-1] < full - 1:
        longest = f"these of {steps[-1]:,}" if steps else "none are here"
        return Published(
            (),
            (f"Published figures are left out: they are of runs of {full:,} steps, {longest}.",),
        )
    own = {_words(method.algorithm) for method in comparison.methods}
    figures = tuple(_figures([row for row in rows if _words(row["algorithm"]) in own], comparison, dataset))
    if not figures:
        return Published((), ("None of these algorithms has a published figure here.",))
    return Published(figures, tuple(_notes(comparison, dataset, steps, full)))


def _figures(rows: list[dict[str, str]], comparison: Comparison, dataset: str) -> Iterator[Figure]:
    own = {_domain(dataset, domain): domain for domain in comparison.held_out}
    found: dict[tuple[str, str], dict[str, tuple[Estimate, str]]] = {}
    for row in rows:
        cells = found.setdefault((row["paper"], row["algorithm"]), {})
        place = AVERAGE if row["domain"] == AVERAGE else own.get(_domain(dataset, row["domain"]))
        if place is not None:
            cells.setdefault(place, (_estimate(row), row["table"]))  # table 1 before the tables of single domains
    for (paper, algorithm), cells in found.items():
        tables = dict.fromkeys(re.sub(r"^(\d+)\b.*", r"\1", table) for _, table in cells.values())
        where = "tables" if len(tables) > 1 else "table"
        numbered = all(table.isdigit() for table in tables)
        source = f"{paper}, {where} {names(list(tables))}" if numbered else paper
        values = {domain: value for domain, (value, _) in cells.items() if domain != AVERAGE}
        # An average over all domains stands beside one's own only where that is over all of them too.
        complete = len(comparison.held_out) == len(comparison.domains) and len(comparison.held_out) > 1
        average = cells[AVERAGE][0] if complete and AVERAGE in cells else None
        if values or average is not None:
            yield Figure(algorithm, source, values, average)


def _notes(comparison: Comparison, dataset: str, steps: list[int], full: int) -> Iterator[str]:
    network = NETWORKS.get(dataset, "ResNet-50")
    yield (
        f"Published rows are others' figures, by DomainBed's protocol ({network}, {full:,} steps, three seeds); they "
        "are in no rank and no test."
    )
    if steps[0] < full - 1:
        yield f"Some of the own runs are shorter: {steps[0]:,} steps."
    backbones = list(dict.fromkeys(str(run.config.get("backbone")) for run in comparison.runs))
    if any(not _letters(backbone).startswith(_letters(network)) for backbone in backbones):
        yield f"The networks differ: {network} there, {names(backbones)} here."
    if comparison.answer != "in":
        yield "The splits differ: theirs is DomainBed's, the own one is strict."


@cache
def _rows() -> list[dict[str, str]]:
    found = []
    for name in FILES:
        text = (resources.files("steppe.report") / "published" / name).read_text(encoding="utf-8")
        found += list(csv.DictReader(text.splitlines()))
    return found


def _measure(row: Mapping[str, str]) -> str | None:
    return MEASURES.get((row["paper"], row["table"])) if row["metric"] == "accuracy" else None


def _estimate(row: Mapping[str, str]) -> Estimate:
    error = float(row["std"]) / 100 if row["std"] else None
    return Estimate(float(row["value"]) / 100, error, 0, ())


def _letters(name: str) -> str:
    """Letters and digits: ``Office_Home`` is ``officehome``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _domain(dataset: str, name: str) -> str:
    if name.startswith(("+", "-")):  # ColoredMNIST's
        return name
    letters = _letters(name)
    return _letters(DOMAINS.get(dataset, {}).get(letters, letters))


def _words(algorithm: str) -> frozenset[str]:
    """A sum of words, in any order and spelling: ``V-REx+DISAM`` is ``disam+vrex``."""
    return frozenset(_letters(word) for word in algorithm.split("+"))
