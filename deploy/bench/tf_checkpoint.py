"""TensorFlow's asynchronous checkpoint of Adam's state: parameters and two slots, as f32, MILLIONS of parameters.

usage: tf_checkpoint.py FOLDER MILLIONS

The copy is put off to the next update of the variables, so the stall has that in it. The last line is JSON, as of
torch_checkpoint.py.
"""
import json
import os
import shutil
import statistics
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import tensorflow as tf

FOLDER, MILLIONS = sys.argv[1], int(sys.argv[2])


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(FOLDER)
    variables = [tf.Variable(tf.random.uniform([MILLIONS * 1000, 1000])) for _ in range(3)]
    checkpoint = tf.train.Checkpoint(**{f"v{i}": v for i, v in enumerate(variables)})
    options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=True)

    @tf.function
    def step():
        for v in variables:
            v.assign_add(tf.ones_like(v))

    def update():
        began = time.perf_counter()
        step()
        variables[-1][0, 0].numpy()
        return time.perf_counter() - began

    def finished():
        return [name for name in os.listdir(FOLDER) if name.endswith(".index")]

    # The first one also makes its threads and its host variables.
    checkpoint.save(os.path.join(FOLDER, "first"), options=options)
    checkpoint.sync()
    usual = statistics.median(update() for _ in range(5))
    os.sync()
    before = len(finished())
    began = time.perf_counter()
    name = checkpoint.save(os.path.join(FOLDER, "second"), options=options)
    stall = time.perf_counter() - began
    slowest = update()
    while len(finished()) <= before:
        slowest = max(slowest, update())
    checkpoint.sync()
    os.sync()
    durable = time.perf_counter() - began
    began = time.perf_counter()
    checkpoint.restore(name)
    variables[-1][0, 0].numpy()
    restore = time.perf_counter() - began
    shutil.rmtree(FOLDER)
    print(json.dumps({"stall_s": stall + max(0.0, slowest - usual), "durable_s": durable, "restore_s": restore}))


main()
