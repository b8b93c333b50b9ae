"""Which weights go next: by magnitude with tensorflow-model-optimization, or by other scores."""

import contextlib
import sys
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import numpy as np

from lottery.datasets.split import Part
from lottery.masks import Mask, Weights
from lottery.params import Network, Pattern
from lottery.tickets import criteria, patterns


def pruned(
    mask: Mask,
    weights: Weights,
    keep: dict[str, int] | int,
    *,
    criterion: str,
    initial: Weights,
    network: Network,
    seed: int,
    batch: Part | None = None,
    whole: Collection[str] = (),
    scoring_rounds: int = 1,
    pattern: Pattern = "weight",
) -> Mask:
    """What is left of ``mask``, in ``scoring_rounds`` steps of equal shares, each scored without
    what is gone.

    Args:
        weights: those that are scored, float32, zero where ``mask`` prunes.
        keep: how many survive, by layer or of the whole network.
        initial: the initial (or rewound) weights.
        batch: what criteria see of the images.
        whole: layers that one threshold for all leaves out.
    """
    counts, left = mask.counts, sum(mask.counts[name] for name in whole)
    for step in range(1, scoring_rounds + 1):
        share = step / scoring_rounds
        seen = criteria.PrunedNetwork(network, weights, initial, tuple(mask.layers), batch, seed)
        scores = criteria.scores(criterion, seen)
        if isinstance(keep, int):
            total = left + _on_the_way(sum(counts.values()) - left, keep - left, share)
            first = {name: np.full(weights[name].shape, np.inf) for name in whole}
            chosen = global_counts({**scores, **first}, mask, total)
        else:
            chosen = {name: _on_the_way(counts[name], n, share) for name, n in keep.items()}
        if pattern != "weight":
            choose = patterns.whole_units if pattern == "unit" else patterns.two_of_four
            mask = choose(scores, mask, chosen)
        elif criterion == "magnitude":
            mask = magnitude_mask(weights, mask, chosen, network)
        else:
            mask = highest(scores, mask, chosen)
        weights = mask.apply(weights)
    return mask


def _on_the_way(before: int, after: int, share: float) -> int:
    """What is left after a share of the exponential way (Tanaka et al. 2020, section 6)."""
    return after if share == 1 else round(before ** (1 - share) * after**share)


def global_counts(scores: Weights, mask: Mask, total: int) -> dict[str, int]:
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


def highest(scores: Weights, mask: Mask, keep: dict[str, int]) -> Mask:
    """The survivors with the highest scores, ``keep[layer]`` in each; of equals the first."""
    layers = {}
    for name, before in mask.layers.items():
        layers[name] = _exactly(keep[name], np.zeros_like(before), before, scores[name])
    return Mask(layers)


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
def _wrapped(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of a float32 network, and of each kernel its layer's wrapper for pruning."""
    from lottery.training.models import build, kinds, variables

    with _without_keras_3():  # after models, which sets TF_USE_LEGACY_KERAS
        import tensorflow_model_optimization as tfmot

    model = build(network)
    wrappers = {}
    for kernel in kinds(model):
        layer = model.get_layer(kernel.rpartition("/")[0])
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0, frequency=1)
        wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)
        wrapper.build(layer.get_input_shape_at(0))  # of several where it is shared
        wrapper.pruning_step.assign(0)
        wrappers[kernel] = wrapper
    return variables(model), wrappers


def magnitude_mask(weights: Weights, mask: Mask, keep: dict[str, int], network: Network) -> Mask:
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
    model_variables, wrappers = _wrapped(network)
    layers = {}
    for name, wrapper in wrappers.items():
        before, most = mask.layers[name], mask.counts[name]
        if not 0 <= keep[name] <= most:
            raise ValueError(f"{name}: asked to keep {keep[name]} of {most} weights")
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
