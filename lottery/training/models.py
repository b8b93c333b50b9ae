"""Networks built and initialised; which of their weights are prunable, and of which kind.

Kernels are prunable, biases and what belongs to batch normalisation are not.
"""

import bisect
import functools
import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lottery import parts
from lottery.errors import LotteryError
from lottery.masks import Weights
from lottery.params import Network
from lottery.streams import stream, stream_seed
from lottery.training import architectures

import tensorflow as tf  # isort: skip  (after architectures, which set TF_USE_LEGACY_KERAS)
import tf_keras  # isort: skip
from tf_keras import layers  # isort: skip


def build(network: Network, precision: str = "float32", *, dropout: float = 0.0) -> tf_keras.Model:
    """An untrained network from images to logits.

    Images are float32 ``[n, height, width, channels]`` in [0, 1], or other examples ``[n, …]``;
    logits float32 ``[n, classes]``.
    With ``precision="bfloat16"`` layers compute in bfloat16; the variables stay float32.

    Args:
        network: its architecture is one of this project, or one's own ``module:function``.
        dropout: share of the hidden dense layers' units dropped, for training alone.

    Raises LotteryError where the architecture takes no width or no dropout.
    """
    name, width = network.model.name, network.model.width
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    architecture = parts.find(vars(architectures), name)
    options = {}
    for option, value, neutral in (("width", width, 1.0), ("dropout", dropout, 0.0)):
        if value != neutral:
            if option not in inspect.signature(architecture).parameters:
                raise LotteryError(
                    f"params.yaml: model.{option}: {name} takes none: "
                    f"its function has no parameter {option}"
                )
            options[option] = value
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        images = layers.Input(network.image_shape, name="images")
        float32 = layers.Activation("linear", dtype="float32", name="logits")
        logits = float32(architecture(images, network.classes, **options))
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    return tf_keras.Model(images, logits, name=name.replace(":", ".").rpartition(".")[2])


def variables(model: tf_keras.Model) -> dict[str, Any]:
    """Name to variable, in layer order: trained ones, and batch normalisation's statistics."""
    return {v.name.removesuffix(":0"): v for v in model.weights}


def assign(model: tf_keras.Model, weights: Weights) -> None:
    """Gives each variable of a network its value."""
    for name, variable in variables(model).items():
        variable.assign(weights[name])


CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


def kinds(model: tf_keras.Model) -> dict[str, str]:
    """The prunable variables: name to kind, ``conv``, ``dense`` or ``output`` (the last layer)."""
    found: dict[str, str] = {}
    for layer in model.layers:
        if isinstance(layer, CONVOLUTIONS) and not isinstance(layer, TRANSPOSED):
            found[f"{layer.name}/kernel"] = "conv"
        elif isinstance(layer, layers.Dense):
            found[f"{layer.name}/kernel"] = "dense"
    found.update(dict.fromkeys(list(found)[-1:], "output"))
    return found


VARIABLES = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
"""What a layer's variables may be: initialise() knows what they start from."""


LEFT_OUT = "which the training here leaves out"


def check(network: Network, precision: str, dropout: float) -> None:
    """Raises LotteryError where an architecture of one's own is not what they have to be.

    The arguments are those of build().
    """
    name = network.model.name
    try:
        model, again = (build(network, precision, dropout=dropout) for _ in range(2))
        why = next(_misfits(network, model, again), None)
    except LotteryError:
        raise
    except Exception as error:
        raise parts.mistake(name, error) from None
    if why:
        raise parts.mistake(name, why)


def _misfits(network: Network, model: tf_keras.Model, again: tf_keras.Model) -> Iterator[str]:
    """What is wrong with a network, built twice."""
    kernels, of_name = kinds(model), variables(model)
    random = tf_keras.__internal__.layers.BaseRandomLayer
    for layer in (layer for layer in model.submodules if isinstance(layer, random)):
        yield (
            f"the layer {layer.name} ({type(layer).__name__}) draws random numbers of its own; "
            "accepted: lottery.training.architectures.Dropout"
        )
    if blocks := [layer.name for layer in model.layers if isinstance(layer, tf_keras.Model)]:
        yield f"{blocks[0]} is a model within it; accepted: its layers, one by one"
    learning = {id(variable) for variable in model.trainable_weights}
    for name, variable in of_name.items():
        if getattr(variable, "constraint", None):
            yield f"{name} has a constraint, {LEFT_OUT}"
        if variable.trainable and id(variable) not in learning:
            yield f"{name} is of a layer with trainable=False, {LEFT_OUT}"
    for layer in model.submodules:
        if isinstance(layer, architectures.Dropout) or hasattr(layer, "moving_mean"):
            known = isinstance(layer, architectures.Dropout | layers.BatchNormalization)
            if not (known and layer in model.layers and len(layer.inbound_nodes) == 1):
                yield (
                    f"{layer.name} ({type(layer).__name__}) is within a layer, called twice or of "
                    "another kind; accepted: Dropout and BatchNormalization, one by one"
                )
    if not kernels:
        yield "no Conv or Dense layer of tf_keras in it, so nothing to prune (not of keras?)"
    for variable in of_name:
        kind = variable.rpartition("/")[2]
        if kind not in VARIABLES or (kind == "kernel" and variable not in kernels):
            yield (
                f"{variable} would not be pruned; accepted: Conv1D to Conv3D, Dense, and layers "
                f"without kernels ({', '.join(VARIABLES[1:])})"
            )
    for layer in (one for one in model.layers if f"{one.name}/kernel" in kernels):
        if type(layer) not in (*CONVOLUTIONS, layers.Dense):
            yield (
                f"{layer.name} is a {type(layer).__name__}, in which pruned weights may go on "
                "acting; accepted: Conv1D to Conv3D and Dense themselves"
            )
    if len(of_name) < len(model.weights):
        yield "several of its variables have one name"
    for layer, other in zip(model.layers, again.layers, strict=True):
        if layer.name != other.name and (layer.weights or isinstance(layer, architectures.Dropout)):
            yield f"a layer {type(layer).__name__} has no name of its own; accepted: name=…"
    if model.output_shape != (None, network.classes):
        got = f"its output has the shape {list(model.output_shape[1:])} for each image"
        yield f"{got}; accepted: logits, [{network.classes}]"
    yield from _misfits_of_outputs(network, model, again)


