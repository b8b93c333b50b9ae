"""Image folders, and the named datasets from their public archives, from files of the same formats."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lottery.datasets import archives, images, loading, originals
from lottery.datasets.catalogue import DATASETS
from lottery.errors import LotteryError
from lottery.params import Data

ROOT = Path(__file__).parent.parent
CIFAR_JPEG = ROOT.parent / "shared" / "data" / "cifar10-jpeg.zip"
JPEG_SHA256 = "0287a3668d9e0d204fc6ffa0e85a171724de09b8aec55d93153b270368489df4"
rng = np.random.default_rng(0)


def encoded(pixels, format="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def grey(height=4, width=5):
    return rng.integers(0, 256, (height, width), np.uint8)


def rgb(height=4, width=5):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def files_of(classes=("cat", "dog"), train=6, test=3, make=rgb, **options):
    return {
        f"{part}/{name}/{n:02d}.png": encoded(make(), **options)
        for part, count in (("train", train), ("test", test))
        for name in classes
        for n in range(count)
    }


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zip_of(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_of(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in reversed(files.items()):  # in another order than the one that counts
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(path, size=None):
    with archives.open_tree(path, path.name) as tree:
        return images.read(tree, size)


def complaint(path, size=None):
    with pytest.raises(LotteryError) as error:
        read(path, size)
    message = str(error.value)
    assert message.startswith(f"{path.name}: ")
    assert "\n" not in message
    return message


def folder_with(tmp_path, **changes):
    """A good folder with some files replaced, or, by None, removed; ``train__cat__00_png`` is train/cat/00.png."""
    files = files_of()
    for key, content in changes.items():
        name = key.replace("__", "/").replace("_", ".")
        files.pop(name, None)
        if content is not None:
            files[name] = content
    return write(tmp_path / "folder", files)


# Image folders


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz", "tar", "wrapped"])
def test_images_come_in_order_of_class_and_name_from_folder_and_archive_alike(tmp_path, kind):
    pixels = {name: rgb() for name in files_of()}
    files = {name: encoded(pixels[name]) for name in reversed(pixels)}
    files |= {
        "README.txt": b"about",
        "train/.DS_Store": b"",
        "__MACOSX/train/cat/._00.png": b"",
        "train/cat/Thumbs.db": b"",
    }
    match kind:
        case "folder":
            path = write(tmp_path / "x", files)
        case "zip":
            path = zip_of(tmp_path / "x", files)
        case "wrapped":
            path = zip_of(
                tmp_path / "x", {f"animals/{name}": content for name, content in files.items()}
            )
        case _:
            path = tar_of(tmp_path / "x", files, "w:gz" if kind == "tar.gz" else "w")
    found, layout = read(path)
    assert layout.class_names == ("cat", "dog")
    assert layout.training == 12
    assert layout.labels.tolist() == [0] * 6 + [1] * 6 + [0] * 3 + [1] * 3
    assert layout.labels.dtype == np.int32
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.stack(list(pixels.values())))


def test_grey_stays_grey_and_becomes_rgb_where_any_image_is_in_colour(tmp_path):
    flat = read(write(tmp_path / "grey", files_of(make=grey)))[0]
    assert flat.shape == (18, 4, 5, 1)
    pixels = grey()
    mixed, _ = read(folder_with(tmp_path, train__cat__00_png=encoded(pixels)))
    assert mixed.shape == (18, 4, 5, 3)
    assert np.array_equal(mixed[0], np.repeat(pixels[..., None], 3, axis=2))
    last, _ = read(
        write(tmp_path / "last", files_of(make=grey) | {"test/dog/99.png": encoded(rgb())})
    )
    assert np.array_equal(last[:18, ..., 1], flat[..., 0]) or last.shape == (19, 4, 5, 3)


@pytest.mark.parametrize(
    ("content", "channels"),
    [
        (encoded(grey(), "JPEG"), 1),
        (encoded(rgb(), "JPEG"), 3),
        (encoded(rgb(), "JPEG", progressive=True), 3),
        (encoded(rgb(), mode="P"), 3),
        (encoded(grey(), mode="1"), 1),
        (encoded(rgb(), mode="RGBA"), 3),
        (encoded(grey(), mode="LA"), 1),
    ],
)
def test_common_kinds_of_png_and_jpeg_are_decoded(content, channels):
    pixels = images.decode(content, "x")
    assert pixels.shape == (4, 5, channels)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "content",
    [
        encoded(rgb(), "JPEG", mode="CMYK"),
        encoded(rng.integers(0, 60_000, (4, 5)).astype(np.uint16)),
        encoded(np.full((4, 5, 4), 100, np.uint8)),
    ],
)
def test_what_is_neither_grey_nor_rgb_is_refused(content):
    with pytest.raises(
        LotteryError,
        match=r"^x: transparent or of mode .*; accepted: grey or RGB of 8 bits, opaque",
    ):
        images.decode(content, "x")


def test_images_are_resized_where_that_is_asked(tmp_path):
    half = np.zeros((16, 8), np.uint8)
    half[8:] = 200
    folder = write(tmp_path / "x", files_of(make=rgb) | {"train/cat/00.png": encoded(half)})
    found, _ = read(folder, (4, 2))
    assert found.shape == (18, 4, 2, 3)
    assert found[0, :, :, 0] == pytest.approx(
        np.repeat([[0], [0], [200], [200]], 2, axis=1), abs=20
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__cat__00_png": encoded(rgb(40, 40))[:-60]}, r"train/cat/00\.png: damaged or truncated"),
        ({"train__cat__00_png": encoded(rgb(40, 40), "JPEG")[:-200]}, r"train/cat/00\.png: damaged or truncated"),
        ({"train__cat__00_png": b"this is text"}, r"train/cat/00\.png: neither a PNG nor a JPEG"),
        ({"train__cat__00_png": b""}, r"train/cat/00\.png: neither a PNG nor a JPEG"),
        ({"train__cat__00_png": encoded(rgb(), "GIF")}, r"train/cat/00\.png: neither a PNG nor a JPEG"),
        ({"train__cat__00_png": encoded(rgb(), "BMP")}, r"train/cat/00\.png: neither a PNG nor a JPEG"),
        ({"test__dog__02_png": encoded(rgb(5, 4))}, r"test/dog/02\.png is 5 x 4, train/cat/00\.png is 4 x 5.*image_size"),
        ({"train__cat__notes_txt": b""}, r"train/cat/notes\.txt; accepted: \.png, \.jpg, \.jpeg; remove it"),
        ({"train__00_png": encoded(rgb())}, r"train/00\.png; accepted: train/<class>/<image>"),
        ({"train__cat__old__00_png": encoded(rgb())}, r"train/cat/old/00\.png; accepted: train/<class>/<image>"),
        ({"val__cat__00_png": encoded(rgb())}, r"val/cat/00\.png is in neither train/ nor test/; move or remove it"),
        ({"test__bird__00_png": encoded(rgb())}, r"class bird of test/ is not in train/; there: cat, dog"),
        ({"train__bird__00_png": encoded(rgb())}, r"class bird has 1 image in train/; accepted: from 2 up, to split"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_image_folder_is_named(tmp_path, changes, message):
    assert re.search(message, complaint(folder_with(tmp_path, **changes)))


def test_an_empty_class_folder_is_named(tmp_path):
    folder = folder_with(tmp_path)
    (folder / "train" / "bird").mkdir()
    assert "train/bird/ holds no image; fill or remove it" in complaint(folder)
    (folder / "train" / "bird").rmdir()
    (folder / "test" / "bird").mkdir()
    (folder / "test" / "bird" / ".keep").write_text("")
    assert "test/bird/ holds no image" in complaint(folder)
    assert "train/bird/ holds no image" in complaint(
        zip_of(tmp_path / "x.zip", files_of() | {"train/bird/": b""})
    )


def test_a_folder_without_training_images_or_with_one_class_is_named(tmp_path):
    assert "holds no train/<class>/<image>" in complaint(
        write(tmp_path / "a", {"cat/1.png": encoded(rgb())})
    )
    assert "train/ has 1 class folder; accepted: from 2 up" in complaint(
        write(tmp_path / "b", files_of(["cat"]))
    )
    (tmp_path / "c").mkdir()
    assert "holds no train/<class>/<image>" in complaint(tmp_path / "c")


def png_that_claims(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8_001, 10_000, 20_000, 65_000, 2**31 - 1])
def test_a_small_file_of_huge_dimensions_is_refused_before_it_is_decoded(side):
    with pytest.raises(LotteryError, match=r"^x: .*64,000,000|^x: damaged"):
        images.decode(png_that_claims(side, side), "x")


def test_a_file_or_a_dataset_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_DECODED", 18 * 60 - 1)
    assert "18 images of 4 x 5 are 1,080 bytes decoded" in complaint(folder_with(tmp_path))
    monkeypatch.setattr(images, "MOST_BYTES", 50)
    assert "accepted: an image of up to 50" in complaint(tmp_path / "folder")


def test_text_that_a_png_unpacks_is_bounded():
    text = struct.pack(">I", 0)
    bomb = b"zTXtkey\0\0" + zlib.compress(bytes(100 * 2**20))
    whole = encoded(rgb())
    text = struct.pack(">I", len(bomb) - 4) + bomb + struct.pack(">I", zlib.crc32(bomb))
    with pytest.raises(LotteryError, match=r"^x: damaged or truncated \(ValueError"):
        images.decode(whole[:33] + text + whole[33:], "x")


SAMPLES = [
    encoded(rgb(16, 16)),
    encoded(rgb(16, 16), "JPEG"),
    encoded(rgb(16, 16), "JPEG", progressive=True),
]


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 10**5), st.integers(1, 255)), max_size=6),
    st.integers(0, 40),
)
@settings(max_examples=400, deadline=None)
def test_a_spoiled_image_is_an_error_or_an_image(content, flips, cut):
    spoiled = bytearray(content)
    for position, change in flips:
        spoiled[position % len(spoiled)] ^= change
    try:
        pixels = images.decode(bytes(spoiled[: len(spoiled) - cut]), "x")
    except LotteryError as error:
        assert str(error).startswith("x: ")
    else:
        assert pixels.ndim == 3
        assert pixels.shape[2] in (1, 3)
        if not flips and not cut:
            assert pixels.shape == (16, 16, 3)


# Loading: data.source and data.sha256


def load(**values):
    return loading.load(Data(validation_size=4, **values))


def load_complaint(**values):
    with pytest.raises(LotteryError) as error:
        load(**values)
    return str(error.value)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def served(folder):
    """The folder's files over HTTP; gives the base URL and the list of paths that were asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_a_folder_with_a_test_set_keeps_it_and_records_its_facts(tmp_path):
    folder = write(tmp_path / "animals", files_of())
    parts, facts = load(name="image_folder", source=str(folder))
    assert {name: part.images.shape for name, part in parts.items()} == {
        "train": (8, 4, 5, 3),
        "validation": (4, 4, 5, 3),
        "test": (6, 4, 5, 3),
    }
    assert np.bincount(parts["validation"].labels).tolist() == [2, 2]
    found, layout = read(folder)
    assert np.array_equal(parts["test"].images, found[12:])
    assert facts == {
        "name": "image_folder",
        "title": "animals",
        "source": "animals",
        "source_sha256": {},
        "sha256": loading.fingerprint(found, layout.labels),
        "image_shape": [4, 5, 3],
        "classes": 2,
        "class_names": ["cat", "dog"],
        "counts": {"train": 8, "validation": 4, "test": 6},
    }


