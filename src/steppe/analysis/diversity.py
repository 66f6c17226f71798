"""How far apart the weights along a trajectory are, and in how different directions they lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steppe.analysis.bars import bar
from steppe.analysis.keeping import bare
from steppe.analysis.states import Source, State, source

BLOCK = 2**22
"""Numbers that are held at a time, of all snapshots together (in float64)."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What BatchNorm's buffers are called, which in a state dict cannot be told from parameters."""


@dataclass(frozen=True, eq=False)
class Pairwise:
    """Every pair of n snapshots.

    Attributes:
        distances: ‖w_i − w_j‖, ``[n, n]``, float64, on the CPU.
        cosines: of the angles between w_i − origin and w_j − origin, ``[n, n]``; NaN for a snapshot that is the origin.
        norms: ‖w_i − origin‖, ``[n]``.
        weights: how many numbers a snapshot has that count.
    """

    distances: Tensor
    cosines: Tensor
    norms: Tensor
    weights: int

    @property
    def mean_distance(self) -> float:
        """The mean distance over the pairs i < j."""
        return float(_pairs(self.distances).mean())

    @property
    def mean_cosine(self) -> float:
        """The mean cosine over the pairs i < j that have one; NaN where none has."""
        return float(_pairs(self.cosines).nanmean())

    def __repr__(self) -> str:
        return (
            f"Pairwise({len(self.norms)} snapshots of {self.weights} weights, mean distance {self.mean_distance:.6g}, "
            f"mean cosine {self.mean_cosine:.4f})"
        )


@torch.no_grad()
def pairwise(
    snapshots: Sequence[State],
    *,
    origin: State | None = None,
    names: Iterable[str] | None = None,
    progress: bool = False,
) -> Pairwise:
    """Distances ‖w_i − w_j‖ between all pairs of snapshots, and cosines of w_i − o and w_j − o, in one pass.

    Both follow from Gram matrices, which are summed in float64 over parts of the tensors: of w_i less the mean of the
    snapshots for the distances, of w_i − o for the cosines. A common point is taken off first, because inner products
    of raw weights agree in most of their digits. What is left of rounding can be told from distances below about 10⁻⁸
    of the largest only.

    The origin o is the first snapshot unless another is given (the weights that training started from, Lookahead's slow
    weights): the cosines then say whether the trajectory goes on in one direction (1) or turns. The mean of the
    snapshots would be a poor origin, for cosines about it average to some −1/(n − 1) whatever the trajectory does; and
    so would 0, for raw weights all point the same way.

    Args:
        snapshots: n ≥ 2 state dicts, modules or paths of ``.safetensors`` files, of one model. Files are read in parts:
            no more than 2²² numbers of all snapshots are held at once (or one row of each along the first dimension of
            a tensor, where that is more).
        origin: o; see above.
        names: which tensors count. By default the parameters of the first snapshot (or origin) that is a module; where
            none is, everything of floating point but what is called as BatchNorm's running statistics are
            (``running_mean``, ``running_var``). With state dicts of a model with buffers of other names, or with tied
            weights, which are in them twice, pass the parameters' names: ``dict(model.named_parameters())``.
        progress: show a bar.

    Raises:
        ValueError: fewer than two snapshots; they do not have the same tensors; a weight is not finite (which, and in
            which snapshot); nothing counts; sharded or complex tensors; a file that cannot be read.
        TypeError: a snapshot is none of these kinds.
    """
    if isinstance(snapshots, str | Mapping | nn.Module) or len(snapshots) < 2:
        raise ValueError("pairwise() compares at least two snapshots: pass a list of state dicts, modules or paths")
    sources = [source(snapshot, f"snapshots[{i}]") for i, snapshot in enumerate(snapshots)]
    if origin is not None:
        sources.append(source(origin, "origin"))
    counted = _counted(sources, [*snapshots, *([] if origin is None else [origin])], names)
    _check(sources, counted)
    n = len(snapshots)
    about_mean = torch.zeros(n, n, dtype=torch.float64)
    about_origin = torch.zeros(n, n, dtype=torch.float64)
    with bar("comparing weights", len(counted), progress) as advance:
        for name in counted:
            for block in _blocks(sources, name):
                about_mean += _gram(block[:n] - block[:n].mean(0))
                about_origin += _gram(block[:n] - block[0 if origin is None else n])
            advance()
    squares = about_mean.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * about_mean).clamp(min=0).sqrt().fill_diagonal_(0)
    norms = about_origin.diagonal().sqrt()
    # 0/0, where a snapshot is the origin, is NaN.
    cosines = (about_origin / (norms[:, None] * norms[None, :])).clamp(-1, 1)
    return Pairwise(distances, cosines, norms, sum(math.prod(sources[0].shape(name)) for name in counted))


def _counted(sources: Sequence[Source], states: Sequence[State], names: Iterable[str] | None) -> list[str]:
    """The names of the tensors that count."""
    module = next((state for state in states if isinstance(state, nn.Module)), None)
    if names is None and module is not None:
        names = [name for name, _ in bare(module).named_parameters()]
    first = sources[0]
    there = first.names()
    if names is not None:
        chosen = list(dict.fromkeys([names] if isinstance(names, str) else names))
        missing = [name for name in chosen if name not in there]
        if missing:
            raise ValueError(f"{first.label} has no {missing[0]!r}; it has {', '.join(map(repr, there[:4]))}, …")
    else:
        chosen = [name for name in there if name.rsplit(".", 1)[-1] not in STATISTICS]
    for name in chosen:
        if first.dtype(name).is_complex:
            raise ValueError(f"{name!r} is complex: hold it as real pairs (torch.view_as_real)")
    floating = [name for name in chosen if first.dtype(name).is_floating_point]
    if not any(math.prod(first.shape(name)) for name in floating):
        raise ValueError(f"{first.label} has no weights of floating point" + (f" among {chosen}" if names else ""))
    return floating


def _check(sources: Sequence[Source], counted: Sequence[str]) -> None:
    """Raise ``ValueError`` where the snapshots are not of one model."""
    first = sources[0]
    for other in sources[1:]:
        there = set(other.names())
        for name in counted:
            if name not in there:
                raise ValueError(f"{other.label} has no {name!r}, which {first.label} has: they are of two models")
            if other.shape(name) != first.shape(name):
                raise ValueError(
                    f"{name!r} has the shape {first.shape(name)} in {first.label} and {other.shape(name)} in "
                    f"{other.label}: they are of two models"
                )


def _blocks(sources: Sequence[Source], name: str) -> Iterator[Tensor]:
    """The tensor in parts, ``[snapshots (and origin), numbers]``, in float64 on the CPU."""
    shape = sources[0].shape(name)
    if not math.prod(shape):
        return
    length = shape[0] if shape else 1
    step = max(1, BLOCK // (len(sources) * math.prod(shape[1:])))
    for begin in range(0, length, step):
        end = min(begin + step, length)
        block = torch.empty(len(sources), (end - begin) * math.prod(shape[1:]), dtype=torch.float64)
        for row, each in zip(block, sources, strict=True):
            row.copy_(each.rows(name, begin, end).flatten())
        finite = block.isfinite().all(1)
        if not finite.all():
            broken = sources[int(finite.logical_not().nonzero()[0])]
            raise ValueError(f"{name!r} is not finite in {broken.label}: leave that snapshot out")
        yield block


def _gram(rows: Tensor) -> Tensor:
    product = rows @ rows.T
    return (product + product.T) / 2  # libraries sum the two halves in different orders


def _pairs(matrix: Tensor) -> Tensor:
    """The entries i < j."""
    i, j = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return matrix[i, j]
