"""Image folders as people have them: names, layouts, kinds of images."""

import io
import json
import re
import shutil
import struct
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from clones import ROOT, Clone, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_datasets_sources import write

from lottery.datasets import image_folder, loading
from lottery.errors import LotteryError
from lottery.params import Data

CIFAR_JPEG = ROOT.parent / "shared" / "data" / "cifar10-jpeg.zip"
rng = np.random.default_rng(0)


def encoded(pixels, kind="PNG", mode=None, **options):
    content = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(content, kind, **options)
    return content.getvalue()


def grey(height=4, width=5):
    return rng.integers(0, 256, (height, width), np.uint8)


def rgb(height=4, width=5):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(side, bits, content, *, grey_but=None):
    """An image of that side, written by hand: RGB, or grey but for a transparent value."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 2 * (not grey_but), 0, 0, 0))
    header += chunk(b"tRNS", struct.pack(">H", grey_but)) if grey_but else b""
    data = chunk(b"IDAT", zlib.compress(content))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def files_of(classes=("cat", "dog"), train=6, test=3, make=rgb):
    return {
        f"{part}/{name}/{number:02d}.png": encoded(make())
        for part, count in (("train", train), ("test", test))
        for name in classes
        for number in range(count)
    }


def read(folder, size=None):
    return image_folder.read(folder, folder.name, size)


def complaint(folder):
    with pytest.raises(LotteryError) as error:
        read(folder)
    assert str(error.value).isprintable()
    return str(error.value)


def decoded(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    return image_folder.decode(tmp_path / "x", "x")


# Layouts


@pytest.mark.parametrize("top", ["", "animals/", "animals/animals/"])
def test_images_come_in_order_of_class_and_name_from_one_of_three_levels(tmp_path, capsys, top):
    pixels = {name: rgb() for name in files_of()}
    files = {f"{top}{name}": encoded(pixels[name]) for name in reversed(pixels)}
    beside = {"README.txt": b"", f"{top}train/cat/notes.txt": b""}
    hidden = [f"{top}train/.DS_Store", f"__MACOSX/{top}train/cat/._00.png", f"{top}.git/x.png"]
    write(tmp_path / "x", files | beside | dict.fromkeys(hidden, b""))
    images, labels, training, names = read(tmp_path / "x")
    assert np.array_equal(images, np.stack(list(pixels.values())))
    assert labels.tolist() == [0] * 6 + [1] * 6 + [0] * 3 + [1] * 3
    assert (labels.dtype, training, names) == (np.int32, 12, ("cat", "dog"))
    said = "fetch: x: 2 files are no images, passed over, such as README.txt\n"
    assert capsys.readouterr().err == said
    write(tmp_path / "x", {f"{top}train/.net/00.png": encoded(rgb())})
    read(tmp_path / "x")
    said = f"{top}train/.net/00.png: a folder with a dot first is no class, passed over"
    assert f"fetch: x: {said}\n" in capsys.readouterr().err


def test_a_class_name_with_accents_composed_or_combining_is_one_class(tmp_path):
    names = ("crème", "pâté")
    whole = files_of(names)
    files = {
        unicodedata.normalize("NFD" if "test" in name or "/03" in name else "NFC", name): content
        for name, content in whole.items()
    }
    found = read(write(tmp_path / "two", files))
    assert np.array_equal(found.images, read(write(tmp_path / "one", whole)).images)
    assert found.class_names == names
    assert np.bincount(found.labels).tolist() == [9, 9]


@pytest.mark.parametrize(("changes", "message"), [
    ({"train/cat/00.png": encoded(rgb(), "GIF")}, r"00\.png: neither a PNG nor a JPEG"),
    ({"train/cat/a.gif": encoded(rgb(), "GIF")}, r"train/cat/a\.gif; accepted.*\.png, \.jpg"),
    ({"train/cat/00.png": encoded(rgb(40, 40))[:-60]}, r"00\.png: damaged, truncated or too large"),
    ({"test/dog/02.png": encoded(rgb(5, 4))}, r"02\.png is 5 x 4, train/cat/00\.png is 4 x 5"),
    ({"train/00.png": encoded(rgb())}, r"train/00\.png; accepted: train/<class>/<image>"),
    ({"train/cat/old/00.png": encoded(rgb())}, r"train/cat/old/00\.png; accepted: train/<class>"),
    ({"validation/cat/00.png": encoded(rgb())}, r"validation/cat/00\.png; accepted: train/<cl"),
    ({"more/train/cat/00.png": encoded(rgb())}, "holds 2 folders with images in train/<class>/"),
    ({"test/bird/00.png": encoded(rgb())}, "class bird is in test/ alone.*in train/: cat, dog"),
    ({"train/bird/00.png": encoded(rgb())}, "class bird is in train/ alone"),
    ({"train/a\nb/00.png": encoded(rgb())}, "a name that is not plain text; remove or rename it"),
])  # fmt: skip
def test_what_is_wrong_with_an_image_folder_is_named(tmp_path, changes, message):
    assert re.search(message, complaint(write(tmp_path / "x", {**files_of(), **changes})))


def test_a_folder_that_lacks_images_classes_or_a_links_target_is_named(tmp_path):
    one = write(tmp_path / "one", files_of(["cat"]))
    none = write(tmp_path / "none", {"cat/a.txt": b""})
    assert "holds 0 folders with images in train/<class>/" in complaint(none)
    assert "train/ has 1 class folder; accepted: from 2 up" in complaint(one)
    (one / "train" / "dog").mkdir()
    assert "train/dog/ holds no image" in complaint(one)
    (one / "train" / "dog" / "00.png").symlink_to(tmp_path / "nowhere")
    assert "00.png in dog/ is a broken link" in complaint(one)


def test_images_too_large_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "MOST_DECODED", 18 * 60 - 1)
    message = complaint(write(tmp_path, files_of()))
    assert "18 images of 4 x 5 are 1,080 bytes decoded; accepted: up to 1,079" in message


# Images


def test_grey_stays_grey_and_becomes_rgb_where_any_image_is_in_colour(tmp_path):
    files = files_of(make=grey)
    assert read(write(tmp_path, files)).images.shape == (18, 4, 5, 1)
    pixels = grey()
    write(tmp_path, {"train/cat/00.png": encoded(pixels), "test/dog/00.png": encoded(rgb())})
    mixed = read(tmp_path).images
    assert np.array_equal(mixed[0], np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize(("content", "channels"), [
    (encoded(grey(), "JPEG"), 1), (encoded(rgb(), "JPEG", progressive=True), 3),
    (encoded(rgb(), mode="P"), 3), (encoded(grey(), mode="1"), 1),
    (encoded(rgb(), mode="RGBA"), 3), (encoded(grey(), mode="LA"), 1),
])  # fmt: skip
def test_common_kinds_of_png_and_jpeg_are_decoded(tmp_path, content, channels):
    pixels = decoded(tmp_path, content)
    assert (pixels.shape, pixels.dtype) == ((4, 5, channels), np.uint8)


UPRIGHT = np.kron(rng.integers(0, 2, (3, 4)), np.full((8, 8), 255)).astype(np.uint8)


def test_photographs_are_read_as_viewers_show_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 5  # of the orientation's eight values one that both turns and mirrors
    content = encoded(np.ascontiguousarray(UPRIGHT.T), "JPEG", quality=100, exif=exif)
    assert np.abs(decoded(tmp_path, content)[..., 0].astype(int) - UPRIGHT).max() < 10


@pytest.mark.parametrize(("content", "cause"), [
    (encoded(rgb(), "JPEG", mode="CMYK"), "of mode CMYK; accepted: grey or RGB of 8 bits, opaque"),
    (png(4, 16, (b"\0" + bytes(range(24))) * 4), "of 16 bits; accepted: grey or"),
    (encoded(np.zeros((4, 5), np.uint8), transparency=0), "transparent or of mode"),
    (encoded(np.zeros((4, 5, 3), np.uint8), transparency=(0, 0, 0)), "transparent or of mode"),
    (png(4, 4, b"\0\x17\x33" * 4, grey_but=7), "transparent or of mode"),
    (png(4, 2, b"\0\xf1" * 4, grey_but=1), "transparent or of mode"),
    (encoded(np.full((4, 5, 4), 100, np.uint8)), "transparent or of mode RGBA"),
    (encoded(rgb(), save_all=True, append_images=[Image.fromarray(rgb())]), "an animation"),
])  # fmt: skip
def test_what_is_not_one_opaque_picture_is_refused(tmp_path, content, cause):
    with pytest.raises(LotteryError, match=f"^x: .*{cause}"):
        decoded(tmp_path, content)


def test_images_are_resized_where_that_is_asked(tmp_path):
    half = np.repeat(np.array([0, 200], np.uint8), 64).reshape(16, 8)
    others = {"train/cat/00.png": encoded(half), "train/cat/01.png": encoded(rgb(2, 4))}
    found = read(write(tmp_path, {**files_of(), **others}), (4, 2)).images
    assert found.shape == (18, 4, 2, 3)
    expected = np.repeat([[0], [0], [200], [200]], 2, axis=1)
    assert found[0, ..., 0] == pytest.approx(expected, abs=20)


@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_a_small_file_of_huge_dimensions_is_refused_before_it_is_decoded(tmp_path, side):
    with pytest.raises(LotteryError, match=r"^x: damaged, truncated or too large"):
        decoded(tmp_path, png(side, 8, bytes(10_000)))


def test_a_png_whose_pixels_are_not_those_of_its_checksum_is_refused(tmp_path):
    flipped = bytearray(encoded(grey(64, 64)))
    start = flipped.index(b"IDAT")
    flipped[start + 4 + int.from_bytes(flipped[start - 4 : start])] ^= 1  # of the checksum
    with pytest.raises(LotteryError, match=r"^x: damaged, truncated or too large \(SyntaxError"):
        decoded(tmp_path, bytes(flipped))


def test_text_that_a_png_unpacks_is_bounded(tmp_path):
    whole, bomb = encoded(rgb()), chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2 * 2**20)))
    with pytest.raises(LotteryError, match=r"^x: damaged, truncated or too large"):
        decoded(tmp_path, whole[:33] + bomb + whole[33:])


@given(
    st.sampled_from([encoded(rgb(16, 16)), encoded(rgb(16, 16), "JPEG", progressive=True)]),
    st.lists(st.tuples(st.integers(0, 10**5), st.integers(1, 255)), max_size=6),
    st.integers(0, 40),
)
@settings(max_examples=200, deadline=None)
def test_a_spoiled_image_is_an_error_or_an_image(tmp_path_factory, content, flips, cut):
    spoiled = bytearray(content)
    for position, change in flips:
        spoiled[position % len(spoiled)] ^= change
    try:
        pixels = decoded(tmp_path_factory.getbasetemp(), bytes(spoiled[: len(spoiled) - cut]))
    except LotteryError as error:
        assert str(error).startswith("x: ")
    else:
        assert pixels.shape[2:] in ((1,), (3,))


# As a dataset


def obtain(source, name="image_folder", **values):
    return loading.obtain(Data(name=name, source=str(source), validation_size=4, **values))


def test_a_folder_with_a_test_set_keeps_it_and_records_its_facts(tmp_path):
    images, labels, facts = obtain(write(tmp_path / "animals", files_of()))
    assert facts == {
        "name": "image_folder", "title": "animals", "source": "animals", "source_sha256": {},
        "sha256": loading.fingerprint(images, labels), "image_shape": [4, 5, 3], "classes": 2,
        "class_names": ["cat", "dog"], "test": 6, "own_test": True,
    }  # fmt: skip


def test_fetch_writes_the_dataset_and_says_what_stands_in_both_parts(tmp_path, capsys):
    files = files_of()
    write(tmp_path / "data/own/animals", files)
    source = {"name": "image_folder", "source": "data/own/animals", "validation_size": 4}
    project = Clone(tmp_path)
    project.write(tiny({"data": source, "train.batch_size": 4}))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    project.stage("fetch")
    said = capsys.readouterr()
    assert "animals: 12 images for training and validation, 6 for testing" in said.out
    assert said.err == ""
    facts = json.loads((tmp_path / "data/dataset/dataset.json").read_text())
    assert facts["class_names"] == ["cat", "dog"]
    assert str(tmp_path) not in json.dumps(facts)
    write(tmp_path / "data/own/animals", {"test/cat/00.png": files["train/cat/03.png"]})
    project.stage("fetch")
    said = capsys.readouterr().err
    assert "fetch: 1 of the 6 test images are training or validation images too" in said
    assert "fetch: 1 images repeat others, value for value, so that" in said
    facts = json.loads((tmp_path / "data/dataset/dataset.json").read_text())
    assert (facts["repeated"], facts["test_in_training"]) == (1, 1)
    before = project.files("data/dataset")
    write(tmp_path / "data/own/animals", {"test/cat/00.png": b"no image"})
    why = r"^data\.source: animals: test/cat/00\.png: neither a PNG.*$"
    with pytest.raises(LotteryError, match=why):
        project.stage("fetch")
    assert project.files("data/dataset") == before


@pytest.mark.skipif(not CIFAR_JPEG.exists(), reason="../shared/data/cifar10-jpeg.zip is not here")
def test_a_dataset_known_by_name_may_be_an_image_folder_of_its_classes(tmp_path):
    with zipfile.ZipFile(CIFAR_JPEG) as whole:
        wanted = [name for name in whole.namelist() if name.endswith("/0000.jpg")]
        whole.extractall(tmp_path / "x", wanted)
    found = read(tmp_path / "x")
    assert found.images.shape == (20, 32, 32, 3)
    assert found.class_names[:3] == ("airplane", "automobile", "bird")
    why = r"holds 10 training and 10 test images.*accepted: 50,000"
    with pytest.raises(LotteryError, match=why):
        obtain(tmp_path / "x", "cifar10")
    for part in ("train", "test"):
        (tmp_path / "x" / part / "truck").rename(tmp_path / "x" / part / "tractor")
    with pytest.raises(LotteryError, match=r"ship, tractor; accepted: airplane.*truck"):
        obtain(tmp_path / "x", "cifar10")