def test_without_a_test_set_a_sixth_of_each_class_becomes_it(tmp_path):
    path = zip_of(tmp_path / "animals.zip", files_of(train=12, test=0))
    parts, facts = load(name="image_folder", source=str(path))
    assert facts["counts"] == {"train": 16, "validation": 4, "test": 4}
    assert np.bincount(parts["test"].labels).tolist() == [2, 2]
    assert facts["title"] == "animals"
    assert facts["source_sha256"] == {"animals.zip": sha256_of(path)}
    found, _ = read(path)
    together = sorted(image.tobytes() for part in parts.values() for image in part.images)
    assert together == sorted(image.tobytes() for image in found)


def test_too_few_images_to_set_a_test_set_aside_are_an_error(tmp_path):
    path = write(tmp_path / "few", files_of(train=5, test=0))
    assert "10 images of 2 classes are too few" in load_complaint(
        name="image_folder", source=str(path)
    )


@pytest.mark.parametrize("how", ["path", "file URL", "URL"])
def test_one_source_gives_one_dataset_however_it_is_named(tmp_path, how):
    folder = tmp_path / "some where"
    folder.mkdir()
    path = zip_of(folder / "animals.zip", files_of())
    with served(folder) as (url, _):
        source = {"path": str(path), "file URL": path.as_uri(), "URL": f"{url}/animals.zip"}[how]
        for sha256 in (None, sha256_of(path)):
            parts, facts = load(name="image_folder", source=source, sha256=sha256)
            assert np.array_equal(parts["test"].images, read(path)[0][12:])
            assert facts["source"] == (source if how == "URL" else "animals.zip")
            assert facts["source_sha256"] == {"animals.zip": sha256_of(path)}


