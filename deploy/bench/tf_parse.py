"""TensorFlow's parse_example over the files that `tfrecord_bench --keep DIR` wrote: records per second, best of three.

usage: tf_parse.py DIR
"""
import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf  # noqa: E402

SHAPES = {
    "mnist": {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)},
    "criteo": {
        **{f"f{i}": tf.io.FixedLenFeature([], tf.float32) for i in range(13)},
        **{f"c{i}": tf.io.FixedLenFeature([], tf.int64) for i in range(26)},
        "label": tf.io.FixedLenFeature([], tf.int64),
    },
}


def rate(path, features, parallel):
    """One pass: frames, batches of 1024, parse_example; with `parallel` on all cores."""
    calls = tf.data.AUTOTUNE if parallel else None
    data = tf.data.TFRecordDataset(path).batch(1024)
    data = data.map(lambda b: tf.io.parse_example(b, features), num_parallel_calls=calls).prefetch(2)
    if not parallel:
        options = tf.data.Options()
        options.threading.private_threadpool_size = 1
        data = data.with_options(options)
    rows, begun = 0, time.perf_counter()
    for batch in data:
        rows += int(batch["label"].shape[0])
    return rows / (time.perf_counter() - begun)


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    for name, features in SHAPES.items():
        path = os.path.join(sys.argv[1], f"{name}.tfrecord")
        for parallel in (False, True):
            best = max(rate(path, features, parallel) for _ in range(3))
            print(json.dumps({"shape": name, "reader": "tf.data", "parallel": parallel, "read_per_s": round(best)}), flush=True)


main()
