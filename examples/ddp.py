"""DistributedDataParallel: each process climbs on its own samples, as in the SAM paper, and all take the same step.

Starts two processes on the CPU by itself:  python examples/ddp.py
As on machines with GPUs (nccl and a device for each rank then):  torchrun --nproc-per-node 2 examples/ddp.py
"""

import gc
import os

import torch
from torch import distributed, nn
from torch.distributed.run import main as torchrun
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import steppe


def train(rank: int, world: int) -> None:
    torch.manual_seed(0)  # the same rule and the same weights everywhere; other samples from here on
    rule = torch.randn(20)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    torch.manual_seed(rank)

    wrapped = DistributedDataParallel(model)
    base = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    optimizer = steppe.GSAM(base, rho=0.05, model=wrapped)  # the wrapped model; global_ascent=True climbs together
    for step in range(50):
        x = torch.randn(32 + 16 * rank, 20)  # ranks may have different numbers of samples
        y = (x @ rule > 0).long()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = cross_entropy(wrapped(x), y, reduction="none")  # noqa: B023 (called at once)
            loss = optimizer.objective(losses)  # weighs the ranks by their samples
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if rank == 0 and step % 10 == 9:
            print(f"step {step + 1:2}: loss {loss.item():.3f} on the samples of rank 0 of {world}")

    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    found = [torch.empty_like(weights) for _ in range(world)]
    distributed.all_gather(found, weights)
    assert all(torch.equal(weights, other) for other in found)  # replicas stay equal to the bit


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun has started this process
        distributed.init_process_group("gloo")
        train(distributed.get_rank(), distributed.get_world_size())
        gc.collect()  # the wrapper ends before the group that it talks by, whose threads else are cut off at exit
        distributed.destroy_process_group()
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torchrun(["--standalone", "--nproc-per-node", "2", __file__])
