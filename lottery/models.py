"""Architectures, initialisers, and which weights are prunable and of which kind.

The architectures are those of Frankle & Carbin (2019), figure 2: LeNet-300-100, and VGG-like
networks of 2, 4 and 6 convolutions (3×3, same padding, ReLU; 2×2 max-pooling after each pair)
followed by dense layers of 256, 256 and the classes. Kernels are prunable, biases are not.
"""

import os
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # tensorflow-model-optimization needs tf_keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tf_keras
from tf_keras import layers

from lottery.streams import stream_seed

Weights = dict[str, np.ndarray]
"""Every variable of a network by name (``conv1/kernel``), float32, in the order of the layers."""


def lenet_300_100(classes: int) -> list[layers.Layer]:
    return [
        layers.Flatten(name="flatten"),
        layers.Dense(300, activation="relu", name="dense1"),
        layers.Dense(100, activation="relu", name="dense2"),
        layers.Dense(classes, name="output"),
    ]


def _convolutional(pairs: int, classes: int) -> list[layers.Layer]:
    stack: list[layers.Layer] = []
    for pair in range(pairs):
        for number in (2 * pair + 1, 2 * pair + 2):
            stack.append(layers.Conv2D(64 << pair, 3, padding="same", activation="relu", name=f"conv{number}"))
        stack.append(layers.MaxPooling2D(2, name=f"pool{pair + 1}"))
    return [
        *stack,
        layers.Flatten(name="flatten"),
        layers.Dense(256, activation="relu", name="dense1"),
        layers.Dense(256, activation="relu", name="dense2"),
        layers.Dense(classes, name="output"),
    ]


def conv2(classes: int) -> list[layers.Layer]:
    return _convolutional(1, classes)


def conv4(classes: int) -> list[layers.Layer]:
    return _convolutional(2, classes)


def conv6(classes: int) -> list[layers.Layer]:
    return _convolutional(3, classes)


ARCHITECTURES = {f.__name__: f for f in (lenet_300_100, conv2, conv4, conv6)}


def build(
    name: str, image_shape: tuple[int, int, int], classes: int, precision: str = "float32"
) -> tf_keras.Sequential:
    """An untrained network: images ``[n, height, width, channels]`` in [0, 1] to float32 logits ``[n, classes]``.

    With ``precision="bfloat16"`` layers compute in bfloat16; the variables stay float32.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        stack = ARCHITECTURES[name](classes)
        cast = layers.Activation("linear", dtype="float32", name="logits")
        model = tf_keras.Sequential([layers.InputLayer(image_shape), *stack, cast], name=name)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    return model


def variables(model: tf_keras.Model) -> dict[str, Any]:
    """Name to variable, for every trainable variable, in layer order."""
    return {v.name.removesuffix(":0"): v for v in model.trainable_variables}


def kinds(model: tf_keras.Model) -> dict[str, str]:
    """The prunable variables: name to kind, one of ``conv``, ``dense`` and ``output`` (the last dense layer)."""
    found: dict[str, str] = {}
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            found[f"{layer.name}/kernel"] = "conv"
        elif isinstance(layer, layers.Dense):
            found[f"{layer.name}/kernel"] = "dense"
    found[list(found)[-1]] = "output"
    return found


def initialise(model: tf_keras.Model, initializer: str, purpose: str, *key: int) -> Weights:
    """Fresh weights: kernels from the Keras initialiser (Glorot & Bengio 2010), biases zero.

    Each kernel draws from its own stream ``(purpose and variable name, *key)``, on the CPU, so the
    values depend neither on the device nor on the other layers.
    """
    import tensorflow as tf

    weights: Weights = {}
    with tf.device("CPU:0"):
        for name, variable in variables(model).items():
            shape = tuple(variable.shape)
            if name.endswith("/kernel"):
                seed = stream_seed(f"{purpose} of {name}", *key) % 2**31
                draw = tf_keras.initializers.get({"class_name": initializer, "config": {"seed": seed}})
                weights[name] = np.asarray(draw(shape, dtype="float32"))
            else:
                weights[name] = np.zeros(shape, np.float32)
    return weights
