"""Files: written whole or not at all, the same bytes for the same content, damage noticed."""

import errno
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lottery.artifacts import files, tables
from lottery.datasets.dataset import open_dataset, write_dataset
from lottery.errors import LotteryError
from lottery.masks import Mask

SHAPES = {"output/kernel": (5, 3), "dense1/kernel": (7, 5), "dense1/bias": (5,)}  # not by name
FACTS = {"seed": 3, "kinds": {"output/kernel": "output", "dense1/kernel": "dense"}, "share": 0.1}


def bits_of(value):
    return value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()


def tensors_of(one):
    """Names and bits of arrays or of a mask, in their order."""
    return [(n, bits_of(v)) for n, v in (one.layers if isinstance(one, Mask) else one).items()]


def example_mask():
    generator = np.random.default_rng(0)
    return Mask({n: generator.random(s) < 0.4 for n, s in SHAPES.items() if n.endswith("kernel")})


def example_weights():
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}


def write_example_dataset(folder):
    images = np.random.default_rng(2).integers(0, 256, (10, 4, 3, 1), np.uint8)
    labels = np.arange(10, dtype=np.int32) % 3
    facts = {"name": "tiny", "image_shape": [4, 3, 1], "classes": 3, "test": 3, "own_test": False}
    write_dataset(folder, images, labels, facts)
    return images, labels


