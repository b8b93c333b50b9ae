"""Training that changes the mask: supermasks, and dynamic sparse training (SET, RigL).

The number of surviving weights stays what it is in each layer of the mask that a run begins with.
What else a run goes on from, as its mask, lies among the slots of its State.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lottery.datasets.split import Split
from lottery.masks import Mask, Weights
from lottery.streams import stream
from lottery.training.engine import changed
from lottery.training.schedule import Order
from lottery.training.trainer import InvariantBroken, State, Trainer

import tensorflow as tf  # isort: skip  (after trainer, which sets TF_USE_LEGACY_KERAS)

UPDATE_EVERY = 100  # iterations between two changes of the mask (Evci et al. 2020, section 4)
FRACTION = 0.3  # of the survivors, that the first change drops
UPDATE_UNTIL = 0.75  # share of the run after which the mask stays


def change(
    keep: np.ndarray, weights: np.ndarray, growth: np.ndarray, fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """The mask of a layer after one change, and which of its survivors are new.

    Of the survivors, the ``fraction`` smallest in magnitude are dropped, rounded down; as many of
    the weights that are then off come back, those with the highest ``growth``, perhaps of the
    dropped ones. Of equals the first. Source: Evci et al. 2020, algorithm 1, and their code.
    """
    weights, growth = np.nan_to_num(weights), np.nan_to_num(growth)  # of a run that has diverged
    dropped = int(np.float32(np.count_nonzero(keep)) * np.float32(fraction))
    magnitude = np.where(keep, np.abs(weights), -1).ravel()
    survivors = np.argsort(-magnitude, kind="stable")[: np.count_nonzero(keep) - dropped]
    chosen = np.zeros(keep.size, np.bool_)
    chosen[survivors] = True
    grown = np.argsort(-np.where(chosen, -np.inf, growth.ravel()), kind="stable")[:dropped]
    chosen[grown] = True
    after = chosen.reshape(keep.shape)
    return after, after & ~keep


def drop_fraction(iteration: int, iterations: int) -> float:
    """What a change at an iteration drops: annealed by a cosine (Evci et al. 2020, section 3)."""
    last = UPDATE_UNTIL * iterations
    return FRACTION / 2 * (1 + math.cos(math.pi * min(1, iteration / last)))


class DynamicTrainer(Trainer):
    """Drops the smallest weights every UPDATE_EVERY iterations, and lets as many others grow from
    0: by the magnitude of their gradient (RigL, Evci et al. 2020), or random ones (SET, Mocanu et
    al. 2018, as Evci et al. compare with it).

    The gradient is that of the batch that is trained on next, as it is augmented; nothing is
    dropped out, and batch normalisation uses its moving statistics.
    """

    def __init__(self, *args: Any, by_gradient: bool = True) -> None:
        super().__init__(*args)
        self._by_gradient = by_gradient
        self._slots |= {f"mask/{name}": mask for name, mask in self._masks.items()}
        self._last = 0
        self._dense_gradient = tf.function(self._gradient_of_batch, autograph=False)

    def _beginning(self, weights: Weights, mask: Mask, *how: Any) -> State:
        state = super()._beginning(weights, mask, *how)
        state.slots |= {f"mask/{n}": keep.astype(np.float32) for n, keep in mask.layers.items()}
        return state

    def _gradient_of_batch(self, images: Any, labels: Any) -> Any:
        kernels = {name: self._trained[name] for name in self._masks}
        with tf.GradientTape() as tape:
            logits = self._logits(images, training=False)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, kernels)

    def run(self, *args: Any, iterations: int, **options: Any) -> State:
        """As a Trainer does; the mask that is given is the first."""
        self._last = iterations
        return super().run(*args, iterations=iterations, **options)

    def train_interval(self, order: Order, split: Split, first: int, start: int, stop: int) -> Any:
        """Iterations ``[start, stop)`` and the changes of the mask at and between them."""
        until = min(stop, math.ceil(UPDATE_UNTIL * self._last))
        changes = [i for i in range(start, until) if i % UPDATE_EVERY == 0 and i > first]
        loss, correct = 0.0, 0
        for begin, end in zip([start, *changes], [*changes, stop], strict=True):
            if begin in changes and end > begin:
                self._change(order, split, begin)
            if end > begin:
                sums = super().train_interval(order, split, first, begin, end)
                loss, correct = loss + float(sums[0]), correct + int(sums[1])
        return loss, correct

    def _change(self, order: Order, split: Split, iteration: int) -> None:
        fraction = drop_fraction(iteration, self._last)
        growth: dict[str, Any] = {}
        if self._by_gradient:
            at = iteration, iteration + 1, len(split.train)
            batch = split.train[order.batches(*at, self.train.batch_size)[0]]
            images, labels = (tf.gather(of, batch) for of in (self._images, self._labels))
            if self.train.augmentation:
                how = order.changes(*at, self.train)[0]
                images = changed(images, how, self.train.augmentation.crop)
            growth = {n: np.abs(g) for n, g in self._dense_gradient(images, labels).items()}
        for name, mask in self._masks.items():
            drawn = stream(f"growth of {name}, {order.purpose}", order.seed, iteration)
            scores = growth[name] if self._by_gradient else drawn.random(mask.shape, np.float32)
            weights = self._variables[name].numpy()
            keep, new = change(mask.numpy() > 0, weights, scores, fraction)
            mask.assign(keep.astype(np.float32))
            moments = [v for n, v in self._slots.items() if n.partition("/")[2] == name]
            for variable in (self._variables[name], *moments):
                if variable is not mask:
                    variable.assign(np.where(keep & ~new, variable.numpy(), np.float32(0)))

    def _mask_of(self, state: State, mask: Mask) -> Mask:
        found = Mask({name: state.slots[f"mask/{name}"] > 0 for name in mask.layers})
        if found.counts != mask.counts:
            raise InvariantBroken(f"{found.counts} weights survive, expected {mask.counts}")
        return found


class SupermaskTrainer(Trainer):
    """Learns which weights survive, and no weight: edge-popup (Ramanujan et al. 2020, section 3).

    Each weight has a score, at first uniform as they are in the authors' code. The weights with the
    highest magnitudes of scores survive, as many in each layer as in the mask that is given, and
    the mask's gradient is passed straight through to all scores, as in the authors' code:
    ``∂L/∂s = ∂L/∂(w ⊙ mask) · w · sign(s)``. Biases and scales stay what they are.
    """

    slots_are_masked = False  # scores of pruned weights go on learning

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        shapes = {name: variable.shape for name, variable in self._masks.items()}
        self._masks = {}  # the optimiser moves all scores
        self._fixed, self._scores = (
            {name: tf.Variable(tf.zeros(shape), trainable=False) for name, shape in shapes.items()}
            for _ in range(2)
        )
        self._counts = {name: tf.Variable(1, trainable=False) for name in shapes}
        for slot, group in (("fixed", self._fixed), ("score", self._scores)):
            self._slots |= {f"{slot}/{name}": variable for name, variable in group.items()}

    def _beginning(self, weights: Weights, mask: Mask, order: Order, *how: Any) -> State:
        state = super()._beginning(weights, mask, order, *how)
        state.weights = dict(weights)
        for name, shape in mask.shapes.items():
            bound = 1 / math.sqrt(math.prod(shape[:-1]))  # Kaiming uniform with a = √5
            drawn = stream(f"scores of {name}, {order.purpose}", order.seed)
            score = drawn.uniform(-bound, bound, shape).astype(np.float32)
            state.slots |= {f"fixed/{name}": weights[name], f"score/{name}": score}
            chosen = _highest(tf.constant(score), mask.counts[name]).numpy()
            state.weights[name] = weights[name] * chosen
        return state

    def run(self, weights: Weights, mask: Mask, *args: Any, **options: Any) -> State:
        """As a Trainer does; of the mask that is given only the counts matter."""
        for name, count in mask.counts.items():
            self._counts[name].assign(count)
        return super().run(weights, mask, *args, **options)

    def _update(self, name: str, variable: Any, gradient: Any, step_size: Any) -> None:
        if name in self._scores:
            score, fixed = self._scores[name], self._fixed[name]
            super()._update(name, score, gradient * fixed * tf.sign(score), step_size)
            variable.assign(fixed * _highest(score.read_value(), self._counts[name]))

    def _mask_of(self, state: State, mask: Mask) -> Mask:
        """Those that survive; a weight that is exactly 0 counts as one."""
        found = {}
        for name, count in mask.counts.items():
            score = tf.constant(state.slots[f"score/{name}"])
            found[name] = _highest(score, count).numpy() > 0
        return Mask(found)


def _highest(score: Any, count: Any) -> Any:
    """1 for the scores that are highest in magnitude, of equals the first, else 0.

    The lowest of these is found bit by bit: floats that are not negative are in the order of their
    bits. A sort takes several times as long.
    """
    bits = tf.reshape(tf.bitcast(tf.abs(score), tf.int32), [-1])
    lowest = tf.constant(0, tf.int32)
    for bit in reversed(range(31)):
        higher = lowest + (1 << bit)
        enough = tf.math.count_nonzero(bits >= higher, dtype=tf.int32) >= count
        lowest = tf.where(enough, higher, lowest)
    above, equal = bits > lowest, bits == lowest
    missing = count - tf.math.count_nonzero(above, dtype=tf.int32)
    first = equal & (tf.cumsum(tf.cast(equal, tf.int32)) <= missing)
    return tf.reshape(tf.cast(above | first, score.dtype), score.shape)


TRAINERS: dict[str, Callable[..., Trainer]] = {
    "fixed": Trainer,
    "rigl": DynamicTrainer,
    "set": partial(DynamicTrainer, by_gradient=False),
    "edge_popup": SupermaskTrainer,
}
"""How the mask of a run changes, to what trains it."""
