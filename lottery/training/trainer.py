"""One training run, from given weights under a mask to its history."""

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from lottery.artifacts.tables import HISTORY
from lottery.datasets.split import Split
from lottery.masks import Mask, Weights
from lottery.training.engine import Engine
from lottery.training.schedule import Order

History = dict[str, list[float]]
"""One list a column of HISTORY, one entry an evaluation. Training metrics are means over the
batches since the evaluation before (NaN at the first); losses are cross-entropies in nats,
accuracies in [0, 1]."""


class InvariantBroken(AssertionError):
    """Something that must always hold did not: a defect of the program, never of its input."""


@dataclass
class State:
    """Where a run stands after an evaluation; all that is needed to go on from there."""

    iteration: int
    weights: Weights
    slots: Weights
    history: History
    kept: dict[int, Weights] = field(default_factory=dict)


class Trainer(Engine):
    """An Engine that trains whole runs under one mask."""

    slots_are_masked = True

    def run(
        self,
        weights: Weights,
        mask: Mask,
        order: Order,
        split: Split,
        *,
        start: int = 0,
        iterations: int,
        keep: Collection[int] = (),
        resume: State | None = None,
        on_evaluation: Callable[[int, Callable[[], State]], None] = lambda iteration, state: None,
    ) -> State:
        """Trains from ``weights`` under ``mask``, from iteration ``start`` to ``iterations``.

        The optimiser starts afresh; data order and learning rate go on at ``start``, as in a run
        that reached it. Weights are evaluated at ``start``, then every ``evaluate_every``
        iterations and at the end. A run whose loss is no longer finite has diverged: it ends there,
        its history with a validation loss of NaN, and those of its weights that are not finite are
        0.

        Args:
            weights: every variable; those pruned by ``mask`` must be 0.
            split: the rows that are trained and evaluated on.
            keep: iterations whose weights the result keeps.
            resume: the state to go on from, instead of starting.
            on_evaluation: called with the iteration and a function that gives the state.

        Raises InvariantBroken where a pruned weight or its optimiser slot is not 0.
        """
        self._assign(self._masks, {n: m.astype(np.float32) for n, m in mask.layers.items()})
        state = copy.deepcopy(resume) or self._beginning(weights, mask, order, start, keep)
        self._check_pruned_are_zero(mask, state, "at the start")
        self._assign(self._variables, state.weights)
        self._assign(self._slots, state.slots)

        def snapshot() -> State:
            """The state now."""
            now = self._read(self._variables), self._read(self._slots)
            return State(state.iteration, *now, copy.deepcopy(state.history), dict(state.kept))

        finite = True
        if resume is None:
            finite = self._record(state, split, math.nan, math.nan)
            on_evaluation(start, snapshot)
        every, stopping = self.train.evaluate_every, self.train.early_stopping
        while finite and state.iteration < iterations:
            if stopping and stopping.ends(state.history["validation_loss"]):
                break
            boundary = min(iterations, (state.iteration // every + 1) * every)
            means = self._train_to(boundary, order, split, start, state, keep)
            finite = self._record(state, split, *means)
            if finite:
                on_evaluation(boundary, snapshot)
        final = snapshot()
        final = final if finite else _diverged(final, self._mask_of(final, mask), keep)
        self._check_pruned_are_zero(mask, final, "after training")
        return final

    def _beginning(
        self, weights: Weights, mask: Mask, order: Order, start: int, keep: Collection[int]
    ) -> State:
        slots = {name: np.zeros(v.shape, np.float32) for name, v in self._slots.items()}
        history: History = {column: [] for column in HISTORY}
        return State(start, weights, slots, history, {start: weights} if start in keep else {})

    def _mask_of(self, state: State, mask: Mask) -> Mask:
        """The mask of a state; ``mask``: that of the run's beginning."""
        return mask

    def _check_pruned_are_zero(self, mask: Mask, state: State, when: str) -> None:
        mask, slots = self._mask_of(state, mask), state.slots if self.slots_are_masked else {}
        for name, value in {**state.weights, **slots}.items():
            keep = mask.layers.get(name.partition("/")[2] if name in slots else name)
            if keep is not None and np.any(value[~keep]):
                raise InvariantBroken(f"{name}: a pruned weight is not 0 {when}")

    def _train_to(
        self, stop: int, order: Order, split: Split, first: int, state: State, keep: Collection[int]
    ) -> tuple[float, float]:
        """From the state's iteration to ``stop`` of a run begun at ``first``: mean loss, accuracy.

        The state gets its iteration, and the weights of those to keep.
        """
        loss, correct, steps = 0.0, 0, stop - state.iteration
        for end in sorted({k for k in keep if state.iteration < k < stop} | {stop}):
            sums = self.train_interval(order, split, first, state.iteration, end)
            loss, correct, state.iteration = loss + float(sums[0]), correct + int(sums[1]), end
            if end in keep:
                state.kept[end] = self._read(self._variables)
        return loss / steps, correct / (steps * self.train.batch_size)

    def _record(self, state: State, split: Split, loss: float, accuracy: float) -> bool:
        """Evaluates, and adds a row to the history; whether the run's loss is still finite."""
        held_out = np.concatenate([split.validation, split.test])
        losses, hits = (v.numpy() for v in self._evaluate(self._images, self._labels, held_out))
        n = len(split.validation)
        row = [float(state.iteration), loss, accuracy]
        for part in (slice(None, n), slice(n, None)):
            row += [float(losses[part].astype(np.float64).mean()), float(hits[part].mean())]
        finite = math.isfinite(row[3]) and (not state.history["iteration"] or math.isfinite(loss))
        if not finite:
            row[3] = math.nan
        for name, value in zip(HISTORY, row, strict=True):
            state.history[name].append(value)
        return finite


def _diverged(state: State, mask: Mask, keep: Collection[int]) -> State:
    """A diverged run's state with 0 where it is not finite; also for later weights to keep."""

    def finite(values: Weights) -> Weights:
        """With 0 in the place of what is not finite."""
        return {n: np.nan_to_num(v, nan=0, posinf=0, neginf=0) for n, v in values.items()}

    weights = mask.apply(finite(state.weights))
    slots = {
        name: np.where(mask.layers[of], value, np.float32(0)) if of in mask.layers else value
        for name, value in finite(state.slots).items()
        for of in [name.split("/", 1)[1]]
    }
    kept = dict.fromkeys(keep, weights) | {k: finite(v) for k, v in state.kept.items()}
    return State(state.iteration, weights, slots, state.history, kept)
