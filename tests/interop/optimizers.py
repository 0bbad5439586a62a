"""The optimizers, step by step, against the frameworks that they are named after.

    python optimizers.py torch DIR          compares with torch.optim, its lr_scheduler and clip_grad_norm_
    python optimizers.py tensorflow DIR     compares FTRL with tf.raw_ops and tf.keras, its schedules with Keras',
                                            and LAMB with its paper and, where it is installed, TensorFlow Addons

DIR holds what `cargo run -p tfos-ps --example optimizer_steps -- DIR` wrote. Both sides compute in f32 from the same
gradients. The error of a parameter x is |ours - x| / max(1, |x|), the largest over all parameters and steps counts.
"""

import glob
import importlib.util
import itertools
import json
import os
import sys
import warnings

TOLERANCE = 1e-6

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def torch_optimizer(torch, parameter, rule):
    options = dict(rule)
    name = options.pop("name")
    options["lr"] = options.pop("learning_rate")
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    if "initial_accumulator" in options:
        options["initial_accumulator_value"] = options.pop("initial_accumulator")
    kinds = {"sgd": "SGD", "adagrad": "Adagrad", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
    return getattr(torch.optim, kinds.get(name, name.capitalize()))([parameter], **options)


def torch_schedule(torch, optimizer, schedule):
    """The same schedule of PyTorch's; it has no end factor but that of the cosine."""
    kinds = torch.optim.lr_scheduler
    decay = dict(schedule["decay"])
    name = decay.pop("name")
    if name == "constant":
        after = kinds.ConstantLR(optimizer, factor=1.0)
    elif name == "step":
        after = kinds.StepLR(optimizer, **decay)
    elif name == "cosine":
        eta_min = decay["end_factor"] * optimizer.param_groups[0]["lr"]
        after = kinds.CosineAnnealingLR(optimizer, decay["total_steps"], eta_min=eta_min)
    else:
        assert decay["end_factor"] == 0
        after = kinds.PolynomialLR(optimizer, decay["total_steps"], power=decay["power"])
    if "warmup" not in schedule:
        return after
    steps = schedule["warmup"]["steps"]
    warmup = kinds.LinearLR(optimizer, start_factor=schedule["warmup"]["start_factor"], total_iters=steps)
    return kinds.SequentialLR(optimizer, [warmup, after], milestones=[steps])


def torch_steps(case):
    """The parameters after each step."""
    import torch

    rule = dict(case["optimizer"])
    schedule = rule.pop("schedule", {"decay": {"name": "constant"}})
    max_norm = rule.pop("clip_norm", None)
    parameter = torch.tensor(case["initial"], dtype=torch.float32, requires_grad=True)
    optimizer = torch_optimizer(torch, parameter, rule)
    scheduler = torch_schedule(torch, optimizer, schedule)
    for gradient in case["gradients"]:
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_([parameter], max_norm)
        optimizer.step()
        scheduler.step()
        yield parameter.detach().tolist()


def keras_rate(tf, rate, schedule):
    kinds = tf.keras.optimizers.schedules
    decay = schedule["decay"]
    if decay["name"] == "step":
        return kinds.ExponentialDecay(rate, decay["step_size"], decay["gamma"], staircase=True)
    if decay["name"] == "polynomial":
        end = rate * decay["end_factor"]
        return kinds.PolynomialDecay(rate, decay["total_steps"], end_learning_rate=end, power=decay["power"])
    if decay["name"] != "cosine":
        return rate
    warmup = schedule.get("warmup")
    if warmup is None:
        return kinds.CosineDecay(rate, decay["total_steps"], alpha=decay["end_factor"])
    return kinds.CosineDecay(
        rate * warmup["start_factor"],
        decay["total_steps"],
        alpha=decay["end_factor"],
        warmup_target=rate,
        warmup_steps=warmup["steps"],
    )


def keras_steps(case):
    import tensorflow as tf

    rule = case["optimizer"]
    optimizer = tf.keras.optimizers.Ftrl(
        learning_rate=keras_rate(tf, rule["learning_rate"], rule.get("schedule", {"decay": {"name": "constant"}})),
        learning_rate_power=rule["learning_rate_power"],
        initial_accumulator_value=rule["initial_accumulator"],
        l1_regularization_strength=rule["l1"],
        l2_regularization_strength=rule["l2"],
    )
    variable = tf.Variable(case["initial"], dtype=tf.float32)
    for gradient in case["gradients"]:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
        yield variable.numpy().tolist()


def raw_steps(case):
    """By the kernel of `tf.raw_ops.ApplyFtrl`, in the form that works outside of graphs."""
    import tensorflow as tf

    rule = case["optimizer"]
    initial = case["initial"]
    variable = tf.Variable(initial, dtype=tf.float32)
    accum = tf.Variable([rule["initial_accumulator"]] * len(initial), dtype=tf.float32)
    linear = tf.Variable([0.0] * len(initial), dtype=tf.float32)
    for gradient in case["gradients"]:
        tf.raw_ops.ResourceApplyFtrl(
            var=variable.handle,
            accum=accum.handle,
            linear=linear.handle,
            grad=tf.constant(gradient, tf.float32),
            lr=rule["learning_rate"],
            l1=rule["l1"],
            l2=rule["l2"],
            lr_power=rule["learning_rate_power"],
        )
        yield variable.numpy().tolist()


def lamb_rule(case):
    rule = case["optimizer"]
    ends = list(itertools.accumulate(case["lengths"]))
    cuts = [slice(end - length, end) for end, length in zip(ends, case["lengths"], strict=True)]
    return rule, cuts, rule.get("clip_norm")


def paper_steps(case):
    """LAMB, algorithm 2 of https://arxiv.org/abs/1904.00962 with phi(x) = x, in f64; Keras 2 has none."""
    import numpy

    rule, cuts, max_norm = lamb_rule(case)
    x = numpy.array(case["initial"])
    m, v = numpy.zeros_like(x), numpy.zeros_like(x)
    for t, gradient in enumerate(case["gradients"], 1):
        g = numpy.array(gradient)
        if max_norm is not None:
            g *= min(1.0, max_norm / (numpy.linalg.norm(g) + 1e-6))
        m = rule["beta1"] * m + (1 - rule["beta1"]) * g
        v = rule["beta2"] * v + (1 - rule["beta2"]) * g**2
        r = m / (1 - rule["beta1"] ** t) / (numpy.sqrt(v / (1 - rule["beta2"] ** t)) + rule["eps"])
        u = r + rule["weight_decay"] * x
        for cut in cuts:
            x[cut] -= rule["learning_rate"] * numpy.linalg.norm(x[cut]) / numpy.linalg.norm(u[cut]) * u[cut]
        yield x.tolist()


def addons_steps(case):
    import tensorflow as tf
    import tensorflow_addons

    rule, cuts, max_norm = lamb_rule(case)
    optimizer = tensorflow_addons.optimizers.LAMB(
        learning_rate=rule["learning_rate"],
        beta_1=rule["beta1"],
        beta_2=rule["beta2"],
        epsilon=rule["eps"],
        weight_decay=rule["weight_decay"],
    )
    variables = [tf.Variable(case["initial"][cut], dtype=tf.float32) for cut in cuts]
    for gradient in case["gradients"]:
        gradients = [tf.constant(gradient[cut], tf.float32) for cut in cuts]
        if max_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, max_norm)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        yield [x for variable in variables for x in variable.numpy().tolist()]


