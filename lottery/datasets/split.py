"""The split into training, validation and test set: rows of a dataset, stratified by class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lottery.errors import LotteryError
from lottery.streams import stream


class Part(NamedTuple):
    """Some images, or other examples, and their labels."""

    images: np.ndarray  # uint8 [n, height, width, channels], or uint8 or float32 [n, …]
    labels: np.ndarray  # int32 [n]


def scaled(images: np.ndarray) -> np.ndarray:
    """As networks take them, float32: uint8 in [0, 1], float32 as they are."""
    return images / np.float32(255) if images.dtype == np.uint8 else images


class Split(NamedTuple):
    """The rows of each part: int32 ``[n]``, rising, in no two parts."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(
    labels: np.ndarray,
    *,
    test: int,
    own_test: bool,
    validation: int,
    seed: int,
    class_names: Sequence[str] = (),
) -> Split:
    """Parts with the classes in proportion, and each class in each part.

    The test set depends on the seed alone, so that another validation size leaves it as it is.

    Args:
        labels: int32 ``[n]``, from 0 up.
        test, validation: the sizes of these parts.
        own_test: whether the dataset's last ``test`` rows are its test set; else it is drawn.

    Raises LotteryError naming the class that is too small to be in every part.
    """
    rows = np.arange(len(labels))
    if own_test:
        rest, tested = rows[: len(rows) - test], rows[len(rows) - test :]
    else:
        tested, rest = _drawn(rows, labels, test, 2, stream("test split", seed), class_names)
    generator = stream("validation split", seed)
    held_out, train = _drawn(rest, labels, validation, 1, generator, class_names)
    return Split(*(np.sort(part).astype(np.int32) for part in (train, held_out, tested)))


def _drawn(
    rows: np.ndarray,
    labels: np.ndarray,
    size: int,
    leave: int,
    generator: np.random.Generator,
    class_names: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """``size`` rows, one of each class at least, and the others, ``leave`` of each at least."""
    counts = np.bincount(labels[rows], minlength=labels.max() + 1)
    for label, count in enumerate(counts):
        if count < 1 + leave:
            name = class_names[label] if class_names else label
            raise LotteryError(
                f"the class {name} has {count} examples to split; accepted: {1 + leave} or more, "
                "so that each of training, validation and test set has one"
            )
    quota = size * counts / len(rows)
    take = np.clip(np.floor(quota).astype(int), 1, counts - leave)
    while (step := np.sign(size - take.sum())) != 0:
        room = take < counts - leave if step > 0 else take > 1
        if not room.any():
            raise LotteryError(
                f"{size} examples cannot be held out of {len(rows)} with each class in each part"
            )
        # the largest remainder first, of equals the first class
        take[np.argmax(np.where(room, step * (quota - take), -np.inf))] += step
    shuffled = generator.permutation(rows)
    by_class = [shuffled[labels[shuffled] == label] for label in range(len(counts))]
    drawn = np.concatenate([members[:n] for members, n in zip(by_class, take, strict=True)])
    return drawn, np.concatenate([members[n:] for members, n in zip(by_class, take, strict=True)])
