"""Published tickets: taken over, gone on from, refused, retrained as their table says."""

import contextlib
import functools
import json
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from clones import ROOT, Clone
from networks import models

from benchmarks import long_run
from lottery import params
from lottery.__main__ import main
from lottery.artifacts import files, tables
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.running import store
from lottery.tickets import given
from lottery.tools import tickets


@pytest.fixture(scope="module")
def published(finished_clone, tmp_path_factory):
    """A copy of the finished clone that has published its tickets as ``tickets/tiny``."""
    path = tmp_path_factory.mktemp("published") / "clone"
    shutil.copytree(finished_clone.path, path, symlinks=True)
    with contextlib.chdir(path):
        tickets.publish(params.load(), "tiny")
    return Clone(path, {"LOTTERY_WORKERS": "1"})


@pytest.fixture
def project(published, tmp_path, tracked, monkeypatch):
    """A copy, to change, whose run store is empty."""
    shutil.copytree(published.path, tmp_path / "clone", symlinks=True)
    shutil.rmtree(tmp_path / "clone" / ".runs")
    clone = Clone(tmp_path / "clone")
    monkeypatch.chdir(clone.path)
    clone.change("retrain.masks", "tickets/tiny")
    return clone


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_ticket_is_published_as_bool_arrays_with_what_it_reached_and_starts_from(published):
    folder = published.path / "tickets/tiny"
    table = tables.read_table(folder / "tickets.csv").set_index(["seed", "round"])
    history = tables.read(published.path / files.RETRAINED / "history.csv")
    for seed, round_ in [(0, 1), (0, 2), (1, 1), (1, 2)]:
        mask, _ = files.read_mask(files.round_file(published.path / files.MASKS, seed, round_))
        with np.load(folder / f"seed-{seed}" / f"round-{round_:02d}.npz") as content:
            assert list(content) == list(mask.layers)
            assert all(np.array_equal(content[name], mask.layers[name]) for name in content)
        runs = history[(history["seed"] == seed) & (history["round"] == round_)]
        run = runs[runs["variant"] == "ticket"].set_index("iteration")
        stop = run["validation_loss"].idxmin()
        assert table.loc[(seed, round_), "early_stop_iteration"] == stop
        accuracy = run["test_accuracy"][stop]
        assert table.loc[(seed, round_), "test_accuracy"] == pytest.approx(accuracy, rel=1e-5)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: tf-keras\n")
    assert "one for each of 2 seeds and 2 pruning rounds" in card
    of = 100 * table["test_accuracy"].xs(2, level="round")
    said = f"{of.mean():.2f} % | {of.std():.2f} | {of.min():.2f} to {of.max():.2f} %"
    stop = table["early_stop_iteration"].xs(2, level="round").median()
    assert f"| 2 | {100 * mask.weights_remaining:.2f} % | 2 | {said} | {stop:,.0f} |" in card


def test_what_is_published_starts_where_tickets_do_and_can_be_taken_over_or_is_refused(project):
    folder, loaded = files.seed_folder(files.DENSE, 0), params.load()
    late = folder / "rewind.safetensors"  # as if they were rewound to the end
    late.unlink()
    shutil.copy(folder / "trained.safetensors", late)
    lines = {"retrain": loaded.retrain.model_copy(update={"analysis": "connectivity_of_pruning"})}
    tickets.publish(loaded.model_copy(update=lines), "late")
    starts = tables.read_table(project.path / "tickets/late/tickets.csv").groupby("seed").first()
    assert starts["start_sha256"][0] == tickets.sha256_of(files.read_tensors(late)[0])
    assert params.load(project.path / "tickets/late/params.yaml").retrain.analysis == "none"
    kept = project.path / "tickets/late/seed-0/history.csv.gz"
    kept.touch()
    with pytest.raises(LotteryError, match=r"history\.csv\.gz: not of published tickets, would be"):
        tickets.publish(loaded, "late")
    kept.unlink()
    taking = {"retrain": loaded.retrain.model_copy(update={"masks": "tickets/late"})}
    with pytest.raises(LotteryError, match=r"README\.md: part of retrain\.masks, would be lost"):
        tickets.publish(loaded.model_copy(update=taking), "late")
    tickets.publish(loaded, "late")
    tuned = {"prune": loaded.prune.model_copy(update={"strategy": "finetune"})}
    with pytest.raises(
        LotteryError, match=r"prune\.strategy: got finetune; accepted: rewind: masks"
    ):
        tickets.publish(loaded.model_copy(update=tuned), "tuned")


