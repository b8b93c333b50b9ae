"""Which weights go next: magnitude pruning by tensorflow-model-optimization."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from lottery.masks import Mask


@dataclass(frozen=True)
class Prune:
    """The making of a round's mask: a task for a worker, since it needs TensorFlow."""

    name: str
    model: str
    image_shape: tuple[int, int, int]
    classes: int
    weights: dict[str, np.ndarray] = field(repr=False)
    mask: Mask = field(repr=False)
    keep: dict[str, int]
    iterations: int = 0

    def __call__(self, report: Callable[[int], None]) -> Mask:
        return magnitude_mask(
            self.weights,
            self.mask,
            self.keep,
            model=self.model,
            image_shape=self.image_shape,
            classes=self.classes,
        )

    def describe(self, result: Mask) -> str:
        return f"{result.weights_remaining:.2%} of the weights remain"


@contextlib.contextmanager
def _without_keras_3() -> Iterator[None]:
    """Keeps tensorflow-model-optimization from importing Keras 3 in search of a name that only Keras 2 has: 1.4 of 1.5 s."""
    before = sys.modules.get("keras")
    sys.modules["keras"] = None  # type: ignore[assignment]  # "import keras" then raises ImportError, as it expects
    try:
        yield
    finally:
        del sys.modules["keras"]
        if before is not None:
            sys.modules["keras"] = before


@cache
def _wrapped(name: str, image_shape: tuple[int, int, int], classes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of a float32 network whose prunable layers are wrapped for pruning, and each kernel's wrapper."""
    from lottery.models import build, kinds, variables

    with _without_keras_3():
        import tensorflow_model_optimization as tfmot  # after models, which sets TF_USE_LEGACY_KERAS

    model = build(name, image_shape, classes)
    wrappers = {}
    for kernel in kinds(model):
        layer = model.get_layer(kernel.split("/")[0])
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0, frequency=1)
        wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)
        wrapper.build(layer.input_shape)
        wrapper.pruning_step.assign(0)
        wrappers[kernel] = wrapper
    return variables(model), wrappers


def magnitude_mask(
    weights: dict[str, np.ndarray],
    mask: Mask,
    keep: dict[str, int],
    *,
    model: str,
    image_shape: tuple[int, int, int],
    classes: int,
) -> Mask:
    """The survivors of ``mask`` that are largest in magnitude, exactly ``keep[layer]`` in each layer.

    tensorflow-model-optimization decides. It keeps all weights that tie with its threshold, counts in
    float32 and does not know of earlier rounds, so its mask is restricted to ``mask`` and, where the
    count is then off, completed by magnitude; equal magnitudes go by position, the first survives.

    Args:
        weights: trained weights, float32, zero where ``mask`` prunes.
        keep: weights to survive in each layer, at most as many as survive in ``mask``.

    Source: Han et al. 2015 (magnitude pruning); Frankle & Carbin 2019, section 1 (layerwise, iterative).
    """
    model_variables, wrappers = _wrapped(model, image_shape, classes)
    layers = {}
    for name, wrapper in wrappers.items():
        before = mask.layers[name]
        if not 0 < keep[name] <= np.count_nonzero(before):
            raise ValueError(f"{name}: asked to keep {keep[name]} of {np.count_nonzero(before)} weights")
        model_variables[name].assign(weights[name])
        wrapper.pruning_schedule.target_sparsity = 1 - keep[name] / before.size
        wrapper.pruning_obj.conditional_mask_update()
        (_, mask_variable, _) = wrapper.pruning_vars[0]
        chosen = (mask_variable.numpy() > 0) & before
        layers[name] = _exactly(keep[name], chosen, before, weights[name])
    return Mask(layers)


def _exactly(count: int, chosen: np.ndarray, before: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``count`` of ``before``: the chosen first, among equals the larger in magnitude, then the earlier."""
    if np.count_nonzero(chosen) == count:
        return chosen
    survivors = np.flatnonzero(before)
    magnitude = np.abs(weights.ravel()[survivors])
    ranking = np.lexsort((survivors, -magnitude, ~chosen.ravel()[survivors]))
    exact = np.zeros(before.size, np.bool_)
    exact[survivors[ranking[:count]]] = True
    return exact.reshape(before.shape)
