"""A folder of images as a dataset: ``train/<class>/<image>``, perhaps ``test/<class>/<image>``.

Classes are sorted by name, images by name within each class. Images are decoded under limits, and
only as PNG or JPEG, whatever they are called.
"""

import re
import sys
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lottery.datasets.archives import shown
from lottery.datasets.sources import file_names
from lottery.errors import LotteryError, say

MOST_DECODED = 4 * 2**30  # bytes of all images together, decoded
RESIZED = "data.image_size: [height, width]"
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".jpe")
OTHER_KINDS = (".gif", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".avif", ".jp2", ".ppm", ".pgm")
PLAIN = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # modes of Pillow's, as they are taken
PLACE = re.compile("((?:[^/]+/){0,2}?)(train|test)/([^/]+)/([^/]*)")
"""Of an image: at most two folders around all, part, class, file."""


class Images(NamedTuple):
    """All images, or other arrays, those of the training part first."""

    images: np.ndarray  # uint8 [n, height, width, 1 where all are grey, else 3]; or any [n, …]
    labels: np.ndarray  # int32 [n]
    training: int  # how many are in the training part
    class_names: tuple[str, ...]  # by label


def read(folder: Path, origin: str, size: Sequence[int] | None = None) -> Images:
    """The images in train/ and test/ of the folder, or of one or two folders below it.

    With ``size``, images of another size are resized (bicubic, antialiased, the aspect ratio not
    kept). Raises LotteryError naming the file or class that does not fit.
    """
    train, test = _classes(folder, origin)
    for odd in sorted(train.keys() ^ test.keys()) if test else ():
        raise LotteryError(
            f"{origin}: class {odd} is in {'train' if odd in train else 'test'}/ alone; accepted: "
            f"each class in both, or no test/; in train/: {', '.join(sorted(train))}"
        )
    if len(train) < 2:
        raise LotteryError(f"{origin}: train/ has {len(train)} class folder; accepted: from 2 up")
    names = sorted(train)
    files = [file for part in (train, test) for name in sorted(part) for file in part[name]]
    counts = [len(part[name]) for part in (train, test) for name in sorted(part)]
    labels = np.repeat(np.arange(len(counts), dtype=np.int32) % len(names), counts)
    training = sum(counts[: len(names)])
    return Images(_decoded(files, folder, origin, size), labels, training, tuple(names))


