"""What a run is: every setting that changes its numbers, and the id that follows from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from steppe.errors import SteppeError, unknown_name
from steppe.training.hyper import flat
from steppe.training.recipes import parse
from steppe.training.vocabulary_penalties import ANNEAL_STEPS
from steppe.training.vocabulary_trajectory import LOOKAHEADS, LR_FACTOR
from steppe.training.words import Value

SHORTHANDS = ("rho", "rho_min", "lam", "alpha", "eta")
"""Hyper-parameters that have a field of :class:`Settings` of their own."""

HYPER = ("hyper", *SHORTHANDS)
"""The fields of :class:`Settings` that belong to the algorithm."""

PLAIN_BACKBONE = "mnist_cnn"
"""The backbone with neither published weights nor batch normalisation: settings that concern those are not used."""

ID_LENGTH = 12


def unset(meaning: str) -> Any:
    """For the help page: what it means that an option is not given."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {meaning})")


def _from_words(words: list[str]) -> dict[str, str]:
    """``["coral.weight=0.5"]`` as ``{"coral.weight": "0.5"}``; a ``ValueError`` is the command line's complaint."""
    pairs = [word.partition("=") for word in words]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise ValueError(f"expected NAME=VALUE, such as coral.weight=0.5, got {name + equals + value!r}")
    names = [name for name, _, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice")
    return {name: value for name, _, value in pairs}


NAMED_VALUES = tyro.constructors.PrimitiveConstructorSpec[Mapping[str, Value]](
    nargs="*",
    metavar="NAME=VALUE...",
    instance_from_str=_from_words,
    is_instance=lambda given: isinstance(given, Mapping),
    str_from_instance=lambda given: [f"{name}={value}" for name, value in given.items()],
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is trained, whatever the algorithm, the held-out domain and the seed.

    The defaults are DomainBed's recipe (Gulrajani and Lopez-Paz 2021: Adam, learning rate 5e-5, 32 pictures of every
    domain a step, 5000 steps, frozen batch normalisation) on a backbone that needs no download.

    Raises:
        SteppeError: a value is outside its range.
    """

    split: Literal["auto", "strict", "domainbed"] = "auto"
    """How pictures are divided: strict (train and test share nothing that is drawn), domainbed (80/20 per domain)."""
    holdout: float = 0.2
    """Share of each domain that is not trained on (domainbed split)."""
    backbone: str = "efficientnet_lite0"
    """efficientnet_lite0 (no download), or any of timm's: DomainBed's is resnet50.tv_in1k. For MNIST mnist_cnn."""
    pretrained: bool = True
    """Start from pre-trained weights."""
    frozen_batch_norm: bool = True
    """Keep the running statistics of batch normalisation as they were pre-trained."""
    dropout: float = 0.0
    """Dropout before the classifier."""
    image_size: int = 224
    """Side of the square pictures, in pixels."""
    batch_per_domain: int = 32
    """Pictures of every source domain in a step."""
    steps: int = 5000
    """Steps of the optimizer."""
    eval_every: int = 300
    """Steps between evaluations; the checkpoint that is best in validation is selected."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The base optimizer, which every algorithm steps with."""
    lr: float = 5e-5
    """Learning rate."""
    momentum: float = 0.9
    """Momentum (sgd only)."""
    weight_decay: float = 0.0
    """Weight decay, as the base optimizer understands it."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate; cosine and linear end at 0."""
    warmup: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    clip_norm: Annotated[float | None, unset("off")] = None
    """Largest l2 norm of the gradient that the base optimizer gets."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; fp16 needs a GPU."""
    hyper: Annotated[Mapping[str, Value], NAMED_VALUES, unset("published values")] = field(default_factory=dict)
    """The algorithm's hyper-parameters: coral.weight=0.5 disam.rho=0.1 (steppe list shows them)."""
    rho: Annotated[float | None, unset("0.05; asam: 0.5")] = None
    """Short for --hyper rho=: how far a step climbs."""
    rho_min: Annotated[float | None, unset("rho throughout")] = None
    """gsam: let the radius fall with the learning rate, from rho to this."""
    lam: Annotated[float | None, unset("0.1")] = None
    """disam: weight of the variance over the domains."""
    alpha: Annotated[float | None, unset("gsam: 0.4, sagm: 0.001, looksam: 0.7, mixup: 0.2, lookahead: 0.05")] = None
    """Short for --hyper alpha=, where one word of the sum has it."""
    eta: Annotated[float | None, unset("asam: 0.01, fsam: 0.1, groupdro: 0.01")] = None
    """Short for --hyper eta=, where one word of the sum has it."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise unknown_name(name, str(value), get_args(kind))
            if kind in (float, float | None) and isinstance(value, int):
                object.__setattr__(self, name, float(value))  # 1 and 1.0 are the same run
        for name in ("image_size", "batch_per_domain", "steps", "eval_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("warmup", "weight_decay", *SHORTHANDS):
            value = getattr(self, name)
            _require(value is None or 0 <= value < float("inf"), name, value, "at least 0")
        for name in ("momentum", "dropout"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        _require(0 < self.holdout < 1, "holdout", self.holdout, "between 0 and 1")
        _require(0 < self.lr < float("inf"), "lr", self.lr, "larger than 0")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "larger than 0")
        _require(self.warmup < self.steps, "warmup", self.warmup, f"less than steps ({self.steps})")
        object.__setattr__(self, "hyper", flat(self.hyper))

    @property
    def log_every(self) -> int:
        """Steps between two training lines of ``metrics.jsonl``: ten in the stretch between evaluations."""
        return max(1, self.eval_every // 10)

    @property
    def given(self) -> dict[str, Value]:
        """The hyper-parameters that were given, by field or in ``hyper``, as the user named them.

        Raises:
            SteppeError: one of them both ways.
        """
        fields = {name: value for name in SHORTHANDS if (value := getattr(self, name)) is not None}
        for name in sorted(fields.keys() & self.hyper.keys()):
            raise SteppeError(f"{name} is given twice: {fields[name]} and, in hyper, {self.hyper[name]}")
        return {**self.hyper, **fields}


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """One run: the data, the domain that is never seen, the algorithm, the seed, and the :class:`Settings`.

    Raises:
        SteppeError: a value is outside its range, the algorithm is not known, or it does not take a
            hyper-parameter that was given.
    """

    dataset: str = "emoji"
    """A known name (see `steppe data list`) or a folder root/<domain>/<class>/*.jpg."""
    held_out: str
    """The domain that is not trained on."""
    algorithm: str = "erm"
    """One word or a sum of them, such as coral+disam+sagm."""
    seed: int = 0
    """Decides the split (as DomainBed's trial seed), the new classifier, the batches and their augmentation."""
    validation_domain: str | None = None
    """A second domain that is not trained on, for leave-one-domain-out cross-validation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.seed < 2**31, "seed", self.seed, "at least 0 and below 2^31")
        if self.validation_domain == self.held_out:
            raise SteppeError(f"the validation domain {self.held_out!r} is the held-out domain; choose another one")
        values = parse(self.algorithm).hyper(self.given)
        if "gsam.rho_min" in values and self.schedule == "constant":
            raise SteppeError("rho_min lets the radius fall with the learning rate: set schedule to cosine or linear")

    @property
    def notes(self) -> list[str]:
        """What a user may not have meant: settings that leave the algorithm without effect, a sentence each."""
        recipe = parse(self.algorithm)
        values, names = recipe.hyper(self.given), recipe.names.parameters
        evaluations = -(-self.steps // self.eval_every)
        short = {
            "swad.n_converge": (
                evaluations,
                "evaluations",
                "the average cannot begin: what is left is the last stretch's",
            ),
            "swa.start": (self.steps - 1, "steps to average", "it averages nothing"),
            **{f"{word}.k": (self.steps, "steps", "no round ends, and nothing is interpolated") for word in LOOKAHEADS},
        }
        ineffective = [
            f"{name} is {values[name]}, and the run has {there} {what}: {effect}"
            for name, (there, what, effect) in short.items()
            if name in values and int(values[name]) > there
        ]
        unfinished = [
            f"{name} is {value} ({names[name].meaning}), and the run has {self.steps} steps: {name.partition('.')[0]} "
            f"does not come to its full weight (--hyper {name}=...)"
            for name, value in values.items()
            if name.endswith(f".{ANNEAL_STEPS}") and int(value) >= self.steps
        ]
        return [*ineffective, *unfinished, *self._notes_on_lookahead(values)]

    def _notes_on_lookahead(self, values: Mapping[str, Value]) -> list[str]:
        found = []
        for word in LOOKAHEADS:
            factor = values.get(f"{word}.{LR_FACTOR}", 1.0)
            asked = any(name.rpartition(".")[2] == LR_FACTOR for name in self.given)
            if self.optimizer != "sgd" and factor != 1 and not asked:
                found.append(
                    f"{word} multiplies the learning rate by {factor:g}, which is published for sgd alone, and the "
                    f"optimizer is {self.optimizer}: --optimizer sgd, or --hyper {LR_FACTOR}=1 for {self.lr:g} as it is"
                )
            if values.get(f"{word}.anchor") and values[f"{word}.anchor_reduction"] == "mean":
                found.append(
                    f"{word}.anchor is {values[f'{word}.anchor']} times a mean over all weights, whose pull on each of "
                    "some millions is next to nothing: --hyper anchor_reduction=sum for one that acts"
                )
        return found

    def canonical(self, *, dataset: str, fingerprint: str, split: str) -> dict[str, Any]:
        """Everything that changes the run's numbers and nothing else, as plain JSON: the ``config.json`` of a run.

        Settings that this run does not use (momentum without sgd, a hold-out fraction in the strict split, pre-trained
        weights of a network that has none) are left out, hyper-parameters are filled in, and a sum of words has its
        canonical order: so two commands that ask for the same run get the same id.

        Args:
            dataset: the data set's own name, which does not depend on where it lies.
            fingerprint: the identity of its contents.
            split: the protocol that ``auto`` came to.
        """
        recipe = parse(self.algorithm)
        plain = {name: value for name, value in dataclasses.asdict(self).items() if name not in HYPER}
        if self.validation_domain is None:
            del plain["validation_domain"]
        if self.optimizer != "sgd":
            del plain["momentum"]
        if split == "strict":
            del plain["holdout"]
        if self.backbone == PLAIN_BACKBONE:
            del plain["pretrained"], plain["frozen_batch_norm"]
        coordinates = {
            "dataset": dataset,
            "dataset_fingerprint": fingerprint,
            "held_out": self.held_out,
            "algorithm": recipe.name,
            "hyper": recipe.hyper(self.given),
            "seed": self.seed,
            "split": split,
        }
        return {**coordinates, **{name: value for name, value in plain.items() if name not in coordinates}}

    @classmethod
    def at(
        cls,
        settings: Settings,
        *,
        dataset: str,
        held_out: str,
        algorithm: str,
        seed: int,
        validation_domain: str | None = None,
    ) -> RunConfig:
        """The run at these coordinates, with hyper-parameters that the algorithm does not take left out."""
        fields: dict[str, Any] = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
        takes = parse(algorithm).takes
        fields.update({name: None for name in SHORTHANDS if fields[name] is not None and not takes(name)})
        fields["hyper"] = {name: value for name, value in settings.hyper.items() if takes(name)}
        return cls(
            dataset=dataset,
            held_out=held_out,
            algorithm=algorithm,
            seed=seed,
            validation_domain=validation_domain,
            **fields,
        )


def run_name(config: RunConfig) -> str:
    """What a run is called on the screen."""
    also = "" if config.validation_domain is None else f" and {config.validation_domain}"
    return f"{parse(config.algorithm).name}, {config.held_out}{also} held out, seed {config.seed}"


def canonical_json(config: dict[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal configs give equal text. Raises ``ValueError`` on NaN."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def config_id(config: dict[str, Any]) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:ID_LENGTH]


def _require(holds: bool, name: str, value: object, what: str) -> None:
    if not holds:
        raise SteppeError(f"{name} must be {what}, got {value}")
