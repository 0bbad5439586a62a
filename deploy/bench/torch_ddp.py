"""PyTorch DistributedDataParallel over Gloo: 2 ranks on the loopback, one thread each, the model of `ps_bench`.

usage: torch_ddp.py ddp step|exchange PARAMETERS SECONDS

`exchange` is the all_reduce alone. The last line is the steps per second of each rank, as JSON.
"""
import json
import os
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


class Linear(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(n))

    def forward(self, x):
        return torch.dot(self.w, x)


def make_step(rank, n, what):
    if what == "exchange":
        flat = torch.full((n,), 1e-6)

        def reduce():
            dist.all_reduce(flat)
            return 0.0

        return reduce
    model = torch.nn.parallel.DistributedDataParallel(Linear(n), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / n)
    torch.manual_seed(rank + 1)
    row = torch.rand(n)

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = (model(row) - 1.0) ** 2
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def run(rank, store, what, n, seconds, results):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    step = make_step(rank, n, what)
    first = step()
    begun = time.perf_counter()
    step()
    step()
    # Rank 0 says how many: the ranks must take the same number of steps.
    count = torch.tensor([max(3, int(seconds / ((time.perf_counter() - begun) / 2)))])
    dist.broadcast(count, 0)
    dist.barrier()
    begun = time.perf_counter()
    for _ in range(int(count)):
        last = step()
    rate = int(count) / (time.perf_counter() - begun)
    if what == "step" and last >= first:
        raise SystemExit(f"the loss rose from {first} to {last}")
    results.put(rate)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _, _, what, n, seconds = sys.argv
    results = mp.get_context("spawn").Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = mp.spawn(run, (f"{folder}/store", what, int(n), float(seconds), results), nprocs=RANKS, join=False)
        rates = [results.get(timeout=300) for _ in range(RANKS)]
        ranks.join()
    print(json.dumps(rates))
