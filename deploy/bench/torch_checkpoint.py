"""PyTorch's ways to write a checkpoint of Adam's state: parameters and two slots, as f32, MILLIONS of parameters.

usage: torch_checkpoint.py save|dcp|async FOLDER MILLIONS

A loop of updates in place goes on meanwhile. The last line is JSON: stall_s, what the slowest update and the call together
hold the loop up beyond a usual update; durable_s, from the call until the bytes are on the disk; restore_s.
"""
import json
import os
import shutil
import statistics
import sys
import time
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

warnings.filterwarnings("ignore")
KIND, FOLDER, MILLIONS = sys.argv[1], sys.argv[2], int(sys.argv[3])
NAMES = ("w", "exp_avg", "exp_avg_sq")


def update(state):
    """Touches what an update of Adam touches."""
    began = time.perf_counter()
    for tensor in state.values():
        tensor.add_(1)
    return time.perf_counter() - began


def main():
    torch.set_num_threads(1)
    if KIND == "async":
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    state = {name: torch.rand(MILLIONS * 1000, 1000) for name in NAMES}
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(FOLDER)
    usual = statistics.median(update(state) for _ in range(5))
    os.sync()
    began = time.perf_counter()
    pending = None
    if KIND == "save":
        torch.save(state, os.path.join(FOLDER, "state.pt"))
    elif KIND == "dcp":
        dcp.save(state, checkpoint_id=FOLDER, no_dist=True)
    else:
        pending = dcp.async_save(state, checkpoint_id=FOLDER)
    stall = time.perf_counter() - began
    slowest = update(state)
    while pending is not None and not pending.done():
        slowest = max(slowest, update(state))
    os.sync()
    durable = time.perf_counter() - began
    again = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    began = time.perf_counter()
    if KIND == "save":
        for name, tensor in torch.load(os.path.join(FOLDER, "state.pt")).items():
            again[name].copy_(tensor)
    else:
        dcp.load(again, checkpoint_id=FOLDER, **({} if pending is not None else {"no_dist": True}))
    restore = time.perf_counter() - began
    shutil.rmtree(FOLDER)
    print(json.dumps({"stall_s": stall + max(0.0, slowest - usual), "durable_s": durable, "restore_s": restore}))
    sys.stdout.flush()
    os._exit(0)


main()
