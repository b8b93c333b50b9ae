"""A dataset in its folder: images, labels and what is known of them. A split is rows of it."""

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lottery.artifacts import files
from lottery.datasets.split import Part, Split, split
from lottery.params import Data, Size


class Dataset(NamedTuple):
    """All images, memory-mapped, those of its own test set last; what ``dataset.json`` holds.

    What are no images is called so too: rows, signals, whatever arrays hold.
    """

    images: np.ndarray  # uint8 [n, height, width, channels], or uint8 or float32 [n, …]
    labels: np.ndarray  # int32 [n]
    facts: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of images height, width, channels."""
        return tuple(self.facts["image_shape"])

    @property
    def noun(self) -> str:
        """What people call the images."""
        return "images" if len(self.image_shape) == 3 else "examples"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.facts["classes"])

    @property
    def training(self) -> int:
        """Images for training and validation."""
        return len(self.labels) - int(self.facts["test"])

    @property
    def size(self) -> Size:
        """What parameters have to fit."""
        return Size(self.training, self.classes, self.image_shape)

    def split(self, data: Data, seed: int) -> Split:
        """The rows of each part for a seed; LotteryError where a class is too small."""
        return split(
            self.labels,
            test=self.facts["test"],
            own_test=self.facts["own_test"],
            validation=data.validation_size,
            seed=data.split_seed if data.split == "shared" else seed,
            class_names=self.facts.get("class_names", ()),
        )

    def part(self, rows: np.ndarray) -> Part:
        """These rows, read into memory."""
        return Part(np.asarray(self.images[rows]), np.asarray(self.labels[rows]))


def write_dataset(folder: Path, images: np.ndarray, labels: np.ndarray, facts: Any) -> None:
    """``images.npy``, ``labels.npy`` and ``dataset.json``, which has the sha256 of both."""
    checksums = {}
    for name, array in (("images.npy", images), ("labels.npy", labels)):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        checksums[name] = hashlib.sha256(buffer.getbuffer()).hexdigest()
        files.write(folder / name, buffer.getvalue())
    parts = {"class_counts": labels}
    if facts["own_test"]:  # one that is drawn has the classes' shares of the whole
        parts["test_class_counts"] = labels[len(labels) - facts["test"] :]
    counts = {n: np.bincount(of, minlength=facts["classes"]).tolist() for n, of in parts.items()}
    files.write_json(folder / "dataset.json", {**facts, **counts, "files": checksums})


def open_dataset(folder: Path = files.DATASET) -> Dataset:
    """Raises LotteryError naming the file that is missing, damaged, changed or of another shape."""
    path = folder / "dataset.json"
    facts = files.read_json(path)
    try:
        shape = (sum(facts["class_counts"]), *facts["image_shape"])
        dtype = np.dtype(facts.get("dtype", np.uint8))
        if not 0 < facts["test"] < shape[0] or not isinstance(facts["own_test"], bool):
            raise ValueError("test, own_test")
        sha256 = facts["files"]
        images = _open_array(folder / "images.npy", dtype, shape, sha256)
        labels = _open_array(folder / "labels.npy", np.dtype(np.int32), shape[:1], sha256)
        return Dataset(images, labels, facts)
    except (KeyError, TypeError, ValueError) as error:
        why = f"lacks a field or has one of another kind ({type(error).__name__}: {error})"
        raise files.broken(path, why) from None


def _open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...], sha256: Any) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise files.broken(path, "not there") from None
    except Exception as error:  # numpy evaluates the header: a damaged one raises nearly anything
        raise files.broken(path, f"cannot be read as an array, or truncated ({error})") from None
    if array.dtype != dtype or array.shape != shape:
        got = f"{array.dtype} {list(array.shape)}"
        raise files.broken(path, f"holds {got}, expected {dtype} {list(shape)}")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256[path.name]:
            raise files.broken(path, "its sha256 is not the one in dataset.json")
    return array