def test_a_source_of_another_sha256_is_refused(tmp_path):
    path = zip_of(tmp_path / "animals.zip", files_of())
    message = load_complaint(name="image_folder", source=str(path), sha256="0" * 64)
    assert f"sha256 {sha256_of(path)}, expected {'0' * 64}" in message
    with served(tmp_path) as (url, _):
        message = load_complaint(name="image_folder", source=f"{url}/animals.zip", sha256="0" * 64)
        assert f"sent another file: sha256 {sha256_of(path)}, expected {'0' * 64}" in message
    message = load_complaint(name="image_folder", source=str(tmp_path), sha256="0" * 64)
    assert "data.sha256" in message
    assert "is a folder" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.zip", "data.source: no/such/file.zip: not there"),
        ("ftp://example.org/x.zip", "accepted: an http, https or file URL, a file or a folder"),
        ("s3://bucket/x.zip", "accepted: an http, https or file URL"),
        ("file://elsewhere/x.zip", "a file on another machine"),
        ("http://[::1/x.zip", "not a valid URL"),
        ("/dev/null", "neither a file nor a folder"),
        ("x\0y", "cannot be read"),
        ("~no-such-user/x.zip", "cannot be read"),
        (__file__, "neither a folder nor a zip, tar or tar.gz archive"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(source, message):
    assert message in load_complaint(name="image_folder", source=source)


def test_a_source_that_may_not_be_read_is_named(tmp_path):
    path = zip_of(tmp_path / "animals.zip", files_of())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied" in load_complaint(name="image_folder", source=str(path))


# The named datasets, in small


def idx_of(array):
    return gzip.compress(
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def idx_files(train, test):
    return {
        f"{name}-{kind}-idx{array.ndim}-ubyte.gz": idx_of(array)
        for name, part in (("train", train), ("t10k", test))
        for kind, array in zip(("images", "labels"), part, strict=True)
    }


def cifar_records(part, label_bytes):
    pixels, labels = part
    return b"".join(
        bytes([19] * (label_bytes - 1) + [label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(pixels, labels.tolist(), strict=True)
    )


def small(name, images_per_class=3):
    """Training and test part of a small dataset of the shape and classes of the catalogue's."""
    known = DATASETS[name]
    shape = known.image_shape if known.image_shape[2] == 3 else known.image_shape[:2]
    parts = []
    for count in (2 * images_per_class * known.classes, known.classes):
        labels = rng.permutation(np.arange(count) % known.classes).astype(np.uint8)
        parts.append((rng.integers(0, 256, (count, *shape), np.uint8), labels))
    return parts


def original_files(name, train, test):
    """The bytes of the public archive's files, had the dataset these parts."""
    if name == "mnist":
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1]
        )
        return {"mnist.npz": buffer.getvalue()}
    if name == "fashion_mnist":
        return idx_files(train, test)
    label_bytes = 1 if name == "cifar10" else 2
    batches = [(train[0][n::5], train[1][n::5]) for n in range(5)] if name == "cifar10" else [train]
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] if name == "cifar10" else ["train.bin"]
    last = "test_batch.bin" if name == "cifar10" else "test.bin"
    members = dict(zip(names, [cifar_records(part, label_bytes) for part in batches], strict=True))
    members |= {last: cifar_records(test, label_bytes), "batches.meta.txt": b"airplane\n"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(f"cifar-batches-bin/{member}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return {originals.FILES[name][0].name: buffer.getvalue()}


@pytest.fixture
def little(monkeypatch, tmp_path, request):
    """A named dataset made small in the catalogue, its files in a folder; gives name, parts, folder."""
    name = request.param
    train, test = small(name)
    known = replace(DATASETS[name], images=len(train[1]) + len(test[1]), test=len(test[1]))
    monkeypatch.setitem(DATASETS, name, known)
    folder = write(tmp_path / "published", original_files(name, train, test))
    return name, train, test, folder


NAMED = ["mnist", "fashion_mnist", "cifar10", "cifar100"]
named = pytest.mark.parametrize("little", NAMED, indirect=True)


def pinned_to(monkeypatch, name, folder, url):
    files = tuple(
        replace(
            file,
            sha256=sha256_of(folder / file.name),
            urls=(f"{url}/missing/{file.name}", f"{url}/{file.name}"),
        )
        for file in originals.FILES[name]
    )
    monkeypatch.setitem(originals.FILES, name, files)


def order_of(name, part):
    """The order in which the original has the images of a part."""
    count = len(part[1])
    return (
        np.concatenate([np.arange(count)[n::5] for n in range(5)])
        if name == "cifar10"
        else np.arange(count)
    )


def check(name, train, test, obtained):
    row = order_of(name, train)
    height, width, channels = DATASETS[name].image_shape
    shape = (-1, height, width, channels)
    assert np.array_equal(obtained.images[: len(row)], train[0][row].reshape(shape))
    assert obtained.labels[: len(row)].tolist() == train[1][row].tolist()
    assert np.array_equal(obtained.images[len(row) :], test[0].reshape(shape))
    assert obtained.labels[len(row) :].tolist() == test[1].tolist()
    assert obtained.images.dtype == np.uint8
    assert obtained.labels.dtype == np.int32
    assert obtained.own_test
    assert obtained.training == len(train[1])


@named
def test_a_named_dataset_comes_from_its_archive_once_for_all_clones(little, monkeypatch):
    name, train, test, folder = little
    classes = DATASETS[name].classes
    with served(folder) as (url, asked):
        pinned_to(monkeypatch, name, folder, url)
        obtained = loading.obtain(Data(name=name, validation_size=classes))
        requests = len(asked)
        again = loading.obtain(Data(name=name, validation_size=classes))
        assert len(asked) == requests
    check(name, train, test, obtained)
    check(name, train, test, again)
    assert obtained.facts["title"] == DATASETS[name].title
    assert obtained.facts["classes"] == classes
    assert obtained.facts["source_sha256"] == {
        file.name: file.sha256 for file in originals.FILES[name]
    }
    assert obtained.facts["source"].startswith(
        f"{url}/missing/"
    )  # the first mirror, so that all clones record one
    parts, facts = loading.divide(obtained, Data(name=name, validation_size=classes))
    assert facts["counts"] == {
        "train": len(train[1]) - classes,
        "validation": classes,
        "test": len(test[1]),
    }
    assert np.bincount(parts["validation"].labels).tolist() == [1] * classes


@named
def test_a_local_copy_of_the_archive_is_a_source_too(little, monkeypatch):
    name, train, test, folder = little
    source = folder if name == "fashion_mnist" else next(folder.iterdir())
    obtained = loading.obtain(Data(name=name, source=str(source), validation_size=10))
    check(name, train, test, obtained)
    assert obtained.facts["title"] == f"{DATASETS[name].title}, from {source.name}"
    pinned_to(monkeypatch, name, folder, "http://127.0.0.1:9")
    obtained = loading.obtain(Data(name=name, source=str(source), validation_size=10))
    assert obtained.facts["title"] == DATASETS[name].title  # its sha256 is known


@named
def test_a_damaged_original_is_an_error_and_nothing_else(little):
    name, train, test, folder = little
    path = sorted(folder.iterdir())[0]
    content = path.read_bytes()
    source = str(folder if name == "fashion_mnist" else path)
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(len(content) * share)])
        assert load_complaint(name=name, source=source).startswith(
            f"data.source: {Path(source).name}: "
        )
    for position in rng.integers(0, len(content), 12):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :]
        )
        try:
            obtained = loading.obtain(Data(name=name, source=source, validation_size=10))
        except LotteryError as error:
            assert str(error).startswith("data.source: ")
        else:
            check(name, train, test, obtained)


