"""The answer: which method held up best on domains never seen in training, and how far to trust that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steppe.report.settings import differing, plain, shared_settings
from steppe.report.statistics import Comparison, Estimate, Method, estimate, repetitions

MANY_DOMAINS = 4  # from here on the headline counts them instead of naming them
NEVER_SEEN = "On domains never seen in training"
PERCENT = "\N{NO-BREAK SPACE}%"
CLOSE_CALL = 2  # pictures of each held-out domain: in a single seed, a lead of so few is not called one


@dataclass(frozen=True)
class Lead:
    """How far the best method is ahead of another: the mean over shared seeds of the difference of averages.

    ``low`` and ``high`` bound the 95 % interval of a paired t-test; None where those seeds show no spread.
    """

    over: Method
    difference: Estimate
    low: float | None
    high: float | None

    @property
    def certain(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Answer:
    """The ranking of one comparison in words and numbers.

    Attributes:
        ranking: the methods with runs on every held-out domain, best average first.
        best: the first, or all that share its printed average.
        leads: how far the best is ahead of each method behind it.
        unranked: methods that lack a held-out domain.
        headline: the answer in one sentence.
        caveats: what has to be said with it, a sentence each.
    """

    ranking: tuple[Method, ...]
    best: tuple[Method, ...]
    leads: tuple[Lead, ...]
    unranked: tuple[Method, ...]
    headline: str
    caveats: tuple[str, ...]


def answer(comparison: Comparison) -> Answer:
    """Ranks the methods by their held-out accuracy averaged over the held-out domains."""
    complete = [(method, method.average) for method in comparison.methods if method.average is not None]
    ordered = sorted(complete, key=lambda pair: -pair[1].mean)
    ranking = tuple(method for method, _ in ordered)
    best = tuple(method for method, average in ordered if percent(average.mean) == percent(ordered[0][1].mean))
    unranked = tuple(method for method in comparison.methods if method.average is None)
    leads = tuple(_lead(best[0], other) for other in ranking[len(best) :])
    return Answer(
        ranking=ranking,
        best=best,
        leads=leads,
        unranked=unranked,
        headline=_headline(comparison, ranking, best, leads),
        caveats=tuple(_caveats(comparison, ranking, best, leads, unranked)),
    )


def percent(fraction: float) -> str:
    """A fraction as a percentage with one decimal, without the sign: ``74.3``."""
    return f"{100 * fraction:.1f}"


def spread(value: Estimate) -> str:
    """``74.3 ± 1.2`` in percent; without a spread where there is none."""
    return percent(value.mean) if value.error is None else f"{percent(value.mean)} ± {percent(value.error)}"


def names(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(items[:-1]), items[-1]) if part) if items else ""


def _lead(best: Method, other: Method) -> Lead:
    from scipy import stats  # takes seconds, and a command that only trains needs none of it

    ours = repetitions(best, lambda run: run.held_out_accuracy) or {}
    theirs = repetitions(other, lambda run: run.held_out_accuracy) or {}
    shared = [seed for seed in ours if seed in theirs]
    ids = best.run_ids + other.run_ids
    if not shared:
        assert best.average is not None
        assert other.average is not None
        return Lead(other, Estimate(best.average.mean - other.average.mean, None, 0, ids), None, None)
    difference = estimate([ours[seed] - theirs[seed] for seed in shared], ids)
    if not difference.error:  # one seed, or differences equal by chance: nothing to judge by
        return Lead(other, difference, None, None)
    reach = float(stats.t.ppf(0.975, df=difference.n - 1)) * difference.error
    return Lead(other, difference, difference.mean - reach, difference.mean + reach)


def _headline(comparison: Comparison, ranking: Sequence[Method], best: Sequence[Method], leads: Sequence[Lead]) -> str:
    if not ranking:
        return "No method has finished on every held-out domain yet, so there is no answer."
    top = best[0].average
    assert top is not None
    domains = names(comparison.held_out)
    many = len(comparison.held_out)
    over = domains if many < MANY_DOMAINS else f"{many} held-out domains"
    where = f"on average over {over}" if many > 1 else f"on {domains}"
    reached = f"{spread(top)}{PERCENT} {where}"
    if len(ranking) == 1:
        return f"{NEVER_SEEN}, {best[0].name} reached {reached}; there is nothing to compare it with."
    if len(best) > 1:
        tied = names([method.name for method in best])
        return f"{NEVER_SEEN}, {tied} held up equally well: {percent(top.mean)}{PERCENT} {where}."
    if top.n == 1 and leads[0].difference.mean <= _close_call(comparison):
        rival = leads[0].over
        assert rival.average is not None
        return (
            f"{NEVER_SEEN}, {best[0].name} and {rival.name} are too close to call in a single seed: "
            f"{percent(top.mean)} and {percent(rival.average.mean)}{PERCENT} {where}."
        )
    if top.n == 1:
        return f"{NEVER_SEEN}, {best[0].name} held up best, in a single seed: {reached}."
    if not leads[0].certain:
        return f"{NEVER_SEEN}, {best[0].name} held up best, by a lead that seeds alone could explain: {reached}."
    return f"{NEVER_SEEN}, {best[0].name} held up best: {reached}."


def _close_call(comparison: Comparison) -> float:
    """The share of the average that `CLOSE_CALL` pictures of every held-out domain make; 0 if a count is unknown."""
    counts = [comparison.pictures(domain) for domain in comparison.held_out]
    if not all(count.isdigit() and int(count) > 0 for count in counts):
        return 0.0
    share = sum(CLOSE_CALL / int(count) for count in counts) / len(counts)
    return share + 1e-9  # the difference of two averages is a little off


def _caveats(
    comparison: Comparison,
    ranking: Sequence[Method],
    best: Sequence[Method],
    leads: Sequence[Lead],
    unranked: Sequence[Method],
) -> list[str]:
    caveats = []
    if len(ranking) > 1:
        caveats += _on_seeds(ranking, best, leads)
    caveats += _on_pictures(comparison)
    caveats += _on_fairness(comparison.methods)
    if unranked:
        missing = names([method.name for method in unranked])
        caveats.append(f"Not ranked, for want of runs on some held-out domain: {missing}.")
    return caveats


def _on_seeds(ranking: Sequence[Method], best: Sequence[Method], leads: Sequence[Lead]) -> list[str]:
    single = [method for method in ranking if method.average is not None and method.average.n == 1]
    said = []
    if len(single) == len(ranking):
        said.append(
            "One seed gives no spread, so the order of the methods is not evidence; "
            "--seeds 3 gives one."  # a plain space: it is there to be copied
        )
    elif single:
        said.append(f"One seed only, hence no spread, for {names([method.name for method in single])}.")
    if leads and len(single) < len(ranking):
        said.append(_on_lead(best, leads[0]))
    return said


def _on_lead(best: Sequence[Method], lead: Lead) -> str:
    who = f"{best[0].name} is {points(lead.difference.mean)} ahead of the next, {lead.over.name}"
    if lead.low is None or lead.high is None or lead.difference.error is None:
        return f"{who}; the seeds they share show no spread to judge that by."
    interval = f"(over {lead.difference.n} shared seeds; 95 % interval {signed(lead.low)} to {signed(lead.high)})"
    if lead.certain:
        return f"{who} {interval}: more than the seeds explain."
    if abs(lead.difference.mean) < lead.difference.error:
        return f"{who} {interval}: less than the standard error of that difference, so no evidence of anything."
    return f"{who} {interval}: the interval includes no difference, so the seeds alone could explain it."


def _on_pictures(comparison: Comparison) -> list[str]:
    counts = {domain: comparison.pictures(domain) for domain in comparison.held_out}
    known = {domain: count for domain, count in counts.items() if count.isdigit() and int(count) > 0}
    if not known:
        return []
    fewest = min(known, key=lambda domain: int(known[domain]))
    return [
        f"Held-out pictures: {names([f'{count} of {domain}' for domain, count in known.items()])}; "
        f"one picture of {fewest} is {points(1 / int(known[fewest]))}."
    ]


def _on_fairness(methods: Sequence[Method]) -> list[str]:
    shared = [shared_settings(method.settings) for method in methods]
    said = []
    for name in differing(shared):
        values = dict.fromkeys(plain(settings.get(name)) for settings in shared)
        said.append(f"{name} ({', '.join(values)})")
    if not said:
        return []
    return [f"Not like for like: the methods were trained with different {names(said)}."]


def points(fraction: float) -> str:
    """A difference of two percentages: ``1.2 points``."""
    value = f"{abs(100 * fraction):.1f}"
    return f"{value} point" if math.isclose(float(value), 1.0) else f"{value} points"


def signed(fraction: float) -> str:
    """A difference in percentage points with its sign: ``+1.2``, ``−0.4``."""
    return f"{100 * fraction:+.1f}".replace("-", "−")


def seconds(value: float) -> str:
    """Seconds with three significant digits: ``0.617``, ``12.0``, ``340``."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"
