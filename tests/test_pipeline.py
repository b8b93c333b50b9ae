"""The pipeline as a user runs it: real `dvc repro`, tiny experiments, temporary clones."""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clones import STAGES
from ruamel.yaml import YAML

from lottery import code
from lottery.artifacts import files
from lottery.masks import surviving_count

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_subjects_that_it_imports(stage):
    deps = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["deps"]
    parts = [code.source(module).relative_to(ROOT).parts for module in code.read(f"stages.{stage}")]
    subjects = {"/".join(p[:2]) for p in parts if p[1] != "__init__.py"}
    assert {dep for dep in deps if dep.startswith(("lottery", "stages"))} == subjects
    assert ("requirements.txt" in deps) == (stage != "extract_masks")


def test_the_modules_that_compute_a_run_are_all_that_do():
    """What else they import hands them values, which the fingerprint holds, or keeps and shows
    results.
    """
    imported = code.read(*code.COMPUTE_A_RUN)
    values = ("artifacts", "datasets", "errors", "params")
    beside = ("code", "running.store", "running.machine", "running.progress")
    names = tuple(f"lottery.{name}" for name in values + beside)
    packages = {n for n in imported if code.source(n).name == "__init__.py"}
    rest = {n for n in imported if not n.startswith(names)} - packages
    assert rest | {"lottery.params.early_stopping"} == set(code.COMPUTE_A_RUN)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("def f(x):\n    return x + 1", 'def f(x):\n    "Doc."\n    return x + 1  # comment', True),
        ("x = 1", 'x = 1\n"""What x is."""', True),
        ("x = (1,\n  2)", "x = (1, 2)", True),
        ("x = a + b", "x = a - b", False),
        ("x = 'text'", "x = 'other'", False),
    ],
)
def test_code_that_differs_in_words_means_the_same(one, other, same):
    assert (code.meaning(ast.parse(one)) == code.meaning(ast.parse(other))) == same


CHANGES = [
    ("seeds", [0, 1, 2], ["train_dense", "prune", "extract_masks", "retrain", "report"]),
    ("seeds", [0], ["train_dense", "prune", "extract_masks", "retrain", "report"]),
    ("train.learning_rate", 0.002, ["train_dense", "prune", "extract_masks", "retrain", "report"]),
    ("prune.rounds", 3, ["prune", "extract_masks", "retrain", "report"]),
    ("retrain.variants", ["ticket", "random_reinit", "random_mask"], ["retrain", "report"]),
    ("report.confidence", 0.9, ["report"]),
]


def _names(listing):
    return [
        "seed" + line.rpartition("  seed")[2] for line in listing.splitlines() if "  seed" in line
    ]


@pytest.mark.parametrize(("key", "value", "rerun"), CHANGES)
def test_a_change_reruns_only_what_it_affects(clone, key, value, rerun):
    clone.change(key, value)
    before = clone.run("python", "-m", "lottery", "runs").stdout
    assert clone.repro() == rerun
    if value == [0, 1, 2]:  # the runs of the others come from the run store
        after = clone.run("python", "-m", "lottery", "runs").stdout
        added = set(_names(after)) - set(_names(before))
        assert added == {name for name in _names(after) if name.startswith("seed 2")}
        assert len(_names(after)) - len(_names(before)) == 1 + 2 + 4
    if key == "seeds":  # nothing stale stays
        for folder in ("data/dense", "data/pruned", "data/masks"):
            seeds = {
                int(p.name.removeprefix("seed-")) for p in (clone.path / folder).glob("seed-*")
            }
            assert seeds == set(value)
        for table in (
            "data/dense/history.csv",
            "data/retrained/history.csv",
            "data/masks/density.csv",
        ):
            assert set(pd.read_csv(clone.path / table)["seed"]) == set(value)
        metrics = json.loads((clone.path / "reports/metrics.json").read_text())
        assert metrics["seeds"] == len(value)
        assert f"{len(value)} seeds" in (clone.path / "reports/report.md").read_text()


def test_another_split_of_the_same_images_is_another_run(clone):
    clone.change("data.split", "shared")
    out = clone.run("dvc", "repro", "train_dense").stdout
    assert out.count("seed 1, dense: 40 iterations") == 1  # seed 0 has the shared split anyway
    assert out.count("seed 0, dense: from the run store") == 1


def test_a_comment_in_params_reruns_nothing_and_the_second_repro_neither(clone):
    assert clone.repro() == []
    (clone.path / "params.yaml").write_text("# a comment\n" + clone.params)
    assert clone.repro() == []


