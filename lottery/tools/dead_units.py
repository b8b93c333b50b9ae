"""Removes units that do nothing: a smaller network with the same outputs, within rounding.

A unit is a dense layer's neuron or a convolution's filter. One none of whose incoming weights survives gives a
constant, which is folded into the bias of the layers that read it. One that no surviving weight reads gives nothing.
Either is removed only where that is exact; units that are added to others, as in ResNets, go together or stay.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


class Layer(NamedTuple):
    """A layer of a network, as far as removal needs to know it.

    ``kind`` is ``input``; ``weighted`` (convolution or dense: every unit reads every channel); ``norm`` (batch
    normalisation); ``each`` (acts on each channel alone: activation, pooling, flatten); ``add``; or ``other``, whose
    neighbours are left alone.
    """

    name: str
    kind: str
    inputs: tuple[str, ...] = ()
    channels: int = 0  # of an input layer's images, or of another layer's output
    activation: str = "linear"
    pads: bool = (
        False  # zeros beyond the border: a convolution reads them, or an ``each`` adds them
    )
    positions: int = 1  # of flatten: how many pixels each channel becomes features of
    epsilon: float = 0.0  # of batch normalisation


def remove(layers: list[Layer], weights: Arrays, masks: Arrays) -> tuple[Arrays, Arrays]:
    """Weights and masks without the units that do nothing, to a fixed point; the arguments stay as they are.

    Args:
        layers: in the order of computation; the last gives the network's outputs, which all stay.
        weights: float32 by variable: kernels ``[…, inputs, units]``, biases and what belongs to batch normalisation
            ``[units]``. Pruned weights are 0.
        masks: bool, for each kernel that has one, of its shape.

    A constant that is not 0 is not folded into a convolution that pads with zeros, as at the border it is no constant,
    nor into a layer without bias. Where all units of a layer do nothing, one stays.
    """
    group = _groups(layers, weights)
    while True:
        values = _constants(layers, weights)
        gone = _removable(layers, weights, values, group)
        if not any(np.any(g) for g in gone.values()):
            return weights, masks
        weights = _fold(layers, weights, values, gone, group)
        weights, masks = _cut(layers, weights, gone, group), _cut(layers, masks, gone, group)


def dead(layers: list[Layer], weights: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Units of each convolution and dense layer without a surviving incoming weight, where there are any."""
    found = {
        x.name: int(np.sum(~np.any(_taps(weights, x), axis=(0, 1))))
        for x in layers
        if x.kind == "weighted"
    }
    return {name: count for name, count in found.items() if count}


def _taps(weights: Mapping[str, np.ndarray], layer: Layer) -> np.ndarray:
    """A kernel as ``[pixels, inputs, units]``."""
    kernel = weights[f"{layer.name}/kernel"]
    return kernel.reshape(-1, *kernel.shape[-2:])


def _groups(layers: list[Layer], weights: Arrays) -> dict[str, str]:
    """Layer to the name of its group: layers whose output channels stand for the same units, so are cut alike.

    It is named after its layer of the fewest channels, which those of the others repeat.
    """
    width = {layer.name: _width(layer, weights) for layer in layers}
    group: dict[str, str] = {}
    for layer in layers:
        if layer.kind in ("input", "weighted", "other"):
            group[layer.name] = layer.name
        else:
            joined = [group[name] for name in layer.inputs]
            first = min(joined, key=width.__getitem__)
            group = {name: first if g in joined else g for name, g in group.items()} | {
                layer.name: first
            }
    return group


