"""Data that are arrays, of images or of anything: from a file, or from a function of one's own.

Names as in the npz files of tf.keras: ``x_train`` and ``y_train``, perhaps ``x_test`` and
``y_test``, ``class_names``. In safetensors, the metadata hold ``class_names`` as a JSON list.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from lottery import parts
from lottery.datasets.archives import shown
from lottery.datasets.image_folder import Images
from lottery.datasets.sources import file_names
from lottery.errors import LotteryError

NAMES = "x_train and y_train, perhaps x_test and y_test, class_names"
WAYS = [{"x_train", "y_train"}, {"x_train", "y_train", "x_test", "y_test"}]
NUMBERS = "float32, taken as it is, or uint8, divided by 255; x.astype(np.float32) converts"


def read(folder: Path, context: str) -> Images:
    """A folder's ``.npy`` files or ``.safetensors`` file; LotteryError names what is at fault."""
    arrays: dict[str, Any] = {}
    for name in file_names(folder):
        before = dict(arrays)
        try:
            if name.lower().endswith(".npy"):
                arrays[Path(name).stem] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
            elif name.lower().endswith(".safetensors"):
                with safe_open(folder / name, "numpy") as file:
                    arrays |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                    names = (file.metadata() or {}).get("class_names")
                arrays |= {"class_names": json.loads(names)} if names else {}
        except Exception as error:  # NumPy evaluates headers: damaged ones raise nearly anything
            raise LotteryError(
                f"{context}: {shown(name)}: damaged, or holds other than numbers and text "
                f"({type(error).__name__}: {error}); write it again"
            ) from None
        if twice := [key for key, value in before.items() if arrays[key] is not value]:
            raise LotteryError(
                f"{context}: {shown(name)}: holds {twice[0]} once more; accepted: each array once"
            )
    return _together(arrays, lambda why: LotteryError(f"{context}: {why}"))


def called(name: str) -> Images:
    """What a function of one's own gives, a dict of arrays. Raises LotteryError."""
    function: Callable[[], Any] = parts.find({}, name)
    try:
        given = function()
        if not isinstance(given, dict):
            raise parts.mistake(name, f"gives a {type(given).__name__}; accepted: a dict: {NAMES}")
        if masked := [key for key, value in given.items() if np.ma.is_masked(value)]:
            raise parts.mistake(name, f"{masked[0]} holds masked values; accepted: plain arrays")
        arrays = {str(key): np.asarray(value) for key, value in given.items()}
    except LotteryError:
        raise
    except (Exception, SystemExit) as error:
        raise parts.mistake(name, error) from None
    return _together(arrays, partial(parts.mistake, name))


def _mistakes(arrays: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with arrays; only the first is to be said, as others may come of it."""
    if arrays.keys() - {"class_names"} not in WAYS:
        yield f"holds {shown(', '.join(arrays)) or 'no array'}; accepted: {NAMES}"
    for part in ("train", "test"):
        if f"x_{part}" in arrays:
            yield from _mistakes_of_part(part, arrays)
    classes = np.unique(_labels(arrays)).tolist()
    if classes != list(range(len(classes))) or len(classes) < 2:
        yield (
            f"the labels are {shown(', '.join(map(str, classes[:50])))}; accepted: whole numbers "
            "from 0 up, none left out, of two classes or more"
        )
    absent = np.setdiff1d(classes, arrays.get("y_test", classes))
    if len(absent):
        yield f"y_test has no row of class {absent[0]}; accepted: each class in each part"
    names = _names(arrays)
    texts = {name for name in names if isinstance(name, str) and name.isprintable()}
    if "class_names" in arrays and not len(texts) == len(names) == len(classes):
        yield f"class_names are {shown(str(names))}; accepted: {len(classes)} different texts"


def _mistakes_of_part(part: str, arrays: Mapping[str, Any]) -> Iterator[str]:
    x, y, like = arrays[f"x_{part}"], arrays[f"y_{part}"], arrays["x_train"]
    got = f"x_{part} holds {x.dtype} {list(x.shape)}"
    if x.dtype not in (np.uint8, np.float32):
        yield f"{got}; accepted: {NUMBERS}"
    if x.ndim < 2 or 0 in x.shape:
        yield f"{got}; accepted: [n, …], a value in a row at least"
    if (x.dtype, x.shape[1:]) != (like.dtype, like.shape[1:]):
        yield f"{got}; accepted: rows as in x_train, {like.dtype} {list(like.shape)}"
    odd = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(odd):
        yield (
            f"x_{part} holds NaN or infinity in {len(odd):,} of {len(x):,} rows, first in row "
            f"{odd[0]}; accepted: finite numbers"
        )
    if y.shape != x.shape[:1] or y.dtype.kind not in "biu":
        yield (
            f"y_{part} holds {y.dtype} {list(y.shape)}; accepted: whole numbers [{len(x)}], the "
            f"class of each row of x_{part}"
        )


def _labels(arrays: Mapping[str, Any]) -> np.ndarray:
    given = (arrays[name] for name in ("y_train", "y_test") if name in arrays)
    return np.concatenate([labels.astype(np.int64) for labels in given])


def _names(arrays: Mapping[str, Any]) -> list[Any]:
    return np.atleast_1d(arrays.get("class_names", [])).tolist()


def _together(arrays: Mapping[str, Any], mistake: Callable[[str], LotteryError]) -> Images:
    if why := next(_mistakes(arrays), None):
        raise mistake(why)
    images = np.concatenate([arrays[name] for name in ("x_train", "x_test") if name in arrays])
    labels, training = _labels(arrays).astype(np.int32), len(arrays["x_train"])
    return Images(np.ascontiguousarray(images), labels, training, tuple(_names(arrays)))
