"""A folder of images as a dataset: ``train/<class>/*.{png,jpg,jpeg}`` and, where there is one, ``test/<class>/…``.

Classes are sorted by name, images by name within each class. Images are decoded under limits, and only as
PNG or JPEG, whatever they are called.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from lottery.datasets.archives import Tree, is_hidden, shown
from lottery.errors import LotteryError

MOST_PIXELS = 64_000_000
"""Of one image, checked in its header before it is decoded."""
MOST_BYTES = 32 * 2**20
"""Of one image's file."""
MOST_DECODED = 4 * 2**30
"""Of all images together, decoded."""
ENDINGS = (".png", ".jpg", ".jpeg")

Size = tuple[int, int]
"""Height and width."""


class Layout(NamedTuple):
    """What the names alone say."""

    class_names: tuple[str, ...]
    files: tuple[str, ...]  # of the training part, then of the test part
    labels: np.ndarray  # int32 [n]
    training: int  # how many of the files are in train/


def read(tree: Tree, size: Size | None = None) -> tuple[np.ndarray, Layout]:
    """All images, uint8 ``[n, height, width, channels]``, in the layout's order.

    There is one channel where all images are grey, and three otherwise. With ``size``, images of another
    size are resized (bicubic, antialiased, the aspect ratio not kept). Raises LotteryError that names the
    file that is no whole PNG or JPEG, or is of another size than the first.
    """
    layout = arrange(tree)
    place = {name: row for row, name in enumerate(layout.files)}
    images: np.ndarray | None = None
    first = ""
    # One thread, 60,000 images of 32 x 32 in 9 to 12 s: most of it is Pillow's own Python, so two threads took 1.5 times
    # as long, and at 500 x 500 no less.
    for name, content in tree.read(layout.files):
        pixels = decode(content, f"{tree.where}: {shown(name)}", size)
        if images is None:
            images, first = _room(tree, len(layout.files), pixels.shape), name
        if pixels.shape[:2] != images.shape[1:3]:
            raise LotteryError(
                f"{tree.where}: {shown(name)} is {_said(pixels)}, {shown(first)} is {_said(images[0])}; "
                "accepted: images of one size, or data.image_size: [height, width] to resize them to"
            )
        if pixels.shape[2] > images.shape[3]:
            grey, images = images, _room(tree, len(layout.files), pixels.shape)
            images[:] = grey
        images[place[name]] = pixels  # a grey image is the same in all three channels
    assert images is not None
    return images, layout


def arrange(tree: Tree) -> Layout:
    """Classes, labels and order by the names. Raises LotteryError where they are not those of an image folder."""
    names = [name for name in tree.files if not is_hidden(name)]
    top = _top(tree, names)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}  # of (class, file)
    for name in names:
        part, *inner = name.removeprefix(top).split("/") if name.startswith(top) else [""]
        is_image = name.lower().endswith(ENDINGS)
        if part not in parts:
            if is_image:
                raise LotteryError(
                    f"{tree.where}: {shown(name)} is in neither train/ nor test/; move or remove it"
                )
            continue  # a README or the like
        if len(inner) != 2:
            raise LotteryError(
                f"{tree.where}: {shown(name)}; accepted: {top}{part}/<class>/<image>"
            )
        if not is_image:
            raise LotteryError(
                f"{tree.where}: {shown(name)}; accepted: {', '.join(ENDINGS)}; remove it"
            )
        parts[part].append((inner[0], name))
    class_names = tuple(sorted({of for of, _ in parts["train"]}))
    label_of = {of: label for label, of in enumerate(class_names)}
    folders = {part: _below(tree, f"{top}{part}/") for part in parts}
    for part, members in parts.items():
        empty = sorted(folders[part] - {of for of, _ in members})
        if empty:
            raise LotteryError(
                f"{tree.where}: {top}{part}/{shown(empty[0])}/ holds no image; fill or remove it"
            )
    unknown = sorted({of for of, _ in parts["test"]} - set(class_names))
    if unknown:
        raise LotteryError(
            f"{tree.where}: class {shown(unknown[0])} of {top}test/ is not in {top}train/; "
            f"there: {shown(', '.join(class_names))}"
        )
    if len(class_names) < 2:
        raise LotteryError(
            f"{tree.where}: {top}train/ has {len(class_names)} class folder; accepted: from 2 up"
        )
    least = 2 if parts["test"] else 3  # one each for training, validation and perhaps test
    counts = Counter(of for of, _ in parts["train"])
    for of, count in counts.items():
        if count < least:
            raise LotteryError(
                f"{tree.where}: class {shown(of)} has {count} image{'s' if count > 1 else ''} in {top}train/; "
                f"accepted: from {least} up, to split"
            )
    ordered = [one for part in ("train", "test") for one in sorted(parts[part])]
    labels = np.array([label_of[of] for of, _ in ordered], np.int32)
    return Layout(class_names, tuple(name for _, name in ordered), labels, len(parts["train"]))


