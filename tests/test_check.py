"""The pipeline check: what it finds in a clone without data; and whether results come out again."""

import json
import os
import random
import re
import shutil
from contextlib import chdir

import pytest
from clones import ROOT, make_clone, tiny
from ruamel.yaml import YAML

from lottery import params
from lottery.__main__ import main
from lottery.errors import LotteryError
from lottery.params.reading import read_yaml
from lottery.tools import check, dvc_files, paper
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
GONE = "when the stage ran, is none in dvc.yaml now"
WRITTEN = {  # a file's other content; None: it is deleted
    "stages/extract_masks.py": ("", f"extract_masks: stages/extract_masks.py: {CHANGED}"),
    "lottery/report/flops.py": (None, f"report: lottery/report: {CHANGED}"),
    "requirements.txt": ("", f"prune: requirements.txt: {CHANGED}"),
    "data/own/images/train/cat/2.png": ("", f"fetch: data/own: {CHANGED}"),
    "reports/report.md": ("A win.", "report: reports/report.md: is not what the stage wrote"),
    "reports/plots/more.csv": ("", "report: reports/plots: is not what the stage wrote"),
    "reports/metrics.json": (None, "report: reports/metrics.json: not there"),
}
PIPELINE = {  # what is replaced in dvc.yaml, and by what
    "-m stages.report": ("-u -m stages.report", "report: its command in dvc.yaml has changed"),
    "    - lottery/tickets\n": ("", f"train_dense: lottery/tickets: was a dependency {GONE}"),
    "    - data.split_seed\n": ("", f"train_dense: data.split_seed: was a parameter {GONE}"),
    "    - reports/results.csv: {cache: false}\n": (
        "", f"report: reports/results.csv: was an output {GONE}",
    ),
    "  prune:\n": (
        "  prune:\n    frozen: true\n",
        "prune: is frozen: `dvc repro` passes it over: `dvc unfreeze prune`",
    ),
}  # fmt: skip


def named(capsys, line, *options):
    """Whether the check fails and says so, among other things."""
    status, lines, _ = found(capsys, *options)
    return status == 1 and line in lines


def test_each_file_that_was_tampered_with_is_named(project, capsys):
    for name, (text, _) in WRITTEN.items():
        write(project.path / name, text) if text is not None else (project.path / name).unlink()
    status, lines, _ = found(capsys)
    assert status == 1
    assert {line for _, line in WRITTEN.values()} - {*lines} == set()


def test_what_was_changed_in_dvc_yaml_is_named(project, capsys):
    for before, (after, _) in PIPELINE.items():
        change(project.path / "dvc.yaml", before, after)
    status, lines, _ = found(capsys)
    assert status == 1
    assert {line for _, line in PIPELINE.values()} - {*lines} == set()
    change(project.path / "dvc.yaml", "  report:\n", "  summary:\n")
    gone = "report: is in dvc.lock, and no longer in dvc.yaml: take its entry out there"
    assert named(capsys, gone)


def test_a_parameter_a_file_of_the_same_time_and_a_part_of_ones_own_are_named(project, capsys):
    project.change("report.confidence", 0.9)
    was = "params.yaml: report.confidence was 0.95 when the stage ran, now 0.9"
    assert named(capsys, f"report: {was}")
    edit_unseen(project.path / "stages/report.py")
    assert named(capsys, f"report: stages/report.py: {CHANGED}", "--deep")
    write(project.path / "own_parts.py", MINE)
    project.change("model.name", "own_parts:narrow")
    unseen = "own_parts:narrow: own_parts.py is not among the deps of retrain in dvc.yaml, so"
    move = "move it into mine/ (what is installed: import it there)"
    assert named(capsys, f"retrain: {unseen} `dvc repro` would not see its changes; {move}")
    write(project.path / "mine/parts.py", MINE)
    project.change("model.name", "mine.parts:narrow")
    assert not any("not among the deps" in line for line in found(capsys)[1])


def test_a_key_that_dvc_needs_and_params_yaml_leaves_to_its_default_is_named(project, capsys):
    params = read_yaml(project.path / "params.yaml")
    del params["data"]["split"], params["retrain"]["masks"]
    project.write(params)
    status, _, said = found(capsys, "--params")
    assert status == 1
    assert "params.yaml: data.split, retrain.masks: left out, but dvc.yaml names them" in said


