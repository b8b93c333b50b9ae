"""The formats a ticket is exported in: each is written, and read back by its own runtime.

Every exported model takes float32 images ``[n, height, width, channels]`` in [0, 1], named ``images``, and gives
float32 ``logits [n, classes]``.
"""

import contextlib
import gzip
import importlib.util
import io
import json
import os
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.tools.dead_units import Layer

Logits = Callable[[np.ndarray], np.ndarray]
"""From images, float32 ``[n, height, width, channels]`` in [0, 1], to logits, float32 ``[n, classes]``."""

IMAGES_AT_ONCE = 500
ONNX_OPSET = 17


@dataclass(frozen=True)
class Network:
    """What is exported: a float32 Keras model that holds its weights, and what goes with it."""

    model: Any
    mask: Mask
    facts: Mapping[str, Any]  # JSON; goes into the metadata
    calibration: np.ndarray  # training images, float32 [n, height, width, channels]


def described(model: Any) -> list[Layer]:
    """The layers of a Keras model as removal needs to know them, in the order of computation."""
    from tf_keras import layers as keras

    from lottery.training.models import Dropout

    pools = (
        keras.MaxPooling2D,
        keras.AveragePooling2D,
        keras.GlobalAveragePooling2D,
        keras.GlobalMaxPooling2D,
    )
    found = []
    for layer in model.layers:
        config, shape = layer.get_config(), layer.get_output_shape_at(0)
        kind, more = "other", {}
        if len(layer.inbound_nodes) > 1:  # called several times
            pass
        elif type(layer) is keras.InputLayer:
            kind = "input"
        elif type(layer) is keras.Dense:
            kind, more = "weighted", {"activation": config["activation"]}
        elif type(layer) is keras.Conv2D and config["groups"] == 1:
            pads = config["padding"] == "same" and layer.kernel_size != (1, 1)
            kind, more = "weighted", {"activation": config["activation"], "pads": pads}
        elif type(layer) is keras.BatchNormalization and layer.axis in (-1, [len(shape) - 1]):
            kind, more = "norm", {"epsilon": config["epsilon"]}
        elif type(layer) is keras.Add:
            kind = "add"
        elif type(layer) in (*pools, keras.Dropout, Dropout):
            kind = "each"
        elif type(layer) is keras.ZeroPadding2D:
            kind, more = "each", {"pads": True}
        elif type(layer) is keras.Flatten:
            kind, more = "each", {"positions": int(np.prod(layer.input_shape[1:-1]))}
        elif type(layer) is keras.Activation:
            kind, more = "each", {"activation": config["activation"]}
        elif type(layer) is keras.ReLU and not any(
            config[k] for k in ("max_value", "negative_slope", "threshold")
        ):
            kind, more = "each", {"activation": "relu"}
        if config.get("data_format") == "channels_first" or not isinstance(
            more.get("activation", ""), str
        ):
            kind, more = "other", {}
        inputs = tuple(
            parent.layer.name for node in layer.inbound_nodes for parent in node.parent_nodes
        )
        channels = shape[0][-1] if isinstance(shape, list) else shape[-1]
        found.append(Layer(layer.name, kind, inputs, channels, **more))
    return found


