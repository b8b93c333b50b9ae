"""What is pruned together (``prune.pattern``): a single weight, a whole unit, two of four inputs.

A unit is a dense layer's neuron or a convolution's filter: the last axis of a kernel
``[…, inputs, units]``. Two of four are of each four consecutive inputs of a unit, at each pixel of
a convolution's kernel.
"""

import numpy as np

from lottery import masks
from lottery.masks import Mask, Weights
from lottery.params import Pattern


def whole_units(scores: Weights, mask: Mask, keep: dict[str, int]) -> Mask:
    """The units with the highest sums of their weights' scores, of equals the first.

    With ``magnitude`` that is the L1 norm (Li et al. 2017, section 3.1).

    Args:
        mask: of whole units; those that it prunes stay pruned.
        keep: weights to survive by layer; units are these over the weights of one.
    """
    layers = {}
    for name, before in mask.layers.items():
        norms = scores[name].reshape(-1, before.shape[-1]).sum(axis=0, dtype=np.float64)
        alive = np.flatnonzero(before.reshape(-1, before.shape[-1])[0])
        best = alive[np.argsort(-norms[alive], kind="stable")]
        chosen = np.zeros(before.shape[-1], np.bool_)
        chosen[best[: keep[name] * len(norms) // before.size]] = True
        layers[name] = before & chosen
    return Mask(layers)


def two_of_four(scores: Weights, mask: Mask, keep: dict[str, int]) -> Mask:
    """The two highest scores of each four, of equals the first, in layers that do not stay whole.

    It is the pattern that sparse tensor cores skip (Mishra et al. 2021, section 3).
    """
    layers = {}
    for name, before in mask.layers.items():
        layers[name] = before
        if keep[name] < before.size:
            best = np.argsort(-_by_four(scores[name]), axis=-2, kind="stable")
            layers[name] = (np.argsort(best, axis=-2) < 2).reshape(before.shape)
    return Mask(layers)


def random_mask(mask: Mask, pattern: Pattern, generator: np.random.Generator) -> Mask:
    """A uniformly random mask of that pattern, with the same count in each layer."""
    one = pattern == "weight"
    return masks.random_mask(mask, generator) if one else shuffled(mask, pattern, generator)


def shuffled(mask: Mask, pattern: Pattern, generator: np.random.Generator) -> Mask:
    """A mask shuffled within each layer, or where its pattern is two of four within each four."""
    return Mask({name: _shuffled(keep, pattern, generator) for name, keep in mask.layers.items()})


def _shuffled(keep: np.ndarray, pattern: Pattern, generator: np.random.Generator) -> np.ndarray:
    if pattern == "weight":
        return generator.permutation(keep.ravel()).reshape(keep.shape)
    if pattern == "unit":
        return generator.permutation(keep, axis=-1)
    return keep if keep.all() else generator.permuted(_by_four(keep), axis=-2).reshape(keep.shape)


def holds(mask: Mask, pattern: Pattern) -> bool:
    """Whether a mask is of that pattern; layers that are whole always are."""
    return all(_holds(keep, pattern) for keep in mask.layers.values())


def _holds(keep: np.ndarray, pattern: Pattern) -> bool:
    if pattern == "weight" or keep.all():
        return True
    if pattern == "unit":
        return bool(np.all(keep == keep.reshape(-1, keep.shape[-1])[0]))
    return keep.shape[-2] % 4 == 0 and bool(np.all(_by_four(keep).sum(axis=-2) == 2))


def _by_four(array: np.ndarray) -> np.ndarray:
    """``[…, inputs, units]`` as ``[…, inputs / 4, 4, units]``."""
    *taps, inputs, units = array.shape
    return array.reshape(*taps, inputs // 4, 4, units)
