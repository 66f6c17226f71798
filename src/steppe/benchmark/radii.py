"""What searches for the largest radius found, as files of the store. Light: a report reads them without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steppe.training.config import Settings, config_id
from steppe.training.files import make_directory, write_json

FOLDER = "largest-radius"


@dataclass(frozen=True)
class Trial:
    """One ρ: whether it trains, and the share that the last losses have of the loss of guessing, for each seed; None
    where the loss was not finite."""

    rho: float
    trains: bool
    shares: tuple[float | None, ...]


@dataclass(frozen=True)
class LargestRadius:
    """What a bisection found.

    Attributes:
        algorithm: canonical.
        dataset: its name.
        held_out: the domain that was not trained on.
        steps: of each run.
        seeds: repetitions.
        threshold: the share of ln C.
        trains: the largest ρ found that trains; None if none does.
        fails: the smallest ρ found, above that, which does not; None if the largest that was tried trains.
        trials: every ρ that was tried, in order of ρ.
    """

    algorithm: str
    dataset: str
    held_out: str
    steps: int
    seeds: int
    threshold: float
    trains: float | None
    fails: float | None
    trials: tuple[Trial, ...]


def write_radius(found: LargestRadius, root: Path, settings: Settings) -> Path:
    """Write what was found into the store ``root``; a search of the same settings overwrites its own file.

    Raises:
        OutputError: the file cannot be written.
    """
    content = {**asdict(found), "settings": {**asdict(settings), "hyper": dict(settings.hyper)}}
    identity = {name: content[name] for name in ("algorithm", "dataset", "held_out", "seeds", "threshold", "settings")}
    path = make_directory(root / FOLDER) / f"{config_id(identity)}.json"
    write_json(path, content)
    return path


def found_radii(root: Path) -> Iterator[LargestRadius]:
    """What searches in the store ``root`` found; a file that cannot be read is passed over, as its runs are there."""
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            content.pop("settings")
            trials = tuple(Trial(each["rho"], each["trains"], tuple(each["shares"])) for each in content.pop("trials"))
            yield LargestRadius(**content, trials=trials)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
