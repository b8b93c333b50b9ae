"""The formats of an export: each is written, read back by its own runtime and measured."""

import contextlib
import gzip
import json
import os
import sys
import tempfile
import time
import timeit
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lottery.artifacts import files
from lottery.datasets.split import Part, scaled
from lottery.errors import LotteryError
from lottery.masks import Mask

Logits = Callable[[np.ndarray], np.ndarray]
"""What every format holds: from ``images``, float32 ``[n, height, width, channels]`` in [0, 1] or
other examples ``[n, …]``, to ``logits``, float32 ``[n, classes]``."""

BATCH = 100  # images of the second latency
SECONDS = 0.3  # that a network is timed for
ROUNDING = {"float32": 1e-4, "bfloat16": 2**-5}
"""How far logits may be from another machine's, runtime's or precision's, of the largest: kernels
sum in another order; bfloat16 keeps 8 bits, which is 2^-9 a rounding, over several layers."""


class Exported(NamedTuple):
    """What is exported: a float32 Keras model that holds its weights, and what goes with it."""

    model: Any
    mask: Mask
    facts: Mapping[str, Any]  # JSON; goes into the metadata
    calibration: np.ndarray  # training images as networks take them, float32 [n, …]


def savedmodel(exported: Exported, path: Path) -> Logits:
    """A Keras SavedModel, a folder."""
    import tf_keras

    exported.model.save(path, save_format="tf", include_optimizer=False)
    return of_keras(tf_keras.models.load_model(path, compile=False))


def tflite(exported: Exported, path: Path, *, int8: bool = False) -> Logits:
    """TFLite; ``int8``: in 8 bits, with ranges seen on training images, between float32 ends."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(exported.model)
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([x[np.newaxis]] for x in exported.calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    files.write(path, converter.convert())
    interpreter = tf.lite.Interpreter(str(path), num_threads=1)
    given, taken = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def logits(images: np.ndarray) -> np.ndarray:
        """Of images, by TFLite's interpreter."""
        interpreter.resize_tensor_input(given["index"], images.shape)  # nothing, at the same shape
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(taken["index"])

    return logits


