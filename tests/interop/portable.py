"""Models on their way between tfos and PyTorch: the same outputs on both sides.

    python portable.py TFOS DIR

TFOS is the program, DIR an empty folder. The error of an output x of PyTorch is |ours - x| / max(1, |x|), the largest over all
rows and values counts, and more than 1e-6 is a failure. `ours` is what `tfos predict` wrote.
"""

import glob
import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file
from torch import nn

TOLERANCE = 1e-6


class Mlp(nn.Module):
    """The application mnist, --network mlp: its variables have the names of these modules."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(784, 256)
        self.output = nn.Linear(256, 10)

    def forward(self, pixels):
        return self.output(torch.relu(self.hidden(pixels)))


class Block(nn.Conv2d):
    """A convolution without bias, then batch normalization, relu and pooling."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images):
        return nn.functional.max_pool2d(torch.relu(self.norm(super().forward(images))), 2)


class Cnn(nn.Module):
    """The application mnist, --network cnn."""

    def __init__(self):
        super().__init__()
        self.conv1 = Block(1, 8)
        self.conv2 = Block(8, 16)
        self.output = nn.Linear(16 * 7 * 7, 10)

    def forward(self, pixels):
        features = self.conv2(self.conv1(pixels.view(-1, 1, 28, 28))).flatten(1)
        return self.output(nn.functional.dropout(features, 0.25, self.training))


