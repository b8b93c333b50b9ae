"""The pipeline check: what it finds in a clone without data; and whether results come out again."""

import json
import os
import re
import shutil
from contextlib import chdir

import pytest
from clones import make_clone

from lottery.__main__ import main
from lottery.params.reading import read_yaml
from lottery.tools import check
from lottery.tools.verify import differences

MINE = "def narrow(images, classes):\n    return images\n"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What a CI job checks out, in a sub-folder of a larger repository: a pipeline that has run on
    images of the user's own, and no artifacts.
    """
    from dvc.repo import Repo

    clone = make_clone(tmp_path_factory.mktemp("larger") / "project")
    (clone.path / ".git").rename(clone.path.parent / ".git")
    for stage in read_yaml(clone.path / "dvc.yaml")["stages"].values():
        for name in map(check.name_of, [*stage["deps"], *stage["outs"], *stage.get("metrics", [])]):
            path = clone.path / name
            if not path.exists():  # an output: what is in it does not matter here
                write(path if path.suffix else path / "content", "")
    write(clone.path / "data/own/images/train/cat/1.png", "an image")
    for key, value in {"name": "image_folder", "source": "data/own/images"}.items():
        clone.change(f"data.{key}", value)
    with chdir(clone.path), Repo() as repo:
        repo.commit(force=True)
    for name in ("dataset", "dense", "masks", "pruned", "retrained"):
        shutil.rmtree(clone.path / "data" / name)
    (clone.path / "reports/report.html").unlink()
    clone.commit("its results")
    return clone


@pytest.fixture
def project(prepared, monkeypatch):
    """As prepared, and so again afterwards."""
    monkeypatch.chdir(prepared.path)
    monkeypatch.syspath_prepend(prepared.path)
    yield prepared
    prepared.run("git", "checkout", "-q", ".")
    prepared.run("git", "clean", "-fdq")
    (prepared.path / "data/own/images/train/cat/2.png").unlink(missing_ok=True)
    write(prepared.path / "data/own/images/train/cat/1.png", "an image")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def found(capsys, *options):
    """The check's exit status, its lines, and its advice."""
    try:
        status = main(["check", *options]) or 0
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err