def sized(model: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """A Keras model like another, with as many units in each layer as the weights have, holding them."""
    import tf_keras
    from tf_keras import layers

    from lottery.training.models import variables

    def like(layer: Any) -> Any:
        config = layer.get_config()
        key = {layers.Dense: "units", layers.Conv2D: "filters"}.get(type(layer))
        if key:
            config[key] = weights[f"{layer.name}/kernel"].shape[-1]
        return type(layer).from_config(config)

    same = all(tuple(v.shape) == weights[name].shape for name, v in variables(model).items())
    resized = model if same else tf_keras.models.clone_model(model, clone_function=like)
    for name, variable in variables(resized).items():
        variable.assign(weights[name])
    return resized


def of_keras(model: Any) -> Logits:
    """A Keras model, compiled, as it runs on the CPU."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape, tf.float32)], autograph=False)
    def infer(images: Any) -> Any:
        return model(images, training=False)

    def logits(images: np.ndarray) -> np.ndarray:
        with tf.device("CPU:0"):
            return infer(tf.constant(images)).numpy()

    return logits


def write_savedmodel(network: Network, path: Path) -> None:
    network.model.save(path, save_format="tf", include_optimizer=False)


def read_savedmodel(path: Path) -> Logits:
    import tf_keras

    return of_keras(tf_keras.models.load_model(path, compile=False))


def write_tflite(network: Network, path: Path) -> None:
    import tensorflow as tf

    files.write(path, tf.lite.TFLiteConverter.from_keras_model(network.model).convert())


def write_tflite_int8(network: Network, path: Path) -> None:
    """Weights and activations in 8 bits, with ranges seen on training images; images and logits stay float32."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(network.model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [image[np.newaxis]] for image in network.calibration
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    files.write(path, converter.convert())


def read_tflite(path: Path) -> Logits:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path), num_threads=1)
    (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape: tuple[int, ...] = ()

    def logits(images: np.ndarray) -> np.ndarray:
        nonlocal shape
        if images.shape != shape:
            interpreter.resize_tensor_input(given["index"], images.shape)
            interpreter.allocate_tensors()
            shape = images.shape
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(taken["index"])

    return logits


def write_onnx(network: Network, path: Path) -> None:
    import onnx
    import tensorflow as tf
    import tf2onnx.convert

    images = tf.TensorSpec(network.model.input_shape, tf.float32, "images")
    model = tf.function(
        lambda images: {"logits": network.model(images, training=False)}, autograph=False
    )
    content, _ = tf2onnx.convert.from_function(model, input_signature=[images], opset=ONNX_OPSET)
    onnx.helper.set_model_props(content, {"lottery": json.dumps(network.facts)})
    for tensor in (*content.graph.input, *content.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.checker.check_model(content)
    files.write(path, content.SerializeToString())


def read_onnx(path: Path) -> Logits:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def write_safetensors(network: Network, path: Path) -> None:
    """One bit a prunable weight, and the values of those that survive."""
    from lottery.training.models import variables

    weights = {name: v.numpy() for name, v in variables(network.model).items()}
    files.write_masked_weights(path, weights, network.mask, network.facts)


def read_safetensors(path: Path) -> Logits:
    return of_keras(load_ticket(path))


def load_ticket(path: Path) -> Any:
    """The Keras model of an exported safetensors file; an architecture of one's own must be importable.

    Raises LotteryError where the file is missing, damaged or no export.
    """
    from lottery.training.models import build

    weights, _, facts = files.read_masked_weights(path)
    try:
        name, shape, classes = facts["model"], tuple(facts["image_shape"]), facts["classes"]
    except KeyError as error:
        raise LotteryError(f"{path}: not an exported ticket: its metadata lacks {error}") from None
    return sized(build(name, shape, classes), weights)


class Format(NamedTuple):
    """A format by what writes it and what reads it back; ``quantised``: it keeps 8 bits of a value."""

    file: str
    write: Callable[[Network, Path], None]
    read: Callable[[Path], Logits]
    title: str
    quantised: bool = False
    packages: tuple[str, ...] = ()  # besides those of the pipeline


FORMATS = {
    "savedmodel": Format("savedmodel", write_savedmodel, read_savedmodel, "Keras SavedModel"),
    "tflite": Format("ticket.tflite", write_tflite, read_tflite, "TFLite"),
    "tflite-int8": Format(
        "ticket-int8.tflite", write_tflite_int8, read_tflite, "TFLite, int8", quantised=True
    ),
    "onnx": Format(
        "ticket.onnx", write_onnx, read_onnx, "ONNX", packages=("onnx", "tf2onnx", "onnxruntime")
    ),
    "safetensors": Format(
        "ticket.safetensors", write_safetensors, read_safetensors, "mask and values, safetensors"
    ),
}


def check_installed(formats: list[str]) -> None:
    """Raises LotteryError where a format needs a package that is not there."""
    for name in formats:
        missing = [p for p in FORMATS[name].packages if importlib.util.find_spec(p) is None]
        if missing:
            others = " ".join(n for n, f in FORMATS.items() if not f.packages)
            raise LotteryError(
                f"--formats {name}: not installed: {', '.join(missing)}; `pip install {' '.join(FORMATS[name].packages)}`, "
                f"or leave it out: --formats {others}"
            )


def in_batches(logits: Logits, images: np.ndarray) -> np.ndarray:
    """Logits of uint8 images ``[n, height, width, channels]``: float32 ``[n, classes]``."""
    parts = range(0, len(images), IMAGES_AT_ONCE)
    return np.concatenate([logits(scaled(images[i : i + IMAGES_AT_ONCE])) for i in parts])


def scaled(images: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def latency(logits: Logits, images: np.ndarray, *, seconds: float = 1.0, calls: int = 200) -> float:
    """Milliseconds of one call with all the images: the median of up to so many calls, in about so many seconds."""
    for _ in range(3):
        logits(images)
    times: list[float] = []
    while len(times) < 5 or (len(times) < calls and sum(times) < seconds):
        start = time.perf_counter()
        logits(images)
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def sizes_of(content: bytes) -> tuple[int, int]:
    """Bytes of a file's content, as it is and gzipped."""
    return len(content), len(gzip.compress(content))


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of a file or folder, as they are and gzipped; a folder as a tar.gz."""
    if path.is_file():
        return sizes_of(path.read_bytes())
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(path, path.name)
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()), len(archive.getvalue())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what the converters print and log on standard error; an exception still tells what went wrong."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
