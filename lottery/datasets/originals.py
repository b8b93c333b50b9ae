"""The public archives of the named datasets: where they are, their sha256, and how they are read.

Only the last parts of the members' names count, so a downloaded archive will do as well as the folder that
somebody unpacked it into. Counts, shapes and labels are checked by the caller.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from lottery.datasets import formats
from lottery.datasets.archives import Tree, by_last_part, shown, unzip
from lottery.errors import LotteryError

Arrays = tuple[np.ndarray, np.ndarray]
"""Images uint8 ``[n, height, width, channels]`` and labels int32 ``[n]``."""
Contents = Mapping[str, bytes]

MOST_UNPACKED = 2**26
"""Bytes of an idx file unzipped; MNIST's largest has 47 million."""


@dataclass(frozen=True)
class File:
    """One file to download: its original URL first, then mirrors. ``most`` bounds its bytes; the sha256 decides."""

    name: str
    sha256: str
    most: int
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """Members by the last parts of their names, and how their contents become training and test part."""

    members: tuple[str, ...]
    read: Callable[[Contents, str], tuple[Arrays, Arrays]]

    def find(self, tree: Tree) -> dict[str, str] | None:
        """The names in the tree by those of the members (a .gz may be unzipped already); None where one is missing."""
        there = by_last_part(tree.files)
        found = {
            name: there.get(name) or there.get(name.removesuffix(".gz")) for name in self.members
        }
        return {name: full for name, full in found.items() if full} if all(found.values()) else None


@contextlib.contextmanager
def _naming(where: str, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise LotteryError(f"{where}: {shown(name)}: {error}; obtain it again") from None


def _grey(images: np.ndarray, labels: np.ndarray) -> Arrays:
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images {images.dtype} {list(images.shape)} with labels {list(labels.shape)}; "
            "accepted: uint8 [n, height, width] with [n]"
        )
    return images[..., None], labels.astype(np.int32)


def _npz(contents: Contents, where: str) -> tuple[Arrays, Arrays]:
    def part(name: str) -> Arrays:
        with _naming(where, f"x_{name}.npy, y_{name}.npy"):
            return _grey(
                formats.npy(contents[f"x_{name}.npy"]), formats.npy(contents[f"y_{name}.npy"])
            )

    return part("train"), part("test")


def _idx(contents: Contents, where: str) -> tuple[Arrays, Arrays]:
    def array(name: str) -> np.ndarray:
        content = contents[name]
        if content.startswith(b"\x1f\x8b"):
            content = unzip(content, f"{where}: {shown(name)}", MOST_UNPACKED)
        with _naming(where, name):
            return formats.idx(content)

    def part(name: str) -> Arrays:
        images, labels = (
            array(f"{name}-images-idx3-ubyte.gz"),
            array(f"{name}-labels-idx1-ubyte.gz"),
        )
        with _naming(where, f"{name}-…"):
            return _grey(images, labels)

    return part("train"), part("t10k")


def _cifar(contents: Contents, where: str, *, labels: int) -> tuple[Arrays, Arrays]:
    def batch(name: str) -> Arrays:
        with _naming(where, name):
            return formats.cifar(contents[name], labels=labels)

    *training, test = contents  # in the order of Format.members
    images, of = zip(*map(batch, training), strict=True)
    return (np.concatenate(images), np.concatenate(of)), batch(test)


_IDX_FILES = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
"""Fashion-MNIST's files and their sha256; MNIST's are called the same."""

NPZ = Format(("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy"), _npz)
IDX = Format(tuple(_IDX_FILES), _idx)
CIFAR10 = Format(
    (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"), partial(_cifar, labels=1)
)
CIFAR100 = Format(
    ("train.bin", "test.bin"), partial(_cifar, labels=2)
)  # the coarse label, then the fine one

FORMATS: dict[str, tuple[Format, ...]] = {
    "mnist": (NPZ, IDX),
    "fashion_mnist": (IDX,),
    "cifar10": (CIFAR10,),
    "cifar100": (CIFAR100,),
}

_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
_FASHION = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
_TORONTO = "https://www.cs.toronto.edu/~kriz"
_MINDSPORE = "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets"

FILES: dict[str, tuple[File, ...]] = {
    "mnist": (
        File(
            "mnist.npz",
            "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
            20_000_000,
            (f"{_KERAS}/mnist.npz", "https://s3.amazonaws.com/img-datasets/mnist.npz"),
        ),
    ),
    "fashion_mnist": tuple(
        File(
            name,
            sha256,
            50_000_000,
            (
                f"{_FASHION}/{name}",
                f"{_KERAS}/{name}",
                f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}",
            ),
        )
        for name, sha256 in _IDX_FILES.items()
    ),
    "cifar10": (
        File(
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            200_000_000,
            (
                f"{_TORONTO}/cifar-10-binary.tar.gz",
                "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
                f"{_MINDSPORE}/cifar-10-binary.tar.gz",
            ),
        ),
    ),
    "cifar100": (
        File(  # the sha256 is that of tensorflow-datasets' url_checksums/cifar100.txt
            "cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            200_000_000,
            (f"{_TORONTO}/cifar-100-binary.tar.gz", f"{_MINDSPORE}/cifar-100-binary.tar.gz"),
        ),
    ),
}

COPIES = {
    "cifar10": {
        "0287a3668d9e0d204fc6ffa0e85a171724de09b8aec55d93153b270368489df4": "CIFAR-10, JPEG quality 75"
    },
}
"""Titles of known copies that are not the original, by name and the sha256 of their file."""
