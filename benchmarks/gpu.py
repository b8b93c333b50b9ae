"""Checks a GPU and measures it: is training right there, the same every time, how fast, and how many replicates pay.

    PYTHONPATH=. python benchmarks/gpu.py --out table.md [--minutes 5] [--replicates 1 2 4 8 16] [--quick]

Needs no dataset, no network and, besides TensorFlow and tf_keras, only numpy, pydantic, ruamel.yaml and safetensors. Without a GPU
it says so and measures the CPU. Replicates are processes of their own on one GPU. The time goes to what says most
first; what it did not suffice for is "not measured". Progress goes to stderr, the Markdown report to stdout and --out.
"""

import argparse
import contextlib
import gc
import hashlib
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.training import SHAPES, flops_per_sample, timed

EPOCH = {model: 55_000 if model == "lenet_300_100" else 45_000 for model in SHAPES}
FIRST, THEN = ("conv4", "lenet_300_100"), ("conv2", "conv6")
CHECKED = {
    "lenet_300_100": (28, 28, 1),
    "conv2": (16, 16, 3),
}  # one core computes the reference: no larger images
BEGUN = time.monotonic()


@dataclass(frozen=True)
class Mode:
    """How a network computes."""

    precision: str = "float32"
    tf32: bool = False
    jit: bool = False

    @property
    def name(self) -> str:
        return ("TF32" if self.tf32 else self.precision) + (", XLA" if self.jit else "")


Case = tuple[str, Mode]  # a model, and how it computes
MODES = (Mode(), Mode(tf32=True), Mode("bfloat16"))


@dataclass(frozen=True)
class Scale:
    """How much is done of each thing."""

    images: int  # of a training set, at most
    held_out: int  # images in each of validation and test set
    batch: int
    checked: int  # iterations beside the reference
    repeated: int  # iterations of the runs whose bytes are compared
    together: int  # iterations between two returns to Python
    seconds: float  # of one timing
    side: int  # of the matrices multiplied


GPU = Scale(55_000, 500, 60, checked=20, repeated=100, together=100, seconds=2.0, side=8192)
CPU = Scale(55_000, 100, 60, checked=20, repeated=10, together=5, seconds=3.0, side=1024)
QUICK = Scale(600, 8, 4, checked=3, repeated=2, together=2, seconds=0.2, side=256)


class Failure(str):
    """Why there is no figure."""


LIMIT = 60.0  # seconds for one task: a hopeless one must not take the time of all others
NOT_MEASURED, OUT_OF_MEMORY = Failure("not measured"), Failure("out of memory")
TOO_SLOW = Failure(f"no result in {LIMIT:.0f} s")


class Speed(NamedTuple):
    samples: float  # a second
    device_memory: int  # bytes at the peak, 0 on the CPU
    host_memory: int  # bytes resident, 0 where the system does not say


# What a worker does. TensorFlow is imported there only: the command itself holds none of the GPU's memory.

HELD: dict[Case, Any] = {}  # the one trainer in memory, with what it trains


def begin(model: str, mode: Mode, shape: tuple[int, int, int], scale: Scale, every: int) -> tuple:
    """A trainer of synthetic images, these, and what a run takes: weights, half of them masked, order, split."""
    import tensorflow as tf

    from lottery.datasets.dataset import Dataset
    from lottery.datasets.split import Split
    from lottery.masks import Mask
    from lottery.params import Model, Network, Train
    from lottery.training import models, trainer
    from lottery.training.schedule import Order

    HELD.clear()
    gc.collect()
    tf.config.experimental.enable_tensor_float_32_execution(mode.tf32)
    if tf.config.get_visible_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
    generator = np.random.default_rng(0)
    count = min(EPOCH[model], scale.images)
    total = count + 2 * scale.held_out
    dataset = Dataset(
        generator.integers(0, 256, (total, *shape), np.uint8),
        generator.integers(0, 10, total, np.int32),
        {"image_shape": shape, "classes": 10, "test": scale.held_out},
    )
    ends = count, count + scale.held_out
    split = Split(*(part.astype(np.int32) for part in np.split(np.arange(total), ends)))
    train = Train(
        optimizer="adam",
        learning_rate=3e-4,
        batch_size=scale.batch,
        iterations=10**6,
        evaluate_every=every,
        precision=mode.precision,
        jit_compile=mode.jit,
    )
    network = Network(Model(name=model, initializer="glorot_normal"), shape, 10)
    engine = trainer.Trainer(network.model, train, dataset)
    weights, kinds = models.initialise(network, "initialisation", 0)
    mask = Mask({name: generator.random(weights[name].shape) < 0.5 for name in kinds})
    return engine, dataset, (mask.apply(weights), mask, Order("benchmark", 0), split)


