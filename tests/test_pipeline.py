"""The pipeline as a user runs it: tiny experiments in temporary clones, `dvc` where it is about that."""

import ast
import contextlib
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clones import ROOT, STAGES, TINY
from dvc.repo import Repo
from networks import same
from ruamel.yaml import YAML

from lottery import code
from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.masks import surviving_count
from stages import command

# What a stage depends on


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_subjects_that_it_imports(stage):
    deps = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["deps"]
    parts = [code.source(module).relative_to(ROOT).parts for module in code.read(f"stages.{stage}")]
    subjects = {"/".join(p[:2]) for p in parts if p[1] != "__init__.py"}
    assert {dep for dep in deps if dep.startswith(("lottery", "stages"))} == subjects
    assert ("requirements.txt" in deps) == (stage != "extract_masks")


def test_the_modules_that_compute_a_run_are_all_that_do():
    """What else they import hands them values, which the fingerprint holds, or shows results."""
    imported = code.read(*code.COMPUTE_A_RUN)
    values = ("artifacts", "datasets", "errors", "params")
    beside = ("code", "running.store", "running.machine", "running.progress")
    names = tuple(f"lottery.{name}" for name in values + beside)
    packages = {n for n in imported if code.source(n).name == "__init__.py"}
    rest = {n for n in imported if not n.startswith(names)} - packages
    handed_on = {"lottery.datasets.dataset", "lottery.params.early_stopping"}  # as code makes them
    assert rest | handed_on == set(code.COMPUTE_A_RUN)


def test_each_module_that_computes_a_run_counts_and_what_only_asks_for_it_does_not(monkeypatch):
    before, read = code.of_stage("stages.prune").run, code._module
    for name in (*code.COMPUTE_A_RUN, "lottery.tickets.search"):

        def changed(module, at=name):
            return read(module)._replace(sha256="0") if module == at else read(module)

        monkeypatch.setattr(code, "_module", changed)
        assert (code.of_stage("stages.prune").run != before) == (name in code.COMPUTE_A_RUN), name


def test_what_a_mend_replaced_is_named_by_the_code_that_is_here():
    here = {module.sha256 for module in code.read(*code.COMPUTE_A_RUN).values()}
    assert code.MENDED.keys() <= here  # of what has changed since, nothing is known


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("def f(x):\n    return x + 1", 'def f(x):\n    "Doc."\n    return x + 1  # comment', True),
        ("x = 1", 'x = 1\n"""What x is."""', True),
        ("x = (1,\n  2)", "x = (1, 2)", True),
        ("x = a + b", "x = a - b", False),
        ("x = 'text'", "x = 'other'", False),
        ("f(x)\ng(x)", "f(x)", False),
    ],
)
def test_code_that_differs_in_words_means_the_same(one, other, same):
    assert (code.meaning(ast.parse(one)) == code.meaning(ast.parse(other))) == same


def test_the_code_of_an_own_network_counts_however_dvc_yaml_lists_its_files(clone, monkeypatch):
    def of_stage(stage, own, model):
        raise LotteryError(f"{stage} with {own}, {model}")

    clone.change("model.name", "mine.example:narrow")
    listed = (clone.path / "dvc.yaml").read_text()
    (clone.path / "dvc.yaml").write_text(listed.replace("    - mine\n", "    - mine/example.py\n"))
    monkeypatch.setattr(code, "of_stage", of_stage)
    with pytest.raises(LotteryError, match=r"prune with \['mine.example'\], mine.example"):
        clone.stage("prune")


# What a change affects


def test_a_change_reruns_only_what_it_affects(clone):
    from_training, before = STAGES[1:], clone.params
    for key, value, rerun in [
        ("seeds", [0, 1, 2], from_training),
        ("seeds", [0], from_training),
        ("train.learning_rate", 0.002, from_training),
        ("prune.rounds", 3, STAGES[2:]),
        ("retrain.variants", ["ticket", "random_reinit", "random_mask"], STAGES[4:]),
        ("report.confidence", 0.9, STAGES[5:]),
        ("seeds", [0, 1], []),
    ]:
        (clone.path / "params.yaml").write_text("# a comment\n" + before)
        clone.change(key, value)
        with contextlib.chdir(clone.path), Repo() as repo:
            planned = repo.reproduce(dry=True, force_downstream=True)
        assert [stage.name for stage in planned] == rerun, key