@named
def test_another_sha256_than_the_pinned_is_refused_before_the_download(little):
    name, _, _, _ = little
    message = load_complaint(name=name, sha256="1" * 64)
    assert message.startswith(f"data.sha256: got {'1' * 64}; accepted: null")


@pytest.mark.parametrize("little", ["mnist"], indirect=True)
def test_mnist_is_read_from_its_four_idx_files_too_unpacked_or_not(little, tmp_path):
    _, train, test, _ = little
    files = idx_files(train, test)
    check(
        "mnist",
        train,
        test,
        loading.obtain(
            Data(name="mnist", source=str(write(tmp_path / "packed", files)), validation_size=10)
        ),
    )
    plain = {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}
    check(
        "mnist",
        train,
        test,
        loading.obtain(
            Data(name="mnist", source=str(write(tmp_path / "plain", plain)), validation_size=10)
        ),
    )
    repacked = zip_of(
        tmp_path / "repacked.zip", {f"mnist/{name}": content for name, content in files.items()}
    )
    check(
        "mnist",
        train,
        test,
        loading.obtain(Data(name="mnist", source=str(repacked), validation_size=10)),
    )


@pytest.mark.parametrize("little", ["mnist"], indirect=True)
def test_an_npz_of_pickles_is_refused(little, tmp_path):
    _, train, test, _ = little
    path = tmp_path / "mnist.npz"
    np.savez(
        path,
        x_train=np.array([print], dtype=object),
        y_train=train[1],
        x_test=test[0],
        y_test=test[1],
    )
    assert "accepted: integers in C order" in load_complaint(name="mnist", source=str(path))


