"""Parameter groups: which parameters take part in the climb, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from steppe.replicas import unwrapped


def parameter_groups(model: nn.Module, perturb: Literal["weights", "norms"]) -> list[dict[str, Any]]:
    """Two groups for a base optimizer: what is perturbed, and what is left out of the climb by ``rho = 0``.

    Args:
        model: its trainable parameters are divided, each once, in the order of ``named_parameters``.
        perturb: ``"weights"``: all but biases and the parameters of normalisation layers; ``"norms"``: these
            parameters of normalisation layers only (Mueller et al. 2023: they are enough for much of SAM's effect).

    Returns:
        ``[{"params": [(name, p), ...]}, {"params": [...], "rho": 0.0}]``, an empty group left out. Named, so that
        ASAM's rule for weights and checkpoints by name need no ``model=``.

    Raises:
        ValueError: ``perturb`` is neither, or nothing in the model would be perturbed.

    Example:
        >>> base = torch.optim.AdamW(steppe.parameter_groups(model, "norms"), lr=5e-5)
        >>> optimizer = steppe.SAM(base, rho=0.5)
    """
    if perturb not in ("weights", "norms"):
        raise ValueError(f"perturb must be 'weights' or 'norms', got {perturb!r}")
    normalising = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    climbing: list[tuple[str, nn.Parameter]] = []
    resting: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_norm = id(parameter) in normalising
        is_bias = "bias" in name.rsplit(".", 1)[-1]  # bias, in_proj_bias, bias_ih_l0
        chosen = is_norm if perturb == "norms" else not is_norm and not is_bias
        (climbing if chosen else resting).append((name, parameter))
    if not climbing:
        raise ValueError(f"the model has no trainable parameter to perturb with perturb={perturb!r}")
    groups: list[dict[str, Any]] = [{"params": climbing}]
    if resting:
        groups.append({"params": resting, "rho": 0.0})
    return groups


def parameter_names(groups: Sequence[Mapping[str, Any]], model: nn.Module | None) -> dict[Tensor, str]:
    """The name of every parameter of an optimizer's groups: the model's, else the one the optimizer was given.

    Names are those of the bare model, whatever it is wrapped in.

    Raises:
        ValueError: a parameter has none.
    """
    names = _known_names(groups, model)
    nameless = sum(parameter not in names for group in groups for parameter in group["params"])
    if nameless:
        raise ValueError(
            f"a part needs parameter names, and {nameless} of the parameters have none: pass model=, or give the base "
            "optimizer named parameters (model.named_parameters())"
        )
    return names


def parameter_keys(groups: Sequence[Mapping[str, Any]], model: nn.Module | None) -> dict[Tensor, str]:
    """What each parameter of an optimizer is called in a checkpoint: its name, or its number where it has none.

    Where several would be called the same (two models in one optimizer have a ``weight`` each): ``#`` and the number.
    """
    names = _known_names(groups, model)
    parameters = [parameter for group in groups for parameter in group["params"]]
    wanted = [names.get(p, str(number)) for number, p in enumerate(parameters)]
    often = Counter(wanted)
    keys = [name if often[name] == 1 else f"#{number}" for number, name in enumerate(wanted)]
    return dict(zip(parameters, keys, strict=True))


def _known_names(groups: Sequence[Mapping[str, Any]], model: nn.Module | None) -> dict[Tensor, str]:
    names: dict[Tensor, str] = {}
    for group in groups:
        names.update(zip(group["params"], map(_bare_name, group.get("param_names", [])), strict=False))
    bare = unwrapped(model)
    if bare is not None:
        names.update((parameter, _bare_name(name)) for name, parameter in bare.named_parameters())
    return names


def _bare_name(name: str) -> str:
    """Without what torch.compile and activation checkpointing insert."""
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")
