"""Arrays that are no images in files: from an npz, a safetensors file, or a function of one's own."""

import json
import shutil

import numpy as np
import pytest
from clones import ROOT, STAGES, Clone, tiny
from safetensors.numpy import save_file

from lottery.artifacts import files
from lottery.datasets import loading
from lottery.datasets.split import scaled
from lottery.errors import LotteryError
from lottery.params import Data

X = np.array([[0.5, -2], [1e6, 0], [3, 4], [5, 6]], np.float32)
Y = np.array([0, 1, 1, 0])
TEST = {"x_test": X[:2] + 1, "y_test": Y[:2]}
WHOLE = {"x_train": X, "y_train": Y, **TEST, "class_names": ["no", "yes"]}
GIVEN = dict(WHOLE)


def given():
    return GIVEN


def drawn():
    return {**WHOLE, "x_train": np.random.default_rng().random((4, 2), np.float32)}


def obtain(name="test_datasets_arrays:given", **values):
    return loading.obtain(Data(name=name, **{"validation_size": 2, **values}))


def test_arrays_are_the_same_from_an_npz_safetensors_and_a_function_of_ones_own(tmp_path):
    named = WHOLE["class_names"]
    np.savez_compressed(tmp_path / "rows.npz", **WHOLE)
    tensors = {name: np.asarray(WHOLE[name]) for name in WHOLE if name != "class_names"}
    save_file(tensors, tmp_path / "rows.safetensors", {"class_names": json.dumps(named)})
    sources = [str(tmp_path / name) for name in ("rows.npz", "rows.safetensors")]
    found = [obtain(), *(obtain("arrays", source=source) for source in sources)]
    for images, labels, facts in found:
        assert (images.dtype, labels.dtype) == (np.float32, np.int32)
        assert images.tolist() == [*X.tolist(), *TEST["x_test"].tolist()]
        assert labels.tolist() == [0, 1, 1, 0, 0, 1]
        of = ["image_shape", "dtype", "classes", "class_names", "test", "own_test"]
        assert [facts[key] for key in of] == [[2], "float32", 2, named, 2, True]
        assert facts["sha256"] == loading.fingerprint(images, labels)
    assert (found[0].size, found[0].noun) == ((4, 2, (2,)), "examples")
    assert [one.facts["title"] for one in found] == ["given", "rows", "rows"]
    assert obtain(sha256=found[0].facts["sha256"]).facts == found[0].facts
    assert scaled(X) is X
    assert scaled(np.array([0, 51, 255], np.uint8)).tolist() == [0, np.float32(0.2), 1]


def test_endings_may_be_upper_case(tmp_path):
    for name in ("x_train", "y_train", "x_test", "y_test"):
        np.save(tmp_path / f"{name}.npy", WHOLE[name])
    for name in ("x_test", "y_test"):
        (tmp_path / f"{name}.npy").rename(tmp_path / f"{name}.NPY")
    assert obtain("arrays", source=str(tmp_path)).facts["own_test"]


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    for name in ("one/x_train", "one/y_train", "two/y_train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, X if "x_" in name else Y)
    with pytest.raises(LotteryError, match=r"two/y_train\.npy: holds y_train once more"):
        obtain("arrays", source=str(tmp_path))


def test_one_in_six_is_set_aside_where_there_is_no_test_part(monkeypatch):
    rows = np.arange(24, dtype=np.uint8).reshape(12, 2)
    monkeypatch.setitem(globals(), "GIVEN", {"x_train": rows, "y_train": np.arange(12) % 2 == 1})
    facts = obtain().facts
    assert (facts["test"], facts["own_test"], "dtype" in facts) == (2, False, False)
    monkeypatch.setitem(globals(), "GIVEN", {"x_train": rows[:11], "y_train": np.arange(11) % 2})
    with pytest.raises(LotteryError, match=r"11 examples of 2 classes are too few.*from 12 up"):
        obtain()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"x_train": np.where(X == 4, np.nan, X)}, "x_train holds NaN or infinity in 1 of 4 rows, "
         "first in row 2; accepted: finite numbers"),
        ({"x_test": np.full_like(X[:2], np.inf)}, "x_test holds NaN or infinity in 2 of 2 rows"),
        ({"y_train": Y[:3]}, "y_train holds int64 [3]; accepted: whole numbers [4], the class of "
         "each row of x_train"),
        ({"y_train": Y + 0.0}, "y_train holds float64 [4]; accepted: whole numbers [4]"),
        ({"y_train": ["no", "yes", "yes", "no"]}, "y_train holds <U3 [4]; accepted: whole numbers"),
        ({"x_train": X.astype(float)}, "x_train holds float64 [4, 2]; accepted: float32, taken as"),
        ({"x_train": X[:, 0]}, "x_train holds float32 [4]; accepted: [n, …], a value in a row"),
        ({"x_train": X[:, :0]}, "x_train holds float32 [4, 0]; accepted: [n, …], a value in a"),
        ({"x_test": X[:2, :1]}, "x_test holds float32 [2, 1]; accepted: rows as in x_train, float"),
        ({"x_test": X[:2].astype(np.uint8)}, "x_test holds uint8 [2, 2]; accepted: rows as in x_t"),
        ({"x_train": np.ma.masked_values(X, 0)}, "x_train holds masked values; accepted: plain"),
        ({"y_test": Y[:1].repeat(2)}, "y_test has no row of class 1; accepted: each class in each"),
        ({"y_train": Y - 1}, "the labels are -1, 0, 1; accepted: whole numbers from 0 up"),
        ({"y_train": 0 * Y, "y_test": 0 * Y[:2]}, "the labels are 0; accepted: whole numbers fr"),
        ({"y_train": 2 * Y, "y_test": Y[:1].repeat(2)}, "the labels are 0, 2; accepted: whole num"),
        ({"class_names": ["no"]}, "class_names are ['no']; accepted: 2 different texts"),
        ({"class_names": 7}, "class_names are [7]; accepted: 2 different texts"),
        ({"labels": Y}, "holds x_train, y_train, x_test, y_test, class_names, labels; accepted: x_"),
    ],
)  # fmt: skip
def test_bad_arrays_are_named(monkeypatch, changes, why):
    monkeypatch.setitem(globals(), "GIVEN", {**WHOLE, **changes})
    with pytest.raises(LotteryError) as error:
        obtain()
    where, _, text = str(error.value).partition(": tests/test_datasets_arrays.py, line ")
    assert where == "params.yaml: test_datasets_arrays:given"
    assert text.partition(": ")[2].startswith(why)