def overwrite(path, content):
    """In place of the file, not into it: truncating one makes some file systems wait."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def error_of(read, *arguments):
    with pytest.raises(LotteryError) as error:
        read(*arguments)
    return str(error.value)


# Round trips

tensors = st.dictionaries(
    st.text("abc/é", min_size=1, max_size=5),
    st.sampled_from([np.float32, np.float64, np.int32, np.uint8, np.bool_]).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
facts = st.dictionaries(st.text(max_size=6), scalars | st.text(max_size=6), max_size=4)


@settings(deadline=None)
@given(tensors, facts)
def test_tensors_and_facts_come_back_bit_for_bit_in_their_order(given_tensors, given_facts):
    content = files.tensors_to_bytes(given_tensors, given_facts)
    again, again_facts = files.tensors_from_bytes(content)
    assert tensors_of(again) == tensors_of(given_tensors)
    assert list(again_facts.items()) == list(given_facts.items())
    assert files.tensors_to_bytes(given_tensors, given_facts) == content


def test_masks_strided_arrays_and_json_come_back_with_facts_in_order(tmp_path):
    mask, strided = example_mask(), np.arange(24, dtype=np.float32).reshape(4, 6).T[::2]
    files.write_mask(tmp_path / "mask", mask, FACTS)
    again, its_facts = files.read_mask(tmp_path / "mask")
    assert tensors_of(again) == tensors_of(mask)
    assert {key: its_facts[key] for key in FACTS} == FACTS
    assert list(its_facts["kinds"]) == list(FACTS["kinds"])
    files.write_tensors(tmp_path / "strided", {"k": strided}, {})
    assert files.read_tensors(tmp_path / "strided")[0]["k"].tolist() == strided.tolist()
    content = {"verdict": "inconclusive", "a": None, "mean": 0.1, "list": [1, 2], "text": "≥ 5 %"}
    files.write_json(tmp_path / "a.json", content)
    assert list(files.read_json(tmp_path / "a.json").items()) == list(content.items())
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("\n}\n")


@settings(max_examples=50, deadline=None)
@given(npst.arrays(np.bool_, npst.array_shapes(max_dims=3, max_side=5)), st.data())
def test_any_weights_under_any_mask_come_back(tmp_path_factory, keep, data):
    bits = data.draw(npst.arrays(np.uint32, keep.shape, elements=st.integers(0, 2**32 - 1)))
    mask, weights = Mask({"k": keep}), {"k": bits.view(np.float32), "b": np.ones(2, np.float32)}
    path = tmp_path_factory.getbasetemp() / "any-weights"
    files.write_masked_weights(path, weights, mask, FACTS)
    again, its_mask, its_facts = files.read_masked_weights(path)
    assert tensors_of(again) == tensors_of(mask.apply(weights))
    assert tensors_of(its_mask) == tensors_of(mask)
    assert {key: its_facts[key] for key in FACTS} == FACTS


def test_a_mask_takes_one_bit_a_weight_and_only_survivors_are_stored(tmp_path):
    keep = (np.arange(784 * 300) < 1000).reshape(784, 300)
    mask, weights = Mask({"kernel": keep}), {"kernel": np.ones((784, 300), np.float32)}
    files.write_mask(tmp_path / "mask", mask, {})
    files.write_masked_weights(tmp_path / "weights", weights, mask, {})
    bits = 784 * 300 / 8
    assert bits <= (tmp_path / "mask").stat().st_size < bits + 500
    assert bits + 4000 <= (tmp_path / "weights").stat().st_size < bits + 4500


# Damage

MASKED = (example_weights(), example_mask(), FACTS)
TENSOR_FILES = {
    "tensors": (files.write_tensors, (example_weights(), FACTS), files.read_tensors),
    "mask": (files.write_mask, (example_mask(), FACTS), files.read_mask),
    "masked-weights": (files.write_masked_weights, MASKED, files.read_masked_weights),
}


@pytest.fixture(scope="module", params=TENSOR_FILES)
def tensor_file(request, tmp_path_factory):
    write, content, read = TENSOR_FILES[request.param]
    path = tmp_path_factory.mktemp("damage") / f"{request.param}.safetensors"
    write(path, *content)

    def again():
        *arrays, its_facts = read(path)
        return [tensors_of(one) for one in arrays], its_facts

    return path, path.read_bytes(), again


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_of_a_tensor_file_is_an_error_or_changes_nothing(tensor_file, data):
    path, content, read = tensor_file
    overwrite(path, content)
    intact = read()
    spoiled = bytearray(content)
    spoiled[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    overwrite(path, spoiled)
    try:
        result = read()
    except LotteryError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert result == intact  # white space or the like in the header


def test_a_flipped_bit_of_the_stored_numbers_and_a_file_cut_or_lengthened_are_always_errors(
    tensor_file,
):
    path, content, read = tensor_file
    start = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - start >= 7  # bytes of packed mask at least
    for position in range(start, len(content)):
        spoiled = bytearray(content)
        spoiled[position] ^= 1 << position % 8
        overwrite(path, spoiled)
        assert error_of(read).startswith(f"{path}: damaged: the checksum does not match")
    for other in (*(content[:length] for length in range(len(content))), content + b"\0"):
        overwrite(path, other)
        assert error_of(read).startswith(f"{path}: ")


def test_another_name_type_or_shape_of_the_same_numbers_is_an_error(tmp_path):
    path = tmp_path / "weights"
    files.write_tensors(path, example_weights(), {})
    content = path.read_bytes()
    for was, now in ((b"dense1/k", b"dense9/k"), (b'"F32"', b'"I32"'), (b"[7,5]", b"[5,7]")):
        assert was in content
        overwrite(path, content.replace(was, now))
        assert "the checksum does not match" in error_of(files.read_tensors, path)


def test_a_table_or_json_file_that_is_not_as_its_stage_wrote_it_is_an_error(tmp_path):
    with files.folder_written_whole(tmp_path / "masks", checksums=True) as new:
        files.write(new / "density.csv", b"round\n1\n")
        files.write_json(new / "environment.json", [1])
    for name, read in (("density.csv", tables.read_table), ("environment.json", files.read_json)):
        path = tmp_path / "masks" / name
        assert 1 in np.ravel(read(path))
        overwrite(path, path.read_bytes().replace(b"1", b"2"))
        assert error_of(read, path).startswith(f"{path}: its sha256 is not the one in checksums")


def test_another_file_of_the_same_time_and_size_is_another_input_and_a_link_to_a_folder_is_none(
    tmp_path,
):
    inputs, mine = [str(tmp_path / "mine")], tmp_path / "mine"
    (tmp_path / "real").mkdir()
    mine.mkdir()
    for path, text in ((mine / "one.json", "[20]"), (tmp_path / "real/other.json", "[30]")):
        path.write_text(text)
        os.utime(path, (0, 0))
    before = files.inputs(inputs)
    os.replace(tmp_path / "real/other.json", mine / "one.json")
    assert files.inputs(inputs) != before
    (mine / "widths.json").symlink_to(mine / "one.json")
    assert len(files.inputs(inputs)) == 2
    (mine / "tables").symlink_to(tmp_path / "real")  # DVC does not follow it
    assert "mine/tables: a link to a folder, whose changes `dvc" in error_of(files.inputs, inputs)


@pytest.mark.parametrize("read", [files.read_tensors, files.read_json, tables.read])
def test_a_file_that_is_missing_a_folder_or_of_another_kind_is_one_line_that_names_it(
    tmp_path, read
):
    path = tmp_path / "file"
    assert error_of(read, path).startswith(f"{path}: not there; `dvc repro`")
    assert error_of(read, tmp_path).startswith(f"{tmp_path}: cannot be read")
    for content in (b"", b"text\n", b"\0" * 100, b"\xff\xfe\x00" * 21, b'"open\n', b"seed\n0\n"):
        overwrite(path, content)
        message = error_of(read, path)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message


def test_weights_are_no_mask_and_survivors_fit_theirs(tmp_path):
    path = tmp_path / "weights"
    files.write_tensors(path, example_weights(), FACTS)
    for read in (files.read_mask, files.read_masked_weights):
        assert "holds no mask" in error_of(read, path)
    bits = {"k/mask": Mask({"k": np.array([True, False, True])}).pack()["k"]}
    for survivors, why in (
        ({"k/survivors": np.ones(3, np.float32)}, "survivors do not fit the mask"),
        ({"other/survivors": np.ones(2, np.float32)}, "survivors do not fit the mask"),
        ({}, "lacks the survivors of a layer"),
    ):
        files.write_tensors(path, {**bits, **survivors}, {"shapes": {"k": [3]}})
        assert why in error_of(files.read_masked_weights, path)


# The dataset


def test_a_dataset_comes_back_memory_mapped(tmp_path):
    images, labels = write_example_dataset(tmp_path)
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset.images, np.memmap)
    assert (bits_of(dataset.images), bits_of(dataset.labels)) == (bits_of(images), bits_of(labels))
    assert (dataset.image_shape, dataset.classes, dataset.training) == ((4, 3, 1), 3, 7)


HEADER = range(8, 128)  # of an .npy file, after the magic number: white space, for the most part


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    """A dataset's folder, its images and labels; whoever spoils a file of it mends it."""
    folder = tmp_path_factory.mktemp("spoiled-dataset")
    return folder, write_example_dataset(folder)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["images.npy", "labels.npy", "dataset.json"]), st.data())