def test_masks_taken_over_train_nothing_and_end_in_the_same_results(project, monkeypatch, capsys):
    def results():
        """What was retrained, and the tables of masks, whose files say where they are from."""
        found = project.files(str(files.MASKS), str(files.RETRAINED))
        return {n: c for n, c in found.items() if "masks" not in n or n.endswith(".csv")}

    before = results()
    project.stage("prune", "extract_masks", "retrain")
    assert len(tables.read(project.path / files.PRUNED / "history.csv")) == 0
    assert results() == before
    project.stage("report")
    report = (project.path / "reports/report.md").read_text()
    assert "; masks taken over from tickets/tiny; tickets keep their initial weights." in report
    monkeypatch.setattr("lottery.tools.export.results_of", lambda _: None)  # of what dvc.lock has
    with pytest.raises(SystemExit, match="1"):
        main(["export", "--round", "2"])
    why = "export: --round: got 2; accepted: 0, or --initial: its mask is of retrain.masks: nothing"
    assert why in capsys.readouterr().err


def test_what_has_no_effect_or_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    known = "cifar10-conv4-evening, cifar10-conv4-notebook, default, mnist-lenet"
    for arguments, why in (
        (["default", "--seed", "0"], "--seed: accepted with --verify only"),
        (["nope", "--verify"], f"tickets/nope: no published tickets; accepted: {known}"),
    ):
        with pytest.raises(SystemExit, match="1"):
            main(["tickets", *arguments])
        assert why in capsys.readouterr().err


def test_a_search_goes_on_after_the_last_mask_that_is_given(project):
    density = project.path / files.MASKS / "density.csv"
    before, expected = (
        tables.read(project.path / files.PRUNED / "history.csv"),
        density.read_bytes(),
    )
    for seed in (0, 1):
        (project.path / f"tickets/tiny/seed-{seed}/round-02.npz").unlink()
    project.stage("prune", "extract_masks")
    after = tables.read(project.path / files.PRUNED / "history.csv")
    assert after.equals(before)  # round 1 is trained again, round 2 pruned from it
    assert density.read_bytes() == expected


def test_what_is_finished_is_saved_with_histories_and_taken_over_with_them(
    published, project, tmp_path
):
    runs, state = published.path / ".runs", project.path / "tickets/state"
    searched, environment = project.path / files.PRUNED / "history.csv", state / "environment.json"
    before = searched.read_bytes()
    # by seed: dense, two rounds, two variants of each
    assert long_run.save(project.path, runs, state) == 2 * (1 + 2 + 2 * 2)
    assert (state / "params.yaml").exists()
    project.change("retrain.masks", "tickets/state")
    project.stage("prune")
    assert searched.read_bytes() == before
    assert not list((project.path / ".runs").glob("*.finished"))  # nothing was trained
    project.change("train.learning_rate", 0.01)
    with contextlib.chdir(project.path):  # histories of other trainings are no part of it
        mask, _ = files.read_mask(files.round_file(files.MASKS, 0, 2))
        given_now = given.read(params.load(), 0, mask.shapes)
    assert (len(given_now.masks), given_now.records) == (2, {})
    project.change("train.learning_rate", 0.0012)
    elsewhere = tmp_path / "elsewhere"  # a run store without the rounds that were taken over
    elsewhere.mkdir()
    for path in runs.glob("*.finished"):
        if "pruning" not in store.read_facts(path)["name"]:
            shutil.copy(path, elsewhere)
    assert long_run.save(project.path, elsewhere, state) == 2 * (1 + 2 * 2)
    project.stage("prune")
    assert searched.read_bytes() == before
    path = state / "seed-0/history.csv.gz"
    table = pd.read_csv(path)
    longer = table[table["variant"] == "dense"].tail(1).assign(iteration=50)  # another machine's
    pd.concat([table, longer]).to_csv(path, index=False)
    long_run.save(project.path, elsewhere, state)
    assert pd.read_csv(path).equals(table)  # a run that is here replaces it whole
    environment.write_text(environment.read_text().replace("CPU", "GPU"))
    long_run.save(project.path, elsewhere, state)  # never in one table
    assert "GPU" in (state / "elsewhere/environment.json").read_text()
    assert pd.read_csv(state / "elsewhere/seed-0/history.csv.gz").equals(table)
    assert "CPU" in environment.read_text()
    environment.unlink()
    with pytest.raises(LotteryError, match=r"history\.csv\.gz: accepted: beside"):
        given.check(taking(state))


