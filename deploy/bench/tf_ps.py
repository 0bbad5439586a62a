"""TensorFlow's own parameter server (tf.compat.v1): 1 ps and 2 workers on the loopback, the model of `ps_bench`.

usage: tf_ps.py async|sync step|exchange PARAMETERS SECONDS

Plain SGD, in sync mode through SyncReplicasOptimizer, one intra-op thread per process. `exchange` adds a constant to the
variable and reads it back. The last line is the steps per second of each worker, of global steps in sync mode, as JSON.
"""
import json
import multiprocessing
import os
import socket
import sys
import time

WORKERS = 2
WARM_STEPS = 3


def train_op(tf, n, mode, what, index, step):
    """The step's operation and the loss; both live where between-graph replication puts them."""
    here = f"/job:worker/task:{index}"
    with tf.device("/job:ps/task:0"):
        w = tf.get_variable("w", [n], initializer=tf.zeros_initializer())
    local = [tf.GraphKeys.LOCAL_VARIABLES]
    with tf.device(here):
        if what == "exchange":
            constant = tf.Variable(tf.fill([n], 1e-6), collections=local, trainable=False)
            gradient = tf.identity(constant)
        else:
            # One row that stays on the worker, so that feeding it costs nothing.
            row = tf.Variable(tf.random.uniform([n], seed=index + 1), collections=local, trainable=False)
            # Twice as fast as a matmul of [1, n] with [n, 1].
            loss = tf.square(tf.reduce_sum(row * w) - 1.0)
    if what == "exchange":
        with tf.device("/job:ps/task:0"), tf.control_dependencies([w.assign_sub(gradient, read_value=False)]):
            new = w.read_value()
        with tf.device(here):
            return tf.identity(new).op, tf.constant(0.0), None
    optimizer = tf.train.GradientDescentOptimizer(0.1 / n)
    if mode == "sync":
        optimizer = tf.train.SyncReplicasOptimizer(optimizer, WORKERS, total_num_replicas=WORKERS)
    with tf.device(tf.train.replica_device_setter(ps_tasks=1, worker_device=here)):
        return optimizer.minimize(loss, global_step=step), loss, optimizer if mode == "sync" else None


def work(tf, server, config, index, mode, what, n, seconds, gate, done, results):
    with tf.device("/job:ps/task:0"):
        step = tf.train.get_or_create_global_step()
    train, loss, replicas = train_op(tf, n, mode, what, index, step)
    hooks = [replicas.make_session_run_hook(index == 0)] if replicas else []
    # A worker that finds nothing initialised asks again only after 30 s; here after half a second.
    init = tf.train.SessionManager.__init__
    tf.train.SessionManager.__init__ = lambda self, *a, **k: init(self, *a, **dict(k, recovery_wait_secs=0.5))
    session = tf.train.MonitoredTrainingSession(
        master=server.target, is_chief=index == 0, hooks=hooks, config=config,
        save_checkpoint_secs=None, save_summaries_steps=None, log_step_count_steps=None)
    first = begun = rate = None
    own = steps = 0
    gate.wait()
    # SyncReplicasOptimizer is not lockstep: who stops first, or waits for the others, leaves them waiting. So all go on
    # until each has its rate, and a sync worker counts global steps.
    while done.value < WORKERS:
        _, last, end = session.run([train, loss, step])
        own += 1
        first = last if first is None else first
        steps = end if mode == "sync" else own
        if begun is None and steps >= WARM_STEPS:
            begun, begin = time.perf_counter(), steps
        passed = time.perf_counter() - begun if begun else 0.0
        if rate is None and passed >= seconds:
            rate = (steps - begin) / passed
            if what == "step" and last >= first:
                raise SystemExit(f"the loss rose from {first} to {last}")
            results.put(rate)
            with done.get_lock():
                done.value += 1


def role(job, index, ports, mode, what, n, seconds, gate, done, results):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    tf.logging.set_verbosity(tf.logging.ERROR)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    cluster = tf.train.ClusterSpec({"ps": addresses[:1], "worker": addresses[1:]})
    filters = None if job == "ps" else ["/job:ps", f"/job:worker/task:{index}"]
    config = tf.ConfigProto(intra_op_parallelism_threads=1, device_filters=filters)
    # Otherwise the constant gradient is folded into the graph.
    config.graph_options.optimizer_options.opt_level = tf.OptimizerOptions.L0
    server = tf.distribute.Server(cluster, job_name=job, task_index=index, config=config)
    if job == "ps":
        server.join()
    work(tf, server, config, index, mode, what, n, seconds, gate, done, results)


def main():
    _, mode, what, n, seconds = sys.argv
    sockets = [socket.socket() for _ in range(WORKERS + 1)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    spawn = multiprocessing.get_context("spawn")
    results, done, gate = spawn.Queue(), spawn.Value("i", 0), spawn.Barrier(WORKERS)
    rest = (ports, mode, what, int(n), float(seconds), gate, done, results)
    roles = [spawn.Process(target=role, args=("ps", 0, *rest))]
    roles += [spawn.Process(target=role, args=("worker", index, *rest)) for index in range(WORKERS)]
    for one in roles:
        one.start()
    try:
        rates = [results.get(timeout=300) for _ in range(WORKERS)]
    finally:
        # A TensorFlow server has no way to end but with its process.
        for one in roles:
            one.kill()
            one.join()
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
