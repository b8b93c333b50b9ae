"""A dataset: obtained and checked."""

import hashlib
import re

import numpy as np

from lottery.datasets import image_folder, originals, packaged, sources
from lottery.datasets.catalogue import DATASETS, Known
from lottery.datasets.dataset import Dataset
from lottery.errors import LotteryError
from lottery.params import Data

TEST_SHARE = 6
"""Of images without a test set, one in so many is set aside: about as in CIFAR-10 and MNIST."""


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 of the images' bytes (uint8) followed by the labels' (int32)."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def obtain(data: Data) -> Dataset:
    """All images and labels of the dataset, from its package, its archive or ``data.source``.

    Raises LotteryError for whatever is wrong with the source or does not fit the dataset.
    """
    known = DATASETS.get(data.name)
    if known is not None and known.package is not None:
        return _packaged(data, known)
    with sources.opened(data) as source:
        found = originals.read(data.name, source.folder, source.where) if known else None
        if found is None:
            size = (data.image_size[0], data.image_size[1]) if data.image_size else None
            found = image_folder.read(source.folder, source.where, size)
    images, labels, training, names = found
    sha256 = fingerprint(images, labels)
    title = re.sub(r"(?i)(?<=.)\.(zip|tar|tgz|tar\.gz)$", "", source.name.rpartition("/")[2])
    if known is not None:
        _check(source.where, found, known)
        names = names or known.class_names
        is_original = sha256 == known.sha256 or source.sha256 == known.files
        title = known.title if is_original else f"{known.title}, from {source.name}"
    test = len(labels) - training or len(labels) // TEST_SHARE
    if test < len(names):
        raise LotteryError(
            f"{source.where}: {len(labels)} images of {len(names)} classes are too few to set "
            f"1/{TEST_SHARE} aside as a test set; accepted: from {TEST_SHARE * len(names)} up, or "
            "a test/ folder"
        )
    facts = {
        "name": data.name,
        "title": title,
        "source": source.name,
        "source_sha256": source.sha256,
        **({"source_version": source.version} if source.version else {}),
        "sha256": sha256,
        "image_shape": list(images.shape[1:]),
        "classes": int(labels.max()) + 1,
        **({"class_names": list(names)} if names else {}),
        "test": test,
        "own_test": training < len(labels),
    }
    return Dataset(images, labels, facts)


def _packaged(data: Data, known: Known) -> Dataset:
    images, labels = packaged.LOADERS[data.name]()
    sha256 = fingerprint(images, labels)
    expected = data.sha256 or known.sha256
    if sha256 != expected:
        raise LotteryError(
            f"dataset {data.name}: got sha256 {sha256} from the {known.package} package, expected "
            f"{expected}; install the locked packages again, or correct data.sha256"
        )
    facts = {
        "name": data.name,
        "title": known.title,
        "source": f"the {known.package} package",
        "sha256": sha256,
        "image_shape": list(known.image_shape),
        "classes": known.classes,
        "test": known.test,
        "own_test": False,
    }
    return Dataset(images, labels, facts)


def _check(where: str, found: image_folder.Images, known: Known) -> None:
    """Counts, shape, labels and class names are those of the dataset."""
    images, labels, training, names = found
    if names and known.class_names not in ((), names):
        raise LotteryError(
            f"{where}: holds the classes {', '.join(names)}; accepted: "
            f"{', '.join(known.class_names)}"
        )
    used = [np.unique(part).tolist() for part in (labels[:training], labels[training:])]
    if (images.shape, training) != ((known.images, *known.image_shape), known.training) or (
        used != [list(range(known.classes))] * 2
    ):
        raise LotteryError(
            f"{where}: holds {training:,} training and {len(labels) - training:,} test images of "
            f"{list(images.shape[1:])} with {len(used[0])} and {len(used[1])} classes; accepted: "
            f"{known.training:,} and {known.test:,} of {list(known.image_shape)} with "
            f"{known.classes} each, as {known.title} has them"
        )
