"""Which weights lie on a path from the input to the output."""

from functools import cache
from typing import Any

import numpy as np

from lottery.masks import Mask
from lottery.params import Network
from lottery.training.models import build, variables

import tensorflow as tf  # isort: skip  (after models, which sets TF_USE_LEGACY_KERAS)
import tf_keras  # isort: skip

AVERAGED = {
    tf_keras.layers.MaxPooling2D: tf_keras.layers.AveragePooling2D,
    tf_keras.layers.GlobalMaxPooling2D: tf_keras.layers.GlobalAveragePooling2D,
}


def effective(mask: Mask, network: Network) -> Mask:
    """The survivors that some path of survivors leads to from the input and on to the output.

    The others change no output, or only by constants. *Effective sparsity* counts them as pruned
    (Vysogorets & Kempe 2023, section 3). As there, a weight is on a path where the output of the
    linear network whose weights are the mask, for an input of ones, depends on it.
    """
    model = _linear(network)
    of_name = variables(model)
    for name, variable in of_name.items():
        one = name.endswith(("/gamma", "/moving_variance"))
        value = np.asarray(mask.layers.get(name, one), np.float64)
        variable.assign(np.broadcast_to(value, variable.shape))
    kernels = {name: of_name[name] for name in mask.layers}
    with tf.GradientTape() as tape:
        outputs = model(tf.ones((1, *network.image_shape), tf.float64), training=False)
    gradients = tape.gradient(outputs, kernels)
    return Mask({n: mask.layers[n] & (np.asarray(g) > 0) for n, g in gradients.items()})


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
