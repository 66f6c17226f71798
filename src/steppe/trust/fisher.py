"""TRAM-Fisher: the Fisher information measured at noised inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from steppe.geometries import Fisher
from steppe.passes import View
from steppe.trust.noise import InputNoise
from steppe.trust.region import called_module, watched_model


class NoisedFisher(Fisher):
    """F⁻¹ = 1 / (1 + η f) with f = g_z², g_z = ∇L(w) at x + z, z ~ N(0, σ²): TRAM-Fisher (Sherborne et al. 2024).

    As printed, ε = γ F⁻¹ g / √(gᵀ F⁻¹ g) has the gradient g at x and f at x + z, which takes one more pass (three
    forward, three backward in a step). The paper quotes the cost of two: with ``shared_pass`` the one pass at x + z
    gives both, g_z in place of g.

    Args:
        model: the model as it is called in the closure.
        eta: η ≥ 0.
        sigma: σ, see :class:`~steppe.trust.noise.InputNoise`.
        shared_pass: take g and f from the pass at x + z.
        embedding: what is noised where the inputs are token ids (default: found in the model).

    Raises:
        TypeError: there is no model.
        ValueError: η or σ is negative, infinite or not a number.
    """

    def __init__(
        self,
        model: nn.Module,
        eta: float = 0.1,
        sigma: float = 0.1,
        shared_pass: bool = False,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__(eta)
        self.model = watched_model(model)
        self.noise = InputNoise(sigma, embedding)
        self.shared_pass = shared_pass

    @property
    def measures(self) -> bool:
        return not self.shared_pass

    @property
    def disturbs(self) -> bool:
        return self.shared_pass

    def attach(self, model: nn.Module) -> None:
        """Watch this model from now on."""
        self.model = watched_model(model)

    @contextmanager
    def watch(self, view: View) -> Iterator[None]:
        """Put noise on the inputs of one pass."""
        if view.name != ("climb" if self.shared_pass else "measure"):
            yield
            return
        before = self.noise.calls
        with self.noise.on(called_module(self.model), view.seed):
            yield
        if self.noise.calls == before:
            raise RuntimeError(
                "TRAM-Fisher saw no call of its model to put noise on: call the very model that was given to it "
                "(optimizer.attach(model) after wrapping or compiling it)"
            )

    def __repr__(self) -> str:
        return f"NoisedFisher(eta={self.eta}, sigma={self.noise.sigma}, shared_pass={self.shared_pass})"