def test_stages_of_ones_own_may_have_parameters_of_other_files_or_none():
    own = {"params": [{"other.yaml": ["data.split"]}]}
    pipeline = {"own": own, "bare": {}, "fetch": {"params": ["data", "data.split"]}}
    assert check.left_out(pipeline, {"data": {}}) == ["data.split"]
    found = {"own": [{"changed deps": {"other.yaml": {"data.split": "modified"}}}]}
    (cause,) = check.changed_files(found, {"own": {}}, {"data": {}})
    assert cause == ("own", "other.yaml: has changed since the stage ran")
    changed = [{"changed outs": {"data": "modified"}}]
    elsewhere = {"sub/dvc.yaml:own": ["changed command"], "data.dvc": changed}
    quiet = {"own": ["always changed"], "x.dvc": [{"changed outs": {"x": "not in cache"}}]}
    causes = [*check.changed_files(elsewhere | quiet, {"own": {}}, {})]
    why = "has changed: `dvc status` says what, `dvc repro {}` runs it"
    assert causes == [(name, why.format(name)) for name in elsewhere]
    model = {"params": ["model"], "deps": []}  # it may compare the name; only some call the part
    loaded = params.validate(tiny({"model.name": "mine.example:narrow"}))
    causes = [*check.unseen_parts({"own": model, "prune": model}, loaded)]
    assert {stage for stage, _ in causes} == {"prune"}


OWN_STAGES = """
  each:
    matrix: {key: [seeds, model]}
    cmd: "true"
    params: ["${item.key}"]
    deps: ["${train.optimizer}.txt"]
  below: {wdir: data, cmd: "true", params: [k]}
  whole: {cmd: "true", params: [{params.yaml: [train.epochs]}, {other.yaml: [k]}]}
  every: {cmd: "true", params: [{params.yaml: }]}
"""


def test_stages_of_ones_own_are_read_as_dvc_reads_them(project):
    change(project.path / "dvc.yaml", "stages:\n", f"stages:{OWN_STAGES}")
    stages = dvc_files.stages_of(dvc_files.PIPELINE)
    ours = read_yaml(ROOT / "dvc.yaml")["stages"]
    keys = {name: check.keys_of(of) for name, of in stages.items() if name not in ours}
    assert keys.pop("every") == [*params.load().model_dump()]
    each = {"each@seeds": ["seeds"], "each@model": ["model"]}
    assert keys == each | {"below": [], "whole": ["train.epochs"]}
    assert stages["each@seeds"]["deps"] == ["adam.txt"]
    locked = {"params": {"params.yaml": {"train.epochs": 2}}}
    removed = {"each@seeds": {"deps": [{"path": "adam.txt"}]}, "each@data": {}, "whole": locked}
    removed["below"] = {"params": {"params.yaml": {"k": 1}}}  # of its own folder
    why = "is in dvc.lock, and no longer in dvc.yaml: take its entry out there"
    assert list(check.changed_pipeline(stages, removed)) == [("each@data", why)]


@pytest.mark.parametrize("own", ["{foreach: [1]}", "", "{matrix: [1], cmd: x}"])
def test_a_dvc_yaml_that_dvc_would_refuse_is_one_line(project, own):
    change(project.path / "dvc.yaml", "stages:\n", f"stages:\n  own: {own}\n")
    with pytest.raises(LotteryError, match=r"^dvc\.yaml: .*: `dvc stage list` tells more$"):
        dvc_files.stages_of(dvc_files.PIPELINE)


def test_a_dvc_lock_of_many_stages_is_not_taken_for_one_that_is_cut_off(project):
    text = (project.path / "dvc.lock").read_text()
    dependency = f"    - path: mine\n      hash: md5\n      md5: {'0' * 32}.dir\n      size: 1\n"
    one = "  each@{}:\n    cmd: x\n    deps:\n".format
    more = (one(number) + dependency * 14 for number in range(100))
    (project.path / "dvc.lock").write_text(text + "".join(more))
    assert not dvc_files.cut_off()


