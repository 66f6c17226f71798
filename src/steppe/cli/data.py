"""What `steppe data` does."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from rich.table import Table

from steppe.cli.commands import DataCheck, DataFetch, DataSheet
from steppe.data import (
    OFFICIAL,
    DomainDataset,
    OfficialFolders,
    contact_sheet,
    examine_dataset,
    fetch_emoji,
    fetch_mnist,
    fetch_official,
    list_datasets,
    open_dataset,
)
from steppe.data.checking import Findings
from steppe.data.mnist_files import SIDE
from steppe.data.official_sources import SOURCES
from steppe.errors import SteppeError, unknown_name
from steppe.training.config import PLAIN_BACKBONE
from steppe.training.files import make_directory, write_atomically
from steppe.training.progress import plain_console

FETCHABLE: dict[str, Callable[[Path | None, Path | None], Path]] = {
    "emoji": fetch_emoji,
    "mnist": fetch_mnist,
    **{name: partial(fetch_official, name) for name in OFFICIAL},
}
WRONG = 1


def run_list() -> int:
    """A table of the known sets."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "domains", "classes", "pictures", "status"):
        justify: Literal["right", "left"] = "right" if heading in ("classes", "pictures") else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in ("domains", "status"))
    for row in list_datasets():
        counts = ["" if count is None else f"{count:,}" for count in (row.classes, row.pictures)]
        table.add_row(row.name, " ".join(row.domains), *counts, row.status)
    console = plain_console()
    console.print(table)
    console.print("\nAnd any folder <domain>/<class>/<pictures>: steppe bench ./my-data")
    return 0


def run_fetch(options: DataFetch) -> int:
    """Make the set and say where it is."""
    if options.dataset not in FETCHABLE:
        raise unknown_name("data set to fetch", options.dataset, FETCHABLE)
    console = plain_console()
    if options.dataset in OFFICIAL:
        official, size = OFFICIAL[options.dataset], SOURCES[options.dataset].size
        console.print(f"{official.title}{size and f', {size}'}. {official.licence[0].upper()}{official.licence[1:]}.")
        console.print(f"Its page: {official.page}", soft_wrap=True)
    directory = FETCHABLE[options.dataset](options.out, options.packages)
    if options.dataset in OFFICIAL:
        use = options.dataset if options.out is None else str(directory)
    elif options.dataset == "mnist":
        spec = "rotated-mnist" if options.out is None else str(directory / "rotated-mnist")
        use = f"{spec} --backbone {PLAIN_BACKBONE} --image-size {SIDE}"
    else:
        use = "emoji-full" if options.out is None else str(directory)
    console.print(f"made {directory}\nuse it: steppe bench {use}", soft_wrap=True)
    return 0


def run_check(options: DataCheck) -> int:
    """What is in the set; what is wrong with it, a line each."""
    console = plain_console()
    try:
        findings = examine_dataset(
            options.dataset, progress=console.is_terminal, again=options.again, remember=options.remember
        )
    except SteppeError as error:
        findings = Findings((str(error),))
    for line in findings.lines:
        console.print(line, soft_wrap=True)
    if findings.manifest is not None:
        console.print(f"remembered in {findings.manifest}", soft_wrap=True)
    if findings.lines:
        if options.remember and findings.manifest is None:
            console.print("nothing was remembered: what is wrong now would pass for right", soft_wrap=True)
        return WRONG
    dataset = open_dataset(options.dataset, verify=False)
    _print_counts(dataset)
    if isinstance(dataset, OfficialFolders):
        version = f", the version with {dataset.version.name} pictures" if dataset.version.name else ""
        console.print(f"\n{dataset.official.title} as published{version}", soft_wrap=True)
    console.print("\nevery picture can be read")
    return 0


def _print_counts(dataset: DomainDataset) -> None:
    """How many pictures each class has in each domain."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for domain in dataset.domains:
        table.add_column(domain, justify="right")
    counts = {domain: np.bincount(dataset.labels(domain), minlength=len(dataset.classes)) for domain in dataset.domains}
    for label, name in enumerate(dataset.classes):
        table.add_row(name, *(str(counts[domain][label]) for domain in dataset.domains))
    table.add_section()
    table.add_row("all", *(str(dataset.size(domain)) for domain in dataset.domains))
    plain_console().print(table)


def run_sheet(options: DataSheet) -> int:
    """Draw the contact sheet into a file."""
    dataset = open_dataset(options.dataset, verify=False)
    sheet = contact_sheet(
        dataset,
        classes=options.classes or None,
        domains=options.domains or None,
        per_class=options.per_class,
    )
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    make_directory(options.out.parent)
    write_atomically(options.out, lambda file: file.write(content.getvalue()))
    plain_console().print(f"{options.out} ({sheet.width} × {sheet.height} pixels)", soft_wrap=True)
    return 0