def exit():
    raise SystemExit(0)


def test_what_is_no_dict_other_each_time_damaged_or_of_another_sha256_is_one_line(
    monkeypatch, tmp_path
):
    for content, why in [
        (None, "gives a NoneType; accepted: a dict: x_train and y_train, perhaps x_test"),
        ({"x_train": X}, "holds x_train; accepted: x_train and y_train"),
        ({"x_train": [[1], [1, 2]]}, "ValueError: "),
    ]:
        monkeypatch.setitem(globals(), "GIVEN", content)
        with pytest.raises(LotteryError, match=f"given: tests/.*: {why}"):
            obtain()
    with pytest.raises(LotteryError, match=r"drawn: .*other arrays when it is called again"):
        obtain("test_datasets_arrays:drawn")
    with pytest.raises(LotteryError, match=r"exit: .*SystemExit: 0"):
        obtain("test_datasets_arrays:exit")
    monkeypatch.setitem(globals(), "GIVEN", WHOLE)
    with pytest.raises(LotteryError, match=f"got sha256 .* from it, expected {'0' * 64}"):
        obtain(sha256="0" * 64)
    np.savez(tmp_path / "x.npz", x_train=np.array([{}], object), y_train=Y)
    (tmp_path / "x.safetensors").write_bytes(b"\x08" + bytes(20))
    for name, why in [
        ("x.npz", "x_train.npy: damaged, or holds other than numbers and text"),
        ("x.safetensors", "x.safetensors: damaged"),
    ]:
        with pytest.raises(LotteryError, match=f"^data.source: {name}: {why}.*; write it again$"):
            obtain("arrays", source=str(tmp_path / name))


def test_the_example_goes_through_all_stages_and_its_report_speaks_of_examples(tmp_path, capsys):
    """Rows of two features: an own network, SNIP, the picture of the first layer and the words."""
    project = Clone(tmp_path)
    data = {"name": "mine.example:rings", "validation_size": 200}
    few = {"seeds": [0], "prune.rounds": 1, "retrain.variants": ["ticket"]}
    few["model.name"] = "mine.example:narrow"
    project.write(tiny({"data": data, "prune.criterion": "snip", **few}))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "mine").symlink_to(ROOT / "mine")
    shutil.copytree(ROOT / "docs/results", tmp_path / "docs/results")
    project.stage(*STAGES)
    assert "rings: 1,667 examples for training and validation, 333 for" in capsys.readouterr().out
    rows = np.load(tmp_path / files.DATASET / "images.npy")
    assert (rows.dtype, rows.shape) == (np.float32, (2000, 2))
    report = (tmp_path / "reports/report.md").read_text()
    assert "images" not in report
    accuracy = json.loads((tmp_path / "reports/metrics.json").read_text())["dense_accuracy"]
    assert accuracy > 0.8
    assert "could not be made" not in (tmp_path / "reports/report.html").read_text()
