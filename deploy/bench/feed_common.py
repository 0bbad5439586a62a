"""What the peers of the feed share: the tables' columns, two consumers, and the line that the benchmark reads.

A batch is ready for training when it is `image` as float32 [256, 784] between 0 and 1 and `label` as int64, or of the wide
table `dense` as float32 [256, 13], `categories` as int64 [256, 26] and `label`.
"""
import json
import os
import time

DENSE = [f"f{i}" for i in range(13)]
CATEGORIES = [f"c{i}" for i in range(26)]
BATCH = 256


def files(folder, extension):
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(extension))


def tell(parts, begun):
    """`parts` has rows and the time of the last batch of each consumer; `begun` is when they were told to read."""
    rows, end = sum(part[0] for part in parts), max(part[1] for part in parts)
    print(json.dumps({"rows": rows, "seconds": end - begun, "rows_per_sec": rows / (end - begun)}), flush=True)


def now():
    # Of all processes of this machine.
    return time.clock_gettime(time.CLOCK_MONOTONIC)
