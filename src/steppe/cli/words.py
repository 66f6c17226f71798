"""What `steppe list` does: the words of the grammar, and one of them or a sum in detail."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from steppe.cli.commands import List
from steppe.training.hyper import WORDS, by_slot
from steppe.training.progress import plain_console
from steppe.training.recipes import Recipe, parse
from steppe.training.words import COMMON, RHO, SHARED, SHARED_PASS, SLOTS, Parameter, Value, Word

OTHERWISE: Mapping[str, str] = {
    "objective": "the mean loss",
    "estimate": "the batch's own gradient",
    "geometry": "the Euclidean ball",
    "radius": "the number rho",
    "descent": "the gradient at the top of the climb",
    "schedule": "at every step",
}
"""What a sum that climbs has where no word answers: SAM."""

NEEDED = {"head": "head=model.head", "domains": "domains=3"}


def run_list(options: List) -> int:
    """The table of all words, or one sum."""
    console = plain_console()
    if options.algorithm:
        _explain(parse(options.algorithm), console)
    else:
        _list(console)
    return 0


def _list(console: Console) -> None:
    console.print(
        "An algorithm is a word, or a sum of words such as coral+disam+sagm: one word for each question, in any order. "
        "What no word answers is as in sam or, where none of them climbs, as in erm.\n"
    )
    for slot, names in by_slot().items():
        table = _table(console)
        for name in names:
            word = WORDS[name]
            table.add_row(name, f"{word.summary}\n{_defaults(word)}({word.source}){_besides(word)}")
        console.print(f"{slot}: {SLOTS[slot]}" if slot else "the plain steps, which other words change", style="bold")
        console.print(table)
        console.print()
    options = _table(console)
    for parameter in COMMON:
        options.add_row(parameter.name, f"{parameter.meaning} (default {_default(parameter)})")
    console.print("options of whatever climbs", style="bold")
    console.print(options)
    console.print("\nin detail:  steppe list disam\na sum:      steppe list coral+disam+sagm")


def _table(console: Console) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    names = max(map(len, WORDS))
    for width in (names, min(console.width, 120) - names - 2):
        table.add_column(width=width)
    return table


def _defaults(word: Word) -> str:
    shown = {parameter.name: parameter.default for parameter in word.parameters}
    defaults = ", ".join(f"{name} {_plain(value)}" for name, value in shown.items() if value not in (None, False))
    return f"{defaults} " if defaults else ""


def _besides(word: Word) -> str:
    """The questions that a word answers beside the one that it is listed under."""
    also = [slot for slot in SLOTS if slot in word.fills and slot != word.slot]
    also += [f"{slot}, if no other word does" for slot in SLOTS if slot in word.offers]
    return f"\nanswers too: {'; '.join(also)}" if also else ""


def _explain(recipe: Recipe, console: Console) -> None:
    console.print(recipe.name, style="bold")
    console.print(_answers(recipe))
    if recipe.names.parameters:
        console.print()
        console.print(_hyper(recipe))
        console.print(f"\n{_bare_names(recipe)}")
    console.print(f"\n{_cost(recipe)}\n")
    chosen = _example(recipe)
    given = ", ".join(f'"{name}": {value}' for name, value in chosen.items())
    lines = ["on the command line", "  steppe train emoji --held-out line \\", f"    --algorithm {recipe.name}"]
    if chosen:
        lines[-1] += " \\"
        lines += ["    --hyper " + " ".join(f"{name}={value}" for name, value in chosen.items())]
    lines += ["in a file for --config", f'  algorithm = "{recipe.name}"']
    if chosen:
        lines += ["  [hyper]", *(f"  {name} = {value}" for name, value in chosen.items())]
    lines += ["in a training loop of your own", "  method = steppe.build("]
    needed = {need for word in recipe.words for part in word.fills.values() for need in part.needs}
    more = [example for need, example in NEEDED.items() if need in needed]
    arguments = [f'"{recipe.name}", base, model', *([f"{{{given}}}"] if chosen else []), *more]
    lines += [*(f"      {argument}," for argument in arguments), "  )"]
    console.print("\n".join(lines), soft_wrap=True)


def _answers(recipe: Recipe) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for keep in (True, True, False):
        table.add_column(no_wrap=keep)
    filled = recipe.parts({})
    for slot in SLOTS:
        words = [word for word in recipe.words if slot == "penalty" and slot in word.fills]
        words += [filled[slot][0]] if slot in filled else []
        for word in words:
            table.add_row(slot, word.name, _answer(word, slot))
        if not words and recipe.climbs and slot in OTHERWISE:
            table.add_row(slot, "", OTHERWISE[slot])
    for word in recipe.words:
        if not word.slot:
            table.add_row("", word.name, _told(word))
    return table


def _answer(word: Word, slot: str) -> str:
    """What a word says to a question: its summary to its own, the part or its parameters to others."""
    if slot == word.slot:
        return _told(word)
    if slot in word.offers:
        part = word.offers[slot]
        fixed = ", ".join(f"{name}={_plain(value)}" for name, value in part.fixed.items())
        return f"{part.path.rpartition(':')[2]}({fixed}), as long as no other word answers"
    return "its " + " and ".join(word.fills[slot].arguments.values())


def _told(word: Word) -> str:
    return f"{word.summary} ({word.source})"


def _hyper(recipe: Recipe) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("hyper-parameter", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("meaning")
    for full, parameter in recipe.names.parameters.items():
        shown = parameter.name if parameter.name in SHARED else full
        table.add_row(shown, _default(parameter), f"{_meaning(recipe, parameter)}; {parameter.range}")
    return table


def _meaning(recipe: Recipe, parameter: Parameter) -> str:
    """What a hyper-parameter means in this sum: some climbs have ∇L(w) for their gradient, and no pass to save."""
    if parameter.name != SHARED_PASS.name or _passes(recipe, shared=True) < _passes(recipe):
        return parameter.meaning
    return f"{parameter.meaning} (here only with an ascent_fraction below 1: of a whole batch it is ∇L(w))"


def _bare_names(recipe: Recipe) -> str:
    """Which of them may be called by their bare names."""
    short = [recipe.names.short(full) for full in recipe.names.parameters]
    unclear = dict.fromkeys(name.partition(".")[2] for name in short if "." in name)
    but = f", but for {' and '.join(unclear)}, which more than one word has" if unclear else ""
    clear = next((name for name in short if "." not in name), "")
    return (
        f"The bare name will do{but}: --hyper {clear}=..."
        if clear
        else "Give each with its word: more than one word has that name."
    )


def _cost(recipe: Recipe) -> str:
    """The passes of a step, and what else its words cost."""
    passes = _passes(recipe)
    number = "1 pass, as erm" if passes == 1 else f"{passes} passes, to erm's 1"
    more = (word.cost for word in recipe.words if word.cost)
    return "; ".join([f"A step takes {number} (forward and backward)", *more]) + "."


def _passes(recipe: Recipe, **hyper: Value) -> int:
    """The passes of a step that climbs, counted on the engine."""
    import torch
    from torch import nn

    model = nn.Linear(1, 2)
    method = recipe.build(torch.optim.SGD(model.parameters(), lr=0.1), model, hyper, head=model, domains=2)
    return len(list(method.optimizer.passes()))


def _example(recipe: Recipe) -> dict[str, float]:
    """A number that is a word's own, or else its radius; for three words, which fit in a line."""
    chosen = {}
    for word in recipe.words[:3]:
        for parameter in sorted(word.parameters, key=lambda parameter: parameter.name == RHO.name):
            full = recipe.names.full(f"{word.name}.{parameter.name}")
            if full is not None and isinstance(parameter.default, float):
                chosen[full] = parameter.default
                break
    return chosen


def _default(parameter: Parameter) -> str:
    return "off" if parameter.default is None else _plain(parameter.default)


def _plain(value: Value | None) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
