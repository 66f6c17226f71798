"""Pictures of each domain with what a method makes of them.

Which pictures are shown is fixed by a hash of their keys, never by whether the prediction is right; where the set draws
the same things in every domain, the same things are shown in each.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steppe.errors import SteppeError
from steppe.report.runs import Run, UnreadableFile
from steppe.report.statistics import Comparison, Method

if TYPE_CHECKING:
    from PIL import Image

    from steppe.data.domains import DomainDataset

MOST_PICTURES = 20
THUMBNAIL = 96  # pixels, the longer side


@dataclass(frozen=True)
class Sample:
    """One picture (a data URI), its class, and what was predicted with what confidence in [0, 1]."""

    key: str
    image: str
    label: str
    predicted: str
    confidence: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Panel:
    """A domain: ``seen`` says whether it was among those trained on by the run whose predictions these are."""

    domain: str
    seen: bool
    run: Run
    right: int
    total: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Gallery:
    """The panels of a data set, its terms of use, and why there are none where there are none."""

    panels: tuple[Panel, ...]
    licence: str
    problem: str | None


def gallery(comparison: Comparison, method: Method) -> Gallery:
    """Pictures with the predictions of ``method``: each domain by the run that held it out, others as seen domains.

    Of several seeds the first is shown.
    """
    from steppe.data.catalog import open_dataset

    try:
        dataset = open_dataset(comparison.spec, verify=False)
        if comparison.fingerprint and dataset.fingerprint() != comparison.fingerprint:
            return Gallery((), "", "the data set has changed since the runs were made")
        return Gallery(tuple(_panels(comparison, method, dataset)), dataset.licence, None)
    except (SteppeError, OSError) as error:
        return Gallery((), "", _without_own_folders(str(error)))


def choose(entries: Sequence[Mapping[str, Any]], most: int = MOST_PICTURES) -> list[Mapping[str, Any]]:
    """At most ``most`` entries, spread evenly over the labels and in their order; which ones depends on keys alone."""
    by_label: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: _hash(str(entry["key"]))):
        by_label[int(entry["label"])].append(entry)
    labels = sorted(by_label, key=lambda label: _hash(str(label)))
    chosen: list[Mapping[str, Any]] = []
    for place in range(most):
        chosen += [by_label[label][place] for label in labels if place < len(by_label[label])]
        if len(chosen) >= most:
            break
    return sorted(chosen[:most], key=lambda entry: int(entry["label"]))


def _panels(comparison: Comparison, method: Method, dataset: DomainDataset) -> Iterator[Panel]:
    """The held-out domains first: they are what the page is about."""
    held_out = [domain for domain in comparison.held_out if domain in method.cells]
    predictions = {domain: method.cells[domain].runs[0].predictions() for domain in held_out}
    for domain in [*held_out, *(domain for domain in comparison.domains if domain not in held_out)]:
        source = domain if domain in held_out else held_out[0]
        entries = predictions[source].get(domain)
        if entries:
            yield _panel(dataset, domain, method.cells[source].runs[0], entries)


def _panel(dataset: DomainDataset, domain: str, run: Run, entries: Sequence[Mapping[str, Any]]) -> Panel:
    try:
        right = sum(entry["label"] == entry["predicted"] for entry in entries)
        samples = tuple(_sample(dataset, domain, entry) for entry in choose(entries))
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, SteppeError):
            raise
        raise UnreadableFile(
            run.path / "predictions.json", f"does not fit the data set's domain {domain!r} ({error!r})"
        ) from error
    return Panel(domain, domain != run.held_out, run, right, len(entries), samples)


def _sample(dataset: DomainDataset, domain: str, entry: Mapping[str, Any]) -> Sample:
    index, key = int(entry["index"]), str(entry["key"])
    if dataset.key(domain, index) != key:
        raise ValueError(f"picture {index} is {dataset.key(domain, index)!r}, not {key!r}")
    return Sample(
        key=key,
        image=_thumbnail(dataset.image(domain, index)),
        label=dataset.classes[int(entry["label"])],
        predicted=dataset.classes[int(entry["predicted"])],
        confidence=float(entry["confidence"]),
    )


def _thumbnail(image: Image.Image) -> str:
    """The picture as a data URI, at most `THUMBNAIL` pixels a side."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _without_own_folders(message: str) -> str:
    """The message without where this machine keeps things, for a page that is passed on to others."""
    for folder, name in ((Path.cwd(), "the current folder"), (Path.home(), "~")):
        message = message.replace(str(folder), name) if folder != Path("/") else message
    return message


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
