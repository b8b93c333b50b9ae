"""The datasets known by name: what they hold, how an original is known, the split."""

import gzip
import io
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.datasets import loading, originals
from lottery.datasets.image_folder import Images
from lottery.datasets.split import split
from lottery.errors import LotteryError
from lottery.params import Data
from lottery.params.catalogue import DATASETS

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
here = pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not here")


def obtain(name, source=None, **values):
    source = source if source is None else str(source)
    return loading.obtain(Data(name=name, source=source, **{"validation_size": 10, **values}))


# What comes with packages


def test_a_packaged_dataset_is_the_pinned_one():
    images, labels, facts = obtain("digits")
    assert images.shape == (1797, 8, 8, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert facts["sha256"] == loading.fingerprint(images, labels) == DATASETS["digits"].sha256
    assert (facts["test"], facts["own_test"], facts["classes"]) == (297, False, 10)
    assert "package" in facts["source"]


def test_a_wrong_sha256_is_an_error_that_names_the_key_and_both_hashes():
    with pytest.raises(LotteryError, match=f"digits: got sha256 {DATASETS['digits'].sha256}.*"
                       f"expected {'0' * 64}.*data.sha256"):  # fmt: skip
        obtain("digits", sha256="0" * 64)


# The split


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(3, 30), min_size=2, max_size=6), st.integers(0, 2**31 - 1), st.data())
def test_a_split_has_exact_sizes_and_each_class_in_each_part(counts, seed, data):
    classes = len(counts)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), counts))
    test = data.draw(st.integers(classes, len(labels) - 2 * classes))
    validation = data.draw(st.integers(classes, len(labels) - test - classes))
    parts = split(labels, test=test, own_test=False, validation=validation, seed=seed)
    assert [len(rows) for rows in parts] == [len(labels) - test - validation, validation, test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all((np.diff(rows) > 0).all() for rows in parts)
    per_class = np.array([np.bincount(labels[rows], minlength=classes) for rows in parts])
    assert per_class.min() >= 1


def test_classes_are_in_proportion_to_within_one_image():
    counts = np.array([700, 200, 90, 10])
    labels = np.repeat(np.arange(4), counts)
    parts = split(labels, test=137, own_test=False, validation=83, seed=5)
    in_test, in_validation = (np.bincount(labels[rows]) for rows in (parts.test, parts.validation))
    assert np.abs(in_test - counts * 0.137).max() < 1
    assert np.abs(in_validation - (counts - in_test) * 83 / 863).max() < 1


def test_the_test_set_depends_on_the_seed_alone():
    labels = np.arange(600) % 3
    parts = [
        split(labels, test=100, own_test=False, validation=validation, seed=seed)
        for validation, seed in ((50, 0), (300, 0), (50, 1))
    ]
    assert np.array_equal(parts[0].test, parts[1].test)
    assert not np.array_equal(parts[0].test, parts[2].test)
    assert not np.array_equal(parts[0].validation, parts[2].validation)


def test_a_test_set_of_its_own_is_the_last_rows_for_every_seed():
    labels, held_out = np.arange(600) % 3, []
    for seed in (0, 1):
        parts = split(labels, test=90, own_test=True, validation=60, seed=seed)
        assert parts.test.tolist() == list(range(510, 600))
        assert sorted([*parts.train, *parts.validation]) == list(range(510))
        held_out.append(parts.validation.tolist())
    assert held_out[0] != held_out[1]


@pytest.mark.parametrize(("own_test", "counts", "accepted"), [
    (False, [200, 200, 2], 3), (True, [200, 200, 1], 2), (False, [200, 200, 0, 9], 3),
])  # fmt: skip
def test_a_class_too_small_for_every_part_is_named(own_test, counts, accepted):
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.concatenate([labels, np.arange(40) % len(counts)]) if own_test else labels
    names = ["apple", "bread", "cheese", "dill"]
    with pytest.raises(LotteryError, match=f"class cheese has {counts[2]} examples.*{accepted} or"):
        split(labels, test=40, own_test=own_test, validation=40, seed=0, class_names=names)


def test_more_images_than_there_are_cannot_be_held_out():
    with pytest.raises(LotteryError, match="28 examples cannot be held out of 30"):
        split(np.arange(30) % 3, test=28, own_test=False, validation=3, seed=0)


def test_each_seed_draws_its_split_or_all_share_one_and_they_are_those_of_published_results():
    dataset = obtain("digits")
    per_seed = Data(name="digits", validation_size=150)
    shared = Data(name="digits", validation_size=150, split="shared", split_seed=1)
    drawn = [dataset.split(per_seed, seed) for seed in (0, 1)]
    assert drawn[0].test.tolist() != drawn[1].test.tolist()
    for seed in (0, 5):
        assert dataset.split(shared, seed).test.tolist() == drawn[1].test.tolist()
    assert [len(part) for part in drawn[0]] == [1350, 150, 297]
    # a change here makes every published result another one
    first = [part[:6].tolist() for part in drawn[0]]
    assert first == [[1, 2, 3, 4, 5, 6], [14, 15, 23, 38, 57, 65], [0, 7, 11, 17, 29, 30]]


def test_images_that_repeat_others_are_counted():
    images = np.arange(24, dtype=np.uint8).reshape(24, 1, 1, 1) % 20  # 20 to 23 repeat 0 to 3
    assert loading.repeats(images, 24) == {"repeated": 4}
    assert loading.repeats(images, 22) == {"repeated": 4, "test_in_training": 2}
    assert loading.repeats(images[:20], 10) == {}
    same = images[[7, 7, 1, 7]]  # one test image, which is there twice in training
    assert loading.repeats(same, 3) == {"repeated": 2, "test_in_training": 1}


# Published datasets, of the same formats but small


def parts_of(name):
    """Training and test part of the shape and the classes of the catalogue's."""
    known, rng = DATASETS[name], np.random.default_rng(0)
    shape = known.image_shape if known.image_shape[2] == 3 else known.image_shape[:2]
    counts = (5 * known.classes, known.classes)
    labels = [rng.permutation(np.arange(n) % known.classes).astype(np.uint8) for n in counts]
    return [(rng.integers(0, 256, (len(of), *shape), np.uint8), of) for of in labels]


def idx_of(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def npy_of(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def records_of(images, labels, label_bytes):
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    columns = [np.full_like(labels, 19)[:, None]] * (label_bytes - 1) + [labels[:, None], planes]
    return np.concatenate(columns, axis=1).tobytes()


def write_original(folder, name, form):
    """The files of a published dataset, had it these images."""
    (images, labels), (test_images, test_labels) = parts_of(name)
    if form == "npz":
        arrays = {"x_train": images, "y_train": labels, "x_test": test_images}
        np.savez_compressed(folder / "mnist.npz", **arrays, y_test=test_labels)
        return folder / "mnist.npz"
    if form.startswith("idx"):
        for part, arrays in (("train", (images, labels)), ("t10k", (test_images, test_labels))):
            for kind, array in zip(("images", "labels"), arrays, strict=True):
                file = f"{part}-{kind}-{form.replace('idx', f'idx{array.ndim}-ubyte')}"
                pack = gzip.compress if form == "idx.gz" else bytes
                (folder / file).write_bytes(pack(idx_of(array)))
        return folder
    label_bytes = 1 if name == "cifar10" else 2
    inner = folder / "batches-bin"
    inner.mkdir()
    names = [f"data_batch_{n}" for n in range(1, 6)] if name == "cifar10" else ["train"]
    batches = (np.split(array, len(names)) for array in (images, labels))
    for file, *batch in zip(names, *batches, strict=True):
        (inner / f"{file}.bin").write_bytes(records_of(*batch, label_bytes))
    test = "test_batch.bin" if name == "cifar10" else "test.bin"
    (inner / test).write_bytes(records_of(test_images, test_labels, label_bytes))
    return Path(shutil.make_archive(folder / "archive", "gztar", folder, "batches-bin"))


@pytest.fixture
def small(monkeypatch):
    """Makes the catalogue expect the small datasets; their sha256 is then what they have."""
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100"):
        (images, labels), (test_images, test_labels) = parts_of(name)
        counts = {"images": len(images) + len(test_images), "test": len(test_images)}
        together = [np.concatenate(both) for both in ((images, test_images), (labels, test_labels))]
        sha256 = loading.fingerprint(together[0], together[1].astype(np.int32))
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], sha256=sha256, **counts))


