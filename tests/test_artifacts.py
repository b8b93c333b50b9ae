"""Files: written whole or not at all, the same bytes for the same content, damage always noticed."""

import errno
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lottery.artifacts import files, tables
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask

ROOT = Path(__file__).parent.parent

FACTS = {
    "seed": 3,
    "round": 2,
    "name": "lenet_300_100",
    "kinds": {"dense1/kernel": "dense"},
    "share": 0.1,
    "none": None,
}


def bits_of(value):
    return value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()


def same_tensors(one, other):
    return {n: bits_of(v) for n, v in one.items()} == {n: bits_of(v) for n, v in other.items()}


def example_mask():
    generator = np.random.default_rng(0)
    return Mask(
        {
            "dense1/kernel": generator.random((7, 5)) < 0.4,
            "output/kernel": generator.random((5, 3)) < 0.7,
        }
    )


def example_weights():
    generator = np.random.default_rng(1)
    shapes = {
        "dense1/kernel": (7, 5),
        "dense1/bias": (5,),
        "output/kernel": (5, 3),
        "output/bias": (3,),
    }
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def example_parts():
    generator = np.random.default_rng(2)
    counts = {"train": 5, "validation": 2, "test": 3}
    parts = {
        name: Part(
            generator.integers(0, 256, (n, 4, 3, 1), np.uint8),
            generator.integers(0, 3, n).astype(np.int32),
        )
        for name, n in counts.items()
    }
    return parts, {
        "name": "tiny",
        "title": "Tiny",
        "image_shape": [4, 3, 1],
        "classes": 3,
        "counts": counts,
    }