def device() -> dict[str, str]:
    """What TensorFlow says of the device; no compute capability: there is no GPU."""
    import tensorflow as tf

    from lottery.training.device import device_name

    found = {"Device": device_name(), "TensorFlow": tf.__version__}
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details, build = (
            tf.config.experimental.get_device_details(gpus[0]),
            tf.sysconfig.get_build_info(),
        )
        found["Compute capability"] = ".".join(
            map(str, details.get("compute_capability", ["not told"]))
        )
        found["CUDA, cuDNN"] = (
            f"{build.get('cuda_version')}, {build.get('cudnn_version')} (TensorFlow's build)"
        )
        found["GPUs"] = f"{len(gpus)}, of which one is used"
    return found


def matrix_rate(mode: Mode, scale: Scale) -> float:
    """FLOP/s of products of two large square matrices."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(mode.tf32)
    a, b = (
        tf.cast(tf.random.stateless_normal((scale.side,) * 2, (1, i)), mode.precision)
        for i in (0, 1)
    )
    multiply = tf.function(lambda: tf.matmul(a, b))

    def five() -> None:
        products = [multiply() for _ in range(5)]
        products[-1][0, 0].numpy()

    return timed(five, 5, scale.seconds) * 2 * scale.side**3


def largest_difference(model: str, mode: Mode, scale: Scale) -> float:
    """Over iterations and variables: ‖engine's update − reference's‖ / ‖reference's‖."""
    from benchmarks.reference import beside_reference

    engine, dataset, (weights, mask, order, split) = begin(
        model, mode, CHECKED[model], scale, every=1
    )
    steps = beside_reference(engine, dataset, split, weights, mask, order, iterations=scale.checked)
    norm = np.linalg.norm
    return float(
        np.max(
            [norm(s.moved[n] - s.update[n]) / norm(s.update[n]) for s in steps for n in s.update]
        )
    )


