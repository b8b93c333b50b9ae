"""Clones in which the pipeline has run, or not yet."""

import shutil
from pathlib import Path

import pytest
from clones import Clone, make_clone


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run store of a test: a folder of its own."""
    monkeypatch.setenv("LOTTERY_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def empty_clone(tmp_path: Path) -> Clone:
    """A fresh clone in which nothing has run."""
    return make_clone(tmp_path / "clone")


@pytest.fixture(scope="session")
def finished_clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone after `dvc repro` with two workers, committed. Not to be changed: copy it."""
    clone = make_clone(tmp_path_factory.mktemp("finished") / "clone")
    assert clone.repro(LOTTERY_WORKERS="2") == [
        "fetch",
        "train_dense",
        "prune",
        "extract_masks",
        "retrain",
        "report",
    ]
    clone.commit("its results")
    return clone


@pytest.fixture
def clone(finished_clone: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished clone, to change."""
    shutil.copytree(finished_clone.path, tmp_path / "clone", symlinks=True)
    return Clone(tmp_path / "clone", {"LOTTERY_WORKERS": "1"})