def has_addons():
    return importlib.util.find_spec("tensorflow_addons") is not None


def references(framework, case):
    """(what it is compared with, its parameters after each step)."""
    is_ftrl = case["optimizer"]["name"] == "ftrl"
    is_lamb = case["optimizer"]["name"] == "lamb"
    if framework == "tensorflow" and is_lamb:
        yield "its paper", paper_steps(case)
        if has_addons():
            yield "tfa", addons_steps(case)
    if framework == "torch" and not is_ftrl and not is_lamb:
        yield "torch.optim", torch_steps(case)
    if framework == "tensorflow" and is_ftrl:
        yield "tf.keras", keras_steps(case)
        if "schedule" not in case["optimizer"]:
            yield "tf.raw_ops", raw_steps(case)


def largest_error(ours, theirs):
    """The largest error, and the step of it."""
    worst = (0.0, 0)
    for step, (found, wanted) in enumerate(zip(ours, theirs, strict=True), 1):
        for a, b in zip(found, wanted, strict=True):
            error = abs(a - b) / max(1.0, abs(b))
            # Written so that NaN is the worst.
            if not error <= worst[0]:
                worst = (error, step)
    return worst


def main(framework, folder):
    compared, bad = 0, []
    for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
        with open(path, encoding="utf-8") as file:
            case = json.load(file)
        name = os.path.splitext(os.path.basename(path))[0]
        for reference, steps in references(framework, case):
            error, step = largest_error(case["params"], list(steps))
            compared += 1
            print(f"{name:>20} and {reference:<11} {len(case['params'])} steps, error {error:.1e} at step {step}")
            if not error <= TOLERANCE:
                bad.append(name)
    if bad or not compared:
        sys.exit(f"more than {TOLERANCE:g} apart: {', '.join(bad)}" if bad else f"{folder} has nothing to compare")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("torch", "tensorflow"):
        sys.exit("usage: optimizers.py torch|tensorflow DIR")
    # That there is no NumPy beside torch, and how its schedulers call each other.
    warnings.filterwarnings("ignore")
    main(sys.argv[1], sys.argv[2])