def test_a_state_is_gone_on_from_by_its_own_experiment_alone(tmp_path):
    own = tmp_path / "state/params.yaml"
    own.parent.mkdir()
    shutil.copy(ROOT / "experiments/smoke.yaml", own)
    text = own.read_text()
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("learning_rate: 1.2e-3", "learning_rate: 1.3e-3"))
    with pytest.raises(SystemExit, match="of another experiment"):
        long_run.prepare(tmp_path, other, None, None)
    assert not (tmp_path / "params.yaml").exists()
    other.write_text(text.replace("  rounds: 3", "  rounds: 4"))
    long_run.prepare(tmp_path, other, None, None)
    made = params.load(tmp_path / "params.yaml")
    assert (made.prune.rounds, made.retrain.masks) == (4, "tickets/state")


def test_what_a_stage_has_finished_is_kept_before_it_is_ended_and_removes_it(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/slow.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "pathlib.Path('unfinished').touch()\n"
        "try:\n    time.sleep(60)\nfinally:\n    pathlib.Path('unfinished').unlink()\n"
    )
    monkeypatch.setattr(long_run, "STAGES", ("slow",))
    unfinished, kept = tmp_path / "unfinished", []
    until = time.monotonic() + 5
    assert not long_run.compute(tmp_path, until, lambda: kept.append(unfinished.exists()))
    assert kept == [True]
    assert not unfinished.exists()


def test_tickets_are_an_artifact_of_the_repository_that_dvc_gets_by_name_and_tag(project, tmp_path):
    (project.path / "tickets/tiny").rename(project.path / "tickets/default")
    project.commit("tickets")
    project.run("git", "tag", "-a", "tickets@v1.0.0", "-m", "tickets v1.0.0")
    get = ("dvc", "artifacts", "get", str(project.path), "tickets")
    project.run(*get, "-o", str(tmp_path / "got"))
    assert bytes_of(tmp_path / "got") == bytes_of(project.path / "tickets/default")


