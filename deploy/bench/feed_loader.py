"""PyTorch's DataLoader over pyarrow, row group by row group, in two consumers that read themselves: its fastest form.

usage: feed_loader.py PARQUET_DIR mnist|criteo REPEAT
"""
import multiprocessing
import sys
import warnings

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset

from feed_common import BATCH, CATEGORIES, DENSE, files, now, tell

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Groups(IterableDataset):
    def __init__(self, folder, table, consumer, repeat):
        groups = [(file, group) for file in files(folder, ".parquet") for group in range(pq.read_metadata(file).num_row_groups)]
        self.groups, self.table = groups[consumer::2] * repeat, table

    def columns(self, rows):
        label = rows.column("label").to_numpy()
        if self.table == "mnist":
            return [rows.column("image").combine_chunks().flatten().to_numpy().reshape(-1, 784), label]
        stacked = [np.stack([rows.column(name).to_numpy() for name in names], 1) for names in (DENSE, CATEGORIES)]
        return [*stacked, label]

    def __iter__(self):
        left, opened = None, (None, None)
        for file, group in self.groups:
            if opened[0] != file:
                opened = (file, pq.ParquetFile(file))
            columns = self.columns(opened[1].read_row_group(group, use_threads=False))
            if left is not None:
                columns = [np.concatenate(pair) for pair in zip(left, columns)]
            whole = len(columns[0]) // BATCH * BATCH
            for at in range(0, whole, BATCH):
                yield [torch.from_numpy(np.ascontiguousarray(column[at : at + BATCH])) for column in columns]
            left = [column[whole:] for column in columns]
        if left is not None and len(left[0]):
            yield [torch.from_numpy(np.ascontiguousarray(column)) for column in left]


def consume(folder, table, consumer, repeat, results):
    torch.set_num_threads(1)
    rows = 0
    for batch in DataLoader(Groups(folder, table, consumer, repeat), batch_size=None, num_workers=0):
        if table == "mnist":
            batch[0] = batch[0].to(torch.float32) / 255
        rows += len(batch[-1])
    results.put((rows, now()))


def main():
    folder, table, repeat = sys.argv[1], sys.argv[2], int(sys.argv[3])
    results, begun = multiprocessing.Queue(), now()
    consumers = [multiprocessing.Process(target=consume, args=(folder, table, i, repeat, results)) for i in range(2)]
    for consumer in consumers:
        consumer.start()
    parts = [results.get() for _ in consumers]
    for consumer in consumers:
        consumer.join()
    tell(parts, begun)


if __name__ == "__main__":
    main()
