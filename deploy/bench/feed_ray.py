"""Ray Data: read_parquet, streaming_split over two actors, iter_torch_batches. Two passes, of which the second counts.

usage: feed_ray.py PARQUET_DIR mnist|criteo REPEAT
"""
import os
import sys
import tempfile

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray  # noqa: E402

from feed_common import BATCH, CATEGORIES, DENSE, files, now, tell  # noqa: E402


@ray.remote(num_cpus=0)
class Consumer:
    def run(self, split, table):
        import torch

        torch.set_num_threads(1)
        rows = 0
        for batch in split.iter_torch_batches(batch_size=BATCH, prefetch_batches=2):
            if table == "mnist":
                ready = batch["image"].to(torch.float32) / 255
                assert ready.shape[1] == 784
            else:
                torch.stack([batch[name] for name in DENSE], 1)
                torch.stack([batch[name] for name in CATEGORIES], 1)
            rows += len(batch["label"])
        return rows, now()


def main():
    folder, table, repeat = sys.argv[1], sys.argv[2], int(sys.argv[3])
    scripts = os.path.dirname(os.path.abspath(__file__))
    # Ray binds sockets in its folder, whose path must be short; it goes when this process does.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as session, tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as links:
        path = os.pathsep.join([scripts, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2 << 30, _temp_dir=session,
                 runtime_env={"env_vars": {"PYTHONPATH": path}})
        ray.data.DataContext.get_current().enable_progress_bars = False
        # Ray leaves out a path that it has read: each pass has names of its own.
        for number in range(repeat):
            for file in files(folder, ".parquet"):
                os.link(file, os.path.join(links, f"{number}-{os.path.basename(file)}"))
        splits = ray.data.read_parquet(links).streaming_split(2, equal=False)
        consumers = [Consumer.remote() for _ in splits]
        for _ in range(2):
            begun = now()
            parts = ray.get([consumer.run.remote(split, table) for consumer, split in zip(consumers, splits)])
        ray.shutdown()
    tell(parts, begun)


main()
