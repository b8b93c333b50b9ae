"""Which weights lie on a path from the input to the output."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from lottery.masks import Mask
from lottery.params import Network
from lottery.streams import stream
from lottery.training.models import build, kinds, variables

import tensorflow as tf  # isort: skip  (after models, which sets TF_USE_LEGACY_KERAS)
import tf_keras  # isort: skip

MAXIMA = [f"{prefix}MaxPooling{n}D" for prefix in ("", "Global") for n in (1, 2, 3)]
AVERAGED = {
    getattr(tf_keras.layers, name): getattr(tf_keras.layers, name.replace("Max", "Average"))
    for name in MAXIMA
}


def effective(mask: Mask, network: Network) -> Mask | None:
    """The survivors that some path of survivors leads to from the input and on to the output.

    The others change no output, or only as a bias would. *Effective sparsity* counts them as pruned
    (Vysogorets & Kempe 2023, section 3). As there, a weight is on a path where the output of the
    linear network whose weights are the mask, for an input of ones, depends on it.

    None where paths cannot be counted so: in a network of one's own with layers that are no sums of
    their inputs, such as ReLU(6), LayerNormalization, Subtract, gates or tf.one_hot.
    """
    if not _counts_paths(network):
        return None
    numbers = _paths(mask, network)
    return Mask({name: keep & (numbers[name] > 0) for name, keep in mask.layers.items()})


@cache
def _counts_paths(network: Network) -> bool:
    """Whether in the dense network paths lead through each layer as they do through sums, and
    outputs of the linear network are sums of its inputs': no gates, no maxima of units.
    """
    shapes = {name: variables(_linear(network))[name].shape for name in kinds(_linear(network))}
    if not all(map(_of_sums, _paths(Mask.full(shapes), network).values())):
        return False
    positive = stream("a network of sums").random
    model = _with({name: positive(shape) for name, shape in shapes.items()}, network)
    a, b = positive((2, 1, *network.image_shape))
    at = [model(x, training=False).numpy() for x in (a, b, a + b, 0 * a)]
    return np.allclose(at[0] + at[1], at[2] + at[3], rtol=1e-6)


def _of_sums(numbers: np.ndarray) -> bool:
    """Whether paths lead through all inputs and units of a kernel, or through none at a place of a
    convolution's that only ever meets padding, and no number is negative or infinite.
    """
    some = numbers.reshape(-1, numbers.shape[-2] * numbers.shape[-1]) > 0
    finite = numbers.min() >= 0 and numbers.max() < np.inf
    return bool(finite and some.any() and np.array_equal(some.any(axis=1), some.all(axis=1)))


def _paths(mask: Mask, network: Network) -> dict[str, np.ndarray]:
    """The number of paths through each prunable weight, were it there: float64."""
    model = _with(mask.layers, network)
    kernels = {name: variables(model)[name] for name in mask.layers}
    with tf.GradientTape() as tape:
        outputs = model(tf.ones((1, *network.image_shape), tf.float64), training=False)
    gradients = tape.gradient(outputs, kernels)
    return {name: np.asarray(gradient) for name, gradient in gradients.items()}


def _with(kernels: Mapping[str, np.ndarray], network: Network) -> Any:
    """The linear network with these kernels, its scales and variances 1, its biases and means 0."""
    model = _linear(network)
    for name, variable in variables(model).items():
        one = name.endswith(("/gamma", "/moving_variance"))
        value = np.asarray(kernels.get(name, one), np.float64)
        variable.assign(np.broadcast_to(value, variable.shape))
    return model


@cache
def _linear(network: Network) -> Any:
    """The network without activations, maxima replaced by means, in float64: counts of paths."""

    def linear(layer: Any) -> Any:
        """A layer of the same shape that is linear where its inputs are not negative."""
        config = {**layer.get_config(), "dtype": "float64"}
        if "activation" in config:
            config["activation"] = "linear"
        return AVERAGED.get(type(layer), type(layer)).from_config(config)

    return tf_keras.models.clone_model(build(network), clone_function=linear)
