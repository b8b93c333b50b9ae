"""Removes units that do nothing: a smaller network with the same outputs. Imports TensorFlow.

A unit is a dense layer's neuron or a convolution's filter. One none of whose incoming weights
survives gives a constant, which is folded into the bias of the layers that read it. One that no
surviving weight reads gives nothing. Either is removed only where that is exact, within rounding;
units that are added to others, as in ResNets, go together or stay.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lottery.training.architectures import Dropout
from lottery.training.models import assign, variables

import tf_keras  # isort: skip  (after lottery.training.models, which sets TF_USE_LEGACY_KERAS)

Arrays = dict[str, np.ndarray]

keras = tf_keras.layers
WEIGHTED = (keras.Dense, keras.Conv2D)  # every unit reads every channel
EACH = (  # act on each channel alone
    *(keras.MaxPooling2D, keras.AveragePooling2D, keras.GlobalMaxPooling2D, keras.Flatten),
    *(keras.GlobalAveragePooling2D, keras.BatchNormalization, keras.Dropout, Dropout),
    *(keras.Activation, keras.ReLU),
)
ACTIVATIONS = ("linear", "relu", "elu", "selu", "gelu", "swish", "tanh", "sigmoid", "softplus")


def remove(model: Any, masks: Arrays) -> tuple[Any, Arrays]:
    """A Keras model and its masks without the units that do nothing, to a fixed point.

    A constant that is not 0 is not folded into a convolution that pads with zeros, as at the border
    it is no constant, nor into a layer without bias. The outputs all stay; where all units of a
    layer do nothing, one stays.

    Args:
        model: float32; its pruned weights are 0.
        masks: bool, for each kernel that has one, of its shape ``[…, inputs, units]``.
    """
    while True:
        weights = {name: variable.numpy() for name, variable in variables(model).items()}
        outputs = {layer.name: layer.get_output_at(0) for layer in model.layers}
        probe, nothing = tf_keras.Model(model.input, outputs), np.zeros((1, *model.input_shape[1:]))
        given = {source: x.numpy() for source, x in probe(nothing, training=False).items()}
        values = {source: x.reshape(-1, x.shape[-1])[0] for source, x in given.items()}
        needed = _needed(model, weights, values)
        if all(units.all() for units in needed.values()):
            return model, masks
        for layer in model.layers:
            bias, inputs = f"{layer.name}/bias", _inputs(layer)
            if type(layer) in WEIGHTED and bias in weights and not _opaque(layer):
                removed = np.where(needed[inputs[0]], 0, values[inputs[0]])
                folded = removed @ _taps(layer, weights).sum(axis=0, dtype=np.float64)
                weights[bias] = (weights[bias] + folded).astype(np.float32)
        model, masks = _cut(model, needed, weights, masks)


def _cut(model: Any, needed: Arrays, weights: Arrays, masks: Arrays) -> tuple[Any, Arrays]:
    """A model with these weights, and its masks, of the units that are needed."""
    known = {layer.name: layer for layer in model.layers if not _opaque(layer)}

    def cut(name: str, value: np.ndarray) -> np.ndarray:
        """A variable's value, or its mask, without what is not needed."""
        layer = known.get(name.rpartition("/")[0])
        if layer is None:
            return value
        value = value[..., needed[layer.name]]
        return value[..., needed[_inputs(layer)[0]], :] if name.endswith("/kernel") else value

    def narrower(layer: Any) -> Any:
        """The layer with the units that are needed."""
        config = layer.get_config()
        if type(layer) in WEIGHTED:
            config["units" if "units" in config else "filters"] = int(needed[layer.name].sum())
        return type(layer).from_config(config)

    smaller = tf_keras.models.clone_model(model, clone_function=narrower)
    assign(smaller, {name: cut(name, value) for name, value in weights.items()})
    return smaller, {name: cut(name, keep) for name, keep in masks.items()}


def _opaque(layer: Any) -> bool:
    """Whether it is not known how its channels come from others: its neighbours are left alone."""
    config, rank = layer.get_config(), len(layer.get_output_shape_at(0))
    return (
        type(layer) not in (*WEIGHTED, *EACH, keras.Add)
        or len(layer.inbound_nodes) > 1  # called several times
        or config.get("groups", 1) > 1
        or config.get("data_format") == "channels_first"
        or config.get("axis", [rank - 1]) != [rank - 1]
        or config.get("activation", "linear") not in ACTIVATIONS
    )


def _inputs(layer: Any) -> list[str]:
    return [parent.layer.name for node in layer.inbound_nodes for parent in node.parent_nodes]


def _taps(layer: Any, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """A kernel as ``[pixels, inputs, units]``."""
    kernel = weights[f"{layer.name}/kernel"]
    return kernel.reshape(-1, *kernel.shape[-2:])


def _needed(model: Any, weights: Arrays, values: Arrays) -> Arrays:
    """Of each layer's output features, which have to stay: bool ``[features]``.

    ``values`` are those of the features that are the same for all images and pixels.
    """
    needed = {name: np.zeros(len(value), np.bool_) for name, value in values.items()}
    needed[model.layers[-1].name][:] = True
    varies: Arrays = {}
    for layer in model.layers:
        name, inputs = layer.name, _inputs(layer)
        if _opaque(layer):
            varies[name] = np.ones(len(values[name]), np.bool_)
            for source in (name, *inputs):
                needed[source][:] = True
        elif type(layer) in WEIGHTED:
            taps, (source,) = _taps(layer, weights), inputs
            varies[name] = np.any(taps, axis=(0, 1))
            pads = getattr(layer, "padding", "valid") == "same" and layer.kernel_size != (1, 1)
            folds = not pads and f"{name}/bias" in weights
            kept = varies[source] | ((values[source] != 0) & (not folds))
            needed[source] |= kept & np.any(taps, axis=(0, 2))
        else:
            repeated = [np.resize(varies[source], len(values[name])) for source in inputs]
            varies[name] = np.any(repeated, axis=0)
    _spread(model, needed)
    for layer in model.layers:
        if type(layer) in WEIGHTED and not needed[layer.name].any():  # one stays
            needed[layer.name][0] = True
            _spread(model, needed)
    return needed


def _spread(model: Any, needed: Arrays) -> None:
    """Marks what goes together: a layer's channels are its inputs', unless it is weighted."""
    before = 0
    while before != (before := sum(int(units.sum()) for units in needed.values())):
        for layer in model.layers:
            if not _opaque(layer) and type(layer) not in WEIGHTED:
                for units in (needed[name] for name in _inputs(layer)):
                    units |= needed[layer.name].reshape(-1, len(units)).any(axis=0)
                    needed[layer.name] |= np.resize(units, len(needed[layer.name]))
