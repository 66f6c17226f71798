"""RotatedMNIST and ColoredMNIST as DomainBed makes them, tensor for tensor.

Both shuffle all 70,000 pictures of MNIST, the training part first, and deal them out: domain i of D gets every D-th
picture from the i-th on. Gulrajani & Lopez-Paz, "In Search of Lost Domain Generalization" (2021); RotatedMNIST is from
Ghifary et al. (2015), ColoredMNIST from Arjovsky et al., "Invariant Risk Minimization" (2019).

DomainBed draws from torch's global generator, which its training program has seeded, so it shuffles MNIST anew for
every seed. Here the seed belongs to the data set: the same numbers are drawn from a generator of its own, and every run
on ``rotated-mnist`` sees the same pictures, those of DomainBed's seed 0.
"""

from __future__ import annotations

import abc
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steppe.data.domains import Indices
from steppe.data.mnist_files import SIDE, MnistFiles, mnist_directory
from steppe.data.tensors import TensorDomains
from steppe.errors import SteppeError

if TYPE_CHECKING:
    from torch import Generator, Tensor

FORMAT_VERSION = 1

_SPEC = re.compile(r"(rotated|colored)-mnist(?:-(\d+))?(?:@(\d+))?")


@dataclass(frozen=True)
class Dealt:
    """What the draws gave: for each domain the places of its pictures in MNIST, labels, and channels where coloured."""

    places: Mapping[str, Indices]
    labels: Mapping[str, Indices]
    channels: Mapping[str, Indices]


