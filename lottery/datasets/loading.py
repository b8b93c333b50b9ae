"""A dataset: obtained and checked."""

import hashlib
import re
from typing import Any

import numpy as np

from lottery import parts
from lottery.datasets import arrays, image_folder, originals, packaged, sources
from lottery.datasets.dataset import Dataset
from lottery.datasets.image_folder import Images
from lottery.errors import LotteryError
from lottery.params import Data
from lottery.params.catalogue import DATASETS, Known

TEST_SHARE = 6
"""Of images without a test set, one in so many is set aside: about as in CIFAR-10 and MNIST."""


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 of the images' bytes (uint8 or float32) followed by the labels' (int32)."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def obtain(data: Data) -> Dataset:
    """All images and labels of the dataset: from its package, its archive, ``data.source`` or a
    function of one's own.

    Raises LotteryError for whatever is wrong with the source or does not fit the dataset.
    """
    known = DATASETS.get(data.name)
    if known is not None and known.package is not None:
        return _packaged(data, known)
    if parts.is_own(data.name):
        return _own(data)
    with sources.opened(data) as source:
        loaded = originals.read(data.name, source.folder, source.context) if known else None
        if data.name == "arrays":
            loaded = arrays.read(source.folder, source.context)
        elif loaded is None:
            loaded = image_folder.read(source.folder, source.context, data.image_size)
    ending = r"(?i)(?<=.)\.(zip|tar|tgz|tar\.gz|npz|safetensors)$"
    title = re.sub(ending, "", source.name.rpartition("/")[2])
    sha256 = fingerprint(*loaded[:2])
    if known is not None:
        for other in DATASETS.values():
            if sha256 == other.sha256 != known.sha256:
                raise LotteryError(f"{source.context}: is {other.title}, not {known.title}")
        _check(source.context, loaded, known)
        loaded = loaded._replace(class_names=loaded.class_names or known.class_names)
        is_original = sha256 == known.sha256 or source.sha256 == known.files
        title = known.title if is_original else f"{known.title}, from {source.name}"
    origin = {"title": title, "source": source.name, "source_sha256": source.sha256}
    origin |= {"source_version": source.version} if source.version else {}
    return _dataset(data, loaded, source.context, origin | {"sha256": sha256})


def _own(data: Data) -> Dataset:
    """What a function of one's own gives, each time that it is called."""
    first, again = arrays.called(data.name), arrays.called(data.name)
    sha256 = fingerprint(*first[:2])
    if fingerprint(*again[:2]) != sha256:
        drawn = "the same, of np.random.default_rng(0) for example"
        raise parts.mistake(data.name, f"other arrays when it is called again; accepted: {drawn}")
    _compare(data.name, "it", sha256, data.sha256 or sha256, "look at what it reads")
    title = data.name.rpartition(":")[2]
    return _dataset(data, first, data.name, {"title": title, "source": data.name, "sha256": sha256})


def repeats(images: np.ndarray, training: int) -> dict[str, int]:
    """What is there more than once, value for value; nothing where each is there once.

    ``repeated``: images that repeat an earlier one; ``test_in_training``: images from ``training``
    on that are before it, too.
    """
    digests = b"".join(hashlib.sha256(image.tobytes()).digest() for image in images)
    hashes = np.frombuffer(digests, np.uint64)[::4]  # 64 bits of each will do
    counts = {
        "repeated": len(hashes) - len(np.unique(hashes)),
        "test_in_training": int(np.isin(hashes[training:], hashes[:training]).sum()),
    }
    return {name: count for name, count in counts.items() if count}


def _dataset(data: Data, loaded: Images, context: str, origin: dict[str, Any]) -> Dataset:
    """With its origin; without a test set, as many as is known or 1 of TEST_SHARE are set aside."""
    images, labels, training, names = loaded
    known, classes = DATASETS.get(data.name), int(labels.max()) + 1
    test = len(labels) - training or (known.test if known else len(labels) // TEST_SHARE)
    if test < classes:
        raise LotteryError(
            f"{context}: {len(labels)} examples of {classes} classes are too few to set "
            f"1/{TEST_SHARE} aside as a test set; accepted: from {TEST_SHARE * classes} up, or "
            "a test part of its own"
        )
    facts = {
        "name": data.name,
        **origin,
        "image_shape": list(images.shape[1:]),
        **({} if images.dtype == np.uint8 else {"dtype": str(images.dtype)}),
        "classes": classes,
        **({"class_names": list(names)} if names else {}),
        "test": test,
        "own_test": training < len(labels),
        **repeats(images, training),
    }
    return Dataset(images, labels, facts)


def _packaged(data: Data, known: Known) -> Dataset:
    images, labels = vars(packaged)[data.name]()
    sha256 = fingerprint(images, labels)
    package, expected = f"the {known.package} package", data.sha256 or str(known.sha256)
    _compare(data.name, package, sha256, expected, "install the locked packages again")
    loaded = Images(images, labels, len(labels), ())
    origin = {"title": known.title, "source": package, "sha256": sha256}
    return _dataset(data, loaded, package, origin)


def _compare(name: str, whence: str, actual: str, expected: str, advice: str) -> None:
    if actual != expected:
        raise LotteryError(
            f"dataset {name}: got sha256 {actual} from {whence}, expected {expected}; {advice}, "
            "or correct data.sha256"
        )


def _check(context: str, loaded: Images, known: Known) -> None:
    """Counts, shape, labels and class names are those of the dataset."""
    images, labels, training, names = loaded
    if names and known.class_names not in ((), names):
        got, accepted = ", ".join(names), ", ".join(known.class_names)
        raise LotteryError(f"{context}: holds the classes {got}; accepted: {accepted}")
    used = [np.unique(part).tolist() for part in (labels[:training], labels[training:])]
    if (images.shape, training) != ((known.images, *known.image_shape), known.training) or (
        used != [list(range(known.classes))] * 2
    ):
        raise LotteryError(
            f"{context}: holds {training:,} training and {len(labels) - training:,} test images of "
            f"{list(images.shape[1:])} with {len(used[0])} and {len(used[1])} classes; accepted: "
            f"{known.training:,} and {known.test:,} of {list(known.image_shape)} with "
            f"{known.classes} each, as {known.title} has them"
        )