def digest(model: str, mode: Mode, scale: Scale) -> str:
    """Of all bytes of a run's result: weights, optimiser slots and history."""
    engine, _, run = begin(model, mode, SHAPES[model], scale, every=scale.repeated // 2)
    state = engine.run(*run, iterations=scale.repeated)
    values = [state.weights[n] for n in sorted(state.weights)] + [
        state.slots[n] for n in sorted(state.slots)
    ]
    return hashlib.sha256(
        b"".join(v.tobytes() for v in values) + repr(state.history).encode()
    ).hexdigest()


def prepare(model: str, mode: Mode, scale: Scale) -> None:
    """Traces, trains and evaluates once, unless that is done."""
    if (model, mode) not in HELD:
        engine, _, run = begin(model, mode, SHAPES[model], scale, every=scale.together)
        engine.run(*run, iterations=scale.together)
        HELD[model, mode] = engine, *run[2:], scale.together


def measure(start: float, stop: float) -> Speed:
    """Trains from now until after ``stop`` (of the clock all processes share); counts what lies in between."""
    import tensorflow as tf

    ((engine, order, split, steps),) = HELD.values()
    times = [time.monotonic()]
    while times[-1] < stop:
        engine.train_interval(order, split, 0, 0, steps)[0].numpy()
        times.append(time.monotonic())
    first, last = np.interp([start, stop], times, np.arange(len(times)))
    gpu = tf.config.get_visible_devices("GPU")
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpu else 0
    statm = Path("/proc/self/statm")
    host = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
    return Speed(float(last - first) * steps * engine.train.batch_size / (stop - start), peak, host)


TASKS = {f.__name__: f for f in (device, matrix_rate, largest_difference, digest, prepare, measure)}


def serve(connection: Any) -> None:
    """A worker's life: tasks in, results out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from lottery.training.device import configure

    tf.get_logger().setLevel("ERROR")  # that it traces again and again is meant
    configure(1)
    while True:
        name, arguments = connection.recv()
        try:
            connection.send(TASKS[name](*arguments))
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            full = any(
                sign in text.lower()
                for sign in ("resourceexhausted", "out of memory", "alloc_failed")
            )
            connection.send(OUT_OF_MEMORY if full else Failure(f"failed: {text}"))


class Worker:
    """A process that does tasks in turn; one that has ended is started afresh for the next task."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, task: str, *arguments: Any) -> None:
        if not self.process.is_alive():
            self.start()
        with contextlib.suppress(ConnectionError):  # it has just ended: receive says so
            self.connection.send((task, arguments))

    def receive(self, until: float) -> Any:
        try:
            if self.connection.poll(max(0.0, until - time.monotonic())):
                return self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Failure(f"failed: the process ended with exit code {self.process.exitcode}")
        self.stop()
        return TOO_SLOW

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


# What the command does.


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGUN:4.0f} s] {text}", file=sys.stderr, flush=True)


def ask(calls: Sequence[tuple], deadline: float, limit: float = LIMIT) -> list[Any]:
    """The results of (worker, task, arguments …), all begun at once; failures among them."""
    until = min(deadline, time.monotonic() + limit)
    answers = []
    if time.monotonic() < deadline:
        for worker, task, *arguments in calls:
            worker.send(task, *arguments)
        answers = [worker.receive(until) for worker, *_ in calls]
    return answers if time.monotonic() < deadline else [NOT_MEASURED] * len(calls)


def side_by_side(
    workers: list[Worker], deadline: float, case: Case, count: int, scale: Scale
) -> Any:
    """The Speed of so many replicates together, timed over the same seconds once all are ready; or a Failure."""
    for last in (False, True):
        answers = ask([(w, "prepare", *case, scale) for w in workers[:count]], deadline)
        if not any(isinstance(a, Failure) for a in answers):
            start = time.monotonic() + 0.2
            answers = ask(
                [(w, "measure", start, start + scale.seconds) for w in workers[:count]], deadline
            )
        failures = [a for a in answers if isinstance(a, Failure)]
        if not failures:
            samples, peaks, host = zip(*answers, strict=True)
            return Speed(sum(samples), max(peaks), max(host))
        if last or OUT_OF_MEMORY not in failures:
            break
        for (
            worker
        ) in workers:  # an idle process keeps the memory that it once used: again, without any
            worker.stop()
    return OUT_OF_MEMORY if OUT_OF_MEMORY in failures else failures[0]


def repeat(
    workers: list[Worker], deadline: float, cases: Sequence[Case], scale: Scale
) -> dict[Case, Any]:
    """Of each case "yes", "no" or a Failure: whether the other processes get the same bytes as the first."""
    alone = [ask([(workers[0], "digest", *case, scale)], deadline) for case in cases]
    found = {}
    for case, digests in zip(cases, alone, strict=True):
        if not isinstance(digests[0], Failure):
            digests += ask([(w, "digest", *case, scale) for w in workers[1:]], deadline)
        failures = [d for d in digests if isinstance(d, Failure)]
        found[case] = failures[0] if failures else "yes" if len(set(digests)) == 1 else "no"
        say(f"{case[0]}, {case[1].name}: the same bytes again: {found[case]}")
    return found


