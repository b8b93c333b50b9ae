"""The order of images and the learning rates: functions of seeds and iterations. NumPy only."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lottery.params import Train
from lottery.streams import stream, stream_seed

ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # Keras' defaults


@dataclass(frozen=True)
class Order:
    """The order of the training images: a pure function of (purpose, seed, epoch)."""

    purpose: str
    seed: int

    def batches(self, start: int, stop: int, images: int, batch_size: int) -> np.ndarray:
        """Rows of the training set for the iterations ``[start, stop)``: int32 ``[stop - start,
        batch_size]``.

        An epoch is a fresh permutation cut into ``images // batch_size`` batches; the rest is left
        out.
        """
        per_epoch = images // batch_size
        return _cut(start, stop, per_epoch, lambda n: self._epoch(n, images, batch_size))

    def _epoch(self, epoch: int, images: int, batch_size: int) -> np.ndarray:
        per_epoch = images // batch_size
        rows = stream(self.purpose, self.seed, epoch).permutation(images)
        return rows[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    def changes(self, start: int, stop: int, images: int, train: Train) -> np.ndarray:
        """How each image of ``batches`` is changed: whether flipped, and the crop's top and left,
        int32 ``[stop - start, batch_size, 3]``.

        What happens to an image is a function of (purpose, seed, epoch, image).
        """
        assert train.augmentation is not None
        highest = [2 if train.augmentation.flip else 1, *[2 * train.augmentation.crop + 1] * 2]

        def of_epoch(epoch: int) -> np.ndarray:
            """The changes of its batches."""
            drawn = stream(f"augmentation of {self.purpose}", self.seed, epoch)
            of_image = drawn.integers(0, highest, (images, 3))
            return of_image[self._epoch(epoch, images, train.batch_size)]

        return _cut(start, stop, images // train.batch_size, of_epoch)

    def dropout_seeds(self, start: int, stop: int) -> np.ndarray:
        """Seed and iteration, that dropout is drawn from: int32 ``[stop - start, 2]``."""
        seed = stream_seed(f"dropout of {self.purpose}", self.seed) % 2**31
        seeds = np.full(stop - start, seed)
        return np.stack([seeds, np.arange(start, stop)], axis=1).astype(np.int32)


def _cut(start: int, stop: int, size: int, of_epoch: Callable[[int], np.ndarray]) -> np.ndarray:
    """``[start, stop)`` of what epochs of that size have one after another, as int32."""
    first, last = start // size, (stop - 1) // size
    epochs = np.concatenate([of_epoch(epoch) for epoch in range(first, last + 1)])
    return epochs[start - first * size : stop - first * size].astype(np.int32)


def learning_rates(train: Train, start: int, stop: int) -> np.ndarray:
    """The learning rate of each iteration in ``[start, stop)``: float64."""
    iterations = np.arange(start, stop)
    rates = np.full(len(iterations), train.learning_rate)
    if train.warmup_iterations:  # linear (Goyal et al. 2017, section 2.2)
        rates *= np.minimum(1, (iterations + 1) / train.warmup_iterations)
    if train.learning_rate_steps is not None:
        steps = np.searchsorted(train.learning_rate_steps.iterations, iterations, side="right")
        rates *= train.learning_rate_steps.factor**steps
    return rates


def step_sizes(train: Train, first: int, start: int, stop: int) -> np.ndarray:
    """What multiplies the optimiser's direction in ``[start, stop)`` of a run begun at ``first``:
    float32.

    Computed in float64; of Adam with its bias correction (Kingma & Ba 2015, section 2).
    """
    rates = learning_rates(train, start, stop)
    if train.optimizer == "adam":
        steps = np.arange(start - first + 1, stop - first + 1)
        rates = rates * np.sqrt(1 - ADAM["beta2"] ** steps) / (1 - ADAM["beta1"] ** steps)
    return rates.astype(np.float32)