def test_verify_reproduces_the_results_from_an_empty_store(clone):
    for name in ("dvc.yaml", "dvc.lock"):  # all that reproduces is reproduced: two stages
        content = YAML().load(clone.path / name)
        for stage in STAGES[2:]:
            del content["stages"][stage]
        YAML().dump(content, clone.path / name)
    clone.commit("two stages")
    (clone.path / "reports/report.md").write_text("not committed, so no part of it")
    verified = clone.run("python", "-m", "lottery", "verify").stdout
    assert verified.endswith("\nreproduced bit for bit\n")
    assert "train_dense: 2 runs of 40 iterations, in this process" in verified


# What comes out


def test_artifacts_hold_the_invariants(finished_clone, monkeypatch):
    monkeypatch.chdir(finished_clone.path)
    for seed in (0, 1):
        folder = files.seed_folder(files.DENSE, seed)
        rewound, facts = files.read_tensors(folder / "rewind.safetensors")
        assert same(rewound, files.read_tensors(folder / "initial.safetensors")[0])
        assert set(facts["kinds"].values()) == {"dense", "output"}
        before = None
        for round_ in (1, 2):
            file = files.round_file(files.PRUNED, seed, round_)
            _, mask, _ = files.read_masked_weights(file)
            extracted, _ = files.read_mask(files.round_file(files.MASKS, seed, round_))
            for name, keep in mask.layers.items():
                rate = {"dense": 0.2, "output": 0.1}[facts["kinds"][name]]
                assert mask.counts[name] == surviving_count(keep.size, rate, round_)
                assert np.array_equal(extracted.layers[name], keep)
            assert before is None or mask.within(before)
            before = mask


def test_histories_cover_every_run_and_evaluation(finished_clone):
    retrained = pd.read_csv(finished_clone.path / "data/retrained/history.csv")
    runs = retrained.groupby(["seed", "variant", "round"])
    assert len(runs) == 2 * 2 * 2
    assert all(list(group["iteration"]) == [0, 10, 20, 30, 40] for _, group in runs)
    assert retrained.loc[retrained["iteration"] > 0].notna().all(axis=None)
    found = pd.read_csv(finished_clone.path / "data/pruned/history.csv")  # by the same tickets,
    tickets = retrained[retrained["variant"] == "ticket"].reset_index(drop=True)  # in another order
    trained = tickets["iteration"] > 0
    assert (tickets["test_loss"] != found["test_loss"])[trained].all()
    assert (tickets["test_loss"] == found["test_loss"])[~trained].all()
    assert retrained["test_accuracy"].between(0, 1).all()
    dense = pd.read_csv(finished_clone.path / "data/dense/history.csv")
    last = dense[dense["iteration"] == 40]
    assert last["test_accuracy"].min() > 0.6  # ten classes: it has learnt


def test_results_say_what_they_were_computed_on(finished_clone):
    path = finished_clone.path / "data/retrained/environment.json"
    (environment,) = json.loads(path.read_text())
    assert set(environment) == {"device", "threads", "versions"}  # the CPU's name is no result
    libraries = {"tensorflow", "tf-keras", "tensorflow-model-optimization", "numpy"}
    assert set(environment["versions"]) == libraries
    assert environment["device"].split()[0] in ("CPU", "GPU")
    assert environment["threads"] == 1
    assert environment["device"] in (finished_clone.path / "reports/report.md").read_text()


def test_the_training_stages_say_what_they_compute_on_what_and_what_came_out(clone, capsys):
    shutil.rmtree(clone.path / ".runs")
    clone.stage("retrain")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "retrain: 8 runs of 40 iterations, in this process"
    starts = [line[: len("retrain: 1/8 seed")] for line in lines[1:9]]
    assert starts == [f"retrain: {n}/8 seed" for n in range(1, 9)]
    history = pd.read_csv(clone.path / "data/retrained/history.csv")
    ends = 100 * history.groupby(["variant", "seed", "round"])["test_accuracy"].last()
    assert lines[9] == "retrain: test accuracy at the end, mean and range:"
    for line, variant in zip(lines[10:12], ("random_reinit", "ticket       "), strict=True):
        of = ends[variant.strip()]
        spread = f"{of.mean():6.2f} % [{of.min():.2f}, {of.max():.2f}]"
        assert line == f"retrain: {variant}  {spread} 4 runs"
    assert lines[12].startswith("retrain: computed on ")
    assert len(lines) == 13