def test_a_flipped_byte_of_a_dataset_is_an_error_or_leaves_the_same_images(
    dataset_folder, name, data
):
    folder, (images, labels) = dataset_folder
    content = (folder / name).read_bytes()
    spoiled = bytearray(content)
    places = [i for i in range(len(spoiled)) if name == "dataset.json" or i not in HEADER]
    spoiled[data.draw(st.sampled_from(places))] ^= data.draw(st.integers(1, 255))
    overwrite(folder / name, spoiled)
    try:
        dataset = open_dataset(folder)
    except LotteryError as error:
        assert str(error).startswith(f"{folder}{os.sep}")
    else:
        assert name == "dataset.json"
        found = bits_of(dataset.images), bits_of(dataset.labels)
        assert found == (bits_of(images), bits_of(labels))
    finally:
        overwrite(folder / name, content)


WHOLE = {"image_shape": [4, 3, 1], "class_counts": [4, 3, 3], "test": 3, "own_test": False}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("dataset.json", None, "lacks a field or has one of another kind"),
        ("dataset.json", {"image_shape": 3}, "lacks a field or has one of another kind"),
        ("dataset.json", WHOLE | {"test": 10}, "ValueError: test, own_test"),
        ("dataset.json", WHOLE | {"own_test": None}, "ValueError: test, own_test"),
        ("images.npy", np.zeros((10, 4, 4, 1), np.uint8), "expected uint8 [10, 4, 3, 1]"),
        ("images.npy", np.zeros((10, 4, 3, 1), np.float32), "holds float32 [10, 4, 3, 1]"),
        ("images.npy", np.zeros((10, 4, 3, 1), np.uint8), "its sha256 is not the one in dataset"),
        ("labels.npy", np.array([{}] * 10, object), "cannot be read as an array"),  # not unpickled
        ("labels.npy", None, "not there"),
    ],
)
def test_a_dataset_that_is_none_is_an_error_that_names_the_file(tmp_path, name, content, why):
    write_example_dataset(tmp_path)
    (tmp_path / name).unlink()
    if name == "dataset.json":
        files.write_json(tmp_path / name, content)
    elif content is not None:
        np.save(tmp_path / name, content, allow_pickle=True)
    message = error_of(open_dataset, tmp_path)
    assert message.startswith(f"{tmp_path / name}: ")
    assert why in message