@pytest.mark.parametrize("little", ["cifar10"], indirect=True)
def test_counts_shapes_and_labels_are_held_against_the_catalogue(little, tmp_path, monkeypatch):
    name, train, test, _ = little

    def complaint_about(train, test):
        folder = tmp_path / "other"
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, original_files(name, train, test))
        return load_complaint(name=name, source=str(next(folder.iterdir())))

    fewer = (train[0][:-5], train[1][:-5])
    assert "its training images are [55, 32, 32, 3]; accepted: [60, 32, 32, 3]" in complaint_about(
        fewer, test
    )
    assert "its test images are [9, 32, 32, 3]" in complaint_about(
        train, (test[0][:9], test[1][:9])
    )
    beyond = (train[0], np.where(train[1] == 9, 10, train[1]).astype(np.uint8))
    assert "its training labels run from 0 to 10" in complaint_about(beyond, test)
    lacking = (test[0], np.where(test[1] == 9, 0, test[1]).astype(np.uint8))
    assert (
        "its test labels run from 0 to 8, 9 of them in use; accepted: each from 0 to 9"
        in complaint_about(train, lacking)
    )
    assert (
        "not a copy of CIFAR-10; accepted: a folder or archive with data_batch_1.bin"
        in load_complaint(name=name, source=str(zip_of(tmp_path / "x.zip", {"a.bin": b""})))
    )