def test_another_number_of_workers_and_a_users_own_settings_give_the_same_bytes(
    finished_clone, empty_clone, tmp_path
):
    keras = {"floatx": "float64", "epsilon": 0.001, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(keras))
    (tmp_path / "matplotlibrc").write_text("text.hinting_factor: 1\nfont.size: 30\n")
    own = {"KERAS_HOME": str(tmp_path), "MATPLOTLIBRC": str(tmp_path)}
    assert empty_clone.repro(LOTTERY_WORKERS="1", **own) == STAGES
    for name in ("dvc.lock", "reports/metrics.json", "reports/report.md"):
        assert (empty_clone.path / name).read_bytes() == (
            finished_clone.path / name
        ).read_bytes(), name
    names = finished_clone.files("reports")
    assert len([n for n in names if n.startswith("figures/")]) == 8
    for name in names:
        assert (empty_clone.path / "reports" / name).read_bytes() == (
            finished_clone.path / "reports" / name
        ).read_bytes(), name


def test_deleting_the_run_store_costs_time_but_changes_nothing(clone):
    before = (clone.path / "dvc.lock").read_bytes()
    for path in (clone.path / ".runs").iterdir():
        path.unlink()
    assert clone.repro("--force", "-s", "prune") == ["prune"]
    assert (clone.path / "dvc.lock").read_bytes() == before


def test_artifacts_hold_the_invariants(finished_clone, monkeypatch):
    monkeypatch.chdir(finished_clone.path)
    for seed in (0, 1):
        rewound, facts = files.read_tensors(files.DENSE / f"seed-{seed}" / "rewind.safetensors")
        initial, _ = files.read_tensors(files.DENSE / f"seed-{seed}" / "initial.safetensors")
        assert {n: v.tobytes() for n, v in rewound.items()} == {
            n: v.tobytes() for n, v in initial.items()
        }
        assert set(facts["kinds"].values()) == {"dense", "output"}
        before = None
        for round_ in (1, 2):
            weights, mask, _ = files.read_masked_weights(
                files.round_file(files.PRUNED, seed, round_)
            )
            extracted, _ = files.read_mask(files.round_file(files.MASKS, seed, round_))
            for name, keep in mask.layers.items():
                rate = {"dense": 0.2, "output": 0.1}[facts["kinds"][name]]
                assert mask.counts[name] == surviving_count(keep.size, rate, round_)
                assert not weights[name][~keep].any()
                assert np.array_equal(extracted.layers[name], keep)
            assert before is None or mask.within(before)
            before = mask


def test_histories_cover_every_run_and_evaluation(finished_clone):
    retrained = pd.read_csv(finished_clone.path / "data/retrained/history.csv")
    runs = retrained.groupby(["seed", "variant", "round"])
    assert len(runs) == 2 * 2 * 2
    assert all(list(group["iteration"]) == [0, 10, 20, 30, 40] for _, group in runs)
    assert retrained.loc[retrained["iteration"] > 0].notna().all(axis=None)
    assert retrained["test_accuracy"].between(0, 1).all()
    dense = pd.read_csv(finished_clone.path / "data/dense/history.csv")
    last = dense[dense["iteration"] == 40]
    assert last["test_accuracy"].min() > 0.6  # ten classes: it has learnt


def test_results_say_what_they_were_computed_on(finished_clone):
    (environment,) = json.loads(
        (finished_clone.path / "data/retrained/environment.json").read_text()
    )
    assert set(environment) == {"device", "threads", "versions"}  # the CPU's name is no result
    libraries = {"tensorflow", "tf-keras", "tensorflow-model-optimization", "numpy"}
    assert set(environment["versions"]) == libraries
    assert environment["device"].split()[0] in ("CPU", "GPU")
    assert environment["threads"] == 1
    assert environment["device"] in (finished_clone.path / "reports/report.md").read_text()


def test_dvc_diffs_read_well(clone):
    clone.change("report.margin", 0.5)
    clone.change("report.confidence", 0.8)
    clone.repro()
    params = json.loads(clone.run("dvc", "params", "diff", "--json").stdout)
    assert params["params.yaml"]["report.margin"] == {"old": 0.005, "new": 0.5, "diff": 0.495}
    metrics = clone.run("dvc", "metrics", "diff", "--all", "--md").stdout
    assert len(metrics.splitlines()) <= 12  # ten keys, flat
    assert max(map(len, metrics.splitlines())) <= 100
    assert re.search(r"\| reports/metrics.json \| verdict +\| inconclusive", metrics)
    html = Path(
        clone.run("dvc", "plots", "diff", "HEAD", "workspace")
        .stdout.strip()
        .removeprefix("file://")
    )
    page = html.read_text()
    for title in (
        "Test accuracy at early stop",
        "Early-stop iteration",
        "Test accuracy during training",
    ):
        assert title in page
    assert '"rev": "workspace"' in page
    assert '"rev": "HEAD"' in page
    assert "DVC_METRIC" not in page