def change(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def edit_unseen(path):
    """Other content of the same size and time."""
    stamp = path.stat()
    change(path, "stage", "STAGE")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


CHANGED = "has changed since the stage ran"
TAMPERINGS = {
    "a parameter": (
        lambda p: p.change("report.confidence", 0.9),
        "report: params.yaml: report.confidence was 0.95 when the stage ran, now 0.9",
    ),
    "a stage's code": (
        lambda p: write(p.path / "stages/extract_masks.py", ""),
        f"extract_masks: stages/extract_masks.py: {CHANGED}",
    ),
    "a module deleted": (
        lambda p: (p.path / "lottery/report/flops.py").unlink(),
        f"report: lottery/report: {CHANGED}",
    ),
    "a file edited, its size and time restored": (
        lambda p: edit_unseen(p.path / "stages/report.py"), f"report: stages/report.py: {CHANGED}",
    ),
    "the locked libraries": (
        lambda p: write(p.path / "requirements.txt", ""), f"prune: requirements.txt: {CHANGED}",
    ),
    "an image added": (
        lambda p: write(p.path / "data/own/images/train/cat/2.png", ""),
        f"fetch: data/own: {CHANGED}",
    ),
    "a command": (
        lambda p: change(p.path / "dvc.yaml", "-m stages.report", "-u -m stages.report"),
        "report: its command in dvc.yaml has changed",
    ),
    "a dependency taken out": (
        lambda p: change(p.path / "dvc.yaml", "    - lottery/tickets\n", ""),
        "train_dense: lottery/tickets: was a dependency when the stage ran, is none in dvc.yaml "
        "now",
    ),
    "a parameter taken out": (
        lambda p: change(p.path / "dvc.yaml", "    - data.split_seed\n", ""),
        "train_dense: data.split_seed: was a parameter when the stage ran, is none in dvc.yaml now",
    ),
    "an output taken out": (
        lambda p: change(p.path / "dvc.yaml", "    - reports/results.csv: {cache: false}\n", ""),
        "report: reports/results.csv: was an output when the stage ran, is none in dvc.yaml now",
    ),
    "a frozen stage": (
        lambda p: change(p.path / "dvc.yaml", "  prune:\n", "  prune:\n    frozen: true\n"),
        "prune: is frozen: `dvc repro` passes it over: `dvc unfreeze prune`",
    ),
    "a stage renamed": (
        lambda p: change(p.path / "dvc.yaml", "  report:\n", "  summary:\n"),
        "report: is in dvc.lock, and no longer in dvc.yaml",
    ),
    "a part of one's own": (
        lambda p: [
            write(p.path / "own_parts.py", MINE), p.change("model.name", "own_parts:narrow"),
        ],
        "retrain: own_parts:narrow: own_parts.py is not among the deps of retrain in dvc.yaml, so "
        "`dvc repro` would not see its changes; move it into mine/ (what is installed: import it "
        "there)",
    ),
    "a report edited": (
        lambda p: write(p.path / "reports/report.md", "A win."),
        "report: reports/report.md: is not what the stage wrote",
    ),
    "a figure too many": (
        lambda p: write(p.path / "reports/plots/more.csv", ""),
        "report: reports/plots: is not what the stage wrote",
    ),
    "metrics deleted": (
        lambda p: (p.path / "reports/metrics.json").unlink(),
        "report: reports/metrics.json: not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_what_was_tampered_with_is_named(project, capsys, tampering):
    tamper, line = TAMPERINGS[tampering]
    tamper(project)
    status, lines, _ = found(capsys, *["--deep"] * ("restored" in tampering))
    assert status == 1
    assert line in lines


def test_a_fresh_checkout_is_up_to_date_in_a_sub_folder_of_a_repository_too(project, capsys):
    good = "dvc.lock and reports/ belong to the parameters and the code"
    for options in ([], ["--deep"]):
        assert found(capsys, *options) == (0, [good], "")
    edit_unseen(project.path / "stages/report.py")
    assert found(capsys)[0] == 0
    shutil.rmtree(project.path / "data/own/images")
    note = "fetch: data.source: data/own/images is not here, so not compared\n"
    assert found(capsys)[1:] == ([good], note)


def test_every_stage_that_a_change_affects_is_named_in_the_advice(project, capsys):
    project.change("prune.rates", {"conv": 0.1, "dense": 0.3, "output": 0.1})
    why = "params.yaml: prune.rates.dense was 0.2 when the stage ran, now 0.3"
    stages = ("prune", "extract_masks", "retrain", "report")
    advice = f"check: out of date: {', '.join(stages)}: `dvc repro`, then commit dvc.lock"
    assert found(capsys) == (1, [f"{stage}: {why}" for stage in stages], f"{advice} and reports/\n")


def test_a_pipeline_that_has_not_run_is_said_so(project, capsys):
    lock = project.path / "dvc.lock"
    lock.write_text(lock.read_text().partition("  report:\n")[0])
    assert "report: has never run: it is not in dvc.lock" in found(capsys)[1]
    lock.unlink()
    status, lines, advice = found(capsys)
    assert (status, lines) == (1, [])
    assert advice.startswith("check: no dvc.lock here: the pipeline has not run: `dvc repro`")


@pytest.mark.parametrize("file", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_marks_of_a_conflict_are_named_before_dvc_reads_the_file(project, capsys, file):
    path = project.path / file
    path.write_text(f"<<<<<<< HEAD\n{path.read_text()}=======\n>>>>>>> other\n")
    for options in (["--params"], []):
        status, _, said = found(capsys, *options)
        assert (status, said.count("\n")) == (1, 1)
        assert said.startswith(f"check: {file}: line 1: <<<<<<< is git's mark of a conflict")


@pytest.fixture
def checkout(finished_clone, clone):
    """Results that were computed, as committed, without the artifacts."""
    path = clone.path.parent / "checkout"
    clone.run("git", "clone", "-q", str(finished_clone.path), str(path))
    clone.path = path
    return clone


def test_what_came_out_otherwise_is_listed_with_the_metrics_differences(checkout):
    assert list(differences(checkout.path)) == []
    metrics = checkout.path / "reports" / "metrics.json"
    before = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**before, "verdict": "another"}, indent=2))
    lock = checkout.path / "dvc.lock"
    lock.write_text(
        re.sub(
            r"(path: data/dense\n +hash: md5\n +md5: )\w+", r"\g<1>" + 32 * "0", lock.read_text()
        )
    )
    write(checkout.path / "reports/report.md", "")
    assert list(differences(checkout.path)) == [
        "train_dense wrote another data/dense",
        "prune reads another data/dense",
        "retrain reads another data/dense",
        "reports/metrics.json: differs",
        "reports/report.md: differs",
        f"  verdict: committed {before['verdict']}, now another",
    ]