# Written whole or not at all


def test_what_cannot_be_written_is_an_error_that_names_it_and_leaves_what_is_there(tmp_path):
    blocked, folder = tmp_path / "blocked", tmp_path / "folder"
    blocked.write_text("a file where a folder is needed")
    (folder / "inside").mkdir(parents=True)
    for path in (blocked / "weights", folder):
        assert error_of(files.write, path, b"x").startswith(f"{path}: cannot be written: ")
    written = files.folder_written_whole(blocked / "masks")
    with pytest.raises(LotteryError, match="masks: cannot be written: "), written:
        raise AssertionError("there is no folder to write to")
    assert blocked.read_text() == "a file where a folder is needed"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["blocked", "folder", "inside"]


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
FAILURES = [
    (NO_SPACE, LotteryError),
    (KeyboardInterrupt(), KeyboardInterrupt),
    (LotteryError("seed 0: failed"), LotteryError),
    (ValueError("a bug"), ValueError),
]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("before", [b"old", None])
@pytest.mark.parametrize(("raised", "seen"), FAILURES[:2])
def test_a_write_that_fails_or_is_interrupted_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, step, before, raised, seen
):
    path = tmp_path / "metrics.json"
    if before is not None:
        files.write(path, before)

    def fail(*_):
        raise raised

    monkeypatch.setattr(os, step, fail)
    why = f"{path}: cannot be written: No space left on device" if seen is LotteryError else ""
    with pytest.raises(seen, match=f"^{why}"):
        files.write(path, b"new")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_file_is_on_the_disk_before_it_takes_its_name_in_place_of_the_old_one(
    tmp_path, monkeypatch
):
    path, steps = tmp_path / "data" / "dense" / "a", []
    files.write(path, b"a longer old content")
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *a: (steps.append("fsync"), fsync(*a)))
    monkeypatch.setattr(os, "replace", lambda *a: (steps.append("replace"), replace(*a)))
    files.write(path, b"new")
    assert steps[:2] == ["fsync", "replace"]
    assert [(p, p.read_bytes()) for p in path.parent.iterdir()] == [(path, b"new")]


