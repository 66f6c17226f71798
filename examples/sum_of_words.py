"""A sum of words in a loop of one's own: CORAL's penalty, DISAM's climb, SAGM's descent.

`steppe list` prints the words, `steppe list coral+disam+sagm` what a sum is made of and which numbers it takes. Needs
torch alone and takes seconds:  python examples/sum_of_words.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import steppe

torch.manual_seed(0)
rule = torch.randn(20)


def sensor(noise: float, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points whose class is the side of a plane, seen with noise."""
    clean = torch.randn(samples, 20)
    return clean + noise * torch.randn(samples, 20), (clean @ rule > 0).long()


def train(words: str, hyper: dict[str, float]) -> float:
    torch.manual_seed(1)
    body, head = nn.Sequential(nn.Linear(20, 64), nn.ReLU()), nn.Linear(64, 2)
    model = nn.Sequential(body, head)
    base = torch.optim.AdamW(model.parameters(), lr=3e-3)
    method = steppe.build(words, base, model, hyper, head=head, domains=3)
    for _ in range(200):
        parts = [sensor(noise, 32) for noise in (0.1, 0.5, 1.0)]
        x, y = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        domain = torch.arange(3).repeat_interleave(32)

        def closure() -> torch.Tensor:
            method.zero_grad()
            features = body(x)  # noqa: B023 (called at once)
            losses = cross_entropy(head(features), y, reduction="none")  # noqa: B023
            loss = method.loss(losses, domain, features=features)  # noqa: B023 (with what method.needs names)
            loss.backward()
            return loss

        method.step(closure)  # the state of penalties moves along
    print("   ", {word: round(value.item(), 4) for word, value in method.values.items()}, "in the last pass")
    x, y = sensor(1.5, 10_000)
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


for words, hyper in (("erm", {}), ("coral+disam+sagm", {"coral.weight": 0.5, "lam": 0.2})):
    print(f"{words:17} accuracy on the sensor never seen: {train(words, hyper):.1%}")
