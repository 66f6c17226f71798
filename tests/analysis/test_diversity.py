"""Distances and cosines of snapshots against all pairs, one by one, in float64."""

from __future__ import annotations

import gc
import math
import weakref
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from analysis_models import moved_state, network
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from steppe.analysis import diversity, pairwise, states

State = dict[str, Tensor]


def trajectory(n: int = 5, seed: int = 0, spread: float = 0.1) -> list[State]:
    """State dicts of the network with BatchNorm, each a step from the one before."""
    found = [{name: value.clone() for name, value in network(seed).state_dict().items()}]
    for step in range(1, n):
        model = network(seed)
        model.load_state_dict(found[-1])
        found.append(moved_state(model, step, spread))
    return found


def flat(state: State, names: list[str]) -> Tensor:
    return torch.cat([state[name].double().flatten() for name in names])


def by_pairs(vectors: list[Tensor], origin: Tensor) -> tuple[Tensor, Tensor]:
    n = len(vectors)
    distances, cosines = torch.zeros(n, n).double(), torch.zeros(n, n).double()
    for i in range(n):
        for j in range(n):
            distances[i, j] = (vectors[i] - vectors[j]).square().sum().sqrt()
            a, b = vectors[i] - origin, vectors[j] - origin
            cosines[i, j] = (a @ b) / (a.norm() * b.norm())
    return distances, cosines


def same(found: Tensor, expected: Tensor, rtol: float = 1e-9) -> bool:
    return torch.allclose(found, expected, rtol=rtol, atol=1e-12, equal_nan=True)


NAMES = [name for name, _ in network().named_parameters()]


@pytest.mark.parametrize("given_origin", [False, True])
def test_all_pairs_of_a_trajectory(given_origin: bool) -> None:
    states_ = trajectory()
    origin = moved_state(network(), 99, 2.0) if given_origin else states_[0]
    found = pairwise(states_, origin=origin if given_origin else None, names=NAMES)
    vectors = [flat(state, NAMES) for state in states_]
    distances, cosines = by_pairs(vectors, flat(origin, NAMES))
    assert same(found.distances, distances)
    assert same(found.cosines, cosines)
    assert same(found.norms, torch.stack([(v - flat(origin, NAMES)).norm() for v in vectors]))
    assert found.weights == len(vectors[0])
    pairs = list(combinations(range(5), 2))
    assert found.mean_distance == pytest.approx(sum(distances[i, j].item() for i, j in pairs) / len(pairs), rel=1e-12)
    defined = [cosines[i, j].item() for i, j in pairs if given_origin or i > 0]
    assert found.mean_cosine == pytest.approx(sum(defined) / len(defined), rel=1e-12)
    assert "5 snapshots of 173 weights" in repr(found)


@given(
    n=st.integers(2, 5),
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    block=st.sampled_from([1, 7, 2**22]),
    seed=st.integers(0, 100),
)
def test_any_shapes_in_any_parts(n: int, shapes: list[list[int]], dtype: torch.dtype, block: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [[], *shapes]  # there is something that counts
    snapshots = [
        {f"w{i}": torch.randn(shape, generator=generator).to(dtype) for i, shape in enumerate(shapes)} for _ in range(n)
    ]
    names = list(snapshots[0])
    vectors = [flat(state, names) for state in snapshots]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity, "BLOCK", block)
        found = pairwise(snapshots)
    distances, cosines = by_pairs(vectors, vectors[0])
    # Of two that happen to be close, or equal, the rounding of the squares is seen.
    assert torch.allclose(found.distances, distances, rtol=1e-6, atol=1e-7 * distances.max().item())
    assert same(found.cosines, cosines, 1e-6)
    assert torch.equal(found.distances, found.distances.T)
    assert not found.distances.diagonal().any()