class Spirals(nn.Module):
    """What somebody brings along: normalization, dropout, a condition that only a script keeps."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 32)
        self.norm = nn.BatchNorm1d(32)
        self.forget = nn.Dropout(0.1)
        self.last = nn.Linear(32, 3)

    def forward(self, points):
        if points.dim() == 1:
            points = points.unsqueeze(0)
        return self.last(self.forget(torch.relu(self.norm(self.first(points)))))


class Lab:
    def __init__(self, tfos, folder):
        self.tfos, self.folder, self.bad = tfos, folder, []

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self, *words):
        """A command of tfos that has to succeed; gives the last line of its output, from JSON if it is that."""
        done = subprocess.run([self.tfos, *words], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"tfos {' '.join(words)}: exit code {done.returncode}")
        last = done.stdout.strip().splitlines()[-1]
        return json.loads(last) if last.startswith("{") else last

    def predicted(self, export, data, *more):
        """Rows of `data` with their predictions."""
        output = self.path("predictions.ndjson")
        self.run("predict", export, "--data", data, "--output", output, "--quiet", *more)
        with open(output, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def compare(self, what, ours, theirs):
        ours, theirs = torch.tensor(ours, dtype=torch.float64), theirs.to(torch.float64)
        assert ours.shape == theirs.shape, f"{what}: {ours.shape} and {theirs.shape}"
        error = ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()
        print(f"{what:<56} {len(ours):>5} rows, error {error:.1e}")
        if not error <= TOLERANCE:
            self.bad.append(what)


def pixels(rows):
    return torch.tensor([row["image"] for row in rows], dtype=torch.uint8).to(torch.float32) / 255


@torch.no_grad()
def probabilities(module, weights, rows):
    """Of a module of PyTorch with the values of a file, which has to have each of them and no other."""
    module.load_state_dict(load_file(weights), strict=True)
    return torch.softmax(module.eval()(pixels(rows)), -1)


def from_tfos(lab):
    """Trained by tfos, on one ps and two workers; exported; loaded into the same module in PyTorch."""
    for name, module in (("mlp", Mlp()), ("cnn", Cnn())):
        model = lab.path(name)
        shape = ["--cluster-size", "3", "--num-ps", "1", "--quiet", "--model-dir", model]
        lab.run("submit", *shape, "mnist", "--", "--network", name, "--rows", "1000", "--epochs", "2")
        lab.run("export", model)
        (digits,) = glob.glob(os.path.join(model, "job/digits/eval-*.parquet"))
        export = lab.path(f"{name}-export")
        os.rename(os.path.join(model, "export"), export)
        rows = lab.predicted(export, digits, "--cluster-size", "2")
        theirs = probabilities(module, os.path.join(export, "model.safetensors"), rows)
        lab.compare(f"{name} of tfos in PyTorch", [row["probabilities"] for row in rows], theirs)
    return digits


def from_pytorch(lab, digits):
    """A state_dict of PyTorch: its outputs before any training, then trained by tfos and back again."""
    torch.manual_seed(7)
    module = Cnn()
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.rand(64, 784))
    given, model = lab.path("given.safetensors"), lab.path("imported")
    save_file(module.state_dict(), given)
    said = lab.run("import", given, model, "--application", "mnist", "--output", "json", "--", "--network", "cnn")
    assert len(said["left_out"]) == 2, said
    export = lab.run("export", model, "--output", "json")
    assert export["step"] == 0, export
    rows = lab.predicted(export["export"], digits)
    theirs = probabilities(Cnn(), given, rows)
    lab.compare("cnn of PyTorch in tfos", [row["probabilities"] for row in rows], theirs)
    training = ["--network", "cnn", "--rows", "1000", "--epochs", "1"]
    lab.run("submit", "--quiet", "--model-dir", model, "mnist", "--", *training)
    export = lab.run("export", model, "--output", "json")
    assert export["step"] > 0, export
    weights = os.path.join(model, "export/model.safetensors")
    rows = lab.predicted(export["export"], digits)
    theirs = probabilities(module, weights, rows)
    lab.compare("the same, trained on by tfos", [row["probabilities"] for row in rows], theirs)


def scripted(lab):
    """A TorchScript module: trained by tfos, and the file that it writes loaded by torch.jit."""
    torch.manual_seed(3)
    given, model, data = lab.path("module.pt"), lab.path("spirals"), lab.path("spirals.csv")
    torch.jit.script(Spirals()).save(given)
    radius = torch.rand(3000)
    label = torch.randint(3, (3000,))
    angle = radius * 5 + label * 2.1 + torch.randn(3000) * 0.1
    x, y = radius * angle.sin(), radius * angle.cos()
    with open(data, "w", encoding="utf-8") as file:
        file.write("x,y,label\n")
        points = zip(x.tolist(), y.tolist(), label.tolist(), strict=True)
        file.writelines(f"{a:.6f},{b:.6f},{c}\n" for a, b, c in points)
    columns = ["--module", given, "--data", data, "--features", "x,y", "--label", "label", "--loss", "cross-entropy"]
    training = ["--optimizer", "adam", "--learning-rate", "0.01", "--epochs", "8", "--eval-data", data, "--drop-last"]
    shape = ["--cluster-size", "3", "--num-ps", "1", "--quiet", "--output", "json", "--model-dir", model]
    done = lab.run("submit", *shape, "torchscript", "--", *columns, *training)
    print(f"accuracy on the training rows: {done['metrics']['accuracy']:.3f}")
    assert done["metrics"]["accuracy"] > 0.6, done
    export = lab.run("export", model, "--output", "json")
    assert "module.pt" in export["files"], export
    # Without the model directory: the export is all that is needed.
    os.rename(model, lab.path("elsewhere"))
    moved = lab.path("elsewhere/export")
    rows = lab.predicted(moved, data, "--sql", "SELECT x, y FROM data WHERE x > 0")
    points = torch.tensor([[row["x"], row["y"]] for row in rows], dtype=torch.float64).to(torch.float32)
    ours = [row["output"] for row in rows]
    with torch.no_grad():
        module = torch.jit.load(os.path.join(moved, "module.pt"))
        lab.compare("TorchScript that tfos trained, by torch.jit.load", ours, module(points))
        again = Spirals()
        again.load_state_dict(load_file(os.path.join(moved, "model.safetensors")), strict=True)
        lab.compare("its weights in the module that was scripted", ours, again.eval()(points))


def main(tfos, folder):
    torch.set_num_threads(1)
    lab = Lab(tfos, folder)
    from_pytorch(lab, from_tfos(lab))
    scripted(lab)
    if lab.bad:
        sys.exit(f"more than {TOLERANCE:g} apart: {', '.join(lab.bad)}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: portable.py TFOS DIR")
    main(sys.argv[1], sys.argv[2])