def overwrite(path, content):
    """In place of the file, not into it: truncating a file makes some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def error_of(read, *arguments):
    with pytest.raises(LotteryError) as error:
        read(*arguments)
    return str(error.value)


# Round trips

tensors = st.dictionaries(
    st.text("abc/é", min_size=1, max_size=5),
    st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_]).flatmap(
        lambda dtype: npst.arrays(
            dtype, npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
        )
    ),
    max_size=4,
)
facts = st.dictionaries(
    st.text(max_size=6),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=6)
    | st.lists(st.integers(0, 9), max_size=3),
    max_size=4,
)  # fmt: skip


@settings(deadline=None)
@given(tensors, facts)
def test_tensors_and_facts_come_back_bit_for_bit(given_tensors, given_facts):
    content = files.tensors_to_bytes(given_tensors, given_facts)
    again, again_facts = files.tensors_from_bytes(content)
    assert same_tensors(again, given_tensors)
    assert list(again) == sorted(given_tensors)
    assert again_facts == given_facts


@settings(deadline=None)
@given(tensors, facts)
def test_the_same_content_gives_the_same_bytes_in_whatever_order_it_comes(
    given_tensors, given_facts
):
    content = files.tensors_to_bytes(given_tensors, given_facts)
    backwards = dict(reversed(given_tensors.items())), dict(reversed(given_facts.items()))
    assert files.tensors_to_bytes(*backwards) == content


def test_signed_zeros_and_nan_payloads_come_back(tmp_path):
    bits = np.array([0x80000000, 0x7FC00001, 0xFFA00002, 0x00000001], np.uint32)
    files.write_tensors(tmp_path / "weights", {"kernel": bits.view(np.float32)}, {})
    assert (
        files.read_tensors(tmp_path / "weights")[0]["kernel"].view(np.uint32).tolist()
        == bits.tolist()
    )


def test_an_array_that_is_not_contiguous_comes_back(tmp_path):
    value = np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    files.write_tensors(tmp_path / "weights", {"kernel": value}, {})
    assert files.read_tensors(tmp_path / "weights")[0]["kernel"].tolist() == value.tolist()


def test_a_mask_comes_back_with_its_facts(tmp_path):
    mask = example_mask()
    files.write_mask(tmp_path / "mask", mask, FACTS)
    again, given_facts = files.read_mask(tmp_path / "mask")
    assert same_tensors(again.layers, mask.layers)
    assert {key: given_facts[key] for key in FACTS} == FACTS
    assert again.counts == mask.counts


def test_a_mask_takes_one_bit_a_weight(tmp_path):
    files.write_mask(tmp_path / "mask", Mask.full({"kernel": (784, 300)}), {})
    assert 784 * 300 / 8 <= (tmp_path / "mask").stat().st_size < 784 * 300 / 8 + 500


def test_weights_under_a_mask_come_back_with_zeros_where_they_are_pruned(tmp_path):
    mask, weights = example_mask(), example_weights()
    files.write_masked_weights(tmp_path / "weights", weights, mask, FACTS)
    again, again_mask, given_facts = files.read_masked_weights(tmp_path / "weights")
    assert same_tensors(again, mask.apply(weights))
    assert same_tensors(again_mask.layers, mask.layers)
    assert {key: given_facts[key] for key in FACTS} == FACTS


def test_only_survivors_of_masked_weights_are_stored(tmp_path):
    keep = np.zeros((784, 300), np.bool_)
    keep.flat[:1000] = True
    weights = {"kernel": np.ones((784, 300), np.float32)}
    files.write_masked_weights(tmp_path / "weights", weights, Mask({"kernel": keep}), {})
    size = (tmp_path / "weights").stat().st_size
    assert 784 * 300 / 8 + 4000 <= size < 784 * 300 / 8 + 4000 + 500


@settings(max_examples=50, deadline=None)
@given(npst.arrays(np.bool_, npst.array_shapes(max_dims=3, max_side=5)), st.data())
def test_any_weights_under_any_mask_come_back(tmp_path_factory, keep, data):
    bits = data.draw(npst.arrays(np.uint32, keep.shape, elements=st.integers(0, 2**32 - 1)))
    mask, weights = Mask({"k": keep}), {"k": bits.view(np.float32), "b": np.ones(2, np.float32)}
    path = tmp_path_factory.getbasetemp() / "any-weights"
    files.write_masked_weights(path, weights, mask, {})
    assert same_tensors(files.read_masked_weights(path)[0], mask.apply(weights))


def test_a_dataset_comes_back_memory_mapped(tmp_path):
    parts, given_facts = example_parts()
    files.write_dataset(tmp_path / "dataset", parts, given_facts)
    dataset = files.open_dataset(tmp_path / "dataset")
    assert dataset.image_shape == (4, 3, 1)
    assert {key: dataset.facts[key] for key in given_facts} == given_facts
    for name, part in parts.items():
        opened = getattr(dataset, name)
        assert isinstance(opened.images, np.memmap)
        assert bits_of(opened.images) == bits_of(part.images)
        assert bits_of(opened.labels) == bits_of(part.labels)
    names = {
        f"{n}_{field}.npy"
        for n in ("train", "validation", "test")
        for field in ("images", "labels")
    }
    assert {path.name for path in (tmp_path / "dataset").iterdir()} == names | {"dataset.json"}


def test_json_comes_back(tmp_path):
    content = {
        "verdict": "inconclusive",
        "round": None,
        "mean": 0.1,
        "list": [1, 2],
        "text": "≥ 5 %",
    }
    files.write_json(tmp_path / "a.json", content)
    assert files.read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("\n}\n")


WRITE_EVERYTHING = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import test_artifacts as t
folder = Path(sys.argv[1])
t.artifacts.write_tensors(folder / "tensors", t.example_weights(), t.FACTS)
t.artifacts.write_mask(folder / "mask", t.example_mask(), t.FACTS)
t.artifacts.write_masked_weights(folder / "masked", t.example_weights(), t.example_mask(), t.FACTS)
t.artifacts.write_dataset(folder / "dataset", *t.example_parts())
t.histories.write(folder / "history.csv", t.example_entries())
t.histories.write_environment(folder / "environment.json", [{"cpu": "x", "threads": i % 2} for i in range(4)])
"""


