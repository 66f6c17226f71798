"""What the pages tell a reader to type works: their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steppe.cli.parse import parse

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RUN = {  # page → what its programs are shortened by, so that they take a second
    "README.md": {
        "steps=200, image_size=112, lr=6e-4": "steps=2, image_size=32, lr=6e-4, "
        "backbone='test_resnet', pretrained=False, frozen_batch_norm=False, batch_per_domain=2, eval_every=2"
    },
    "docs/methods.md": {},
}
every = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class Model(nn.Module):
    """A body and a head, as the pages have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.body(x)))
        return logits


def what_a_reader_has() -> dict[str, Any]:
    """The names that the pages take for granted: those of a training loop."""
    model = Model()
    domain = torch.arange(3).repeat_interleave(4)
    loader = [(torch.randn(12, 5), torch.randint(3, (12,)), domain) for _ in range(3)]

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="none")

    return {
        "F": F,
        "model": model,
        "loader": loader,
        "base": torch.optim.SGD(model.parameters(), lr=0.1),
        "losses_of": losses_of,
        "losses": losses_of(*loader[0][:2]),
        "features": model.body(loader[0][0]),
    }


@pytest.mark.parametrize("name", RUN)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scope = what_a_reader_has()
    programs = "\n".join(blocks(ROOT / name, "python"))
    for written, shorter in RUN[name].items():
        assert programs.count(written) == 1
        programs = programs.replace(written, shorter)
    before = [p.detach().clone() for p in scope["model"].parameters()]
    exec(compile(programs, name, "exec"), scope)
    assert all(not torch.equal(p, was) for p, was in zip(scope["model"].parameters(), before, strict=True))


@every
def test_the_python_of_a_page_is_python(page: Path) -> None:
    for program in blocks(page, "python"):
        compile(program, page.name, "exec")


@every
def test_the_commands_of_a_page_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text('algorithms = ["erm"]')
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        for command in " ".join(words).split(" && "):
            program, *arguments = command.split()
            if Path(program).name == "steppe":
                parse(arguments)


def test_the_settings_file_of_the_page_on_the_benchmark_is_one(tmp_path: Path) -> None:
    (settings,) = blocks(ROOT / "docs" / "benchmark.md", "toml")
    (tmp_path / "settings.toml").write_text(settings)
    command = parse(["train", "emoji", "--held-out", "line", "--config", str(tmp_path / "settings.toml")])
    assert command.algorithm == "coral+disam+looksam"  # type: ignore[union-attr]
    assert command.settings.given == {"coral.weight": 0.5, "lam": 0.2}  # type: ignore[union-attr]


@every
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]*))?\)", text):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