def test_small_steps_far_from_zero_are_resolved() -> None:
    """Inner products of the raw weights, 10¹⁰, would know nothing of distances of 10⁻⁴."""
    base = 1e3 * torch.ones(10_000, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    snapshots = [{"w": base + 1e-6 * torch.randn(10_000, generator=generator, dtype=torch.float64)} for _ in range(4)]
    found = pairwise(snapshots)
    distances, cosines = by_pairs([s["w"] for s in snapshots], snapshots[0]["w"])
    assert same(found.distances, distances, 1e-8)
    assert same(found.cosines, cosines, 1e-8)


def test_a_far_origin_does_not_blur_the_distances() -> None:
    states_ = trajectory(3, spread=1e-5)
    origin = {name: value + 1e4 if value.is_floating_point() else value for name, value in states_[0].items()}
    near, far = pairwise(states_, names=NAMES), pairwise(states_, origin=origin, names=NAMES)
    assert torch.equal(near.distances, far.distances)


def test_the_origin_has_no_direction() -> None:
    states_ = trajectory(3)
    found = pairwise(states_)
    assert found.cosines[0].isnan().all()
    assert found.cosines[:, 0].isnan().all()
    assert found.norms[0] == 0
    assert found.mean_cosine == found.cosines[1, 2].item()
    assert math.isnan(pairwise(states_[:2]).mean_cosine)
    inside = pairwise(states_, origin=states_[1])
    assert inside.cosines[1].isnan().all()
    assert inside.mean_cosine == inside.cosines[0, 2].item()


def test_a_straight_trajectory_keeps_its_direction_and_a_turning_one_does_not() -> None:
    start = torch.zeros(50, dtype=torch.float64)
    direction = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    straight = pairwise([{"w": start + step * direction} for step in range(4)])
    assert straight.mean_cosine == pytest.approx(1, abs=1e-12)
    corners = [{"w": torch.eye(50, dtype=torch.float64)[i]} for i in range(4)]
    assert pairwise(corners, origin={"w": start}).mean_cosine == pytest.approx(0, abs=1e-12)
    assert pairwise(corners).mean_distance == pytest.approx(math.sqrt(2), rel=1e-12)


def test_running_statistics_do_not_count_and_neither_do_counters() -> None:
    states_ = trajectory(3)
    expected = pairwise(states_, names=NAMES)
    without = [{name: value for name, value in state.items() if "4." not in name} for state in states_]
    assert torch.equal(pairwise(without).distances, expected.distances)  # the network's own buffers are in module 4
    assert pairwise(states_).weights == expected.weights + 3
    models = [network() for _ in states_]
    for model, state in zip(models, states_, strict=True):
        model.load_state_dict(state)
    assert torch.equal(pairwise(models).distances, expected.distances)
    # One module among dicts says which are parameters, wherever it is.
    assert torch.equal(pairwise([states_[0], models[1], states_[2]]).distances, expected.distances)
    assert torch.equal(pairwise(states_[1:], origin=models[0]).distances, expected.distances[1:, 1:])


def test_snapshots_of_one_model_are_those_of_its_present_weights() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[0].bias += 3
    found = pairwise([before, model])
    assert found.distances[0, 1].item() == pytest.approx(3 * math.sqrt(8), rel=1e-6)


@pytest.fixture
def files(tmp_path: Path) -> tuple[list[Path], list[State]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(4):
        state = {
            "big": torch.randn(300, 5, 2, generator=generator),
            "row": torch.randn(40, generator=generator).bfloat16(),
            "scalar": torch.randn((), generator=generator),
            "norm.running_var": torch.rand(40, generator=generator),
            "norm.num_batches_tracked": torch.tensor(i),
        }
        save_file(state, tmp_path / f"{i}.safetensors")
        made.append(state)
    return [tmp_path / f"{i}.safetensors" for i in range(4)], made


def test_files_are_as_good_as_their_tensors(files: tuple[list[Path], list[State]]) -> None:
    paths, made = files
    expected = pairwise(made)
    for some in (paths, [str(path) for path in paths], [paths[0], made[1], paths[2], made[3]]):
        found = pairwise(some)
        assert torch.equal(found.distances, expected.distances)
        assert torch.equal(found.cosines[1:, 1:], expected.cosines[1:, 1:])
    assert expected.weights == 3000 + 40 + 1


def test_of_files_no_more_is_held_than_a_block(
    files: tuple[list[Path], list[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, made = files
    expected = pairwise(made)
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    sizes: list[int] = []
    most = 0
    read = states.InFile.rows

    def counted(self: Any, name: str, begin: int, end: int) -> Tensor:
        nonlocal most
        tensor = read(self, name, begin, end)
        sizes.append(tensor.numel())
        alive.add(tensor)
        most = max(most, sum(each.numel() for each in alive))
        return tensor

    monkeypatch.setattr(states.InFile, "rows", counted)
    monkeypatch.setattr(diversity, "BLOCK", 240)
    gc.collect()
    found = pairwise(paths)
    assert same(found.distances, expected.distances)
    assert max(sizes) == 60  # 240 numbers for four files
    assert sum(size for size in sizes if size > 1) == 4 * (3000 + 40)  # and each is read once
    assert most <= 2 * 60  # what was read before is gone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda states_: states_[:1], "at least two"),
        (lambda states_: network(), "at least two"),
        (lambda states_: states_[0], "at least two"),
        (lambda states_: [*states_, {"x": torch.zeros(2)}], r"snapshots\[3\] has no '0.weight'"),
        (
            lambda states_: [*states_, states_[0] | {"0.bias": torch.zeros(9)}],
            r"\(8,\) in snapshots\[0\] and \(9,\) in",
        ),
        (lambda states_: [{"n": torch.tensor(1)}] * 2, "no weights of floating point"),
        (lambda states_: [{"w": torch.zeros(2, dtype=torch.complex64)}] * 2, "'w' is complex"),
        (lambda states_: [{}, {}], "no weights of floating point"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise(change(trajectory(3)))


def test_a_diverged_snapshot_is_named() -> None:
    states_ = trajectory(3)
    states_[2]["5.weight"][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"'5.weight' is not finite in snapshots\[2\]"):
        pairwise(states_)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"snapshots\[0\] has no 'head.weight'; it has '0.weight'"):
        pairwise(trajectory(2), names=["head.weight"])
    with pytest.raises(ValueError, match=r"cannot be read as \.safetensors"):
        pairwise([tmp_path / "none.safetensors", tmp_path / "none.safetensors"])
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"cannot be read as \.safetensors"):
        pairwise([tmp_path / "broken.safetensors"] * 2)
    with pytest.raises(TypeError, match=r"snapshots\[1\] must be a state dict"):
        pairwise([network(), 3])  # type: ignore[list-item]


def test_one_name_is_one_tensor() -> None:
    states_ = trajectory(2)
    found = pairwise(states_, names="0.bias")
    assert found.weights == 8
    assert found.mean_distance == pytest.approx((states_[0]["0.bias"] - states_[1]["0.bias"]).norm().item(), rel=1e-6)


def test_parameters_of_every_kind_of_module_count() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
            self.register_buffer("running_mean", torch.zeros(3))
            self.register_buffer("anchor", torch.zeros(3))

    one, other = Mixed(), Mixed()
    with torch.no_grad():
        other.scale += 0.5
        other.anchor += 1
    assert pairwise([one, other]).mean_distance == 0.5
    assert pairwise([one.state_dict(), other.state_dict()]).mean_distance == pytest.approx(math.sqrt(0.25 + 3))
