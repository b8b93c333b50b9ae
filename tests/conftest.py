"""Clones in which the pipeline has run, or not yet."""

import gc
import shutil
from pathlib import Path

import dvc  # noqa: F401  (whose log goes to where standard output is when it is first imported)
import pytest
from clones import STAGES, Clone, make_clone
from filelock import FileLock

gc.disable()  # while what the tests import is imported


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks through TensorFlow again."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000)


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
def finished_clone(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Clone:
    """A clone as `dvc repro` leaves it, committed; most stages have run in this process.

    Not to be changed: copy it. There is one for all processes of pytest-xdist: the first that needs
    it makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "clone").exists():
            shutil.rmtree(folder, ignore_errors=True)
            made = make_clone(folder / "unfinished")
            made.stage(*STAGES[:-1])
            made.run("dvc", "commit", "--force", *STAGES[:-1])
            of_the_user = made.path / "matplotlibrc"  # the report's bytes are compared without it
            of_the_user.write_text("font.size: 30\nlines.linewidth: 9\nsavefig.facecolor: red\n")
            assert made.repro() == ["report"]
            of_the_user.unlink()
            made.commit("its results")
            made.run("git", "gc", "-q")  # few files: it is copied often
            made.path.rename(folder / "clone")
    return Clone(folder / "clone")


@pytest.fixture
def clone(finished_clone: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished clone, to change. Its stages compute in their own process."""
    shutil.copytree(finished_clone.path, tmp_path / "clone", symlinks=True)
    return Clone(tmp_path / "clone", {"LOTTERY_EXECUTOR": "in-process"})