def test_a_run_that_diverges_is_an_outcome_and_named(clone, capsys):
    clone.change("train.optimizer", "sgd")
    clone.change("train.learning_rate", 1e30)
    clone.stage("train_dense")
    out = capsys.readouterr().out
    assert "10 iterations, diverged" in out
    for seed in (0, 1):
        assert f"train_dense: diverged at iteration 10: seed {seed}, dense\n" in out
    clone.stage("train_dense")
    assert capsys.readouterr().out.count("from the run store, diverged") == 2
    history = pd.read_csv(clone.path / "data/dense/history.csv")
    assert history.groupby("seed").nth(-1)["validation_loss"].isna().all()


# DVC's own commands


def test_an_experiment_is_run_listed_and_compared(clone):
    changes = ("-S", "report.margin=0.5", "-S", "report.confidence=0.8")
    clone.run("dvc", "exp", "run", "-n", "wide-margin", *changes, "extract_masks")
    shown = json.loads(clone.run("dvc", "exp", "show", "--json").stdout)
    (experiment,) = [e for rev in shown for e in rev["experiments"] or []]
    assert experiment["name"] == "wide-margin"
    (revision,) = experiment["revs"]
    assert revision["data"]["params"]["params.yaml"]["data"]["report"]["margin"] == 0.5

    metrics = clone.run("dvc", "metrics", "diff", "--all", "--md").stdout
    assert len(metrics.splitlines()) <= 12  # ten keys, flat
    assert max(map(len, metrics.splitlines())) <= 100
    assert re.search(r"\| reports/metrics.json \| verdict +\| inconclusive", metrics)
    drawn = clone.run("dvc", "plots", "diff", "HEAD", "workspace").stdout
    page = Path(drawn.strip().removeprefix("file://")).read_text()
    titles = ["Test accuracy at early stop", "Early-stop iteration", "Test accuracy during train"]
    assert all(part in page for part in [*titles, '"rev": "workspace"', '"rev": "HEAD"'])
    assert "DVC_METRIC" not in page


# Mistakes


@pytest.mark.parametrize(
    ("file", "content", "stage", "message"),
    [
        ("dataset/labels.npy", b"\x93NUMPY", "prune", "cannot be read as an array, or truncated"),
        ("masks/density.csv", None, "report", "not there"),
    ],
)
def test_a_damaged_artifact_is_named_with_what_to_do(clone, file, content, stage, message):
    path = clone.path / "data" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LotteryError, match=f"data/{file}: {message}.*dvc repro"):
        clone.stage(stage)


def test_every_stage_refuses_bad_parameters_before_it_computes_and_explains_itself(empty_clone):
    before = empty_clone.files("data")
    empty_clone.change("prune.rates", {"conv": 0.1, "dense": 1.2, "output": 0.1})
    why = "params.yaml: prune.rates.dense: got 1.2; accepted: below 1"
    for stage in STAGES:
        with pytest.raises(LotteryError, match=f"^{why}$"):
            empty_clone.stage(stage)
        explained = importlib.import_module(f"stages.{stage}").__doc__
        assert re.search(r"\n\nReads .*\nWrites ", explained, re.DOTALL)
    done = empty_clone.run("python", "-m", "stages.fetch", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"fetch: {why}\n")
    assert "Writes  data/dataset/" in empty_clone.run("python", "-m", "stages.fetch", "-h").stdout
    assert empty_clone.files("data") == before


def test_in_the_folder_of_a_queued_experiment_an_error_says_what_is_there(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / ".dvc/tmp/exps/standalone/tmp0"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "dvc.yaml", folder)
    other = TINY.replace("digits, source: null", "mnist, source: a.npz")
    (folder / "params.yaml").write_text(other)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["fetch"])
    with pytest.raises(SystemExit):
        command.main("fetch")
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("fetch: data.source: a.npz: not there")
    assert "`git add` your modules, name sources by absolute paths" in hint


def test_live_curves_are_the_history_and_change_nothing(clone, tmp_path):
    path = clone.path / "data/dense/history.csv"
    before = path.read_bytes()
    clone.environment.update(LOTTERY_LIVE=str(tmp_path / "live"), LOTTERY_RUNS=str(tmp_path / "no"))
    clone.stage("train_dense")
    assert path.read_bytes() == before
    from tensorflow import make_ndarray
    from tensorflow.python.summary.summary_iterator import summary_iterator

    [events] = tmp_path.glob("live/seed 1, dense */events*")
    shown = {
        (event.step, value.tag): make_ndarray(value.tensor)
        for event in summary_iterator(str(events))
        for value in event.summary.value
    }
    table = pd.read_csv(path).query("seed == 1").set_index("iteration")
    history = table.iloc[:, 4:].stack().dropna().to_dict()
    assert shown == pytest.approx(history, rel=1e-6)
