"""The split into training, validation and test set: stratified by class, seeded."""

from typing import NamedTuple

import numpy as np

from lottery.streams import stream_seed


class Part(NamedTuple):
    images: np.ndarray  # uint8 [n, height, width, channels]
    labels: np.ndarray  # int32 [n]


def split(
    images: np.ndarray, labels: np.ndarray, *, test: int, validation: int, seed: int
) -> dict[str, Part]:
    """Parts ``train``, ``validation`` and ``test``, disjoint, each with the classes in proportion.

    The test set depends on the seed alone, so that another validation size leaves it as it is.
    Within a part the images keep the order of the source.
    """
    rest, chosen = _hold_out(np.arange(len(labels)), labels, test, "test split", seed)
    train, held_out = _hold_out(rest, labels, validation, "validation split", seed)
    return _parts(images, labels, train=train, validation=held_out, test=chosen)


def split_training(
    images: np.ndarray, labels: np.ndarray, *, validation: int, seed: int
) -> dict[str, Part]:
    """Parts ``train`` and ``validation`` of a dataset that has a test set of its own; the rest as in ``split``."""
    train, held_out = _hold_out(
        np.arange(len(labels)), labels, validation, "validation split", seed
    )
    return _parts(images, labels, train=train, validation=held_out)


def _hold_out(
    rows: np.ndarray, labels: np.ndarray, size: int, purpose: str, seed: int
) -> tuple[np.ndarray, ...]:
    """The rows that stay and the ``size`` rows held out, with the classes in proportion; shuffled."""
    from sklearn.model_selection import train_test_split

    random_state = stream_seed(purpose, seed) % 2**32
    stay, out = train_test_split(
        rows, test_size=size, stratify=labels[rows], random_state=random_state
    )
    return stay, out


def _parts(images: np.ndarray, labels: np.ndarray, **rows: np.ndarray) -> dict[str, Part]:
    return {name: Part(images[np.sort(r)], labels[np.sort(r)]) for name, r in rows.items()}
