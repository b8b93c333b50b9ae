"""The files of the public datasets to arrays. Nothing is unpickled."""

import gzip
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from lottery.datasets.image_folder import Images
from lottery.errors import LotteryError

Arrays = tuple[np.ndarray, np.ndarray]
"""Images uint8 ``[n, height, width, channels]`` and labels int32 ``[n]``."""

MOST_UNPACKED = 2**26  # bytes of an idx file unzipped; MNIST's largest has 47 million


def read(name: str, folder: Path, context: str) -> Images | None:
    """A dataset's original files, at most two levels down; None where not all are there."""
    for files, read_group in FORMATS[name]:
        groups = [[_find(folder, file, context) for file in group] for group in files]
        if not all(map(all, groups)):
            continue
        parts = []
        for group, paths in zip(files, groups, strict=True):
            try:
                parts.append(read_group(*paths))
            except Exception as error:  # gzip and NumPy raise nearly anything on damaged input
                why = f"damaged or of another kind ({type(error).__name__}: {error})"
                names = ", ".join(group)
                raise LotteryError(f"{context}: {names}: {why}; obtain it again") from None
        images, labels = map(np.concatenate, zip(*parts, strict=True))
        return Images(images, labels, len(labels) - len(parts[-1][1]), ())
    return None


def _find(folder: Path, file: str, context: str) -> Path | None:
    """Where it is, if anywhere. A ``.gz`` may be unzipped already; LotteryError: there are two."""
    names = (file.removesuffix(".gz"), file)
    patterns = (f"{above}{name}" for above in ("", "*/", "*/*/") for name in names)
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    by_folder = {path.parent: path for path in paths}  # of the two in one folder, the zipped one
    if len(by_folder) > 1:
        places = ", ".join(sorted(f"{place.relative_to(folder)}/" for place in by_folder))
        raise LotteryError(f"{context}: holds {file} in {places}; accepted: each file once")
    return next(iter(by_folder.values()), None)


def grey(read_array: Callable[[Path], np.ndarray], images: Path, labels: Path) -> Arrays:
    """Two files, of images ``[n, height, width]`` and of labels ``[n]``."""
    pixels, classes = read_array(images), read_array(labels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or classes.shape != pixels.shape[:1]:
        raise ValueError(f"{pixels.dtype} {pixels.shape} with {classes.dtype} {classes.shape}")
    return pixels[..., None], classes.astype(np.int32)


def idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes (LeCun's MNIST format): uint8, of the shape in its header."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        content = file.read(MOST_UNPACKED)
    if content[:3] != b"\0\0\x08":
        raise ValueError("not an idx file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def npy(path: Path) -> np.ndarray:
    """A .npy file of integers; mapped, so that nothing is allocated on its header's word alone."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "iu":
        raise ValueError(f"holds {array.dtype}; accepted: integers")
    return np.array(array, order="C")


def cifar(label_bytes: int, path: Path) -> Arrays:
    """Records of the CIFAR binary version: label bytes, the last of which counts, then 3 planes."""
    records = np.fromfile(path, np.uint8).reshape(-1, label_bytes + 3 * 32 * 32)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, records[:, label_bytes - 1].astype(np.int32)


_NPZ = (("x_train.npy", "y_train.npy"), ("x_test.npy", "y_test.npy"))
_TRAIN, _TEST = (
    (f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k")
)
_BATCHES = tuple((f"data_batch_{number}.bin",) for number in range(1, 6))

FORMATS: dict[str, list[tuple[tuple[tuple[str, ...], ...], Callable[..., Arrays]]]] = {
    "mnist": [(_NPZ, partial(grey, npy)), ((_TRAIN, _TEST), partial(grey, idx))],
    "fashion_mnist": [((_TRAIN, _TEST), partial(grey, idx))],
    "cifar10": [((*_BATCHES, ("test_batch.bin",)), partial(cifar, 1))],
    # the coarse label, then the fine one
    "cifar100": [((("train.bin",), ("test.bin",)), partial(cifar, 2))],
}
"""Files that are read together, those of the test part last, and what reads them."""