def _misfits_of_outputs(
    network: Network, model: tf_keras.Model, again: tf_keras.Model
) -> Iterator[str]:
    """What is wrong with what a network computes, or with the losses that it adds then."""
    weights, kernels = initialise(network, "check")
    large = {name: 1e6 * weights[name] for name, kind in kernels.items() if kind == "output"}
    images = stream("images of a check").random((32, *network.image_shape), np.float32)

    def outputs(built: tf_keras.Model) -> np.ndarray:
        """In training, and in evaluation after it, from the same weights."""
        assign(built, weights | large)
        return np.stack([built(images, training=training) for training in (True, False)])

    first = outputs(model)
    model(images, training=True)
    if model.losses:  # of the last call
        why = f"{LEFT_OUT}; accepted: train.weight_decay"
        yield f"it adds losses of its own (a regulariser, add_loss), {why}"
    if 0 < np.abs(first[1]).max() <= 1:
        yield "its outputs never leave [-1, 1], as of a softmax; accepted: logits"
    if not all(np.array_equal(outputs(built), first, equal_nan=True) for built in (model, again)):
        yield (
            "it is another function when it is built or called again; accepted: random numbers of "
            "lottery.streams.stream, drawn when it is built, and no state but its variables"
        )


@functools.cache
def prunable_weights(network: Network) -> int:
    """How many prunable weights a network has."""
    model = build(network)
    shapes = {name: variable.shape for name, variable in variables(model).items()}
    return sum(math.prod(shapes[kernel]) for kernel in kinds(model))


WIDTHS = 4096  # steps in which narrowed() looks


def narrowed(network: Network, weights: int) -> Network:
    """The same network, as wide as can be with at most so many prunable weights, and less than it.

    In steps of 1 / WIDTHS. Raises LotteryError where even one unit a layer are more, or the
    architecture takes no width.
    """
    name, width = network.model.name, network.model.width
    if "width" not in inspect.signature(parts.find(vars(architectures), name)).parameters:
        raise LotteryError(
            f"params.yaml: retrain.variants: small_dense: {name} cannot be narrowed: "
            "it has no parameter width"
        )

    def of_width(steps: int) -> Network:
        """The network of so many steps."""
        model = network.model.model_copy(update={"width": steps / WIDTHS})
        return network._replace(model=model)

    narrower = range(1, math.ceil(width * WIDTHS))
    fitting = bisect.bisect(narrower, weights, key=lambda steps: prunable_weights(of_width(steps)))
    if not fitting:
        raise LotteryError(
            f"small_dense: no {name} has as few as {weights:,} weights: "
            "even one unit a layer are more"
        )
    return of_width(narrower[fitting - 1])


def initialise(network: Network, purpose: str, *key: int) -> tuple[Weights, dict[str, str]]:
    """Fresh weights, kernels from the initialiser and biases zero, and the kinds of the prunable.

    Initialisers are those of Keras (Glorot & Bengio 2010, He et al. 2015).
    Of batch normalisation, shifts and moving means are zero, moving variances one and scales by
    ``model.batch_norm_scale`` one (``ones``) or uniform in [0, 1) (``uniform``, as in open_lth).
    Each variable that is drawn has its own stream ``(purpose and variable name, *key)``, on the
    CPU, so the values depend neither on the device nor on the other layers.
    """
    weights: Weights = {}
    initializer, scale = network.model.initializer, network.model.batch_norm_scale
    model = build(network)
    of_name = variables(model)
    normalises = {name.removesuffix("moving_mean") for name in of_name if "moving_mean" in name}
    with tf.device("CPU:0"):
        for name, variable in of_name.items():
            shape = tuple(variable.shape)
            if name.endswith("kernel"):  # of a dense layer or a convolution, a depthwise one too
                seed = stream_seed(f"{purpose} of {name}", *key) % 2**31
                by = {"class_name": initializer, "config": {"seed": seed}}
                weights[name] = np.asarray(tf_keras.initializers.get(by)(shape, dtype="float32"))
            elif name.removesuffix("gamma") in normalises and scale == "uniform":
                weights[name] = stream(f"{purpose} of {name}", *key).random(shape, np.float32)
            else:
                one = name.endswith(("/gamma", "/moving_variance"))
                weights[name] = np.full(shape, one, np.float32)
    return weights, kinds(model)
