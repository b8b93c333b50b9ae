"""Networks built and initialised; which of their weights are prunable, and of which kind.

Kernels are prunable, biases and what belongs to batch normalisation are not.
"""

import functools
import inspect
import math
from typing import Any

import numpy as np

from lottery import parts
from lottery.errors import LotteryError
from lottery.streams import stream, stream_seed
from lottery.training.architectures import ARCHITECTURES

import tensorflow as tf  # isort: skip  (after architectures, which set TF_USE_LEGACY_KERAS)
import tf_keras  # isort: skip
from tf_keras import layers  # isort: skip

Weights = dict[str, np.ndarray]
"""Every variable of a network by name (``conv1/kernel``), float32, in the order of the layers."""


def build(
    name: str,
    image_shape: tuple[int, int, int],
    classes: int,
    precision: str = "float32",
    *,
    width: float = 1.0,
    dropout: float = 0.0,
) -> tf_keras.Model:
    """An untrained network from images to logits.

    Images are float32 ``[n, height, width, channels]`` in [0, 1], logits float32 ``[n, classes]``.
    With ``precision="bfloat16"`` layers compute in bfloat16; the variables stay float32.

    Args:
        name: one of ARCHITECTURES, or ``module:function`` of an Architecture of one's own.
        width: multiplies the units and filters of the hidden layers.
        dropout: share of the hidden dense layers' units dropped in training.

    Raises LotteryError where the architecture takes no width or no dropout.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    architecture = parts.find(ARCHITECTURES, name)
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
        images = layers.Input(image_shape, name="images")
        logits = layers.Activation("linear", dtype="float32", name="logits")(
            architecture(images, classes, **options)
        )
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    return tf_keras.Model(images, logits, name=name.replace(":", ".").rpartition(".")[2])


def variables(model: tf_keras.Model) -> dict[str, Any]:
    """Name to variable, in layer order: trained ones, and batch normalisation's statistics."""
    return {v.name.removesuffix(":0"): v for v in model.weights}


def kinds(model: tf_keras.Model) -> dict[str, str]:
    """The prunable variables: name to kind, ``conv``, ``dense`` or ``output`` (the last layer)."""
    found: dict[str, str] = {}
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            found[f"{layer.name}/kernel"] = "conv"
        elif isinstance(layer, layers.Dense):
            found[f"{layer.name}/kernel"] = "dense"
    found[list(found)[-1]] = "output"
    return found


@functools.cache
def prunable_weights(
    name: str, image_shape: tuple[int, int, int], classes: int, width: float
) -> int:
    """How many prunable weights a network of that width has."""
    network = build(name, image_shape, classes, width=width)
    of_name = variables(network)
    return sum(int(np.prod(of_name[kernel].shape)) for kernel in kinds(network))


WIDTHS = 4096  # steps in which narrowed() looks


def narrowed(
    name: str, image_shape: tuple[int, int, int], classes: int, weights: int, width: float = 1.0
) -> float:
    """The largest width below ``width`` at which a network has at most so many prunable weights.

    In steps of 1 / WIDTHS.

    Raises LotteryError where even one unit a layer are more, or the architecture takes no width.
    """
    if "width" not in inspect.signature(parts.find(ARCHITECTURES, name)).parameters:
        raise LotteryError(
            f"params.yaml: retrain.variants: small_dense: {name} cannot be narrowed: "
            "it has no parameter width"
        )
    least, most = 0, math.ceil(width * WIDTHS)
    if prunable_weights(name, image_shape, classes, 1 / WIDTHS) > weights:
        raise LotteryError(
            f"small_dense: no {name} has as few as {weights:,} weights: "
            "even one unit a layer are more"
        )
    while most - least > 1:
        middle = (least + most) // 2
        if prunable_weights(name, image_shape, classes, middle / WIDTHS) <= weights:
            least = middle
        else:
            most = middle
    return least / WIDTHS


def initialise(
    model: tf_keras.Model,
    initializer: str,
    purpose: str,
    *key: int,
    batch_norm_scale: str = "ones",
) -> Weights:
    """Fresh weights: kernels from the initialiser, biases zero.

    Initialisers are those of Keras (Glorot & Bengio 2010, He et al. 2015).
    Of batch normalisation, shifts and moving means are zero, moving variances one and scales by
    ``batch_norm_scale`` one (``ones``) or uniform in [0, 1) (``uniform``, as in open_lth). Each
    variable that is drawn has its own stream ``(purpose and variable name, *key)``, on the CPU, so
    the values depend neither on the device nor on the other layers.
    """
    weights: Weights = {}
    with tf.device("CPU:0"):
        for name, variable in variables(model).items():
            shape = tuple(variable.shape)
            if name.endswith("kernel"):  # of a dense layer or a convolution, a depthwise one too
                seed = stream_seed(f"{purpose} of {name}", *key) % 2**31
                draw = tf_keras.initializers.get(
                    {"class_name": initializer, "config": {"seed": seed}}
                )
                weights[name] = np.asarray(draw(shape, dtype="float32"))
            elif name.endswith("/gamma") and batch_norm_scale == "uniform":
                draw = stream(f"{purpose} of {name}", *key)
                weights[name] = draw.random(shape, np.float32)
            else:
                one = name.endswith(("/gamma", "/moving_variance"))
                weights[name] = np.full(shape, one, np.float32)
    return weights