def test_two_processes_with_different_hash_seeds_write_the_same_bytes(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_EVERYTHING, str(tmp_path / seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )
        for seed in ("1", "4242")
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    one, other = (
        {
            str(path.relative_to(tmp_path / seed)): path.read_bytes()
            for path in (tmp_path / seed).rglob("*")
            if path.is_file()
        }
        for seed in ("1", "4242")
    )
    assert len(one) == 3 + 7 + 2
    assert one == other


# Damage

TENSOR_FILES = {
    "tensors": (
        lambda path: files.write_tensors(path, example_weights(), FACTS),
        files.read_tensors,
        lambda result: ({n: bits_of(v) for n, v in result[0].items()}, result[1]),
    ),
    "mask": (
        lambda path: files.write_mask(path, example_mask(), FACTS),
        files.read_mask,
        lambda result: ({n: bits_of(v) for n, v in result[0].layers.items()}, result[1]),
    ),
    "masked-weights": (
        lambda path: files.write_masked_weights(path, example_weights(), example_mask(), FACTS),
        files.read_masked_weights,
        lambda result: (
            {n: bits_of(v) for n, v in result[0].items()},
            {n: bits_of(v) for n, v in result[1].layers.items()},
            result[2],
        ),
    ),
}


@pytest.fixture(scope="module", params=TENSOR_FILES)
def tensor_file(request, tmp_path_factory):
    write, read, digest = TENSOR_FILES[request.param]
    path = tmp_path_factory.mktemp("damage") / f"{request.param}.safetensors"
    write(path)
    content = path.read_bytes()
    return path, content, lambda: digest(read(path)), digest(read(path))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_of_a_tensor_file_is_an_error_or_changes_nothing(tensor_file, data):
    path, content, read, intact = tensor_file
    position = data.draw(st.integers(0, len(content) - 1))
    spoiled = bytearray(content)
    spoiled[position] ^= data.draw(st.integers(1, 255))
    overwrite(path, spoiled)
    try:
        result = read()
    except LotteryError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert result == intact  # white space or the like in the header


def test_a_flipped_bit_of_the_stored_numbers_is_always_an_error(tensor_file):
    path, content, read, _ = tensor_file
    start = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - start >= 7  # bytes of packed mask at least
    for position in range(start, len(content)):
        spoiled = bytearray(content)
        spoiled[position] ^= 1 << position % 8
        overwrite(path, spoiled)
        assert error_of(read).startswith(f"{path}: damaged: the checksum does not match")


def test_a_tensor_file_cut_short_anywhere_is_an_error(tensor_file):
    path, content, read, _ = tensor_file
    for length in range(len(content)):
        overwrite(path, content[:length])
        assert error_of(read).startswith(f"{path}: ")


def test_a_tensor_file_with_bytes_added_is_an_error(tensor_file):
    path, content, read, _ = tensor_file
    overwrite(path, content + b"\0")
    assert error_of(read).startswith(f"{path}: ")


@pytest.mark.parametrize("read", [files.read_tensors, files.read_mask, files.read_masked_weights])
def test_a_file_of_another_kind_is_an_error(tmp_path, read):
    path = tmp_path / "weights.safetensors"
    for content in (b"", b"text\n", b"\0" * 100, json.dumps({"a": 1}).encode(), b"\xff" * 64):
        overwrite(path, content)
        assert error_of(read, path).startswith(f"{path}: ")


def test_weights_are_no_mask(tmp_path):
    files.write_tensors(tmp_path / "weights", example_weights(), FACTS)
    assert "holds no mask" in error_of(files.read_mask, tmp_path / "weights")
    assert "holds no mask" in error_of(files.read_masked_weights, tmp_path / "weights")


def test_survivors_that_do_not_fit_their_mask_are_an_error(tmp_path):
    mask = Mask({"k": np.array([True, False, True])})
    tensors = {"k/mask": mask.pack()["k"], "k/survivors": np.ones(3, np.float32)}
    files.write_tensors(tmp_path / "weights", tensors, {"shapes": {"k": [3]}})
    assert "survivors do not fit the mask" in error_of(
        files.read_masked_weights, tmp_path / "weights"
    )


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    files.write_dataset(folder, *example_parts())
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def same_parts(dataset):
    return all(
        bits_of(np.asarray(getattr(dataset, name)[i])) == bits_of(part[i])
        for name, part in example_parts()[0].items()
        for i in (0, 1)
    )


ARRAYS = [
    f"{name}_{field}.npy"
    for name in ("train", "validation", "test")
    for field in ("images", "labels")
]
HEADER = range(8, 128)  # of an .npy file, after the magic number


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ARRAYS), st.data())
def test_a_flipped_byte_of_an_array_is_an_error_that_names_the_file(dataset_folder, file, data):
    folder, contents = dataset_folder
    spoiled = bytearray(contents[file])
    positions = [*range(HEADER.start), *range(HEADER.stop, len(spoiled))]
    assert len(positions) >= 8 + 8  # the smallest holds two labels
    spoiled[data.draw(st.sampled_from(positions))] ^= data.draw(st.integers(1, 255))
    overwrite(folder / file, spoiled)
    try:
        assert error_of(files.open_dataset, folder).startswith(f"{folder / file}: ")
    finally:
        overwrite(folder / file, contents[file])
    assert same_parts(files.open_dataset(folder))