def _classes(folder: Path, origin: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The files of each class in train/ and in test/. Accents composed or combining: one class."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    tops, strays = set(), []
    for name in file_names(folder):
        place, is_image = PLACE.fullmatch(name), name.lower().endswith(ENDINGS)
        if name.lower().endswith(OTHER_KINDS) or (is_image and place is None):
            raise LotteryError(
                f"{origin}: {shown(name)}; accepted: train/<class>/<image>, test/<class>/<image> "
                f"of {', '.join(ENDINGS)}; convert, move or remove it"
            )
        if place is not None:
            class_ = parts[place[2]].setdefault(unicodedata.normalize("NFC", place[3]), [])
            class_ += [name] if is_image else []
            tops.add(place[1])
        strays += [] if is_image or name.endswith("/") else [name]
    if len(tops) != 1:
        raise LotteryError(
            f"{origin}: holds {len(tops)} folders with images in train/<class>/ (and no original "
            "files of a dataset known by name); accepted: one, at most two levels down"
        )
    for part, classes in parts.items():
        for name, files in classes.items():
            if not files:
                raise LotteryError(f"{origin}: {part}/{name}/ holds no image; fill or remove it")
            files.sort(key=lambda file: file.rpartition("/")[2])
    hidden = (f for part in parts for f in folder.glob(f"**/{part}/.*/*.*"))
    if image := next((f for f in hidden if f.name.lower().endswith(ENDINGS)), None):
        warning = f"{image.relative_to(folder)}: a folder with a dot first is no class, passed over"
        say(f"fetch: {origin}: {warning}", sys.stderr)
    if strays:
        warning = f"{len(strays)} files are no images, passed over, such as {shown(strays[0])}"
        say(f"fetch: {origin}: {warning}", sys.stderr)
    return parts["train"], parts["test"]


def _decoded(files: list[str], folder: Path, origin: str, size: Sequence[int] | None) -> np.ndarray:
    """uint8 ``[n, height, width, channels]``, in the order of the files."""
    height, width, channels = decode(folder / files[0], f"{origin}: {shown(files[0])}", size).shape
    if (needed := len(files) * height * width * 3) > MOST_DECODED:
        raise LotteryError(
            f"{origin}: {len(files):,} images of {height} x {width} are {needed:,} bytes "
            f"decoded; accepted: up to {MOST_DECODED:,}; {RESIZED} makes them smaller"
        )
    images = np.empty((len(files), height, width, 3), np.uint8)
    # One thread, 60,000 images of 32 x 32 in 9 to 12 s: most of it is Pillow's own Python, so two
    # threads took 1.5 times as long, and at 500 x 500 no less.
    for row, file in enumerate(files):
        pixels = decode(folder / file, f"{origin}: {shown(file)}", size)
        if pixels.shape[:2] != (height, width):
            raise LotteryError(
                f"{origin}: {shown(file)} is {pixels.shape[0]} x {pixels.shape[1]}, "
                f"{shown(files[0])} is {height} x {width}; accepted: images of one size, or "
                f"{RESIZED}"
            )
        images[row] = pixels  # a grey image is the same in all three channels
        channels = max(channels, pixels.shape[2])
    return images if channels == 3 else images[..., :1].copy()


def decode(path: Path, origin: str, size: Sequence[int] | None = None) -> np.ndarray:
    """One PNG or JPEG, upright, uint8 ``[height, width, 1 or 3]``; LotteryError for all else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # above 89 megapixels
            image = Image.open(path, formats=("PNG", "JPEG"))
        with image:
            if image.format == "PNG":
                with Image.open(path) as again:
                    again.verify()  # its checksums, which decoding does not compare
            if image.format == "PNG" and getattr(image, "is_animated", False):
                raise LotteryError(f"{origin}: an animation; accepted: still images")
            if image.format == "PNG" and ";16" in str(image.tile):  # Pillow keeps the upper 8
                raise LotteryError(f"{origin}: of 16 bits; accepted: grey or RGB of 8 bits, opaque")
            for kind, step in (("'L;2'", 85), ("'L;4'", 17)):
                if "transparency" in image.info and kind in str(image.tile):
                    image.info["transparency"] *= step  # as Pillow spreads pixels over 0 to 255
            ImageOps.exif_transpose(image, in_place=True)
            pixels = _plain_colours(image, origin)
        if size is not None:
            pixels = pixels.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        array = np.asarray(pixels, np.uint8)
        return array if array.ndim == 3 else array[..., None]
    except LotteryError:
        raise
    except Image.UnidentifiedImageError:
        raise LotteryError(f"{origin}: neither a PNG nor a JPEG image, whatever its name") from None
    except Exception as error:  # Pillow's readers raise errors of any kind on damaged input
        why = f"damaged, truncated or too large ({type(error).__name__}: {error})"
        raise LotteryError(f"{origin}: {why}") from None


def _plain_colours(image: Image.Image, origin: str) -> Image.Image:
    """Grey (L) or RGB: palettes and black-and-white are converted, an opaque alpha is dropped."""
    image.load()
    if "transparency" in image.info:  # one colour, or of a palette
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (255, 255):
        return image.convert(image.mode.removesuffix("A"))
    if image.mode in PLAIN:
        return image.convert(PLAIN[image.mode])
    raise LotteryError(
        f"{origin}: transparent or of mode {image.mode}; accepted: grey or RGB of 8 bits, opaque"
    )
