"""Mixed precision: autocast around forward passes, and a GradScaler where gradients would underflow (fp16 on CUDA).

On a CPU this is bf16, which needs no scaler; the same lines serve both:  python examples/mixed_precision.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import steppe

device = "cuda" if torch.cuda.is_available() else "cpu"
half = torch.float16 if device == "cuda" else torch.bfloat16
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2)).to(device)
base = torch.optim.AdamW(model.parameters(), lr=3e-3)
optimizer = steppe.SAGM(base, rho=0.05, model=model)
scaler = torch.amp.GradScaler(device, enabled=device == "cuda")  # where it is off, it changes nothing
x, rule = torch.randn(256, 20, device=device), torch.randn(20, device=device)
y = (x @ rule > 0).long()


def closure() -> torch.Tensor:
    optimizer.zero_grad()
    with torch.autocast(device, half):  # the weights are float32: half precision would round most of ε away
        logits = model(x)
    loss = optimizer.objective(cross_entropy(logits.float(), y, reduction="none"))
    scaler.scale(loss).backward()
    return loss


for _ in range(20):
    loss = optimizer.step(closure, scaler=scaler)  # all passes scaled; overflow in any of them skips the step
    scaler.update()
print(f"by a closure:  loss {loss.item():.3f}")

for _ in range(20):  # the same by contexts, with the gradients clipped
    for each in optimizer.passes(scaler):
        with each:
            loss = closure()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
print(f"by contexts:   loss {loss.item():.3f} at w + ε")

assert model[1].num_batches_tracked == 40  # BatchNorm has counted each step once, at clean weights