def test_experiments_run_and_are_listed(clone):
    done = clone.run(
        "dvc", "exp", "run", "-n", "wide-margin", "-S", "report.margin=0.3", check=False
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(clone.run("dvc", "exp", "show", "--json").stdout)
    assert "wide-margin" in json.dumps(shown)
    assert "report.margin" in clone.run("dvc", "exp", "show", "--md").stdout or "0.3" in json.dumps(
        shown
    )


def test_results_of_earlier_parameters_come_back_without_computing(clone):
    before = clone.params
    clone.change("train.learning_rate", 0.002)
    assert clone.repro("train_dense") == ["train_dense"]
    (clone.path / "params.yaml").write_text(before)
    assert clone.repro("train_dense") == []  # from DVC's run-cache


def test_a_run_that_diverges_is_an_outcome_and_named(clone):
    clone.change("train.optimizer", "sgd")
    clone.change("train.learning_rate", 1e30)
    out = clone.run("dvc", "repro", "train_dense").stdout
    assert "10 iterations, diverged" in out
    for seed in (0, 1):
        assert f"train_dense: diverged at iteration 10: seed {seed}, dense\n" in out
    again = clone.run("dvc", "repro", "--force", "train_dense").stdout
    assert again.count("from the run store, diverged") == 2
    history = pd.read_csv(clone.path / "data/dense/history.csv")
    assert history.groupby("seed").nth(-1)["validation_loss"].isna().all()


@pytest.mark.parametrize(
    ("damage", "stage", "message"),
    [
        (
            lambda p: (p / "data/dataset/images.npy").unlink(),
            "train_dense",
            "images.npy: not there",
        ),
        (
            lambda p: (p / "data/dataset/labels.npy").write_bytes(b"\x93NUMPY"),
            "prune",
            "labels.npy: cannot be read as an array, or truncated",
        ),
        (
            lambda p: np.save(p / "data/dataset/images.npy", np.zeros((250, 9, 8, 1), np.uint8)),
            "retrain",
            "images.npy: holds uint8 [250, 9, 8, 1], expected uint8 [1797, 8, 8, 1]",
        ),
        (
            lambda p: (p / "data/masks/density.csv").unlink(),
            "report",
            "density.csv: not there",
        ),
    ],
)
def test_a_damaged_artifact_is_named_with_what_to_do(clone, damage, stage, message):
    damage(clone.path)
    done = clone.run("python", "-m", f"stages.{stage}", check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "dvc repro" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_bad_parameters_before_it_computes(empty_clone, stage):
    empty_clone.change("prune.rates", {"conv": 0.1, "dense": 1.2, "output": 0.1})
    done = empty_clone.run("python", "-m", f"stages.{stage}", check=False)
    assert done.returncode == 1
    assert done.stderr == f"{stage}: params.yaml: prune.rates.dense: got 1.2; accepted: below 1\n"
    assert done.stdout == ""
    assert empty_clone.files("data") == {".gitignore"}


@pytest.mark.parametrize("stage", STAGES)
def test_help_explains_the_stage(stage, empty_clone):
    done = empty_clone.run("python", "-m", f"stages.{stage}", "--help")
    assert "Reads" in done.stdout
    assert "Writes" in done.stdout


def test_the_training_stages_say_what_they_compute_on_what_and_what_came_out(clone):
    shutil.rmtree(clone.path / ".runs")
    out = clone.run("dvc", "repro", "--force", "--single-item", "retrain").stdout
    lines = [line for line in out.splitlines() if line.startswith("retrain: ")]
    assert lines[0] == "retrain: 8 runs of 40 iterations, 1 at a time"
    assert [line[: len("retrain: 1/8 seed")] for line in lines[1:9]] == [
        f"retrain: {n}/8 seed" for n in range(1, 9)
    ]
    history = pd.read_csv(clone.path / "data/retrained/history.csv")
    ends = 100 * history.groupby(["variant", "seed", "round"])["test_accuracy"].last()
    assert lines[9] == "retrain: test accuracy at the end, mean and range:"
    for line, variant in zip(lines[10:12], ("random_reinit", "ticket       "), strict=True):
        of = ends[variant.strip()]
        expected = f"{of.mean():6.2f} % [{of.min():.2f}, {of.max():.2f}] 4 runs"
        assert line == f"retrain: {variant}  {expected}"
    assert lines[12].startswith("retrain: computed on ")
    assert len(lines) == 13


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
    history = pd.read_csv(path).query("seed == 1").set_index("iteration").iloc[:, 3:].stack()
    assert shown == pytest.approx(history.to_dict(), rel=1e-6)