class MnistDomains(TensorDomains):
    """What the two have in common: files, shuffle, names.

    A sample's key is its place in MNIST: ``train-00042``, ``test-00007``. Nothing is read before it is needed.

    Args:
        root: the folder with MNIST's files, as :class:`~steppe.data.mnist_files.MnistFiles` takes it; by default where
            ``steppe data fetch mnist`` puts them.
        seed: of the draws; what DomainBed calls the seed of a run, from 0 to 2³¹ − 1.
        images: deal out only this many of the shuffled pictures, for smaller experiments; by default all.

    Raises:
        SteppeError: a file is missing, or a number is out of range.
    """

    kind: ClassVar[str]
    licence = "Yann LeCun and Corinna Cortes, CC BY-SA 3.0; derived from databases of NIST"

    def __init__(self, root: Path | str | None = None, *, seed: int = 0, images: int | None = None) -> None:
        if not 0 <= seed < 2**31:
            raise SteppeError(f"the seed of {self.kind} must be at least 0 and below 2^31, got {seed}")
        self.root = mnist_directory() if root is None else Path(root).expanduser().absolute()
        self.seed = seed
        self.images = images
        self.name = f"{self.kind}{'' if images is None else f'-{images}'}{f'@{seed}' if seed else ''}"
        self.spec = self.name if root is None else str(self.root / self.name)
        fetch = "steppe data fetch mnist" + ("" if root is None else f" --out {self.root}")
        self._files = MnistFiles(self.root, f"run `{fetch}`")
        if images is not None and not len(self.domains) <= images <= sum(self._files.counts):
            there = sum(self._files.counts)
            raise SteppeError(
                f"{self.kind} needs at least {len(self.domains)} pictures and MNIST has {there}, got {images}"
            )

    def size(self, domain: str) -> int:
        self.check_domain(domain)
        total = sum(self._files.counts) if self.images is None else self.images
        return len(range(self.domains.index(domain), total, len(self.domains)))

    def labels(self, domain: str) -> Indices:
        self.check_domain(domain)
        return self._dealt.labels[domain].copy()

    def key(self, domain: str, index: int) -> str:
        self.check_domain(domain)
        place, training = int(self._dealt.places[domain][index]), self._files.counts[0]
        return f"train-{place:05}" if place < training else f"test-{place - training:05}"

    def fingerprint(self) -> str:
        """A hash of the four files' content and of what was drawn: a torch that draws other numbers shows."""
        digest = hashlib.sha256(json.dumps([FORMAT_VERSION, self.kind, sorted(self._files.digests.items())]).encode())
        for drawn in (self._dealt.places, self._dealt.labels, self._dealt.channels):
            for domain, values in drawn.items():
                digest.update(domain.encode() + values.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def problems(self, *, progress: bool = False) -> tuple[str, ...]:
        """Reads the four files and says which is not MNIST's."""
        return self._files.problems()

    def __getstate__(self) -> dict[str, Any]:
        # Another process reads the files itself; that is cheaper than sending their pixels.
        return {name: value for name, value in self.__dict__.items() if name not in ("_dealt", "_pixels")}

    def grey(self, domain: str) -> NDArray[np.uint8]:
        """All pictures of ``domain`` before they are coloured, uint8 [n, 28, 28]."""
        self.check_domain(domain)
        return self._pixels[domain]

    @cached_property
    def _pixels(self) -> dict[str, NDArray[np.uint8]]:
        pictures = self._files.images()
        return {domain: self._changed(domain, pictures[places]) for domain, places in self._dealt.places.items()}

    def _changed(self, domain: str, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the domain does to the shape of its pictures."""
        return pictures

    @cached_property
    def _dealt(self) -> Dealt:
        import torch

        # The numbers that torch's global generator would give after torch.manual_seed(seed), which is not touched.
        generator = torch.Generator().manual_seed(self.seed)
        labels = self._files.labels().astype(np.int64)
        order = torch.randperm(len(labels), generator=generator, device="cpu").numpy()[: self.images]
        number = len(self.domains)
        places = {domain: order[start::number].copy() for start, domain in enumerate(self.domains)}
        return self._deal(places, {domain: labels[where] for domain, where in places.items()}, generator)

    @abc.abstractmethod
    def _deal(self, places: Mapping[str, Indices], digits: Mapping[str, Indices], generator: Generator) -> Dealt:
        """Labels, and what more is drawn, from the digits of each domain."""


class RotatedMNIST(MnistDomains):
    """Digits turned counter-clockwise by 0, 15, 30, 45, 60 and 75 degrees, a domain each; ten classes.

    Turned about the centre with bilinear interpolation by Pillow, on 8-bit pixels; corners become black.
    """

    kind = "rotated-mnist"
    classes = tuple(map(str, range(10)))
    domains = ("0", "15", "30", "45", "60", "75")
    shape = (1, SIDE, SIDE)

    def tensors(self, domain: str, indices: Indices | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        import torch

        chosen = slice(None) if indices is None else np.asarray(indices, dtype=np.int64)
        x = torch.from_numpy(self.grey(domain)[chosen])[:, None].to(torch.float32).div_(255)
        return x, torch.from_numpy(self._dealt.labels[domain][chosen].copy())

    def _changed(self, domain: str, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        angle = float(domain)
        turned = (Image.fromarray(one).rotate(angle, Image.Resampling.BILINEAR, fillcolor=0) for one in pictures)
        return np.stack([np.asarray(one) for one in turned])

    def _deal(self, places: Mapping[str, Indices], digits: Mapping[str, Indices], generator: Generator) -> Dealt:
        return Dealt(places, digits, {})


class ColoredMNIST(MnistDomains):
    """Small digits against large ones, in two colours, of which the colour is the better hint in training.

    The label is 1 for the digits 0 to 4 and 0 for 5 to 9, flipped with probability 0.25. The digit stands in the
    channel of its label, and with the domain's probability (0.1, 0.2, 0.9) in the other one; that channel is black.
    Domains are named by the correlation of colour and label, as in DomainBed.
    """

    kind = "colored-mnist"
    classes = ("5-9", "0-4")
    domains = ("+90%", "+80%", "-90%")
    shape = (2, SIDE, SIDE)
    flipped_colours: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.9)
    flipped_labels = 0.25

    def tensors(self, domain: str, indices: Indices | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        import torch

        chosen = slice(None) if indices is None else np.asarray(indices, dtype=np.int64)
        grey = torch.from_numpy(self.grey(domain)[chosen]).to(torch.float32).div_(255)
        channel = torch.from_numpy(self._dealt.channels[domain][chosen].copy())
        x = torch.zeros(len(grey), *self.shape, dtype=torch.float32, device="cpu")
        x[torch.arange(len(grey), device="cpu"), channel] = grey
        return x, torch.from_numpy(self._dealt.labels[domain][chosen].copy())

    def _deal(self, places: Mapping[str, Indices], digits: Mapping[str, Indices], generator: Generator) -> Dealt:
        import torch

        def bernoulli(probability: float, number: int) -> NDArray[np.bool_]:
            drawn = torch.rand(number, generator=generator, dtype=torch.float32, device="cpu") < probability
            return np.asarray(drawn.numpy(), dtype=np.bool_)

        labels, channels = {}, {}
        for domain, probability in zip(self.domains, self.flipped_colours, strict=True):
            label = (digits[domain] < 5) ^ bernoulli(self.flipped_labels, len(digits[domain]))
            labels[domain] = label.astype(np.int64)
            channels[domain] = (label ^ bernoulli(probability, len(label))).astype(np.int64)
        return Dealt(places, labels, channels)


def mnist_from_spec(spec: str, root: Path | None = None) -> MnistDomains | None:
    """The set called ``rotated-mnist`` or ``colored-mnist``, as in ``rotated-mnist-6000@3``; None for other names.

    ``-6000`` deals out 6,000 pictures, ``@3`` draws with seed 3.

    Raises:
        SteppeError: as :class:`MnistDomains`.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        return None
    kind = RotatedMNIST if match[1] == "rotated" else ColoredMNIST
    return kind(root, images=None if match[2] is None else int(match[2]), seed=int(match[3] or 0))
