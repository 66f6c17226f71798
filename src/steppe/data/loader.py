"""Batches for training, the same number of pictures from every source domain, and batches for evaluation.

A batch is made whole in one place, by a function of (seed, step): in this process, or in one of the workers of a
single torch DataLoader that serves all domains. So a resumed run and another number of workers see the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from steppe.data import hue
from steppe.data.augmentation import TrainTransform
from steppe.data.decoded import DecodedPictures
from steppe.data.decoded_files import Pixels
from steppe.data.domains import DomainDataset, Indices
from steppe.data.sampling import BalancedOrder, SlotRandomness, one_thread, undisturbed_randomness
from steppe.data.slots import Part, Slot, Slots
from steppe.data.tensors import TensorDomains
from steppe.data.transforms import TensorTransform, Transform
from steppe.errors import SteppeError

T = TypeVar("T")


class Batch(NamedTuple):
    """A training batch; slots go domain by domain, in the order of the source domains.

    A part of one has fewer rows ``x``, but the labels and domains of the whole batch.
    """

    x: Tensor  # float32 [B, C, S, S], C = 3 for pictures
    y: Tensor  # int64 [B]
    domain: Tensor  # int64 [B], index into the source domains


class Batches(Generic[T]):
    """The batches ``make(number)`` for the given numbers, in order; every iteration starts anew.

    With workers the batches are made ahead in that many processes, each with one thread; they end when the iteration
    does, also when it is abandoned or raises.
    """

    def __init__(self, make: Callable[[int], T], numbers: range, workers: int) -> None:
        if workers < 0:
            raise SteppeError(f"the number of workers cannot be negative; got {workers}")
        self._make = make
        self._numbers = numbers
        self._workers = min(workers, len(numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[T]:
        if not self._workers:
            yield from map(self._make, self._numbers)
            return
        loader: DataLoader[T | _Failure] = DataLoader(
            _Made(self._make),
            batch_size=None,
            sampler=self._numbers,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else a seed for the workers is drawn from the global generator
        )
        batches = iter(loader)
        try:
            for made in batches:
                if isinstance(made, _Failure):
                    raise SteppeError(made.message)
                yield made
        finally:
            del batches  # DataLoader ends its workers when its iterator goes


def balanced_loader(
    dataset: DomainDataset,
    train: Mapping[str, Indices],
    *,
    batch_per_domain: int,
    start: int,
    stop: int,
    seed: int,
    transform: Transform | TensorTransform | None = None,
    workers: int = 0,
    part: Part = Part(),  # noqa: B008 - immutable
) -> Batches[Batch]:
    """The training batches of steps ``start`` to ``stop - 1``, each with ``batch_per_domain`` pictures of every
    domain.

    Each domain goes through its own epochs, reshuffled by (seed, domain, epoch); a domain smaller than its part of
    the batch gives pictures more than once. Before each picture is transformed the global generators are seeded by
    (seed, step, slot), and after each batch they are put back. The samples of a
    :class:`~steppe.data.tensors.TensorDomains` are in the same order, taken out of memory and transformed a batch at a
    time in this process, with the generators seeded by (seed, step).

    Args:
        train: source domain → indices of its training pictures; the order of the domains gives ``Batch.domain``.
        transform: picture → float32 [3, S, S]; with workers it must be picklable on platforms that do not fork. For a
            TensorDomains batch → batch, by default none.
        part: which slots' pictures are made; their pixels are those of the whole batch.

    Raises:
        SteppeError: no domain, an unknown one or one without pictures, numbers that make no sense, no transform for
            pictures, or (while iterating) a picture that cannot be read any more.
    """
    order = balanced_order(dataset, train, batch_per_domain=batch_per_domain, start=start, stop=stop, seed=seed)
    make: Callable[[int], Batch]
    if isinstance(dataset, TensorDomains):
        make = _TrainingTensors(dataset, order, tuple(train), _of_tensors(transform), part)
        workers = min(workers, 0)  # taking a batch out of memory is quicker than getting it from another process
    else:
        if isinstance(transform, TrainTransform):
            hue.prepare((stop - start) * len(train) * batch_per_domain * transform.size**2)
        make = _TrainingBatch(dataset, Slots(dataset, order, tuple(train), part), _of_pictures(transform))
    return Batches(make, range(start, stop), workers)


def balanced_order(
    dataset: DomainDataset, train: Mapping[str, Indices], *, batch_per_domain: int, start: int, stop: int, seed: int
) -> BalancedOrder:
    """Which pictures make the batches of :func:`balanced_loader`.

    Raises:
        SteppeError: no domain, an unknown one or one without pictures, or numbers that make no sense.
    """
    if not 0 <= start <= stop:
        raise SteppeError(f"steps go from a start that is not negative to a stop not before it; got {start} to {stop}")
    for domain in train:
        dataset.check_domain(domain)
    return BalancedOrder(train, batch_per_domain, seed)


def evaluation_loader(
    dataset: DomainDataset,
    domain: str,
    indices: Indices,
    *,
    batch_size: int,
    transform: Transform | TensorTransform | None = None,
    workers: int = 0,
) -> Batches[tuple[Tensor, Tensor]]:
    """The pictures ``indices`` of ``domain`` in that order, as (x float32 [B, 3, S, S], y int64 [B]); the last B may
    be smaller.

    Args:
        transform: as for :func:`balanced_loader`.

    Raises:
        SteppeError: unknown domain, a batch size below one or no transform for pictures, or (while iterating) a picture
            that cannot be read any more.
    """
    dataset.check_domain(domain)
    if batch_size < 1:
        raise SteppeError(f"the batch size must be at least 1; got {batch_size}")
    indices = np.asarray(indices, dtype=np.int64)
    make: Callable[[int], tuple[Tensor, Tensor]]
    if isinstance(dataset, TensorDomains):
        make = _EvaluationTensors(dataset, domain, indices, batch_size, _of_tensors(transform))
        workers = min(workers, 0)
    else:
        make = _EvaluationBatch(dataset, domain, indices, batch_size, _of_pictures(transform))
    return Batches(make, range(-(-len(indices) // batch_size)), workers)


class _TrainingBatch:
    def __init__(self, dataset: DomainDataset, slots: Slots, transform: Transform) -> None:
        self._dataset = dataset
        self._slots = slots
        self._transform = transform

    def __call__(self, step: int) -> Batch:
        own = self._slots.own(step)
        with one_thread(), undisturbed_randomness():
            if isinstance(self._transform, TrainTransform):
                x = self._written(step, own, self._transform)
            else:
                x = default_collate([self._input(step, *slot) for slot in own])
        return Batch(x, *self._slots.labels(step))

    def _input(self, step: int, slot: int, domain: str, index: int) -> Tensor:
        self._slots.begin(step, slot)
        return self._transform(self._dataset.image(domain, index))

    def _written(self, step: int, own: Sequence[Slot], transform: TrainTransform) -> Tensor:
        """The same without a copy of what has been made."""
        x = _batch_memory(len(own), 3, transform.size, transform.size)
        for row, (slot, domain, index) in enumerate(own):
            self._slots.begin(step, slot)
            transform.write(pixels_of(self._dataset, domain, index), x[row])
        return x


class _EvaluationBatch:
    def __init__(
        self, dataset: DomainDataset, domain: str, indices: Indices, batch_size: int, transform: Transform
    ) -> None:
        self._dataset = dataset
        self._domain = domain
        self._indices = indices
        self._batch_size = batch_size
        self._transform = transform
        self._labels = torch.from_numpy(dataset.labels(domain)[indices])

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        part = slice(number * self._batch_size, (number + 1) * self._batch_size)
        pictures = (self._dataset.image(self._domain, index) for index in self._indices[part].tolist())
        with one_thread():
            return default_collate([self._transform(picture) for picture in pictures]), self._labels[part].clone()


class _TrainingTensors:
    def __init__(
        self,
        dataset: TensorDomains,
        order: BalancedOrder,
        domains: tuple[str, ...],
        transform: TensorTransform,
        part: Part,
    ) -> None:
        self._part = part
        self._dataset = dataset
        self._order = order
        self._transform = transform
        self._numbers = torch.arange(len(domains)).repeat_interleave(order.per_domain)
        self._randomness = SlotRandomness(order.seed)

    def __call__(self, step: int) -> Batch:
        with one_thread(), undisturbed_randomness():
            self._randomness.begin(step, 0)
            parts = [self._dataset.tensors(domain, indices) for domain, indices in self._order.indices(step).items()]
            x, y = (torch.cat(column) for column in zip(*parts, strict=True))
            # The transform may draw for the whole batch at once.
            x = self._transform(x)[self._part.rank :: self._part.size]
            return Batch(x, y, self._numbers.clone())


class _EvaluationTensors:
    def __init__(
        self, dataset: TensorDomains, domain: str, indices: Indices, batch_size: int, transform: TensorTransform
    ) -> None:
        self._dataset = dataset
        self._domain = domain
        self._indices = indices
        self._batch_size = batch_size
        self._transform = transform

    def __call__(self, number: int) -> tuple[Tensor, Tensor]:
        part = slice(number * self._batch_size, (number + 1) * self._batch_size)
        with one_thread():
            x, y = self._dataset.tensors(self._domain, self._indices[part])
            return self._transform(x), y


def pixels_of(dataset: DomainDataset, domain: str, index: int) -> Image.Image | Pixels:
    """A picture as what is quickest to be had: out of a cache an array, of which only what is used is read."""
    return dataset.pixels(domain, index) if isinstance(dataset, DecodedPictures) else dataset.image(domain, index)


def _batch_memory(*shape: int) -> Tensor:
    """Float32, not filled; in a worker in shared memory, as torch's default_collate makes it: it is sent uncopied."""
    x = torch.empty(0)
    if get_worker_info() is None:
        return x.resize_(shape)
    storage = x._typed_storage()._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return x.new(storage).resize_(shape)


def _of_pictures(transform: Transform | TensorTransform | None) -> Transform:
    if transform is None:
        raise SteppeError("pictures need a transform, such as steppe.data.train_transform(size, mean, std)")
    return cast(Transform, transform)


def _of_tensors(transform: Transform | TensorTransform | None) -> TensorTransform:
    return _as_it_is if transform is None else cast(TensorTransform, transform)


class _Failure(NamedTuple):
    """An error on its way out of a worker: raised there, it would arrive with the worker's traceback in its message."""

    message: str


class _Made(Dataset[T | _Failure]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> T | _Failure:
        try:
            return self._make(number)
        except SteppeError as error:
            return _Failure(str(error))


def _as_it_is(made: T) -> T:
    return made