def order_of_cells(kinds: Sequence[Case], counts: Sequence[int]) -> list[tuple[Case, int]]:
    """What says most first: of 8 replicates and more, 1 and 8 of everything, then the other counts, the largest first."""
    early = [n for n in counts if n in (1, 8) or max(counts) < 8]
    later = sorted(set(counts) - set(early), reverse=True)
    return [(case, n) for some in (early, later) for case in kinds for n in some]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def of_this_machine(processes: int) -> dict[str, str]:
    """What TensorFlow does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found = {
        "Host": f"{names[0] if names else platform.machine()}, {cores()} cores for this process"
    }
    smi = shutil.which("nvidia-smi")
    if smi:
        query = [
            smi,
            "--query-gpu=memory.total,memory.used,driver_version",
            "--format=csv,noheader",
        ]
        with contextlib.suppress(subprocess.SubprocessError):
            answer = subprocess.run(
                query, capture_output=True, text=True, timeout=4, check=True
            ).stdout
            key = f"Memory, of which in use in the end, with {processes} processes, and driver (nvidia-smi)"
            found[key] = "; ".join(answer.split("\n")).strip("; ")
    return found


def shown(value: Any, form: str = "{}") -> str:
    """A figure, or why there is none."""
    return (
        " ".join(value.replace("|", "/").split())[:120]
        if isinstance(value, Failure)
        else form.format(value)
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["---" if i == 0 else "--:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *rows))


def by_model(found: dict[Case, Any], form: str = "{}") -> str:
    """A table with a line a model and a column a mode."""
    modes = list(dict.fromkeys(mode for _, mode in found))
    models = dict.fromkeys(model for model, _ in found)
    rows = [
        [model, *(shown(found.get((model, mode), "–"), form) for mode in modes)] for model in models
    ]
    return table(["model", *(mode.name for mode in modes)], rows)


def speed_row(case: Case, count: int, speed: Any, rate: Any) -> list[str]:
    """One line of the table of speeds; ``rate`` is that of matrix products with what the replicates have, FLOP/s."""
    begin = [case[0], case[1].name, str(count)]
    if isinstance(speed, Failure):
        return [*begin, shown(speed), "", "", "", ""]
    share = rate if isinstance(rate, Failure) else speed.samples * flops_per_sample(case[0]) / rate
    epoch = EPOCH[case[0]] * count / speed.samples
    memory = [f"{size / 2**20:,.0f}" if size else "–" for size in speed[1:]]
    return [*begin, f"{speed.samples:,.0f}", f"{epoch:,.1f}", shown(share, "{:.1%}"), *memory]


REPORT = """# Training on one {device}

{facts}

{no_gpu}Images and labels are random; batches of {scale.batch}, Adam, half of the weights pruned, deterministic kernels, one thread a
process. float32: TF32 is off. TF32: it is on. bfloat16: computes in bfloat16, weights are float32. XLA: `jit_compile` is on.

## Is it right?

The largest ‖update − reference‖ / ‖reference‖ of any variable in {scale.checked} iterations. The reference computes each
iteration in float64, on the CPU, from the engine's own state before it. Adam's first updates have nearly one size
whatever the gradient's, so where a gradient is about 0 its rounding errors weigh as much as the rest.

{differences}

## Is it the same every time?

Runs of {scale.repeated} iterations: in one process alone, then in {others} other(s) that did nothing before, all at once. "yes": in
all of them the same weights, optimiser slots and history, byte for byte.

{repeats}

## How fast is it?

Products of two {scale.side}×{scale.side} matrices, by TensorFlow in one process alone:

{rates}

Replicates are processes that train side by side, timed over the same {scale.seconds:g} s once all have traced, {scale.together} iterations a
call; evaluation is not in the time.

- samples/s: of all replicates together
- epoch: seconds in which each of them passes once over 55,000 images (LeNet) or 45,000 (the others), computed from samples/s
- share: floating-point operations of the layers, forward and backward, over the rate of matrix products above{threads}
- GPU memory: the most that TensorFlow allocated in one process, evaluation in batches of {scale.held_out} included; CUDA's own not
- host memory: resident in the largest process afterwards; processes are used again, so it holds traces of earlier rows