def onnx(exported: Exported, path: Path) -> Logits:
    """ONNX, opset 17, with the facts in its metadata."""
    import onnx as standard
    import onnxruntime
    import tensorflow as tf
    import tf2onnx.convert

    images = tf.TensorSpec(exported.model.input_shape, tf.float32, "images")
    model = tf.function(
        lambda images: {"logits": exported.model(images, training=False)}, autograph=False
    )
    converted, _ = tf2onnx.convert.from_function(model, input_signature=[images], opset=17)
    standard.helper.set_model_props(converted, {"lottery": json.dumps(exported.facts)})
    for tensor in (*converted.graph.input, *converted.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    standard.checker.check_model(converted)
    files.write(path, converted.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def safetensors(exported: Exported, path: Path) -> Logits:
    """One bit a prunable weight, and the values of those that survive."""
    from lottery.training.models import variables

    values = variables(exported.model)
    weights = {name: value.numpy() for name, value in values.items()}
    files.write_masked_weights(path, weights, exported.mask, exported.facts)
    for name, value in files.read_masked_weights(path)[0].items():
        values[name].assign(value)
    return of_keras(exported.model)


class Format(NamedTuple):
    """A format: its file, and what writes it and gives its logits by the format's own runtime."""

    file: str
    title: str
    write: Callable[[Exported, Path], Logits]
    exact: bool = True  # float32, not 8 bits a value


_INT8 = partial(tflite, int8=True)
FORMATS = {
    "savedmodel": Format("savedmodel", "Keras SavedModel", savedmodel),
    "tflite": Format("ticket.tflite", "TFLite", tflite),
    "tflite-int8": Format("ticket-int8.tflite", "TFLite, int8", _INT8, exact=False),
    "onnx": Format("ticket.onnx", "ONNX", onnx),
    "safetensors": Format("ticket.safetensors", "mask and values, safetensors", safetensors),
}


def of_keras(model: Any) -> Logits:
    """A Keras model, compiled, as TensorFlow runs it."""
    import tensorflow as tf

    compiled = tf.function(model, autograph=False)
    return lambda images: compiled(tf.constant(images), training=False).numpy()


def in_batches(logits: Logits, images: np.ndarray) -> np.ndarray:
    """Logits of a dataset's images ``[n, …]``: float32 ``[n, classes]``."""
    parts = range(0, len(images), 500)
    return np.concatenate([logits(scaled(images[i : i + 500])) for i in parts])


def written(
    name: str, exported: Exported, folder: Path, test: Part, expected: np.ndarray
) -> dict[str, Any]:
    """Writes a format; its row of the table. LotteryError: it cannot, or its logits differ."""
    file, title, write, exact = FORMATS[name]
    with attempt(f"--formats {name}: not written; leave it out, or see docs/export.md"):
        logits = write(exported, folder / file)
        row = measured(logits, content(folder / file), test, expected)
    if exact and not row["distance"] <= ROUNDING["float32"]:  # NaN is refused too
        raise LotteryError(
            f"--formats {name}: logits are {row['distance']:.1e} of the largest away from the "
            f"pipeline's; accepted: {ROUNDING['float32']:g}; leave it out"
        )
    return {"title": title, "file": file, **row}


def content(path: Path) -> bytes:
    """Of a file, or of all files in a folder, one after another."""
    members = sorted(member for member in path.rglob("*") if member.is_file())
    return b"".join(member.read_bytes() for member in members or [path])


def measured(logits: Logits, stored: bytes, test: Part, expected: np.ndarray) -> dict[str, Any]:
    """What a file costs, and gives where ``expected``, float32 ``[n, classes]``, is right.

    ``distance`` is that of the logits, as a share of the largest.
    """
    given = in_batches(logits, test.images)
    classes = given.argmax(axis=1)
    return {
        "bytes": len(stored),
        "gzip": len(gzip.compress(stored)),
        "test_accuracy": float(np.mean(classes == test.labels)),
        "classed_otherwise": int(np.sum(classes != expected.argmax(axis=1))),
        "distance": float(np.abs(given - expected).max() / (np.abs(expected).max() or 1.0)),
    }


def latencies(
    networks: Mapping[str, Any], names: Iterable[str], exported: Exported, images: np.ndarray
) -> list[dict[str, Any]]:
    """How large and how fast Keras models are in each format that has a runtime of its own.

    A row a format and network: ``bytes`` of its files, milliseconds a call of the first image
    (``one_image``) and of all (``batch``), float32 ``[n, …]``, in one thread unless TensorFlow was
    given more. The first network is what others are compared with.
    """
    rows = []
    for name in names:
        file, title, write, _ = FORMATS[name]
        if name == "safetensors":  # TensorFlow runs it, as it does the SavedModel
            continue
        with (
            tempfile.TemporaryDirectory() as folder,
            attempt(f"--formats {name}: not timed; leave it out, or --no-latency"),
        ):
            paths = {key: Path(folder) / f"{i}-{file}" for i, key in enumerate(networks)}
            logits = {
                key: write(exported._replace(model=networks[key]), paths[key]) for key in paths
            }
            table = pd.DataFrame({"bytes": {key: len(content(paths[key])) for key in paths}})
            table["one_image"] = milliseconds(logits, images[:1])
            table["batch"] = milliseconds(logits, images)
        table["times_as_fast"] = table["batch"].iloc[0] / table["batch"]
        values = table.to_dict("index")
        rows += [{"format": title, "network": key, **values[key]} for key in networks]
    return rows


def milliseconds(logits: Mapping[str, Logits], images: np.ndarray) -> dict[str, float]:
    """Of a call of each: the median of turns of 5 ms, at least five, which the networks take one
    after another, so that what else the machine does meets all alike; after three calls to warm up.
    """
    timers = [timeit.Timer(partial(call, images)) for call in logits.values()]
    calls = [int(0.005 / min(timer.repeat(3, 1))) + 1 for timer in timers]
    turns, end = list[list[float]](), time.perf_counter() + SECONDS * len(timers)
    while len(turns) < 5 or time.perf_counter() < end:
        turns.append([t.timeit(n) / n for t, n in zip(timers, calls, strict=True)])
    return dict(zip(logits, 1000 * np.median(turns, axis=0), strict=True))


@contextlib.contextmanager
def attempt(what: str) -> Iterator[None]:
    """Makes a LotteryError of whatever a converter raises, and drops what it prints as errors."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere, warnings.catch_warnings(action="ignore"):
            os.dup2(nowhere.fileno(), 2)
            yield
    except (LotteryError, OSError):
        raise
    except Exception as error:  # nearly anything
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise LotteryError(f"{what} ({why})") from error
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
