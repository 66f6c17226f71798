"""The words that act on the course of the weights: Lookahead around the optimizer, and averages beside it."""

from __future__ import annotations

from steppe.training.words import Parameter, Part, Word

LR_FACTOR = "lr_factor"
LR_WARMUP = "lr_warmup"
LR_PER = "lr_per"
BN_BATCHES = "bn_batches"

BATCHES = Parameter(BN_BATCHES, 500, "batches that re-estimate batch norm, where it trains", kind=int)
LARGE_RATE = (
    Parameter(LR_FACTOR, 5.0, "what the learning rate is multiplied by", above=True),
    Parameter(LR_WARMUP, 0.05, "share of the steps in which that factor comes in", high=1.0),
    Parameter(LR_PER, "step", "what moves the schedule on", kind=str, choices=("step", "round")),
)
"""The published learning rate is five times the baseline's (SGD, 0.05 for 0.01), its schedule moved on once a round."""


def _lookahead(name: str, summary: str, fast: str, anchor: float, cost: str) -> Word:
    passed = (
        Parameter("k", 15, "k, the steps of a round", kind=int, low=1),
        Parameter("alpha", 0.05, "α, how far the slow weights follow", above=True, high=1.0, closed=True),
        Parameter("anchor", anchor, "strength s of the pull to the round's mean"),
        Parameter("anchor_reduction", "mean", "over the weights", kind=str, choices=("mean", "sum")),
        Parameter(
            "state",
            "carry",
            "the base optimizer's state at a round's end",
            kind=str,
            choices=("carry", "reset", "pullback"),
        ),
    )
    names = tuple(parameter.name for parameter in passed)
    return Word(
        name,
        summary,
        "Zhang, Qi et al. 2024",
        fills={
            "trajectory": Part("steppe.averaging:Lookahead", names, needs=("optimizer", "model"), fixed={"fast": fast})
        },
        parameters=(*passed, *LARGE_RATE, BATCHES),
        climbs=False,
        cost=cost,
    )


def _average(name: str, made: str, summary: str, source: str, cost: str, *parameters: Parameter) -> Word:
    names = tuple(parameter.name for parameter in parameters)
    return Word(
        name,
        summary,
        source,
        fills={"trajectory": Part(f"steppe.averaging:{made}", names, needs=("model",))},
        parameters=(*parameters, BATCHES),
        climbs=False,
        cost=cost,
    )


LOOKAHEADS = ("lookahead", "lookahead-mean", "lookahead-anchor")

TRAJECTORY = (
    _lookahead(
        "lookahead",
        "explores at a large learning rate, and follows slowly",
        "last",
        0.0,
        "a copy of the weights (two with an anchor)",
    ),
    _lookahead(
        "lookahead-mean",
        "lookahead that follows the mean of a round's weights",
        "mean",
        0.0,
        "two copies of the weights",
    ),
    _lookahead(
        "lookahead-anchor",
        "lookahead, pulled to the mean of the round so far",
        "last",
        0.01,
        "two copies of the weights",
    ),
    _average(
        "swad",
        "SWAD",
        "averages the weights of a valley of the validation loss",
        "Cha et al. 2021",
        "eight copies of the weights (n_converge or n_tolerance, the larger, and two)",
        Parameter("n_converge", 3, "evaluations that decide on the start", kind=int, low=1),
        Parameter("n_tolerance", 6, "evaluations that decide on the end", kind=int, low=1),
        Parameter("tolerance_ratio", 0.3, "how much the loss may rise, as a share"),
    ),
    _average(
        "swa",
        "SWA",
        "averages the weights of all steps",
        "Izmailov et al. 2018",
        "a copy of the weights",
        Parameter("start", 0, "steps that are left out", kind=int),
    ),
    _average(
        "ema",
        "EMA",
        "an exponential mean of the weights",
        "Polyak and Juditsky 1992",
        "a copy of the weights",
        Parameter("decay", 0.999, "decay of the mean", high=1.0),
    ),
)