def has_layout(tree: Tree) -> bool:
    """Whether there is a ``train/`` folder, so that it can be taken for an image folder."""
    return _find_top([name for name in tree.files if not is_hidden(name)]) is not None


def _top(tree: Tree, names: Sequence[str]) -> str:
    top = _find_top(names)
    if top is None:
        raise LotteryError(
            f"{tree.where}: holds no train/<class>/<image>; accepted: train/ and perhaps test/"
        )
    return top


def _find_top(names: Sequence[str]) -> str | None:
    """``""``, or the one folder that everything is in, with ``/``: where ``train/`` is."""
    for top in ("", *{name.split("/")[0] + "/" for name in names[:1]}):
        if any(name.startswith(f"{top}train/") for name in names):
            return top
    return None


def _below(tree: Tree, prefix: str) -> set[str]:
    """The folders directly below one."""
    inner = (
        name.removeprefix(prefix)
        for name in tree.folders
        if name.startswith(prefix) and not is_hidden(name)
    )
    return {name for name in inner if "/" not in name}


def _room(tree: Tree, count: int, shape: tuple[int, ...]) -> np.ndarray:
    size = count * int(np.prod(shape))
    if size > MOST_DECODED:
        raise LotteryError(
            f"{tree.where}: {count:,} images of {shape[0]} x {shape[1]} are {size:,} bytes decoded; "
            f"accepted: up to {MOST_DECODED:,}; data.image_size: [height, width] makes them smaller"
        )
    return np.empty((count, *shape), np.uint8)


def _said(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]}"


def decode(content: bytes, where: str, size: Size | None = None) -> np.ndarray:
    """One PNG or JPEG: uint8 ``[height, width, 1 or 3]``. Raises LotteryError for anything else."""
    if len(content) > MOST_BYTES:
        raise LotteryError(
            f"{where}: {len(content):,} bytes; accepted: an image of up to {MOST_BYTES:,}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(content), formats=("PNG", "JPEG"))
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise LotteryError(
                    f"{where}: {image.height} x {image.width} pixels; accepted: up to {MOST_PIXELS:,}"
                )
            pixels = _plain_colours(image, where)
        if size is not None and pixels.size != (size[1], size[0]):
            pixels = pixels.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        array = np.asarray(pixels, np.uint8)
        return array if array.ndim == 3 else array[..., None]
    except LotteryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise LotteryError(f"{where}: more pixels than the {MOST_PIXELS:,} accepted") from None
    except Image.UnidentifiedImageError:
        raise LotteryError(f"{where}: neither a PNG nor a JPEG image, whatever its name") from None
    except Exception as error:  # Pillow's readers raise errors of any kind on damaged input
        raise LotteryError(
            f"{where}: damaged or truncated ({type(error).__name__}: {error})"
        ) from None


def _plain_colours(image: Image.Image, where: str) -> Image.Image:
    """The image in grey (L) or RGB: palettes and black-and-white are converted, an alpha that is opaque is dropped."""
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (255, 255):
        return image.convert(image.mode.removesuffix("A"))
    raise LotteryError(
        f"{where}: transparent or of mode {image.mode}; accepted: grey or RGB of 8 bits, opaque"
    )
