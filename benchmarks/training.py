"""Samples a second of the training engine, beside the common alternatives and the machine's ceiling.

    python -m benchmarks.training [--models lenet_300_100 conv4 …] [--seconds 4] [--torch PYTHON]

For each model and precision, in one run, all on both cores (or as many as there are):

- engine: this project's Trainer, one process with a thread a core, and one single-threaded process a core;
- fit: tf_keras Model.fit of the same model;
- notebook: a GradientTape step called from Python over a tf.data dataset, gradients multiplied by masks;
- torch: PyTorch with the same layers, where `--torch` names a Python that has it (channels_last, autocast
  for bfloat16; one process with a thread a core, and one single-threaded process a core);
- ceiling: FLOPs of a sample over the measured rate of large matrix products in that precision.

Every configuration is timed in processes of its own. Prints a Markdown table; machines are noisy, so read ratios.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
BATCH = 60
SHAPES = {
    "lenet_300_100": (28, 28, 1),
    "conv2": (32, 32, 3),
    "conv4": (32, 32, 3),
    "conv6": (32, 32, 3),
}
STEPS = {
    "lenet_300_100": 200,
    "conv2": 20,
    "conv4": 10,
    "conv6": 10,
}  # between two looks at the clock


def flops_per_sample(model: str) -> float:
    """Multiply-adds times two, forward and backward; the first layer needs no gradient of its input."""
    height, width, channels = SHAPES[model]
    forward: list[float] = []
    if model == "lenet_300_100":
        sizes = [height * width * channels, 300, 100, 10]
    else:
        for pair in range(int(model.removeprefix("conv")) // 2):
            for _ in range(2):
                forward.append(2.0 * height * width * 9 * channels * (64 << pair))
                channels = 64 << pair
            height, width = height // 2, width // 2
        sizes = [height * width * channels, 256, 256, 10]
    forward += [2.0 * a * b for a, b in itertools.pairwise(sizes)]
    return 3 * sum(forward) - forward[0]


def data(model: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3000, *SHAPES[model]), dtype=np.uint8)
    return images, generator.integers(0, 10, 3000).astype(np.int32)


def timed(step, samples: int, seconds: float) -> float:
    """Samples a second of a call that trains so many; the first two calls (tracing, caches) are not counted."""
    step()
    step()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step()
        done += samples
    return done / (time.perf_counter() - begun)


def engine(model: str, precision: str, threads: int, seconds: float) -> float:
    from lottery.datasets.dataset import Dataset
    from lottery.datasets.split import Split
    from lottery.masks import Mask
    from lottery.params import Train
    from lottery.training import device, models, trainer
    from lottery.training.schedule import Order

    device.configure(threads)
    images, labels = data(model)
    dataset = Dataset(images, labels, {"image_shape": SHAPES[model], "classes": 10, "test": 10})
    train = Train(
        optimizer="adam",
        learning_rate=3e-4,
        batch_size=BATCH,
        iterations=10**6,
        evaluate_every=100,
        precision=precision,
    )
    network = _network(model)
    engine = trainer.Trainer(network.model, train, dataset)
    weights, kinds = models.initialise(network, "initialisation", 0)
    mask = Mask.full({name: weights[name].shape for name in kinds})
    rows = np.arange(len(labels), dtype=np.int32)
    split, order, steps = Split(rows, rows[:10], rows[:10]), Order("benchmark", 0), STEPS[model]
    engine.run(weights, mask, order, split, iterations=1)
    return timed(
        lambda: engine.train_interval(order, split, 0, 0, steps)[0].numpy(), steps * BATCH, seconds
    )


def _network(model: str) -> Any:
    from lottery.params import Model, Network

    return Network(Model(name=model, initializer="glorot_normal"), SHAPES[model], 10)


def _keras(model: str, precision: str, threads: int):
    import tensorflow as tf

    from lottery.training import device, models

    device.configure(threads)
    tf.random.set_seed(0)  # Model.fit shuffles
    network = models.build(_network(model), precision)
    images, labels = data(model)
    return network, (images / 255.0).astype(np.float32), labels


def fit(model: str, precision: str, threads: int, seconds: float) -> float:
    import tf_keras

    network, images, labels = _keras(model, precision, threads)
    network.compile(
        tf_keras.optimizers.legacy.Adam(3e-4),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ["accuracy"],
    )
    n = STEPS[model] * BATCH if STEPS[model] * BATCH <= 3000 else 3000
    return timed(
        lambda: network.fit(images[:n], labels[:n], batch_size=BATCH, verbose=0), n, seconds
    )


def notebook(model: str, precision: str, threads: int, seconds: float) -> float:
    import tensorflow as tf
    import tf_keras

    network, images, labels = _keras(model, precision, threads)
    optimizer = tf_keras.optimizers.legacy.Adam(3e-4)
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    masks = [tf.ones_like(v) for v in network.trainable_variables]

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, network(x, training=True))
        gradients = tape.gradient(loss, network.trainable_variables)
        gradients = [g * m for g, m in zip(gradients, masks, strict=True)]
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return loss

    n = min(STEPS[model] * BATCH, 3000)
    batches = (
        tf.data.Dataset.from_tensor_slices((images[:n], labels[:n])).shuffle(n, seed=0).batch(BATCH)
    )

    def epoch() -> None:
        for x, y in batches:
            train_step(x, y)

    return timed(epoch, n, seconds)


def ceiling(model: str, precision: str, threads: int, seconds: float) -> float:
    import tensorflow as tf

    from lottery.training import device

    device.configure(threads)
    n = 1024
    a, b = (tf.cast(tf.random.stateless_normal((n, n), (1, i)), precision) for i in (0, 1))
    multiply = tf.function(lambda: tf.reduce_sum(tf.cast(tf.matmul(a, b)[0, :1], tf.float32)))
    return timed(lambda: multiply().numpy(), 1, seconds) * 2 * n**3 / flops_per_sample(model)


def torch(model: str, precision: str, threads: int, seconds: float) -> float:
    import torch as t
    from torch import nn

    t.set_num_threads(threads)
    height, width, channels = SHAPES[model]
    layers: list = []
    if model != "lenet_300_100":
        for pair in range(int(model.removeprefix("conv")) // 2):
            for _ in range(2):
                layers += [nn.Conv2d(channels, 64 << pair, 3, padding=1), nn.ReLU()]
                channels = 64 << pair
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    sizes = [height * width * channels, *((300, 100) if model == "lenet_300_100" else (256, 256))]
    layers.append(nn.Flatten())
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(sizes[-1], 10)).to(memory_format=t.channels_last)
    images, labels = data(model)
    x = (
        t.from_numpy(images)
        .permute(0, 3, 1, 2)
        .float()
        .div(255)
        .contiguous(memory_format=t.channels_last)
    )
    y = t.from_numpy(labels).long()
    optimizer = t.optim.Adam(network.parameters(), 3e-4, fused=True)
    masks = [t.ones_like(p) for p in network.parameters()]
    order = t.randperm(3000)

    def steps() -> None:
        for i in range(10):
            rows = order[i * BATCH : (i + 1) * BATCH]
            with t.autocast("cpu", t.bfloat16, enabled=precision == "bfloat16"):
                loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            for parameter, mask in zip(network.parameters(), masks, strict=True):
                parameter.grad.mul_(mask)
            optimizer.step()

    return timed(steps, 10 * BATCH, seconds)


WHAT = {f.__name__: f for f in (engine, fit, notebook, torch, ceiling)}


def measure(
    python: str, what: str, model: str, precision: str, processes: int, threads: int, seconds: float
) -> float:
    """Samples a second of so many processes together, started at the same time."""
    command = [
        python,
        "-m",
        "benchmarks.training",
        "--one",
        what,
        model,
        precision,
        str(threads),
        str(seconds),
    ]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_USE_LEGACY_KERAS": "1",
    }
    running = [
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for _ in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        return float("nan")
    return sum(json.loads(output.splitlines()[-1]) for output in outputs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument(
        "--precisions", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each timing")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python with PyTorch")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, model, precision, threads, seconds = options.one
        print(json.dumps(WHAT[what](model, precision, int(threads), float(seconds))))
        return
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    print(
        f"samples/s on {cores} cores; 1×{cores}: one process, {cores} threads; {cores}×1: {cores} processes, 1 thread\n"
    )
    columns = [
        (what, python, *shape)
        for what, python in (
            ("engine", sys.executable),
            ("fit", sys.executable),
            ("notebook", sys.executable),
            ("torch", options.torch),
            ("ceiling", sys.executable),
        )
        if python
        for shape in ((1, cores), (cores, 1))
    ]
    print(
        "| model | precision | "
        + " | ".join(f"{w} {p}×{t}" for w, _, p, t in columns)
        + " | best engine / ceiling |"
    )
    print("|---|---|" + "--:|" * (len(columns) + 1), flush=True)
    for model in options.models:
        for precision in options.precisions:
            rates = {
                (w, p): measure(python, w, model, precision, p, t, options.seconds)
                for w, python, p, t in columns
            }
            best = {w: max(r for (what, _), r in rates.items() if what == w) for w, *_ in columns}
            cells = [f"{rates[w, p]:,.0f}" for w, _, p, _ in columns]
            print(
                f"| {model} | {precision} | "
                + " | ".join(cells)
                + f" | {best['engine'] / best['ceiling']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