@pytest.mark.parametrize("file", ["train_images.npy", "validation_labels.npy"])
def test_an_array_cut_short_anywhere_is_an_error_that_names_the_file(dataset_folder, file):
    folder, contents = dataset_folder
    try:
        for length in range(len(contents[file])):
            overwrite(folder / file, contents[file][:length])
            assert error_of(files.open_dataset, folder).startswith(f"{folder / file}: ")
    finally:
        overwrite(folder / file, contents[file])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_byte_of_dataset_json_is_an_error_or_leaves_the_same_images(dataset_folder, data):
    folder, contents = dataset_folder
    spoiled = bytearray(contents["dataset.json"])
    spoiled[data.draw(st.integers(0, len(spoiled) - 1))] ^= data.draw(st.integers(1, 255))
    overwrite(folder / "dataset.json", spoiled)
    try:
        dataset = files.open_dataset(folder)
    except LotteryError as error:
        assert str(error).startswith(f"{folder}{os.sep}")
    else:
        assert same_parts(dataset)
    finally:
        overwrite(folder / "dataset.json", contents["dataset.json"])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'"text"', b"{}", b'{"image_shape": 3}', b"\xff\xfe"],
)
def test_a_dataset_json_of_another_kind_is_an_error_that_names_it(tmp_path, content):
    files.write_dataset(tmp_path, *example_parts())
    overwrite(tmp_path / "dataset.json", content)
    assert error_of(files.open_dataset, tmp_path).startswith(f"{tmp_path / 'dataset.json'}: ")


def test_an_array_of_another_shape_or_type_is_an_error_that_names_both(tmp_path):
    files.write_dataset(tmp_path, *example_parts())
    np.save(tmp_path / "test_images.npy", np.zeros((3, 4, 4, 1), np.uint8))
    assert "holds uint8 [3, 4, 4, 1], expected uint8 [3, 4, 3, 1]" in error_of(
        files.open_dataset, tmp_path
    )
    np.save(tmp_path / "test_images.npy", np.zeros((3, 4, 3, 1), np.float32))
    assert "holds float32 [3, 4, 3, 1], expected uint8 [3, 4, 3, 1]" in error_of(
        files.open_dataset, tmp_path
    )


def test_an_array_of_other_images_of_the_same_shape_is_an_error(tmp_path):
    files.write_dataset(tmp_path, *example_parts())
    np.save(tmp_path / "train_images.npy", np.zeros((5, 4, 3, 1), np.uint8))
    message = error_of(files.open_dataset, tmp_path)
    assert message.startswith(
        f"{tmp_path / 'train_images.npy'}: its sha256 is not the one in dataset.json"
    )


def test_a_pickled_array_is_never_unpickled(tmp_path):
    files.write_dataset(tmp_path, *example_parts())
    np.save(tmp_path / "train_labels.npy", np.array([{}] * 5, object), allow_pickle=True)
    assert error_of(files.open_dataset, tmp_path).startswith(f"{tmp_path / 'train_labels.npy'}: ")


# Missing files, folders that cannot be written


@pytest.mark.parametrize(
    "read",
    [files.read_tensors, files.read_mask, files.read_masked_weights, files.read_json, tables.read],
)
def test_a_missing_file_is_an_error_that_names_it_and_the_next_thing_to_do(tmp_path, read):
    path = tmp_path / "sub" / "missing"
    message = error_of(read, path)
    assert message.startswith(f"{path}: not there; `dvc repro`")
    assert "\n" not in message


@pytest.mark.parametrize("file", [*ARRAYS, "dataset.json"])
def test_a_missing_file_of_the_dataset_is_an_error_that_names_it(tmp_path, file):
    files.write_dataset(tmp_path, *example_parts())
    (tmp_path / file).unlink()
    assert error_of(files.open_dataset, tmp_path).startswith(f"{tmp_path / file}: not there")


@pytest.mark.parametrize("read", [files.read_tensors, files.read_json, tables.read])
def test_a_folder_in_place_of_a_file_is_an_error_that_names_it(tmp_path, read):
    assert error_of(read, tmp_path).startswith(f"{tmp_path}: cannot be read")


@pytest.mark.parametrize("below", ["weights", "seed-0/weights"])
def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path, below):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder is needed")
    assert error_of(files.write, blocked / below, b"x").startswith(
        f"{blocked / below}: cannot be written: "
    )
    assert blocked.read_text() == "a file where a folder is needed"
    assert list(tmp_path.iterdir()) == [blocked]