@pytest.mark.parametrize("little", ["cifar10"], indirect=True)
def test_a_named_dataset_from_an_image_folder_has_its_classes_in_the_datasets_order(
    little, tmp_path
):
    name, _, _, _ = little
    names = DATASETS[name].class_names
    assert list(names) == sorted(names)
    make = partial(rgb, 32, 32)
    obtained = loading.obtain(
        Data(
            name=name,
            source=str(write(tmp_path / "x", files_of(names, 6, 1, make))),
            validation_size=10,
        )
    )
    assert obtained.labels.tolist() == [n for n in range(10) for _ in range(6)] + list(range(10))
    assert obtained.facts["class_names"] == list(names)
    other = write(tmp_path / "y", files_of([*names[:9], "tractor"], 6, 1, make))
    assert "holds the classes airplane, automobile" in load_complaint(name=name, source=str(other))
    fewer = write(tmp_path / "z", files_of(names, 5, 1, make))
    assert "its training images are [50, 32, 32, 3]" in load_complaint(name=name, source=str(fewer))
    smaller = write(tmp_path / "s", files_of(names, 6, 1, partial(rgb, 16, 16)))
    assert "its training images are [60, 16, 16, 3]" in load_complaint(
        name=name, source=str(smaller)
    )


def test_the_pinned_files_are_those_of_the_design():
    found = {file.name: file.sha256 for name in NAMED for file in originals.FILES[name]}
    assert len(found) == 7
    assert (
        found["cifar-10-binary.tar.gz"]
        == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    )
    assert found["mnist.npz"] == "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
    for name in NAMED:
        for file in originals.FILES[name]:
            assert len(file.urls) >= 2
            assert all(url.endswith(f"/{file.name}") for url in file.urls)


