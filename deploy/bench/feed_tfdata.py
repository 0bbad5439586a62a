"""TensorFlow's tf.data over TFRecord files in two consumers, each with half of the files: an interleave of files that are
batched before they are parsed, the fastest plan found.

usage: feed_tfdata.py TFRECORD_DIR mnist|criteo REPEAT
"""
import multiprocessing
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from feed_common import BATCH, CATEGORIES, DENSE, files, now, tell  # noqa: E402


def consume(names, table, repeat, barrier, results):
    import tensorflow as tf

    one = tf.io.FixedLenFeature
    if table == "mnist":
        features = {"image": one([], tf.string), "label": one([], tf.int64)}
    else:
        features = {name: one([], tf.float32) for name in DENSE} | {name: one([], tf.int64) for name in [*CATEGORIES, "label"]}

    def parse(records):
        found = tf.io.parse_example(records, features)
        if table == "mnist":
            return tf.cast(tf.io.decode_raw(found["image"], tf.uint8), tf.float32) / 255.0, found["label"]
        dense, categories = ([found[name] for name in names] for names in (DENSE, CATEGORIES))
        return tf.stack(dense, 1), tf.stack(categories, 1), found["label"]

    options = tf.data.Options()
    options.deterministic = False
    options.threading.private_threadpool_size = 1
    read = lambda file: tf.data.TFRecordDataset(file, buffer_size=1 << 20).batch(BATCH)  # noqa: E731
    data = tf.data.Dataset.from_tensor_slices(names * repeat).interleave(read, cycle_length=2, num_parallel_calls=1, deterministic=False)
    data = data.map(parse).prefetch(2).with_options(options)
    # TensorFlow is imported by then.
    barrier.wait()
    rows = 0
    for batch in data:
        rows += int(batch[-1].shape[0])
    results.put((rows, now()))


def main():
    folder, table, repeat = sys.argv[1], sys.argv[2], int(sys.argv[3])
    names = files(folder, ".tfrecord")
    context = multiprocessing.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(3)
    consumers = [context.Process(target=consume, args=(names[i::2], table, repeat, barrier, results)) for i in range(2)]
    for consumer in consumers:
        consumer.start()
    barrier.wait()
    begun = now()
    parts = [results.get() for _ in consumers]
    for consumer in consumers:
        consumer.join()
    tell(parts, begun)


if __name__ == "__main__":
    main()