def _constants(layers: list[Layer], weights: Arrays) -> Arrays:
    """The value of each layer's output features where it is the same for all images and pixels, elsewhere NaN."""
    values: Arrays = {}
    for layer in layers:
        if layer.kind in ("input", "other") or layer.activation not in ACTIVATIONS:
            values[layer.name] = np.full(_width(layer, weights), np.nan)
            continue
        x = values[layer.inputs[0]]
        if layer.kind == "weighted":
            taps = _taps(weights, layer)
            varies = np.isnan(x) | (layer.pads & (x != 0))
            constant = np.where(varies, 0, x) @ taps.sum(axis=0, dtype=np.float64)
            constant += weights.get(f"{layer.name}/bias", 0.0)
            x = np.where(np.any(taps[:, varies], axis=(0, 1)), np.nan, constant)
        elif layer.kind == "norm":
            gamma, beta, mean, variance = (
                weights.get(f"{layer.name}/{part}", default)
                for part, default in (
                    ("gamma", 1.0),
                    ("beta", 0.0),
                    ("moving_mean", 0.0),
                    ("moving_variance", 1.0),
                )
            )
            x = gamma * (x - mean) / np.sqrt(variance + layer.epsilon) + beta
        elif layer.pads:
            x = np.where(x == 0, x, np.nan)
        elif layer.kind == "add":
            x = functools.reduce(np.add, [values[name] for name in layer.inputs])
        values[layer.name] = np.tile(ACTIVATIONS[layer.activation](x), layer.positions)
    return values


def _width(layer: Layer, weights: Arrays) -> int:
    return _taps(weights, layer).shape[-1] if layer.kind == "weighted" else layer.channels


def _removable(
    layers: list[Layer], weights: Arrays, values: Arrays, group: dict[str, str]
) -> dict[str, np.ndarray]:
    """Of each group, which channels can go: bool ``[channels]``."""
    gone = {
        layer.name: np.ones(_width(layer, weights), np.bool_)
        for layer in layers
        if group[layer.name] == layer.name
    }
    for layer in layers:
        if layer.kind == "weighted":
            read = np.any(_taps(weights, layer), axis=(0, 2))
            x = values[layer.inputs[0]]
            foldable = (x == 0) | (
                ~np.isnan(x) & (not layer.pads and f"{layer.name}/bias" in weights)
            )
            of_group = gone[group[layer.inputs[0]]]
            of_group &= ~(read & ~foldable).reshape(-1, len(of_group)).any(axis=0)
        fixed: set[str] = set()
        if (
            layer.kind in ("input", "other")
            or layer.activation not in ACTIVATIONS
            or layer is layers[-1]
        ):
            fixed.add(group[layer.name])
        if layer.kind == "other" or (
            layer.kind != "weighted" and layer.activation not in ACTIVATIONS
        ):
            fixed |= {group[name] for name in layer.inputs}
        for name in fixed:
            gone[name][:] = False
    for of_group in gone.values():
        of_group[:1] &= not of_group.all()  # one stays
    return gone


def _fold(
    layers: list[Layer],
    weights: Arrays,
    values: Arrays,
    gone: dict[str, np.ndarray],
    group: dict[str, str],
) -> Arrays:
    """The weights, with what removed units give added to the biases of the layers that read them."""
    weights = dict(weights)
    for layer in layers:
        bias = f"{layer.name}/bias"
        if layer.kind == "weighted" and bias in weights:
            x = values[layer.inputs[0]]
            of_group = gone[group[layer.inputs[0]]]
            removed = np.tile(of_group, len(x) // len(of_group)) & ~np.isnan(x)
            given = np.where(removed, x, 0) @ _taps(weights, layer).sum(axis=0, dtype=np.float64)
            weights[bias] = (weights[bias] + given).astype(weights[bias].dtype)
    return weights


def _cut(
    layers: list[Layer], arrays: Arrays, gone: dict[str, np.ndarray], group: dict[str, str]
) -> Arrays:
    """Weights or masks without the channels that go."""
    of_layer = {layer.name: layer for layer in layers}
    found: Arrays = {}
    for name, value in arrays.items():
        layer = of_layer.get(name.rpartition("/")[0])
        if layer is not None and layer.kind in ("weighted", "norm"):
            of_group = gone[group[layer.name]]
            value = value[..., np.tile(~of_group, value.shape[-1] // len(of_group))]
            if name.endswith("/kernel"):
                of_group = gone[group[layer.inputs[0]]]
                value = value[..., np.tile(~of_group, value.shape[-2] // len(of_group)), :]
        found[name] = value
    return found