@pytest.mark.parametrize(
    ("ending", "arrays", "says"),
    [
        ("npz", {"a/kernel": np.ones((2, 3), np.uint8)}, r"got uint8 \[2, 3\], 6 of its values"),
        (
            "npz",
            {"a": np.ones((3, 2), bool)},
            r"got bool \[3, 2\], .* transposed, as PyTorch has it",
        ),
        ("npz", {"a/kernel": np.zeros((2, 3), bool)}, "0 of its values not zero; .* at least one"),
        ("npz", {"b": np.ones((2, 3), bool)}, "a/kernel, b: in the file or in the network"),
        ("npz", dict.fromkeys(("a", "a/kernel"), np.ones((2, 3), bool)), r"\.npz: a: there twice"),
        ("npz", None, r"mask\.npz: .*accepted: an npz or safetensors file"),
        ("safetensors", {"b": np.ones((2, 3), bool)}, "a/kernel, b: in the file or in the network"),
        ("bin", None, r"mask\.bin: got \.bin; accepted: an npz or safetensors"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_what_would(tmp_path, ending, arrays, says):
    path = tmp_path / f"mask.{ending}"
    if arrays is None:
        path.write_text("no arrays")
    elif ending == "npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)
    with pytest.raises(LotteryError, match=says):
        given.read(taking(path), 0, {"a/kernel": (2, 3)})


def taking(path, rounds=(2,)):
    loaded = params.load(ROOT / "experiments/smoke.yaml")
    retrain = loaded.retrain.model_copy(update={"masks": str(path), "rounds": list(rounds)})
    prune = loaded.prune.model_copy(update={"rounds": 2})
    return loaded.model_copy(update={"retrain": retrain, "prune": prune})


def test_a_file_is_the_mask_of_every_seed_and_layers_may_go_by_their_own_names(tmp_path):
    keep = np.array([[True, False, True], [False, False, True]])
    np.savez(tmp_path / "mask.npz", a=keep)
    for seed in (0, 7):
        found = given.read(taking(tmp_path / "mask.npz"), seed, {"a/kernel": (2, 3)})
        assert found.masks.keys() == {2}
        assert np.array_equal(found.masks[2].layers["a/kernel"], keep)


def test_of_a_folder_the_pruned_rounds_are_taken_with_layers_in_the_networks_order(tmp_path):
    shapes = {"b/kernel": (2, 4), "a/kernel": (4, 2)}
    for number in (1, 2, 3):
        given.write_file(
            given.round_file(tmp_path, 0, number),
            Mask({"a": np.ones((4, 2), np.bool_), "b": np.eye(2, 4, dtype=np.bool_)}),
        )
    found = given.read(taking(tmp_path), 0, shapes).masks
    assert list(found) == [1, 2]
    assert list(found[2].layers) == list(shapes)
    units = taking(tmp_path).prune.model_copy(update={"pattern": "unit"})
    with pytest.raises(LotteryError, match=r"prune\.pattern: got unit; accepted: weight, as"):
        given.read(taking(tmp_path).model_copy(update={"prune": units}), 0, shapes)


@pytest.fixture(autouse=True)
def tracked(tmp_path, monkeypatch):
    """A folder, the present one, in which everything is a dependency of prune."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {prune: {deps: [.]}}")


def test_what_is_missing_or_not_tracked_is_named_before_anything_is_trained(tmp_path):
    with pytest.raises(LotteryError, match="which is not there"):
        given.check(taking(tmp_path / "nowhere"))
    (tmp_path / "dvc.yaml").write_text(
        "stages: {prune: {deps: [.]}, own: {outs: [other, nowhere: {cache: false}]}}"
    )
    given.check(taking(tmp_path / "nowhere"))  # which a stage of one's own is to make
    (tmp_path / "dvc.yaml").write_text("stages: {prune: {deps: [tickets]}}")
    for refuse in (given.check, lambda of: given.read(of, 0, {"a/kernel": (3,)})):
        with pytest.raises(
            LotteryError, match=r"nobody would see; accepted: .* to the deps of prune"
        ):
            refuse(taking(tmp_path))
    (tmp_path / "dvc.yaml").write_text("stages: {prune: {deps: [.]}}")
    (tmp_path / "seed-0").mkdir()
    np.savez(tmp_path / "seed-0/round-01.npz", a=np.ones(3, np.bool_))
    with pytest.raises(LotteryError, match="has no mask of seed 99, round"):
        given.check(taking(tmp_path).model_copy(update={"seeds": (0, 99)}))


def test_the_files_of_a_folder_are_one_of_each_round_that_is_asked_for(tmp_path):
    def refused(seed, says, **prune):
        found = taking(tmp_path)
        found = found.model_copy(update={"prune": found.prune.model_copy(update=prune)})
        with pytest.raises(LotteryError, match=says):
            given.read(found, seed, {"a/kernel": (3,)})

    def write(name):
        given.write_file(tmp_path / name, Mask.full({"a/kernel": (3,)}))

    refused(3, "has no mask of seed 3, round 2")
    write("seed-0/round-06.npz")
    (tmp_path / "seed-0/._round-06.npz").touch()  # as macOS leaves
    (tmp_path / "params.yaml").write_text("learning_rate: 0.1")  # another program's
    refused(0, "has no mask of seed 0, round 2")  # which the search would not get to
    (tmp_path / "seed-0/round-06.npz").rename(tmp_path / "seed-0/ticket.npz")
    refused(0, r"ticket\.npz: accepted: round-NN\.npz")
    for name in ("round-02.npz", "round-2.npz"):
        write(f"seed-1/{name}")
    refused(1, r"round-02\.npz: accepted: .*one of each round")
    write("seed-2/round-02.npz")
    for recipe, by in (("rates: {}", "magnitude"), ("criterion: synflow", "synflow")):  # a default
        (tmp_path / "params.yaml").write_text(f"prune: {{{recipe}}}")
        refused(2, rf"prune\.criterion: got snip; accepted: {by}, by", criterion="snip")


def test_a_copy_of_the_dataset_lies_where_the_clone_that_verifies_sees_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe, row, _ = tickets.ticket("mnist-lenet", seed=1, round_=9, source=Path("/home/me/mnist"))
    assert recipe["data"]["source"] == "data/own/mnist"
    assert (recipe["seeds"], recipe["retrain"]["rounds"], row["seed"]) == ([1], [9], 1)
    recipe, row, others = tickets.ticket("mnist-lenet", seed=2)  # of the last round there is
    last = tables.read_table(tickets.FOLDER / "mnist-lenet/tickets.csv")["round"].max()
    assert (row["seed"], recipe["retrain"]["rounds"]) == (2, [last])
    assert others["round"].tolist() == [last] * 8
    with pytest.raises(LotteryError, match="--source: got /no/where, which is not there"):
        tickets.verified("mnist-lenet", None, None, "/no/where")

    def reproduced(folder, recipe, *stages, source):
        """What git says outside a repository, and which copy is asked for."""
        stderr = f"fatal: {source.name}, {json.loads(recipe)['data']['source']}\n"
        raise subprocess.CalledProcessError(128, ["git"], stderr=stderr)

    monkeypatch.setattr(tickets, "reproduced", reproduced)
    monkeypatch.chdir("tests")
    monkeypatch.setattr(tickets, "FOLDER", ROOT / "tickets")
    with pytest.raises(LotteryError, match=r"git: exit status 128 fatal: tests, data/own/tests$"):
        tickets.verified("mnist-lenet", None, None, ".")


@functools.cache
def start_of(network, seed):
    return tickets.sha256_of(models.initialise(network, "initialisation", seed)[0])


def test_the_starts_of_published_tickets_come_out_bit_for_bit():
    for name, seeds, shape in (
        ("default", 23, (28, 28, 1)),
        ("mnist-lenet", 8, (28, 28, 1)),
        ("cifar10-conv4-evening", 2, (32, 32, 3)),
        ("cifar10-conv4-notebook", 5, (32, 32, 3)),
    ):
        folder = ROOT / "tickets" / name
        network = params.Network(params.load(folder / "params.yaml").model, shape, 10)
        table = tables.read_table(folder / "tickets.csv").drop_duplicates("seed")
        assert len(table) == seeds
        for seed, expected in zip(table["seed"], table["start_sha256"], strict=True):
            assert start_of(network, int(seed)) == expected, (name, seed)


def test_a_published_ticket_of_the_default_experiment_reaches_its_accuracy(
    empty_clone, monkeypatch
):
    shutil.copytree(ROOT / "tickets/default", empty_clone.path / "tickets/default")
    monkeypatch.chdir(empty_clone.path)
    recipe, row, others = tickets.ticket("default", seed=3)
    empty_clone.write(recipe)
    empty_clone.stage("fetch", "train_dense", "prune", "extract_masks", "retrain")
    facts = files.read_json(files.DATASET / "dataset.json")
    assert (facts["test"], facts["own_test"]) == (1000, False)
    runs = tickets.reached(files.RETRAINED, params.load(), facts)
    said = tickets.compared(row, others, float(runs["test_accuracy"].iloc[0]))
    assert said.endswith(("the same", "within the range of its round, on other arithmetic"))


def test_a_card_says_how_many_runs_diverged():
    facts = {
        "name": "digits",
        "title": "Digits",
        "image_shape": [8, 8, 1],
        "class_counts": [9] * 10,
    }
    rows = pd.DataFrame({"round": 1, "seed": range(3), "weights_remaining": 0.5})
    rows = rows.assign(test_accuracy=[0.9, 0.9, 0.1], early_stop_iteration=[20, 20, np.nan])
    card = tickets.card("some", params.load(ROOT / "params.yaml"), facts | {"files": {}}, rows)
    assert "| 3 | 63.33 % | 46.19 | 10.00 to 90.00 % | 20; 1 diverged, as guesses |" in card


def test_a_ticket_reaches_the_published_accuracy_or_one_of_its_round():
    others = pd.DataFrame({"test_accuracy": [0.9, 0.92, 0.94]})
    row = others.iloc[1]
    assert tickets.compared(row, others, 0.92 + 1e-7).endswith(", published 92.00%: the same")
    near = tickets.compared(row, others, 0.921)
    assert near.startswith("test accuracy 92.10%, published 92.00% (others of its round 90.00% to")
    assert near.endswith("within the range of its round, on other arithmetic")
    for other in (0.8999, 0.9401):
        with pytest.raises(LotteryError, match="not what such tickets reach"):
            tickets.compared(row, others, other)
