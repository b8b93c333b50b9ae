"""Architectures: functions from images to logits.

Those of Frankle & Carbin (2019), figure 2: LeNet-300-100, and VGG-like networks of 2, 4 and 6
convolutions (3×3, same padding, ReLU; 2×2 max-pooling after each pair) followed by dense layers of
256, 256 and the classes; and two with batch normalisation, as used in the work that followed.
``width`` multiplies the units and filters of the hidden layers, ``dropout`` is the share of the
hidden dense layers' units dropped in training.

An architecture, one's own too, is a function from images ``[n, height, width, channels]`` in [0, 1]
and the number of classes to logits ``[n, classes]``; perhaps also with ``width`` and ``dropout``,
given by name where they are not 1 and 0. Kernels of its ``Conv1D`` to ``Conv3D`` and ``Dense``
layers are prunable, the last of them is the output layer. Every layer has a name of its own.
"""

import os
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # tensorflow-model-optimization needs tf_keras
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from tf_keras import layers

from lottery.streams import stream_seed

Tensor = Any
"""A symbolic Keras tensor ``[n, …]``."""


class Dropout(layers.Layer):
    """Dropout (Srivastava et al. 2014) whose masks are a function of ``seed`` and the layer's name.

    The training loop sets ``seed``, int32 ``[2]``, anew for each iteration; without one, as in an
    exported model, nothing is dropped. Survivors are scaled by 1 / (1 − rate).
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.seed: Any = None
        self._stream = stream_seed(f"dropout layer {self.name}") % 2**31

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """The inputs, in training some of them 0."""
        if not training or self.seed is None:
            return inputs
        seed = tf.bitwise.bitwise_xor(self.seed, [self._stream, 0])
        noise = tf.random.stateless_uniform(tf.shape(inputs), seed, dtype=tf.float32)
        return tf.where(noise < self.rate, tf.zeros((), inputs.dtype), inputs / (1 - self.rate))

    def get_config(self) -> dict[str, Any]:
        """What Keras makes the layer of again."""
        return {**super().get_config(), "rate": self.rate}


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))


def _dense(x: Tensor, sizes: tuple[int, ...], classes: int, width: float, dropout: float) -> Tensor:
    x = layers.Flatten(name="flatten")(x)
    for number, units in enumerate(sizes, start=1):
        x = layers.Dense(_scaled(units, width), activation="relu", name=f"dense{number}")(x)
        x = Dropout(dropout, name=f"dropout{number}")(x) if dropout else x
    return layers.Dense(classes, name="output")(x)


def lenet_300_100(images: Tensor, classes: int, width: float = 1.0, dropout: float = 0.0) -> Tensor:
    """Dense layers of 300, 100 and the classes (LeCun et al. 1998)."""
    return _dense(images, (300, 100), classes, width, dropout)


def _convolutional(
    pairs: int, images: Tensor, classes: int, width: float, dropout: float
) -> Tensor:
    x = images
    for pair in range(pairs):
        for number in (2 * pair + 1, 2 * pair + 2):
            filters, name = _scaled(64 << pair, width), f"conv{number}"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(2, name=f"pool{pair + 1}")(x)
    return _dense(x, (256, 256), classes, width, dropout)


def conv2(images: Tensor, classes: int, width: float = 1.0, dropout: float = 0.0) -> Tensor:
    """Two convolutions of 64."""
    return _convolutional(1, images, classes, width, dropout)


def conv4(images: Tensor, classes: int, width: float = 1.0, dropout: float = 0.0) -> Tensor:
    """Two convolutions of 64, two of 128."""
    return _convolutional(2, images, classes, width, dropout)


def conv6(images: Tensor, classes: int, width: float = 1.0, dropout: float = 0.0) -> Tensor:
    """Two convolutions each of 64, 128 and 256."""
    return _convolutional(3, images, classes, width, dropout)


def _normalised(
    x: Tensor, filters: int, size: int, name: str, *, strides: int = 1, relu: bool = True
) -> Tensor:
    """A convolution without bias, batch normalisation (``conv3_norm``) and, where asked for, ReLU.

    One of stride 2 pads each side by half its size, as PyTorch does and the published networks
    with it; TensorFlow's ``same`` pads an even image at the bottom and right alone.
    """
    padding = "same"
    if strides > 1 and size > 1:
        x, padding = layers.ZeroPadding2D(size // 2, name=f"{name}_padding")(x), "valid"
    x = layers.Conv2D(filters, size, strides, padding, use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def resnet20(images: Tensor, classes: int, width: float = 1.0) -> Tensor:
    """He et al. 2016, section 4.2, n = 3, as in open_lth, the code of Frankle et al. 2020.

    Shortcuts that change the shape are 1×1 convolutions with batch normalisation (option B).
    """
    x = _normalised(images, _scaled(16, width), 3, "conv0")
    for stage, filters in enumerate(_scaled(f, width) for f in (16, 32, 64)):
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


def vgg16(images: Tensor, classes: int, width: float = 1.0) -> Tensor:
    """Simonyan & Zisserman 2015, configuration D, as in open_lth, the code of Frankle et al. 2020.

    It has batch normalisation, and one dense layer instead of three. Its convolutions have no bias,
    which the batch normalisation behind each would take away again.
    """
    x, number = images, 0
    for block, filters in enumerate((64, 128, 256, 512, 512), start=1):
        for _ in range(2 if block < 3 else 3):
            number += 1
            x = _normalised(x, _scaled(filters, width), 3, f"conv{number}")
        if block < 5:
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)
    x = layers.GlobalAveragePooling2D(name="pool5")(x)
    return layers.Dense(classes, name="output")(x)
