"""Which weights go next: by magnitude with tensorflow-model-optimization, or by other scores."""

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from lottery.datasets.split import Part
from lottery.masks import Mask
from lottery.params import Model
from lottery.tickets import criteria


@dataclass(frozen=True)
class Prune:
    """The making of a round's mask: a task for a worker, since it needs TensorFlow."""

    name: str
    model: Model
    image_shape: tuple[int, int, int]
    classes: int
    criterion: str
    weights: dict[str, np.ndarray] = field(repr=False)  # those that are scored
    initial: dict[str, np.ndarray] = field(repr=False)  # initial, or rewound
    mask: Mask = field(repr=False)
    keep: dict[str, int] | int  # by layer, or of the whole network
    seed: int
    batch: Part | None = field(default=None, repr=False)  # what snip and grasp see
    whole: Collection[str] = ()  # layers that one threshold for all leaves out
    scoring_rounds: int = 1
    iterations: int = 0

    def __call__(self, report: Callable[[int], None]) -> Mask:
        """The mask, made in ``scoring_rounds`` steps, each scored without what is gone."""
        mask, weights = self.mask, self.weights
        for number in range(1, self.scoring_rounds + 1):
            mask = self._pruned(mask, weights, self._after(number))
            weights = mask.apply(weights)
        return mask

    def _after(self, number: int) -> dict[str, int] | int:
        """What a step leaves: each the same share of what was there (Tanaka et al. 2020)."""

        def on_the_way(before: int, after: int) -> int:
            share = number / self.scoring_rounds
            return after if share == 1 else round(before ** (1 - share) * after**share)

        counts = self.mask.counts
        if not isinstance(self.keep, int):
            return {name: on_the_way(counts[name], after) for name, after in self.keep.items()}
        whole = sum(counts[name] for name in self.whole)
        return whole + on_the_way(sum(counts.values()) - whole, self.keep - whole)

    def _pruned(
        self, mask: Mask, weights: dict[str, np.ndarray], keep: dict[str, int] | int
    ) -> Mask:
        network: Any = {
            "model": self.model.name,
            "width": self.model.width,
            "image_shape": self.image_shape,
            "classes": self.classes,
        }
        names = list(mask.layers)
        gradients = None
        if self.criterion in criteria.GRADIENTS:
            gradients = criteria.gradients(self.criterion, weights, names, self.batch, **network)
        elif self.criterion == "random":
            gradients = criteria.noise(weights, names, self.seed)
        scores = criteria.scores(self.criterion, weights, self.initial, gradients, names)
        if isinstance(keep, int):
            first = {name: np.full(weights[name].shape, np.inf) for name in self.whole}
            keep = global_counts({**scores, **first}, mask, keep)
        if self.criterion == "magnitude":
            return magnitude_mask(weights, mask, keep, **network)
        return highest(scores, mask, keep)

    def describe(self, result: Mask) -> str:
        """How much survives, for the log."""
        return f"{result.weights_remaining:.2%} of the weights remain"


def global_counts(scores: dict[str, np.ndarray], mask: Mask, total: int) -> dict[str, int]:
    """How many weights of each layer are among the ``total`` survivors with the highest scores.

    One threshold for all layers. Equal scores go by layer and position, the first survives. A layer
    may come out empty (layer collapse, Tanaka et al. 2020).
    """
    survivors = [scores[name][keep] for name, keep in mask.layers.items()]
    layer = np.repeat(np.arange(len(survivors)), [len(s) for s in survivors])
    if not 0 < total <= len(layer):
        raise ValueError(f"asked to keep {total} of {len(layer)} weights")
    chosen = np.argsort(-np.concatenate(survivors), kind="stable")[:total]
    counts = np.bincount(layer[chosen], minlength=len(survivors))
    return dict(zip(mask.layers, map(int, counts), strict=True))


def highest(scores: dict[str, np.ndarray], mask: Mask, keep: dict[str, int]) -> Mask:
    """The survivors with the highest scores, ``keep[layer]`` in each; of equals the first."""
    return Mask(
        {
            name: _exactly(keep[name], np.zeros(before.shape, np.bool_), before, scores[name])
            for name, before in mask.layers.items()
        }
    )


@contextlib.contextmanager
def _without_keras_3() -> Iterator[None]:
    """Keeps tensorflow-model-optimization from importing Keras 3 for a name that only Keras 2 has.

    It takes 1.4 of 1.5 s.
    """
    before = sys.modules.get("keras")
    # "import keras" then raises ImportError, as it expects
    sys.modules["keras"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["keras"]
        if before is not None:
            sys.modules["keras"] = before


@cache
def _wrapped(
    name: str, image_shape: tuple[int, int, int], classes: int, width: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of a float32 network, and of each kernel its layer's wrapper for pruning."""
    from lottery.training.models import build, kinds, variables

    with _without_keras_3():  # after models, which sets TF_USE_LEGACY_KERAS
        import tensorflow_model_optimization as tfmot

    model = build(name, image_shape, classes, width=width)
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
    width: float = 1.0,
) -> Mask:
    """The survivors of ``mask`` that are largest in magnitude, exactly ``keep[layer]`` in each.

    tensorflow-model-optimization decides. It keeps all weights that tie with its threshold, counts
    in float32 and does not know of earlier rounds, so its mask is restricted to ``mask`` and,
    where the count is then off, completed by magnitude; equal magnitudes go by position, the first
    survives.

    Args:
        weights: trained weights, float32, zero where ``mask`` prunes.
        keep: weights to survive in each layer, at most as many as in ``mask``; 0 empties it.

    Source: Han et al. 2015 (magnitude pruning); Frankle & Carbin 2019, section 1 (layerwise,
    iterative).
    """
    model_variables, wrappers = _wrapped(model, image_shape, classes, width)
    layers = {}
    for name, wrapper in wrappers.items():
        before = mask.layers[name]
        if not 0 <= keep[name] <= np.count_nonzero(before):
            raise ValueError(
                f"{name}: asked to keep {keep[name]} of {np.count_nonzero(before)} weights"
            )
        model_variables[name].assign(weights[name])
        wrapper.pruning_schedule.target_sparsity = 1 - keep[name] / before.size
        wrapper.pruning_obj.conditional_mask_update()
        (_, mask_variable, _) = wrapper.pruning_vars[0]
        chosen = (mask_variable.numpy() > 0) & before
        layers[name] = _exactly(keep[name], chosen, before, np.abs(weights[name]))
    return Mask(layers)


def _exactly(count: int, chosen: np.ndarray, before: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """``count`` of ``before``: the chosen first, then the higher score, then the earlier."""
    if np.count_nonzero(chosen) == count:
        return chosen
    survivors = np.flatnonzero(before)
    ranking = np.lexsort((survivors, -scores.ravel()[survivors], ~chosen.ravel()[survivors]))
    exact = np.zeros(before.size, np.bool_)
    exact[survivors[ranking[:count]]] = True
    return exact.reshape(before.shape)