@pytest.fixture(scope="module")
def cifar_jpeg():
    if not CIFAR_JPEG.exists():
        pytest.skip("../shared/data/cifar10-jpeg.zip is not here")
    return CIFAR_JPEG


def test_the_jpeg_copy_of_cifar10_is_recognised(cifar_jpeg):
    assert sha256_of(cifar_jpeg) == JPEG_SHA256
    with archives.open_tree(cifar_jpeg, "cifar10-jpeg.zip") as tree:
        layout = images.arrange(tree)
    known = DATASETS["cifar10"]
    assert layout.class_names == known.class_names
    assert layout.training == known.training == 50_000
    assert np.bincount(layout.labels[50_000:]).tolist() == [1000] * 10


def test_a_part_of_the_jpeg_copy_is_loaded_under_its_title(cifar_jpeg, tmp_path, monkeypatch):
    path = tmp_path / "part.zip"
    with zipfile.ZipFile(cifar_jpeg) as whole:
        wanted = [
            n for n in whole.namelist() if n.endswith(tuple(f"/00{i:02d}.jpg" for i in range(100)))
        ]
        zip_of(path, {n: whole.read(n) for n in wanted})
    assert len(wanted) == 2000
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], images=2000, test=1000))
    monkeypatch.setitem(
        originals.COPIES, "cifar10", {sha256_of(path): originals.COPIES["cifar10"][JPEG_SHA256]}
    )
    parts, facts = loading.load(Data(name="cifar10", source=str(path), validation_size=100))
    assert facts["title"] == "CIFAR-10, JPEG quality 75"
    assert facts["source"] == "part.zip"
    assert facts["counts"] == {"train": 900, "validation": 100, "test": 1000}
    assert 110 < parts["train"].images.mean() < 130  # 120.7 over all of CIFAR-10


# The parameters and the stage

PARAMS = """\
seeds: [0]
data: {{name: image_folder, source: {source}, validation_size: {validation}}}
model: {{name: {model}, initializer: glorot_normal}}
train: {{optimizer: adam, learning_rate: 1.2e-3, batch_size: {batch}, iterations: 40, evaluate_every: 10}}
prune: {{rounds: 2, rates: {{conv: 0.1, dense: 0.2, output: 0.1}}, rewind_iteration: 0}}
retrain: {{variants: [ticket], rounds: all}}
report: {{margin: 0.005, iteration_margin: 0.3, confidence: 0.95}}
"""


def fetch(folder, source, validation=4, model="lenet_300_100", batch=4):
    (folder / "params.yaml").write_text(
        PARAMS.format(source=source, validation=validation, model=model, batch=batch)
    )
    return subprocess.run(
        [sys.executable, "-m", "stages.fetch"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_fetch_writes_an_image_folder_as_a_dataset(tmp_path):
    write(tmp_path / "animals", files_of())
    done = fetch(tmp_path, "animals")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "fetch: animals: 8 train, 4 validation, 6 test images\n"
    facts = json.loads((tmp_path / "data/dataset/dataset.json").read_text())
    assert facts["source"] == "animals"
    assert str(tmp_path) not in json.dumps(facts)
    assert np.load(tmp_path / "data/dataset/train_images.npy").shape == (8, 4, 5, 3)


def test_fetch_refuses_what_does_not_fit_the_dataset_in_plain_lines(tmp_path):
    write(tmp_path / "animals", files_of())
    for values, line in (
        (
            {"source": "nowhere"},
            "data.source: nowhere: not there; accepted: a URL, a file or a folder",
        ),
        (
            {"model": "conv6"},
            "params.yaml: model.name: got 'conv6'; accepted: a model that fits images of side 4",
        ),
    ):
        done = fetch(tmp_path, **{"source": "animals", **values})
        assert done.returncode == 1
        assert done.stderr.startswith(f"fetch: {line}"), done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "data/dataset").exists()
