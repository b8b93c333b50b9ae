"""A dataset: obtained, checked, split."""

import contextlib
import hashlib
import re
from typing import Any

import numpy as np

from lottery.datasets import packaged
from lottery.datasets.archives import Loose, Tree, open_tree
from lottery.datasets.catalogue import DATASETS
from lottery.datasets.catalogue import Dataset as Known
from lottery.datasets.dataset import Dataset
from lottery.datasets.sources import Source, locate
from lottery.errors import LotteryError
from lottery.params import Data

LOADERS = {"mnist5k": packaged.mnist5k, "digits": packaged.digits}

TEST_SHARE = 6
"""Of an image folder without a test set, one image in so many is set aside: as in CIFAR-10 and MNIST, about."""


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 of the images' bytes (uint8) followed by the labels' (int32)."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def obtain(data: Data) -> Dataset:
    """All images and labels of the dataset, from its package, its public archive or ``data.source``."""
    known = DATASETS.get(data.name)
    if known is None:
        return _image_folder(data)
    return _packaged(data, known) if known.packaged else _published(data, known)


def _packaged(data: Data, known: Known) -> Dataset:
    images, labels = LOADERS[data.name]()
    sha256 = fingerprint(images, labels)
    expected = data.sha256 or known.sha256
    if sha256 != expected:
        raise LotteryError(
            f"dataset {data.name}: got sha256 {sha256} from {known.source}, expected {expected}; "
            "install the locked packages again (requirements.txt), or correct data.sha256"
        )
    facts = {
        "name": data.name,
        "title": known.title,
        "source": known.source,
        "sha256": sha256,
        "image_shape": list(known.image_shape),
        "classes": known.classes,
    }
    return Dataset(images, labels, {**facts, "test": known.test, "own_test": False})


def _published(data: Data, known: Known) -> Dataset:
    """A dataset of the literature, as its original files or as an image folder."""
    from lottery.datasets import images as image_folder
    from lottery.datasets.originals import FORMATS

    source = locate(data)
    where = _where(data, source)
    contents: dict[str, bytes] = {}
    class_names = known.class_names
    with _opened(source, where) as tree:
        kind, found = next(
            ((kind, of) for kind in FORMATS[data.name] if (of := kind.find(tree))), (None, {})
        )
        if kind:
            by_name = dict(tree.read(found.values()))
            contents = {member: by_name.pop(name) for member, name in found.items()}
            training, test = kind.read(contents, where)
        elif image_folder.has_layout(tree):
            images, layout = image_folder.read(tree)
            n = layout.training
            training, test = (images[:n], layout.labels[:n]), (images[n:], layout.labels[n:])
            if class_names not in ((), layout.class_names):
                raise LotteryError(
                    f"{where}: holds the classes {', '.join(layout.class_names)}; accepted: {', '.join(class_names)}"
                )
            class_names = layout.class_names
        else:
            members = " or ".join(", ".join(kind.members) for kind in FORMATS[data.name])
            raise LotteryError(
                f"{where}: not a copy of {known.title}; accepted: a folder or archive with {members}, "
                "or with train/<class>/<image> and test/<class>/<image>"
            )
    for part, (pixels, labels), count in (
        ("training", training, known.training),
        ("test", test, known.test),
    ):
        _check_part(where, part, pixels, labels, (count, *known.image_shape), known)
    title = _title(data.name, known, source, contents)
    contents.clear()
    images, labels = (np.concatenate(both) for both in zip(training, test, strict=True))
    facts = _facts(data, title, source, images, labels, class_names)
    return Dataset(images, labels, {**facts, "test": known.test, "own_test": True})


def _image_folder(data: Data) -> Dataset:
    """The user's own images. Where there is no test set, a sixth of them is to be set aside for it."""
    from lottery.datasets import images as image_folder

    source = locate(data)
    where = _where(data, source)
    with _opened(source, where) as tree:
        size = (data.image_size[0], data.image_size[1]) if data.image_size else None
        images, layout = image_folder.read(tree, size)
    classes, count = len(layout.class_names), len(layout.labels)
    own_test = layout.training < count
    test = count - layout.training if own_test else count // TEST_SHARE
    if test < classes and not own_test:
        raise LotteryError(
            f"{where}: {count} images of {classes} classes are too few to set 1/{TEST_SHARE} aside as a test set; "
            f"accepted: from {TEST_SHARE * classes} up, or a test/ folder"
        )
    title = re.sub(r"(?i)(?<=.)\.(zip|tar|tgz|tar\.gz)$", "", next(iter(source.paths)))
    facts = _facts(data, title, source, images, layout.labels, layout.class_names)
    return Dataset(images, layout.labels, {**facts, "test": test, "own_test": own_test})


def _where(data: Data, source: Source) -> str:
    return source.name if data.source is None else f"data.source: {source.name}"


def _opened(source: Source, where: str) -> contextlib.AbstractContextManager[Tree]:
    if len(source.paths) == 1:
        return open_tree(next(iter(source.paths.values())), where)
    return contextlib.nullcontext(Loose(source.paths, where))


def _check_part(
    where: str,
    part: str,
    images: np.ndarray,
    labels: np.ndarray,
    shape: tuple[int, ...],
    known: Known,
) -> None:
    if images.shape != shape:
        raise LotteryError(
            f"{where}: its {part} images are {list(images.shape)}; accepted: {list(shape)}, as {known.title} has them"
        )
    counts = np.bincount(labels[labels >= 0], minlength=known.classes)
    if labels.min() < 0 or len(counts) > known.classes or not counts.all():
        raise LotteryError(
            f"{where}: its {part} labels run from {labels.min()} to {labels.max()}, {np.count_nonzero(counts)} "
            f"of them in use; accepted: each from 0 to {known.classes - 1}"
        )


def _title(name: str, known: Known, source: Source, contents: dict[str, bytes]) -> str:
    """The dataset's title; where the files are not known by their sha256, it says so."""
    from lottery.datasets.originals import COPIES, FILES

    pinned = {file.sha256 for file in FILES[name]}
    found = set(source.sha256.values())
    if not found:  # a folder: of the original files, or of anything else
        found = {hashlib.sha256(content).hexdigest() for content in contents.values()}
    if found == pinned:
        return known.title
    return next(
        (COPIES[name][sha256] for sha256 in found if sha256 in COPIES.get(name, {})),
        f"{known.title}, from {source.name}",
    )


def _facts(
    data: Data,
    title: str,
    source: Source,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """What dataset.json records, without the counts: ``sha256`` is of images and labels, ``source_sha256`` of files."""
    classes = len(class_names) or int(labels.max()) + 1
    return {
        "name": data.name,
        "title": title,
        "source": source.name,
        "source_sha256": source.sha256,
        "sha256": fingerprint(images, labels),
        "image_shape": list(images.shape[1:]),
        "classes": classes,
        **({"class_names": list(class_names)} if class_names else {}),
    }
