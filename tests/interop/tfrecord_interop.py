"""TFRecord files between TensorFlow and tfos; the mirror is `tfos/data/examples/interop.rs`.

    python tfrecord_interop.py write DIR     TensorFlow writes, `cargo run --example interop -- check DIR` reads
    python tfrecord_interop.py check DIR     TensorFlow reads what `cargo run --example interop -- write DIR` wrote

Needs tensorflow or tensorflow-cpu, 2.x. Both sides know the expected records.
"""

import math
import os
import struct
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

NAMES = {
    "scalars.tfrecord": "",
    "lists.tfrecord": "",
    "missing.tfrecord": "",
    "limits.tfrecord": "",
    "gzip.tfrecord.gz": "GZIP",
    "zlib.tfrecord.zlib": "ZLIB",
}
FLOAT_MAX = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
FLOAT_MIN_POSITIVE = 2.0**-126


def expected(name):
    """The records of a file: for each a dict of feature name to (kind, values)."""
    rows = range(10)
    if name == "lists.tfrecord":
        return [
            {
                "floats": ("float", [j * 0.25 for j in range(i % 3)]),
                "ints": ("int64", [i, i + 1, -i]),
                "tags": ("bytes", [b"t%d" % j for j in range(i % 2 + 1)]),
            }
            for i in rows
        ]
    if name == "missing.tfrecord":
        records = []
        for i in rows:
            record = {"id": ("int64", [i])}
            if i % 2 == 0:
                record["even"] = ("float", [float(i)])
            if i % 3 == 0:
                record["third"] = ("bytes", [b"x"])
            records.append(record)
        return records
    if name == "limits.tfrecord":
        return [
            {
                "bytes": ("bytes", [b"", bytes(range(256))]),
                "floats": ("float", [FLOAT_MAX, FLOAT_MIN_POSITIVE, -0.0, math.inf]),
                "ints": ("int64", [-(2**63), -1, 0, 2**63 - 1]),
            }
        ]
    return [
        {"bytes": ("bytes", [b"v%d" % i]), "float": ("float", [i * 0.5]), "int": ("int64", [i - 5])} for i in rows
    ]


def to_feature(kind, values):
    if kind == "float":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if kind == "int64":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write(folder):
    for name, compression in NAMES.items():
        path = os.path.join(folder, "tf_" + name)
        with tf.io.TFRecordWriter(path, options=compression) as writer:
            for record in expected(name):
                feature = {key: to_feature(*value) for key, value in record.items()}
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
        print(path, "written")


def check(folder):
    for name, compression in NAMES.items():
        path = os.path.join(folder, "tfos_" + name)
        found = []
        for raw in tf.data.TFRecordDataset(path, compression_type=compression).as_numpy_iterator():
            record = {}
            for key, feature in tf.train.Example.FromString(raw).features.feature.items():
                kind = feature.WhichOneof("kind")
                record[key] = (kind.removesuffix("_list"), list(getattr(feature, kind).value))
            found.append(record)
        if found != expected(name):
            sys.exit(f"{path}: found {found}")
        print(path, "is as expected")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "check"):
        sys.exit("usage: tfrecord_interop.py write|check DIR")
    {"write": write, "check": check}[sys.argv[1]](sys.argv[2])