{speeds}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="a file for the report")
    parser.add_argument("--minutes", type=float, default=5.0, help="the time that all may take")
    parser.add_argument(
        "--replicates",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16],
        help="on the CPU: up to its cores",
    )
    parser.add_argument(
        "--quick", action="store_true", help="much less of everything: does it work at all?"
    )
    options = parser.parse_args()
    deadline = BEGUN + 60 * options.minutes - 5  # the rest is for ending and writing
    workers = [Worker(), Worker()]
    (device,) = ask([(workers[0], "device")], deadline, limit=math.inf)
    if isinstance(device, Failure):
        sys.exit(f"TensorFlow did not start: {device}")
    say(str(device))
    gpu = "Compute capability" in device
    scale = QUICK if options.quick else GPU if gpu else CPU
    counts = sorted({n for n in options.replicates if n >= 1 and (gpu or n <= cores())} or {1})
    modes = [mode for mode in MODES if gpu or not mode.tf32]
    trained = modes[:1] if options.quick else modes
    parts = (FIRST[-1:], ()) if options.quick else (FIRST, THEN)
    first, then = ([(model, mode) for model in models for mode in trained] for models in parts)
    repeated = first + [("lenet_300_100", replace(mode, jit=True)) for mode in trained]
    kinds = first if options.quick else repeated + then

    rates = {mode: ask([(workers[0], "matrix_rate", mode, scale)], deadline)[0] for mode in modes}
    say(f"matrix products, FLOP/s: {[shown(rate, '{:.3g}') for rate in rates.values()]}")
    workers += [Worker() for _ in range(max(counts) - 2)]
    repeats = repeat(workers[:4], deadline, repeated, scale)
    checked = FIRST[-1:] if options.quick else CHECKED
    checks = [(model, mode) for model in checked for mode in modes]
    calls = [
        (workers[i % len(workers)], "largest_difference", *case, scale)
        for i, case in enumerate(checks)
    ]
    differences = dict(zip(checks, ask(calls, deadline), strict=True))
    say(f"largest differences: {[shown(d, '{:.1e}') for d in differences.values()]}")
    speeds = {}
    too_slow = {case for case, found in repeats.items() if found == TOO_SLOW}
    for case, n in order_of_cells(kinds, counts):
        speed = (
            NOT_MEASURED if case in too_slow else side_by_side(workers, deadline, case, n, scale)
        )
        too_slow |= {case} if speed == TOO_SLOW else set()
        speeds[case, n] = speed
        figure = speed if isinstance(speed, Failure) else f"{speed.samples:,.0f} samples/s"
        say(f"{case[0]}, {case[1].name}, {n} side by side: {figure}")

    facts = device | of_this_machine(len(workers))
    rows = []
    for case in sorted(kinds, key=lambda case: list(SHAPES).index(case[0])):
        rate = rates[replace(case[1], jit=False)]
        for n in counts:  # on the CPU each has a thread of its own
            rows.append(
                speed_row(
                    case, n, speeds[case, n], rate if gpu or isinstance(rate, Failure) else rate * n
                )
            )
    head = ["model", "computes in", "replicates", "samples/s", "epoch (s)", "share"]
    text = REPORT.format(
        device="GPU" if gpu else "CPU",
        no_gpu=""
        if gpu
        else "**TensorFlow sees no GPU here: all that follows was measured on the CPU.**\n\n",
        facts="\n".join(f"- {key}: {value}" for key, value in facts.items()),
        scale=scale,
        others=len(workers[1:4]),
        differences=by_model(differences, "{:.1e}"),
        repeats=by_model(repeats),
        rates=table(
            [m.name for m in rates], [[shown(rate, "{:.3g} FLOP/s") for rate in rates.values()]]
        ),
        threads="" if gpu else ", times the replicates: each has one thread",
        speeds=table([*head, "GPU memory (MiB)", "host memory (MiB)"], rows),
    )
    for worker in workers:
        worker.stop()
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
