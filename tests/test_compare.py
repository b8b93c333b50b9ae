"""Results side by side."""

import json
import re

import pytest
from ruamel.yaml import YAML
from test_report_page import drawn, needs_browser

from lottery.__main__ import main
from lottery.errors import LotteryError
from lottery.params.reading import differences
from lottery.tools import compare


def test_revisions_and_experiments_are_compared_by_metrics_and_by_parameters_with_defaults(
    clone, monkeypatch, capsys
):
    head = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    clone.run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/hasty-mare", head)
    path = clone.path / "reports/metrics.json"
    metrics = json.loads(path.read_text())
    now = metrics | {"dense_accuracy": metrics["dense_accuracy"] + 1.5}
    path.write_text(json.dumps(now))
    clone.change("train.learning_rate", 0.003)
    clone.change("train.momentum", 0.0)  # its default, left out before
    quiet = ("make", "-n", "--no-print-directory", "-o", "env")
    made = clone.run(*quiet, "compare", "REV=hasty-mare").stdout
    assert made.endswith("python -m lottery compare hasty-mare\n")
    monkeypatch.chdir(clone.path)
    main(["compare", "hasty-mare"])
    said = capsys.readouterr().out
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines()]
    values = [f"{m['dense_accuracy']:g}" for m in (metrics, now)]
    assert ["dense_accuracy", *values, "+1.5"] in cells
    assert ["train.learning_rate", "0.0012", "0.003"] in cells
    assert "momentum" not in said
    stale = "**workspace: its results are of other parameters**, `dvc repro` first: "
    assert f"{stale}train.learning_rate was 0.0012 when the stage ran" in said
    assert "**hasty-mare: its" not in said
    assert said.splitlines()[-1] == "Plots: reports/compare.html"

    main(["compare", "hasty-mare", "HEAD"])
    assert capsys.readouterr().out.startswith("## hasty-mare and HEAD and workspace\n")
    assert clone.run("git", "status", "--porcelain", "reports/compare.html").stdout == ""


def test_of_experiments_of_one_name_that_of_the_present_commit_is_taken(clone, monkeypatch):
    monkeypatch.chdir(clone.path)
    head = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    other = clone.run("git", "commit-tree", "-m", "other", f"{head}^{{tree}}").stdout.strip()
    for base, of in (("0" * 40, other), ("f" * 40, other), (head, head)):
        clone.run("git", "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/lr", of)
    assert clone.run("git", "rev-parse", compare._commit("lr")).stdout.strip() == head
    clone.run("git", "update-ref", "-d", f"refs/exps/{head[:2]}/{head[2:]}/lr")
    with pytest.raises(LotteryError, match="lr: several commits have an experiment of that name"):
        compare._commit("lr")
    clone.run("git", "branch", "lr")  # as `dvc exp branch` makes of one of them
    assert compare._commit("lr") == head  # not `other`, which the experiments are


def test_a_signed_url_is_shown_without_what_signs_it():
    text = 'data: {source: "https://me:word@example.org/a.zip?sig=1"}'
    assert compare._keys(text) == {"data.source": "https://example.org/a.zip"}
    (line,) = differences("data", {"source": None}, YAML(typ="safe").load(text)["data"])
    assert line == 'data.source was null when the stage ran, now "https://example.org/a.zip"'
    (line,) = differences("source", *(f"https://example.org/a.zip?sig={n}" for n in range(2)))
    assert line.endswith('now "https://example.org/a.zip", with other secrets')


def test_results_are_of_the_parameters_that_the_report_was_made_with():
    of = {"report": [0], "own": [1], "each@2": [2]}
    stages = {name: {"params": {"params.yaml": {"seeds": seeds}}} for name, seeds in of.items()}
    assert compare._locked(json.dumps({"stages": stages})) == ({"seeds": [0]}, {})


def test_code_and_masks_of_ones_own_count_wherever_they_lie():
    paths = ("mydata/parts.py", "data/own/masks", "data/dataset", "data/dense")
    stages = {"prune": {"deps": [{"path": path, "md5": "0"} for path in paths]}}
    assert [*compare._locked(json.dumps({"stages": stages}))[1]] == [*paths[:-1]]


def test_that_data_or_code_differ_or_that_it_cannot_be_told_is_said(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone.path)
    main(["compare", "workspace", "HEAD"])
    assert "differ" not in capsys.readouterr().out
    assert '"domain":["workspace","HEAD"]' in compare.PAGE.read_text()  # dashes, by revision
    lock = YAML().load(clone.path / "dvc.lock")
    for stage in lock["stages"].values():
        for one in (*stage["deps"], *stage["outs"]):
            if one["path"] in ("data/dataset", "lottery/training"):
                one["md5"] = "0" * 32
    YAML().dump(lock, clone.path / "dvc.lock")
    main(["compare", "HEAD"])
    said = capsys.readouterr().out
    assert "**Data or code differ**: data/dataset, lottery/training." in said
    (clone.path / "dvc.lock").unlink()
    main(["compare", "HEAD"])
    assert "data and code are the same cannot be told" in capsys.readouterr().out


@needs_browser
def test_all_revisions_appear_in_the_plots_and_their_legends(clone, tmp_path, monkeypatch):
    monkeypatch.chdir(clone.path)
    main(["compare", "HEAD", "main"])
    content, console = drawn(clone.path / "reports/compare.html", tmp_path)
    assert console == []
    for name in ("accuracy", "early_stop"):
        plot = content.partition(f'id="{name}"')[2].partition("</figure>")[0]
        legends = re.findall(r"<text[^>]*>([^<]+)</text>", plot)
        assert {"HEAD", "main", "workspace", "dense", "ticket", "random_reinit"} <= set(legends)


def test_a_project_in_a_folder_of_its_repository_is_compared(clone, monkeypatch, capsys):
    (clone.path / "project").mkdir()
    clone.run("git", "mv", "params.yaml", "reports", "project")
    clone.commit("in a folder")
    monkeypatch.chdir(clone.path / "project")
    main(["compare", "HEAD"])
    assert "The parameters are the same." in capsys.readouterr().out


NOT_COMPARED = [  # a file, its content instead, the revision, what is said
    ("params.yaml", "", "nowhere", "nowhere: no branch, tag, commit or experiment"),
    ("params.yaml", "", "HEAD~1", "HEAD~1: no reports/metrics.json: run `dvc repro` there"),
    ("params.yaml", "<<<<<<< HEAD\n", "HEAD", "workspace: params.yaml: holds conflict marks"),
    ("dvc.lock", "schema: '2.0'\n", "HEAD", "workspace: dvc.lock: cannot be read"),
    ("reports/metrics.json", "{", "HEAD", "workspace: reports/metrics.json: cannot be read"),
    ("reports/metrics.json", '{"dense": {}}', "HEAD", "workspace: reports/metrics.json: is of"),
]


def test_what_cannot_be_compared_is_one_line(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone.path)
    for path, content, revision, why in NOT_COMPARED:
        clone.run("git", "checkout", "-q", ".")
        (clone.path / path).write_text(content)
        with pytest.raises(SystemExit, match="1"):
            main(["compare", revision])
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"compare: {why}")