def contents_of(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


@pytest.fixture
def old_folder(tmp_path):
    folder = tmp_path / "data" / "masks"
    (folder / "seed-0").mkdir(parents=True)
    (folder / "seed-0" / "round-01").write_text("old")
    return folder


def test_a_folder_is_replaced_as_a_whole_also_after_one_that_was_killed(old_folder):
    with files.folder_written_whole(old_folder) as new:
        assert list(new.iterdir()) == []
        files.write(new / "seed-1" / "round-01", b"new")
        assert contents_of(old_folder) == {"seed-0/round-01": "old"}
    assert contents_of(old_folder.parent) == {"masks/seed-1/round-01": "new"}
    new.mkdir()
    (new / "left-behind").write_text("stale")
    with files.folder_written_whole(old_folder) as new:
        (new / "a").write_text("newer")
    assert contents_of(old_folder.parent) == {"masks/a": "newer"}
    assert list(old_folder.parent.iterdir()) == [old_folder]


@pytest.mark.parametrize(("raised", "seen"), FAILURES)
def test_the_old_folder_stays_when_the_work_on_the_new_one_fails(old_folder, raised, seen):
    with pytest.raises(seen), files.folder_written_whole(old_folder) as new:  # noqa: PT012
        (new / "half").write_text("new")
        raise raised
    assert contents_of(old_folder.parent) == {"masks/seed-0/round-01": "old"}
    assert list(old_folder.parent.iterdir()) == [old_folder]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(old_folder, monkeypatch):
    def refuse(source, target, replace=os.replace):
        if source.name == ".masks.partial":
            raise NO_SPACE
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(LotteryError), files.folder_written_whole(old_folder) as new:
        (new / "a").write_text("new")
    assert contents_of(old_folder.parent) == {"masks/seed-0/round-01": "old"}


# Histories


def history_of(*iterations, start=0.0):
    first = [math.nan] + [0.1 + start] * (len(iterations) - 1)
    values = {name: [start + i / 7 for i in range(len(iterations))] for name in tables.COLUMNS[7:]}
    training = {"train_loss": first, "train_accuracy": list(first)}
    return {"iteration": list(iterations), **training, **values}


def test_a_history_is_sorted_whatever_the_order_in_which_runs_finish(tmp_path):
    runs = itertools.product((10, 2), ("ticket", "random_mask"), (12, 3))
    histories = ((run, history_of(0, 50, 100, start=run[0] + run[2] / 10)) for run in runs)
    records = [tables.Record(*run, 0.8 ** run[2], history) for run, history in histories]
    tables.write(tmp_path / "one.csv", records)
    tables.write(tmp_path / "other.csv", records[::-1])
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()
    table = tables.read(tmp_path / "one.csv")
    keys = list(table[["seed", "variant", "round", "iteration"]].itertuples(index=False))
    assert keys == sorted(keys)
    assert len(keys) == 8 * 3


def test_what_is_not_measured_is_left_empty_and_names_are_names(tmp_path):
    path = tmp_path / "history.csv"
    tables.write(path, [tables.Record(0, "null", 0, 1.0, history_of(0, 50))])
    header, first, second = path.read_text().splitlines()
    assert header == ",".join(tables.COLUMNS)
    assert first == "0,null,0,1,0,,,0,0,0,0"
    assert second == "0,null,0,1,50,0.1,0.1,0.1428571,0.1428571,0.1428571,0.1428571"
    table = tables.read(path)
    assert table["train_loss"].isna().tolist() == [True, False]
    assert table["variant"].tolist() == ["null", "null"]
    overwrite(path, path.read_bytes()[:-3])
    assert "truncated" in error_of(tables.read, path)
    overwrite(path, path.read_bytes().replace(b",0.1,", b",much,") + b"\n")
    assert "holds something else than numbers in train_loss" in error_of(tables.read, path)


def test_environments_once_tables_with_six_digits_and_numbers_in_file_names(tmp_path):
    one, other = {"device": "a", "threads": 1}, {"device": "b", "threads": 1}
    tables.write_environment(tmp_path / "e.json", [one, other, dict(reversed(one.items())), other])
    assert files.read_json(tmp_path / "e.json") == [one, other]
    tables.write_table(tmp_path / "t.csv", pd.DataFrame({"round": [3], "mean": [1 / 3], "n": [8]}))
    assert (tmp_path / "t.csv").read_bytes() == b"round,mean,n\n3,0.333333,8\n"
    assert str(files.round_file(Path("m"), 7, 3)) == "m/seed-7/round-03.safetensors"
    assert str(files.round_file(Path("m"), 0, 120)) == "m/seed-0/round-120.safetensors"