FORMS = [
    ("mnist", "npz"), ("mnist", "idx.gz"), ("mnist", "idx"), ("fashion_mnist", "idx.gz"),
    ("cifar10", "tar.gz"), ("cifar100", "tar.gz"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_an_original_is_known_by_its_pixels_and_labels_whatever_it_came_in(
    small, tmp_path, name, form
):
    known = DATASETS[name]
    source = write_original(tmp_path, name, form)
    images, labels, facts = found = obtain(name, source)
    (train, train_labels), (test, test_labels) = parts_of(name)
    assert np.array_equal(images.squeeze(), np.concatenate([train, test]))
    assert labels.tolist() == [*train_labels, *test_labels]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert images.shape == (known.images, *known.image_shape)
    assert (facts["title"], facts["own_test"]) == (known.title, True)
    assert (facts["test"], facts["classes"]) == (known.test, known.classes)
    assert tuple(facts.get("class_names", ())) == known.class_names
    parts = found.split(Data(name=name, validation_size=known.classes), seed=1)
    assert np.array_equal(found.part(parts.test).images.squeeze(), test)


def test_the_files_of_another_dataset_are_not_taken_for_it(small, tmp_path, monkeypatch):
    other = replace(DATASETS["fashion_mnist"], sha256=None)  # the small ones are the same
    monkeypatch.setitem(DATASETS, "fashion_mnist", other)
    source = write_original(tmp_path, "mnist", "idx")  # of Fashion-MNIST they have the same names
    with pytest.raises(LotteryError, match=": is MNIST, not Fashion-MNIST"):
        obtain("fashion_mnist", source)


def test_original_files_that_are_there_twice_are_refused(small, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_original(tmp_path / name, "mnist", "idx")
    with pytest.raises(LotteryError, match="in one/, two/; accepted: each file once"):
        obtain("mnist", tmp_path)
    shutil.rmtree(tmp_path / "two")
    for path in [*(tmp_path / "one").iterdir()]:  # as an archive is unpacked by some programs
        path.rename(tmp_path / "file")
        path.mkdir()
        (tmp_path / "file").rename(path / path.name)
    assert obtain("mnist", tmp_path / "one").facts["title"] == "MNIST"


@pytest.mark.parametrize(("name", "form"), [*FORMS[:3], ("cifar10", "tar.gz")])
def test_a_damaged_original_is_one_plain_line_or_unchanged(small, tmp_path, name, form):
    source = write_original(tmp_path, name, form)
    file = next(path for path in sorted(tmp_path.iterdir()) if path.is_file())
    content, whole = file.read_bytes(), obtain(name, source)
    damaged = [content[: int(len(content) * share)] for share in (0.1, 0.5, 0.99)]
    for position in np.random.default_rng(0).integers(0, len(content), 8):
        damaged.append(content[:position] + bytes([content[position] ^ 255]))
        damaged[-1] += content[position + 1 :]
    for spoiled in damaged:
        file.write_bytes(spoiled)
        try:
            found = obtain(name, source)
        except LotteryError as error:
            assert str(error).startswith(f"data.source: {source.name}: ")
            assert str(error).isprintable()
        else:
            if form != "idx":  # nothing in a plain idx file tells of a changed pixel
                assert found.facts["sha256"] == whole.facts["sha256"]


def test_pixels_counts_and_labels_are_held_against_the_catalogue(small, tmp_path, monkeypatch):
    source, known = write_original(tmp_path, "cifar10", "tar.gz"), DATASETS["cifar10"]
    monkeypatch.setitem(DATASETS, "cifar10", replace(known, sha256="0" * 64))
    images, labels, facts = obtain("cifar10", source)
    assert facts["title"] == "CIFAR-10, from archive.tar.gz"  # other pixels: not the original
    found = Images(images, np.where(np.arange(60) < 50, labels, 0), 50, ())
    with pytest.raises(LotteryError, match=r"with 10 and 1 classes; accepted.* with 10 each"):
        loading._check("x", found, known)
    for other, why in (
        ({"images": 61}, r"holds 50 training and 10 test images.*accepted: 51"),
        ({"classes": 9}, r"with 10 and 10 classes; accepted.* with 9 each"),
    ):
        monkeypatch.setitem(DATASETS, "cifar10", replace(known, **other))
        with pytest.raises(LotteryError, match=why):
            obtain("cifar10", source)


@pytest.mark.parametrize("content", [
    b"", npy_of(np.zeros(9, np.uint8))[:-1], npy_of(np.array([{}], object)), npy_of(np.zeros(3)),
    npy_of(np.zeros(7, np.uint8)).replace(b"(7,), }          ", b"(7000000000000,),}"),
])  # fmt: skip
def test_what_is_no_npy_file_of_integers_is_refused_and_nothing_unpickled(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises((ValueError, EOFError)):
        originals.npy(tmp_path / "x")


def test_what_is_no_idx_file_of_as_many_unsigned_bytes_as_its_header_says_is_refused(tmp_path):
    array = np.arange(6, dtype=np.uint8).reshape(3, 2)
    whole = idx_of(array)
    (tmp_path / "x").write_bytes(whole)
    assert originals.idx(tmp_path / "x").tolist() == array.tolist()
    for content in (whole[:2] + b"\x09" + whole[3:], whole[:-1], whole + b"\0", whole[:6], b""):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises((ValueError, struct.error)):
            originals.idx(tmp_path / "x")


@pytest.mark.parametrize(("shape", "dtype", "labels"), [
    ((3, 2, 2), np.uint8, 4), ((3, 2, 2), np.int16, 3), ((3, 4), np.uint8, 3),
])  # fmt: skip
def test_images_that_are_no_bytes_or_not_as_many_as_their_labels_are_refused(shape, dtype, labels):
    arrays = {"images": np.zeros(shape, dtype), "labels": np.zeros(labels, np.uint8)}
    with pytest.raises(ValueError, match=f"with uint8 .{labels}"):
        originals.grey(arrays.__getitem__, "images", "labels")


@here
@pytest.mark.parametrize(("name", "file", "title"), [
    ("mnist", "mnist", "MNIST"), ("cifar10", "cifar-10-binary.tar.gz", "CIFAR-10"),
])  # fmt: skip
def test_the_real_originals_are_recognised(name, file, title):
    dataset = obtain(name, SHARED / file)
    assert dataset.facts["title"] == title
    assert dataset.facts["sha256"] == DATASETS[name].sha256
    assert np.bincount(dataset.labels[-10_000:]).min() > 890
    assert not {"repeated", "test_in_training"} & set(dataset.facts)