def test_a_folder_in_place_of_the_file_to_write_is_an_error_and_stays(tmp_path):
    (tmp_path / "weights" / "inside").mkdir(parents=True)
    assert "cannot be written" in error_of(files.write, tmp_path / "weights", b"x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "weights"]


# Written whole or not at all


@pytest.fixture(params=["fsync", "replace"])
def full_disk(request, monkeypatch):
    """A disk that turns out to be full at this step."""

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill():
        monkeypatch.setattr(os, request.param, no_space)

    return fill


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path, full_disk):
    path = tmp_path / "metrics.json"
    files.write(path, b"old")
    full_disk()
    message = error_of(files.write, path, b"new")
    assert message.startswith(f"{path}: cannot be written: No space left on device")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_write_that_fails_midway_leaves_no_file(tmp_path, full_disk):
    full_disk()
    assert "No space left" in error_of(
        files.write_tensors, tmp_path / "w", example_weights(), FACTS
    )
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    files.write(tmp_path / "a", b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    steps = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (steps.append("fsync"), real_fsync(*a)))
    monkeypatch.setattr(os, "replace", lambda *a: (steps.append("replace"), real_replace(*a)))
    files.write(tmp_path / "a", b"content")
    assert steps[:2] == ["fsync", "replace"]
    assert (tmp_path / "a").read_bytes() == b"content"


def test_a_write_replaces_the_old_file_and_makes_its_folders(tmp_path):
    path = tmp_path / "data" / "dense" / "a"
    files.write(path, b"a longer old content")
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def contents_of(folder):
    return {
        str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def old_folder(tmp_path):
    folder = tmp_path / "data" / "masks"
    (folder / "seed-0").mkdir(parents=True)
    (folder / "seed-0" / "round-01").write_text("old")
    (folder / "gone").write_text("old")
    return folder


def test_a_folder_is_replaced_as_a_whole(old_folder):
    with files.folder_written_whole(old_folder) as new:
        assert list(new.iterdir()) == []
        files.write(new / "seed-1" / "round-01", b"new")
        assert contents_of(old_folder) == {"gone": "old", "seed-0/round-01": "old"}
    assert contents_of(old_folder.parent) == {"masks/seed-1/round-01": "new"}
    assert list(old_folder.parent.iterdir()) == [old_folder]


def test_a_folder_that_was_not_there_is_made(tmp_path):
    with files.folder_written_whole(tmp_path / "data" / "masks") as new:
        (new / "a").write_text("new")
    assert contents_of(tmp_path) == {"data/masks/a": "new"}


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (LotteryError("seed 0: failed"), LotteryError),
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(1), SystemExit),
        (OSError(errno.ENOSPC, "No space left on device"), LotteryError),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_the_old_folder_stays_when_the_work_on_the_new_one_fails(old_folder, raised, seen):
    with pytest.raises(seen), files.folder_written_whole(old_folder) as new:  # noqa: PT012
        (new / "half").write_text("new")
        raise raised
    assert contents_of(old_folder.parent) == {"masks/gone": "old", "masks/seed-0/round-01": "old"}
    assert list(old_folder.parent.iterdir()) == [old_folder]


def test_what_a_killed_stage_left_behind_does_not_get_into_the_new_folder(old_folder):
    partials = []
    with files.folder_written_whole(old_folder) as new:
        partials.append(new)
    (old_folder / "x").write_text("old")
    partials[0].mkdir()
    (partials[0] / "left-behind").write_text("stale")
    with files.folder_written_whole(old_folder) as new:
        (new / "a").write_text("new")
    assert contents_of(old_folder.parent) == {"masks/a": "new"}


def test_a_folder_below_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "data").write_text("a file")
    with (
        pytest.raises(LotteryError) as error,
        files.folder_written_whole(tmp_path / "data" / "masks"),
    ):
        raise AssertionError("there is no folder to write to")
    assert str(error.value).startswith(f"{tmp_path / 'data' / 'masks'}: cannot be written: ")
    assert (tmp_path / "data").read_text() == "a file"


# Histories


COLUMNS = [
    "seed", "variant", "round", "weights_remaining", "iteration", "train_loss", "train_accuracy",
    "validation_loss", "validation_accuracy", "test_loss", "test_accuracy",
]  # fmt: skip


