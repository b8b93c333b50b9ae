"""Architectures, initialisers, and which weights are prunable and of which kind.

The architectures are those of Frankle & Carbin (2019), figure 2: LeNet-300-100, and VGG-like
networks of 2, 4 and 6 convolutions (3×3, same padding, ReLU; 2×2 max-pooling after each pair)
followed by dense layers of 256, 256 and the classes; and two with batch normalisation, as used in the
work that followed. Kernels are prunable, biases and what belongs to batch normalisation are not.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # tensorflow-model-optimization needs tf_keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tf_keras
from tf_keras import layers

from lottery import own
from lottery.streams import stream_seed

Weights = dict[str, np.ndarray]
"""Every variable of a network by name (``conv1/kernel``), float32, in the order of the layers."""


Tensor = Any
"""A symbolic Keras tensor ``[n, …]``."""


def lenet_300_100(images: Tensor, classes: int) -> Tensor:
    x = layers.Flatten(name="flatten")(images)
    x = layers.Dense(300, activation="relu", name="dense1")(x)
    x = layers.Dense(100, activation="relu", name="dense2")(x)
    return layers.Dense(classes, name="output")(x)


def _convolutional(images: Tensor, pairs: int, classes: int) -> Tensor:
    x = images
    for pair in range(pairs):
        for number in (2 * pair + 1, 2 * pair + 2):
            x = layers.Conv2D(64 << pair, 3, padding="same", activation="relu", name=f"conv{number}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{pair + 1}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(256, activation="relu", name="dense1")(x)
    x = layers.Dense(256, activation="relu", name="dense2")(x)
    return layers.Dense(classes, name="output")(x)


def conv2(images: Tensor, classes: int) -> Tensor:
    return _convolutional(images, 1, classes)


def conv4(images: Tensor, classes: int) -> Tensor:
    return _convolutional(images, 2, classes)


def conv6(images: Tensor, classes: int) -> Tensor:
    return _convolutional(images, 3, classes)


def _normalised(x: Tensor, filters: int, size: int, name: str, *, strides: int = 1, relu: bool = True) -> Tensor:
    """A convolution without bias, batch normalisation (``conv3`` and ``conv3_norm``) and, where asked for, ReLU."""
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def resnet20(images: Tensor, classes: int) -> Tensor:
    """He et al. 2016, section 4.2, n = 3; shortcuts that change the shape are 1×1 convolutions (option B)."""
    x = _normalised(images, 16, 3, "conv0")
    for stage, filters in enumerate((16, 32, 64)):
        for number in range(3):
            block = f"block{stage}{number}"
            strides = 2 if stage and not number else 1
            y = _normalised(x, filters, 3, f"{block}_conv1", strides=strides)
            y = _normalised(y, filters, 3, f"{block}_conv2", relu=False)
            if strides > 1:
                x = _normalised(x, filters, 1, f"{block}_shortcut", strides=strides, relu=False)
            x = layers.ReLU(name=f"{block}_relu")(layers.Add(name=f"{block}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(classes, name="output")(x)


def vgg16(images: Tensor, classes: int) -> Tensor:
    """Simonyan & Zisserman 2015, configuration D, with batch normalisation and one dense layer, as used on CIFAR-10."""
    x, number = images, 0
    for block, (filters, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), start=1):
        for _ in range(convolutions):
            number += 1
            x = _normalised(x, filters, 3, f"conv{number}")
        if block < 5:
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)
    x = layers.GlobalAveragePooling2D(name="pool5")(x)
    return layers.Dense(classes, name="output")(x)


Architecture = Callable[[Tensor, int], Tensor]
"""From images ``[n, height, width, channels]`` in [0, 1] and the number of classes to logits ``[n, classes]``.

Kernels of its ``Conv2D`` and ``Dense`` layers are prunable, the last of them is the output layer.
Every layer has a name of its own.
"""
ARCHITECTURES: dict[str, Architecture] = {f.__name__: f for f in (lenet_300_100, conv2, conv4, conv6, resnet20, vgg16)}


def build(name: str, image_shape: tuple[int, int, int], classes: int, precision: str = "float32") -> tf_keras.Model:
    """An untrained network: images ``[n, height, width, channels]`` in [0, 1] to float32 logits ``[n, classes]``.

    With ``precision="bfloat16"`` layers compute in bfloat16; the variables stay float32.

    Args:
        name: one of ARCHITECTURES, or ``module:function`` of an Architecture of one's own.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    architecture = own.find(ARCHITECTURES, name)
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        images = layers.Input(image_shape, name="images")
        logits = layers.Activation("linear", dtype="float32", name="logits")(architecture(images, classes))
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    return tf_keras.Model(images, logits, name=name.replace(":", ".").rpartition(".")[2])


def variables(model: tf_keras.Model) -> dict[str, Any]:
    """Name to variable, in layer order: trained ones, and the moving statistics of batch normalisation."""
    return {v.name.removesuffix(":0"): v for v in model.weights}


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
    """Fresh weights: kernels from the Keras initialiser (Glorot & Bengio 2010, He et al. 2015), biases zero.

    Scales and moving variances of batch normalisation are one, its shifts and moving means zero. Each kernel draws from its own stream ``(purpose and variable name, *key)``, on the CPU, so the
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
                one = name.endswith(("/gamma", "/moving_variance"))
                weights[name] = np.full(shape, one, np.float32)
    return weights
