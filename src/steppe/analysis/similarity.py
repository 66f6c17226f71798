"""Linear CKA: how alike two representations of the same samples are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from steppe.analysis.bars import bar, length
from steppe.analysis.evaluation import Loader, batches, moved, size
from steppe.analysis.exact import exact
from steppe.analysis.keeping import bare, devices, kept
from steppe.analysis.layers import head_input, known_layers, watched
from steppe.analysis.states import Places, State

BLOCK = 2**22
"""Numbers of a layer's features that are held in float64 at a time."""

FEWEST = 4
"""Samples that the unbiased estimate needs."""


@dataclass(frozen=True, eq=False)
class CKA:
    """What :func:`cka` found.

    Attributes:
        values: CKA of every layer of a with every layer of b, ``[layers of a, layers of b]``, float64, on the CPU. NaN
            where the features of one do not vary (or, being NaN, are those of a model that has diverged).
        layers_a, layers_b: their names.
        samples: how many samples were compared.
        batches: in how many batches.
        left_out: samples in batches of fewer than four, of which nothing unbiased can be said.
    """

    values: Tensor
    layers_a: tuple[str, ...]
    layers_b: tuple[str, ...]
    samples: int
    batches: int
    left_out: int = 0

    def __repr__(self) -> str:
        size = f"{self.samples} samples in {self.batches} batches"
        if self.values.numel() == 1:
            pair = self.layers_a[0] if self.layers_a == self.layers_b else f"{self.layers_a[0]}, {self.layers_b[0]}"
            return f"CKA({self.values.item():.4f} at {pair}, {size})"
        low, high = self.values.min().item(), self.values.max().item()
        shape = f"{len(self.layers_a)} × {len(self.layers_b)} layers"
        return f"CKA({shape}, from {low:.4f} to {high:.4f}, {size})"