def history_of(*iterations, start=0.0):
    first = [math.nan] + [0.1 + start] * (len(iterations) - 1)
    values = {name: [start + i / 7 for i in range(len(iterations))] for name in COLUMNS[7:]}
    return {
        "iteration": list(iterations),
        "train_loss": first,
        "train_accuracy": list(first),
        **values,
    }


def example_entries():
    return [
        tables.Entry(
            seed, variant, round_, 0.8**round_, history_of(0, 50, 100, start=seed + round_ / 10)
        )
        for seed, variant, round_ in itertools.product((10, 2), ("ticket", "random_mask"), (12, 3))
    ]


def test_a_history_has_the_columns_of_the_design(tmp_path):
    tables.write(tmp_path / "history.csv", example_entries())
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + 8 * 3


def test_a_history_is_sorted_by_seed_variant_and_round(tmp_path):
    tables.write(tmp_path / "history.csv", example_entries())
    table = tables.read(tmp_path / "history.csv")
    keys = list(
        zip(table["seed"], table["variant"], table["round"], table["iteration"], strict=True)
    )
    assert keys == sorted(keys)
    assert keys[0] == (2, "random_mask", 3, 0)
    assert keys[-1] == (10, "ticket", 12, 100)


def test_a_history_is_the_same_in_whatever_order_runs_finish(tmp_path):
    entries = example_entries()
    tables.write(tmp_path / "one.csv", entries)
    tables.write(tmp_path / "other.csv", entries[::-1])
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()


def test_what_is_not_measured_is_left_empty(tmp_path):
    tables.write(tmp_path / "history.csv", [tables.Entry(0, "dense", 0, 1.0, history_of(0, 50))])
    first, second = (tmp_path / "history.csv").read_text().splitlines()[1:]
    assert first == "0,dense,0,1,0,,,0,0,0,0"
    assert second == "0,dense,0,1,50,0.1,0.1,0.1428571,0.1428571,0.1428571,0.1428571"
    table = tables.read(tmp_path / "history.csv")
    assert table["train_loss"].isna().tolist() == [True, False]


metric = st.floats(1e-6, 1e6) | st.just(0.0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(metric, metric, metric), min_size=1, max_size=5), st.integers(0, 2**31 - 1)
)
def test_a_history_comes_back_to_seven_digits(tmp_path_factory, rows, seed):
    path = tmp_path_factory.getbasetemp() / "history.csv"
    history = history_of(*range(0, 50 * len(rows), 50))
    for column, values in zip(
        ("validation_loss", "validation_accuracy", "test_loss"),
        zip(*rows, strict=True),
        strict=True,
    ):
        history[column] = list(values)
    tables.write(path, [tables.Entry(seed, "ticket", 3, 0.512, history)])
    table = tables.read(path)
    assert table["seed"].unique().tolist() == [seed]
    assert table["iteration"].tolist() == history["iteration"]
    for column in ("validation_loss", "validation_accuracy", "test_loss"):
        assert table[column].tolist() == pytest.approx(history[column], rel=1e-6)


def test_a_history_whose_columns_differ_in_length_is_refused(tmp_path):
    history = history_of(0, 50)
    history["test_loss"].pop()
    with pytest.raises(ValueError, match="argument"):
        tables.write(tmp_path / "history.csv", [tables.Entry(0, "dense", 0, 1.0, history)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"seed,round\n0,1\n", b"\xff\xfe\x00binary", b'"open\n'])
def test_a_table_that_is_no_history_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    assert error_of(tables.read, path).startswith(f"{path}: ")


def test_each_environment_is_listed_once(tmp_path):
    one, other = {"cpu": "a", "threads": 1}, {"cpu": "b", "threads": 1}
    tables.write_environment(tmp_path / "e.json", [one, other, dict(reversed(one.items())), other])
    assert files.read_json(tmp_path / "e.json") == [one, other]


def test_a_table_is_written_with_six_digits(tmp_path):
    tables.write_table(tmp_path / "t.csv", pd.DataFrame({"round": [3], "mean": [1 / 3], "n": [8]}))
    assert (tmp_path / "t.csv").read_bytes() == b"round,mean,n\n3,0.333333,8\n"


def test_files_of_seeds_and_rounds_have_their_numbers_in_their_names():
    assert (
        str(files.round_file(Path("data/masks"), 7, 3)) == "data/masks/seed-7/round-03.safetensors"
    )
    assert str(files.round_file(Path("m"), 0, 120)) == "m/seed-0/round-120.safetensors"