def test_what_a_stage_has_written_since_another_read_it_is_named_without_the_data(project, capsys):
    locked = read_yaml(project.path / "dvc.lock")
    (written,) = locked["stages"]["fetch"]["outs"]
    change(project.path / "dvc.lock", f"md5: {written['md5']}", "md5: " + "0" * 32 + ".dir")
    assert named(capsys, "train_dense: data/dataset: has been written anew since the stage ran")


def test_what_a_function_of_ones_own_may_read_is_compared(project, capsys):
    write(project.path / "mine/table.py", "def rows(seed=0):\n    return {}\n")
    project.change("data.name", "mine.table:rows")
    project.change("data.source", None)
    write(project.path / "data/own/images/train/cat/1.png", "another")
    assert named(capsys, f"fetch: data/own: {CHANGED}")


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


def test_what_came_out_otherwise_is_listed_with_the_metrics_differences(finished_clone, tmp_path):
    finished_clone.run("git", "clone", "-q", ".", str(tmp_path))  # as committed, without artifacts
    assert list(differences(tmp_path)) == []
    metrics = tmp_path / "reports/metrics.json"
    before = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**before, "verdict": "another"}, indent=2))
    lock = tmp_path / "dvc.lock"
    dense = r"(path: data/dense\n +hash: md5\n +md5: )\w+"
    lock.write_text(re.sub(dense, r"\g<1>" + 32 * "0", lock.read_text()))
    change(lock, "confidence: 0.95", "confidence: 0.9")
    write(tmp_path / "reports/report.md", "")
    assert list(differences(tmp_path)) == [
        "train_dense wrote another data/dense",
        "prune reads another data/dense",
        "retrain reads another data/dense",
        "report has other parameters: `python -m lottery check` says which",
        "dvc.lock: differs",
        "reports/metrics.json: differs",
        "reports/report.md: differs",
        f"  verdict: committed {before['verdict']}, now another",
    ]


def test_a_dvc_lock_that_is_cut_off_is_set_aside_wherever_dvc_could_not_read_it(clone, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(clone.path)
    whole = dvc_files.LOCK.read_bytes()
    aside, lengths = 0, random.Random(0).sample(range(len(whole)), 20)
    for length in lengths:
        dvc_files.LOCK.write_bytes(whole[:length])
        if dvc_files.cut_off():
            aside += 1
        else:
            Repo().status()  # DVC can read it
    assert 3 < aside < len(lengths)
    dvc_files.LOCK.write_bytes(b"")
    with pytest.raises(LotteryError, match=r"dvc\.lock: cut off: `make repro` makes it again"):
        check.results_of(params.load())  # of export, paper and tickets too
    dvc_files.LOCK.write_bytes(whole)
    assert not dvc_files.cut_off()


def test_figures_for_a_paper_that_are_of_other_results_are_named(clone, monkeypatch):
    monkeypatch.chdir(clone.path)
    other = (clone.path / "reports/results.csv").read_text() + "one,row,more\n"
    write(clone.path / "reports/paper/results.csv", other)
    with pytest.raises(LotteryError, match=r"^reports/paper: of other results: `python -m lottery"):
        check.main([])
    paper.main([])
    check.main([])


def test_make_repro_makes_again_what_a_killed_dvc_has_left(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone.path)
    whole = (clone.path / "dvc.lock").read_bytes()
    cut = whole.rindex(b"md5: ") + 5
    (clone.path / "dvc.lock").write_bytes(whole[:cut])
    (clone.path / ".dvc/tmp/rwlock").write_bytes(b"")
    check.main(["--params"])
    why = "cut off, as by a DVC that was killed while it wrote it; it is made again"
    names = (".dvc/tmp/rwlock", "dvc.lock")
    assert capsys.readouterr().err.splitlines() == [f"check: {name}: {why}" for name in names]
    assert (clone.path / ".dvc/tmp/dvc.lock.cut-off").read_bytes() == whole[:cut]
    shutil.rmtree(clone.path / ".runs")  # nothing is trained
    assert clone.repro("retrain") == []
    locked = read_yaml(clone.path / "dvc.lock")["stages"]
    before = YAML(typ="safe").load(whole)["stages"]
    assert before == locked | {"report": before["report"]}
    check.main(["--params"])
    assert capsys.readouterr().err == ""