@torch.no_grad()
def linear_cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    """Linear CKA of two sets of features of the same n samples (Kornblith et al., ICML 2019), in float64.

    With K = XXᵀ and L = YYᵀ,

        CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)).

    Kornblith's HSIC is tr(KHLH), H = I − 11ᵀ/n, that is ‖YᵀX‖²_F of centred features. It is biased: features of more
    dimensions than samples look alike whatever they are. The unbiased estimate (Song et al., JMLR 2012; used for CKA by
    Nguyen et al., ICLR 2021), with K̃, L̃ the matrices with their diagonals set to 0, is

        HSIC₁ = [tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n−1)(n−2)) − 2 1ᵀK̃L̃1 / (n−2)] / (n(n−3)).

    CKA does not change when features are rotated, mirrored, scaled by one factor, or moved. Costs n d_x d_y or
    n²(d_x + d_y), whichever is less.

    Args:
        x: ``[n, d_x]``; further dimensions are features too.
        y: ``[n, d_y]``.
        unbiased: use HSIC₁; needs n ≥ 4.

    Returns:
        In [0, 1] (unbiased: in [−1, 1], about 0 for independent features); NaN where x or y do not vary.

    Raises:
        ValueError: they differ in n, or n is too small.
    """
    fewest = FEWEST if unbiased else 2
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
        raise ValueError(f"x and y are features of the same samples, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    if len(x) < fewest:
        raise ValueError(f"CKA needs at least {fewest} samples, got {len(x)}")
    x, y = _centred(x.reshape(len(x), -1)), _centred(y.reshape(len(y), -1).to(x.device))
    xx, xy, yy = _inner(x, x), _inner(x, y), _inner(y, y)
    if unbiased:
        n, a, b = len(x), x.square().sum(1), y.square().sum(1)
        xy = _hsic(xy, a @ b, a.sum() * b.sum(), n)
        xx, yy = _own_hsic(xx, a[None], n), _own_hsic(yy, b[None], n)
    return _ratio(xy.reshape(1, 1), xx.reshape(1), yy.reshape(1)).item()


def cka(
    model_a: nn.Module,
    model_b: nn.Module,
    loader: Loader,
    layers: Sequence[str] | None = None,
    *,
    layers_b: Sequence[str] | None = None,
    state_a: State | None = None,
    state_b: State | None = None,
    progress: bool = False,
) -> CKA:
    """Linear CKA of every layer of one model with every layer of another, on given data, in mini-batches.

    The estimate of Nguyen et al. (ICLR 2021): with HSIC₁ as in :func:`linear_cka` on each mini-batch,

        CKA = Σ_b n_b HSIC₁(K_b, L_b) / √(Σ_b n_b HSIC₁(K_b, K_b) · Σ_b n_b HSIC₁(L_b, L_b)).

    Each HSIC₁ is unbiased whatever the batch size, so the sums are too (their ratio is so in the limit). Batches count
    by their number of samples n_b; in batches of one size, as in the paper, all alike. One batch that holds everything
    gives the value for the whole set. Large batches have less variance; draw them from all classes and domains.

    The matrices of samples are formed while the model runs: memory is a few batch² numbers a layer.

    Args:
        model_a, model_b: two models, or one with two states.
        loader: batches ``(x, y, ...)``; of y nothing counts but its length.
        layers: names of modules (``model.named_modules()``) whose outputs are compared, ``"name:input"`` for what goes
            into one. By default the input of the linear layer that is called last: the features before the head.
            Where a module returns several tensors, the first counts; where it is called several times, its last call.
        layers_b: those of ``model_b``; by default the same names.
        state_a, state_b: weights to give the model (a state dict, a module, or a path of ``.safetensors``); by default
            those it has.
        progress: show a bar.

    Raises:
        ValueError: no batch has four samples; a layer is unknown (with near matches), is never called, or does not have
            the samples first; a model calls no linear layer (name the layers); a state is another model's.
    """
    first, second = bare(model_a), bare(model_b)
    names_a = known_layers(first, layers)
    names_b = known_layers(second, layers if layers_b is None else layers_b)
    same = first is second and state_a is None and state_b is None
    with ExitStack() as stack:
        for model in dict.fromkeys((first, second)):
            stack.enter_context(kept(model, weights=state_a is not None or state_b is not None))
        put_a, put_b = _putters(first, second, state_a, state_b)
        advance = stack.enter_context(bar("comparing layers", length(loader), progress))
        sums: _Sums | None = None
        for x, y in batches(first, loader):
            put_a()
            names_a = names_a or (head_input(first, x),)
            grams_a = _grams(first, names_a, x, size(y))
            put_b()
            x = moved(x, next(iter(devices(second)), torch.device("cpu")))
            names_b = names_b or (head_input(second, x),)
            grams_b = grams_a if same and names_a == names_b else _grams(second, names_b, x, size(y))
            sums = sums or _Sums(len(names_a), len(names_b), grams_a[0].device)
            sums.add(grams_a, grams_b)
            advance()
    if sums is None or not sums.batches or names_a is None or names_b is None:
        raise ValueError(
            "the loader gave no batch of at least four samples, which the unbiased estimate needs: pass larger "
            "batches, and no iterator that has been gone through already"
        )
    values = _ratio(sums.ab, sums.aa, sums.bb).cpu()
    return CKA(values, names_a, names_b, sums.samples, sums.batches, sums.left_out)


class _Sums:
    """Σ n_b HSIC₁ over the mini-batches."""

    def __init__(self, layers_a: int, layers_b: int, device: torch.device) -> None:
        self.ab = torch.zeros(layers_a, layers_b, dtype=torch.float64, device=device)
        self.aa, self.bb = self.ab.new_zeros(layers_a), self.ab.new_zeros(layers_b)
        self.samples = self.batches = self.left_out = 0

    def add(self, a: Grams, b: Grams) -> None:
        """One mini-batch."""
        grams_a, norms_a = a
        grams_b, norms_b = (each.to(self.ab.device) for each in b)
        n = norms_a.shape[1]
        if n < FEWEST:
            self.left_out += n
            return
        sums = norms_a.sum(1)[:, None] * norms_b.sum(1)
        self.ab += n * _hsic(grams_a @ grams_b.T, norms_a @ norms_b.T, sums, n)
        self.aa += n * _own_hsic(grams_a.square().sum(1), norms_a, n)
        self.bb += n * _own_hsic(grams_b.square().sum(1), norms_b, n)
        self.samples += n
        self.batches += 1


Grams = tuple[Tensor, Tensor]
"""K of every layer, ``[layers, n²]``, of centred features, and its diagonals, ``[layers, n]``."""


def _hsic(cross: Tensor, both: Tensor, sums: Tensor, n: int) -> Tensor:
    """HSIC₁ from Σ K_ij L_ij, Σ K_ii L_ii and Σ K_ii Σ L_ii.

    K and L are of centred features (centring leaves HSIC₁ as it is), so their rows sum to 0, and those of K̃ to −K_ii.
    """
    return (cross - both * (1 + 2 / (n - 2)) + sums / ((n - 1) * (n - 2))) / (n * (n - 3))


def _own_hsic(square: Tensor, norms: Tensor, n: int) -> Tensor:
    """HSIC₁(K, K), which is a sum of squares (of K's entries less their means); 0 where it is nothing but rounding."""
    found = _hsic(square, norms.square().sum(1), norms.sum(1).square(), n)
    return found.where(found > 1e-12 * square / (n * (n - 3)), 0.0)


def _ratio(ab: Tensor, aa: Tensor, bb: Tensor) -> Tensor:
    scale = (aa[:, None] * bb[None, :]).sqrt()
    return (ab / scale).clamp(-1, 1).where(scale > 0, torch.nan)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """‖XᵀY‖²_F = Σ K_ij L_ij, formed from the smaller matrices."""
    n, (width, other) = len(x), (x.shape[1], y.shape[1])
    if width * other <= n * (width + other):
        return (x.T @ y).square().sum()
    return ((x @ x.T) * (y @ y.T)).sum()


def _centred(features: Tensor) -> Tensor:
    """``[n, d]`` in float64 with a mean of 0 over the samples; exactly 0 where they are all alike."""
    wide = exact(features.detach())
    wide = wide - wide[:1]
    return wide - wide.mean(0)


def _grams(model: nn.Module, names: Sequence[str], x: Any, n: int) -> Grams:
    """The matrices of samples of the layers' features, in one forward pass.

    Formed inside the hooks, at once: an activation that works in place would change what is kept for later.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, value: Any) -> None:
        features = next((leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)), None)
        if features is None or features.dim() == 0 or len(features) != n:
            got = "no tensor" if features is None else f"the shape {tuple(features.shape)}"
            raise ValueError(f"layer {name!r} has {got} for {n} samples: choose layers that have the samples first")
        flat = features.reshape(n, -1)
        parts = (_centred(part) for part in torch.split(flat, max(1, BLOCK // n), dim=1))
        found[name] = torch.stack([part @ part.T for part in parts]).sum(0)

    with watched(model, names, keep):
        model(x)
    for name in names:
        if name not in found:
            raise ValueError(
                f"layer {name!r} was never called: choose another (a module inside one that was compiled is not seen)"
            )
    grams = torch.stack([found[name] for name in names])
    return grams.flatten(1), grams.diagonal(dim1=1, dim2=2)


def _putters(
    first: nn.Module, second: nn.Module, state_a: State | None, state_b: State | None
) -> tuple[Callable[[], None], Callable[[], None]]:
    """What brings the weights of a, and those of b, into place before a forward pass."""
    if first is second and (state_a is not None or state_b is not None):
        states = [
            (first if state is None else state, name) for state, name in ((state_a, "state_a"), (state_b, "state_b"))
        ]
        places = Places(first, states)
        return lambda: places.put((1.0, 0.0)), lambda: places.put((0.0, 1.0))
    for model, state, name in ((first, state_a, "state_a"), (second, state_b, "state_b")):
        if state is not None:
            Places(model, [(state, name)]).put((1.0,))
    return lambda: None, lambda: None
