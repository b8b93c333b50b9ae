"""What an experiment will cost: known by hand, counted in a real run, and said."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pandas as pd
import pytest
from clones import ROOT, TINY
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from lottery import params as parameters
from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.running import executors, store
from lottery.tools import costs
from lottery.tools.costs import Costs, Images, Machine, evaluations
from lottery.tools.plan import describe, duration, images_of, notes, size
from lottery.tools.workload import Stage, Work, plan

SMALL = Images((8, 8, 1), 10, training=1000, validation=200, test=300)
ALONE = Costs(
    1, start=5, run=0, iteration=0.01, evaluated_image=0, mask=0, first_mask=0, initialisation=0
)
PAIR = dataclasses.replace(ALONE, workers=2, start=7, iteration=0.02)
MACHINE = Machine(
    (ALONE, PAIR),
    stage=1,
    once=4,
    extracted_mask=0,
    compared_masks=0,
    sizes={"dense1/kernel": 800, "dense1/bias": 10, "output/kernel": 160},
    kinds={"dense1/kernel": "dense", "output/kernel": "output"},
    device="CPU",
    gpus=0,
    memory=10**9,
)


def changed(**changes):
    """TINY with keys set, as in ``prune__rounds=4``."""
    content = YAML(typ="safe").load(TINY)
    for key, value in changes.items():
        *sections, last = key.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    return parameters.validate(content)


def stages(images=SMALL, **changes):
    return {stage.name: stage for stage in plan(changed(**changes), images).stages}


def simulated(chains, workers):
    """Turns until the chains, given as lengths, have ended: what executors.execute does where runs take equally long."""
    waiting, running, turns = deque(chains), [], 0
    while waiting or running:
        running += [waiting.popleft() for _ in range(min(workers - len(running), len(waiting)))]
        turns += 1
        waiting.extend(left - 1 for left in running if left > 1)
        running = []
    return turns


def turns(chains, workers):
    work = Work(runs=sum(chains))
    return Stage("a stage", len(chains), max(chains), work, work).turns(workers)


def test_of_three_chains_of_four_runs_two_workers_compute_six_runs_each():
    assert turns([4, 4, 4], 1) == 12
    assert turns([4, 4, 4], 2) == 6
    assert turns([4, 4, 4], 3) == 4
    assert turns([4, 4, 4], 100) == 4


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 50))
def test_the_closed_form_is_what_the_executor_does_with_chains_of_one_length(
    chains, depth, workers
):
    assert turns([depth] * chains, workers) == simulated([depth] * chains, workers)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_and_with_single_runs_before_pairs_of_them(single, pairs, workers):
    assert turns([1] * single + [2] * pairs, workers) == simulated(
        [1] * single + [2] * pairs, workers
    )


@pytest.mark.parametrize(
    ("start", "stop", "every", "expected"),
    [(0, 600, 50, 13), (30, 100, 50, 3), (50, 100, 50, 2), (0, 10, 3, 5), (9, 10, 3, 2)],
)
def test_a_run_is_evaluated_at_its_start_at_each_multiple_and_at_its_end(
    start, stop, every, expected
):
    assert evaluations(start, stop, every) == expected


def test_three_seeds_and_four_rounds():
    found = stages(seeds=[0, 1, 2], prune__rounds=4)
    dense, prune, retrain = found.values()
    assert list(found) == ["train_dense", "prune", "retrain"]
    assert (dense.chains, dense.depth) == (3, 1)
    assert dense.total == Work(runs=3, iterations=120, evaluations=15, masks=0, initialisations=3)
    assert (prune.chains, prune.depth) == (3, 4)
    assert prune.total == Work(runs=12, iterations=480, evaluations=60, masks=12, initialisations=0)
    assert (retrain.chains, retrain.depth) == (24, 1)  # two variants
    assert retrain.total == Work(
        runs=24, iterations=960, evaluations=120, masks=0, initialisations=12
    )


def test_what_is_rewound_to_an_iteration_starts_there_and_fresh_weights_start_at_0():
    found = stages(seeds=[0], prune__rounds=1, prune__rewind_iteration=15)
    assert found["train_dense"].total.iterations == 40
    assert found["prune"].total.iterations == 25
    assert found["retrain"].total.iterations == 25 + 40
    assert found["retrain"].longest.iterations == 40
    assert found["prune"].total.evaluations == 4  # at 15, 20, 30 and 40


@pytest.mark.parametrize("changes", [{"prune__schedule": "one_shot"}, {"prune__criterion": "snip"}])
def test_one_shot_and_pruning_at_initialisation_make_masks_and_train_nothing(changes):
    prune = stages(seeds=[0, 1, 2], prune__rounds=4, **changes)["prune"]
    assert (prune.chains, prune.depth) == (3, 4)
    assert prune.total == Work(masks=12)
    machine = dataclasses.replace(
        MACHINE, costs=(dataclasses.replace(ALONE, mask=1, first_mask=0.5),)
    )
    assert prune.wall_seconds(machine, 2, 500) == pytest.approx(5.5 + 6)


def test_linear_mode_connectivity_adds_two_runs_after_one_another_and_a_line_for_each_network():
    plain = stages(seeds=[0, 1, 2], prune__rounds=4)["retrain"]
    lines = stages(seeds=[0, 1, 2], prune__rounds=4, retrain__analysis="linear_mode_connectivity")[
        "retrain"
    ]
    networks = 3 * (1 + 4)
    assert (lines.chains, lines.depth) == (plain.chains + networks, 2)
    assert lines.total.runs == plain.total.runs + 2 * networks
    assert lines.total.iterations == plain.total.iterations + 2 * networks * 40
    assert lines.total.evaluations == plain.total.evaluations + networks * (2 * 5 + 78)
    # 30 points on 1,000 training and 300 test images; an evaluation is of 500


def test_a_dense_network_trained_longer_takes_what_finding_and_training_the_ticket_does():
    found = stages(
        seeds=[0, 1], prune__rounds=3, retrain__variants=["ticket", "small_dense", "dense_longer"]
    )["retrain"]
    longer = [2 * 40, 3 * 40, 4 * 40]  # dense, the rounds before, the ticket
    assert found.total.iterations == 2 * (3 * 40 + 3 * 40 + sum(longer))
    assert found.longest.iterations == 160
    assert found.total.evaluations == 2 * (3 * 5 + 3 * 5 + 9 + 13 + 17)
    assert found.total.initialisations == 2 * 3
    rewound = stages(
        prune__rounds=3, prune__rewind_iteration=10, retrain__variants=["dense_longer"]
    )["retrain"]
    assert (
        rewound.longest.iterations == 40 + 2 * 30 + 30 - 10
    )  # to where the budget ends, from iteration 10
    connected = {
        "retrain__analysis": "linear_mode_connectivity",
        "retrain__variants": ["dense_longer"],
    }
    assert stages(prune__rounds=3, **connected)["retrain"].longest.iterations == 160


def test_a_variant_of_ones_own_counts_as_the_ticket():
    assert (
        stages(retrain__variants=["ticket", "own.parts:variant"])["retrain"].total
        == stages(retrain__variants=["ticket", "random_mask"])["retrain"].total
    )


def test_wall_time_is_turns_times_a_run_and_the_start_of_each_stage():
    p = plan(changed(seeds=[0, 1, 2], prune__rounds=4), SMALL)
    outside = 4 + 6 * 1
    assert p.wall_seconds(MACHINE, 1) == pytest.approx(outside + 3 * 5 + (3 + 12 + 24) * 0.4)
    assert p.wall_seconds(MACHINE, 2) == pytest.approx(outside + 3 * 7 + (2 + 6 + 12) * 0.8)
    elsewhere = p.wall_seconds(MACHINE, 3)  # as slow each as two on this machine
    assert elsewhere == pytest.approx(outside + 3 * 7 + (1 + 4 + 8) * 0.8)
    assert p.most_workers == 24
    assert (
        p.wall_seconds(MACHINE, 24) == p.wall_seconds(MACHINE, 1000) < p.wall_seconds(MACHINE, 23)
    )


def test_core_seconds_are_those_of_runs_and_starts_times_threads():
    p = plan(changed(seeds=[0, 1, 2], prune__rounds=4), SMALL)
    assert p.core_seconds(MACHINE, p.stages[1]) == pytest.approx(12 * 0.8 + 2 * 7)
    threaded = plan(changed(seeds=[0, 1, 2], prune__rounds=4, train__threads=2), SMALL)
    assert threaded.core_seconds(MACHINE, threaded.stages[1]) == pytest.approx(
        2 * (12 * 0.8 + 2 * 7)
    )
    shared = dataclasses.replace(MACHINE, gpus=1)  # by two workers
    assert p.core_seconds(shared, p.stages[1]) == pytest.approx((12 * 0.8 + 2 * 7) / 2)


def test_costs_between_those_measured_are_on_the_line_between_them():
    machine = dataclasses.replace(MACHINE, costs=(ALONE, dataclasses.replace(PAIR, workers=5)))
    assert [machine.at(n).iteration for n in (1, 2, 5, 9)] == pytest.approx(
        [0.01, 0.0125, 0.02, 0.02]
    )


def test_100_000_runs_are_planned_in_less_than_a_second():
    big = changed(
        seeds=list(range(1000)),
        prune__rounds=25,
        retrain__variants=["ticket", "random_reinit", "random_mask"],
    )
    began = time.process_time()
    p = plan(big, SMALL)
    text = describe(p, MACHINE, [1, 1000, 75_000], linked=False)
    assert time.process_time() - began < 1
    assert "101,000 runs" in text
    assert p.most_workers == 75_000


def test_with_early_stopping_the_figures_are_called_upper_bounds():
    stopping = {"patience": 2, "min_delta": 0.0}
    texts = [
        describe(plan(changed(train__early_stopping=rule), SMALL), MACHINE, [1], linked=False)
        for rule in (None, stopping)
    ]
    assert ["upper bounds" in text for text in texts] == [False, True]
    assert [line for line in texts[1].splitlines() if "upper bounds" not in line] == texts[
        0
    ].splitlines()


@pytest.mark.parametrize(
    ("instructions", "precision", "gpus", "kind", "said"),
    [
        ("avx2", "bfloat16", 0, "conv", True),
        ("avx2", "bfloat16", 0, "dense", False),
        ("avx2", "float32", 0, "conv", False),
        ("avx2", "bfloat16", 1, "conv", False),
        ("avx2 avx512f", "bfloat16", 0, "conv", False),
        ("avx2 avx512f avx512_bf16 amx_tile amx_bf16", "bfloat16", 0, "conv", False),
    ],
)
def test_bfloat16_on_a_cpu_without_its_kernels_is_said_to_be_slow(
    instructions, precision, gpus, kind, said
):
    found = notes(
        changed(train__precision=precision),
        dataclasses.replace(MACHINE, gpus=gpus, kinds={"a/kernel": kind}),
        f"A CPU (family 25, model 1; {instructions})",
    )
    assert [("float32" in note) for note in found] == [True] * said


def test_durations_and_sizes_are_read_at_a_glance():
    found = [duration(s) for s in (4.4, 90, 4800, 47 * 3600, 100 * 86400)]
    assert found == ["4 s", "1 min 30 s", "1 h 20 min", "1 d 23 h", "100 d 0 h"]
    assert [size(n) for n in (4400, 62.7e6, 1.64e9, 2e12)] == [
        "4.4 kB",
        "62.7 MB",
        "1.6 GB",
        "2,000.0 GB",
    ]


# Against a real run


def test_runs_iterations_and_evaluations_are_those_of_a_real_run(finished_clone):
    params = parameters.load(finished_clone.path / "params.yaml")
    p = plan(params, images_of(params))
    for stage in p.stages:
        used = json.loads(
            (finished_clone.path / store.FOLDER / f"used-by-{stage.name}.json").read_text()
        )
        folder = {"train_dense": "dense", "prune": "pruned", "retrain": "retrained"}[stage.name]
        history = pd.read_csv(finished_clone.path / "data" / folder / "history.csv")
        by_run = history.groupby(["seed", "variant", "round"])["iteration"]
        assert stage.total.runs == len(used) == len(by_run)
        assert stage.total.evaluations == len(history)
        assert stage.total.iterations == (by_run.max() - by_run.min()).sum()


def test_disk_is_that_of_a_real_run_within_25_percent(finished_clone):
    params = parameters.load(finished_clone.path / "params.yaml")
    weights, facts = files.read_tensors(
        finished_clone.path / "data/dense/seed-0/initial.safetensors"
    )
    sizes = {name: value.size for name, value in weights.items()}
    machine = dataclasses.replace(MACHINE, sizes=sizes, kinds=facts["kinds"])
    predicted = plan(params, images_of(params)).disk_bytes(machine, 2)
    for folder in ("data/", ".dvc/cache", ".runs/"):
        taken = sum(
            p.stat().st_size for p in (finished_clone.path / folder).rglob("*") if p.is_file()
        )
        assert predicted[folder] == pytest.approx(taken, rel=0.25), folder


# The dataset, and the costs kept


def test_images_of_a_known_dataset_are_the_catalogues():
    assert images_of(changed()) == Images((8, 8, 1), 10, training=1250, validation=250, test=297)


def test_an_image_folder_is_known_once_it_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = changed(data={"name": "image_folder", "source": "/images", "validation_size": 20})
    with pytest.raises(LotteryError, match="run `dvc repro fetch` first"):
        images_of(params)
    facts = {"name": "image_folder", "image_shape": [16, 12, 3], "classes": 4}
    counts = {"train": 100, "validation": 20, "test": 24}
    files.write_json(files.DATASET / "dataset.json", {**facts, "counts": counts})
    assert images_of(params) == Images((16, 12, 3), 4, training=100, validation=20, test=24)
    files.write_json(files.DATASET / "dataset.json", facts)
    with pytest.raises(LotteryError, match=r"dataset\.json: lacks a field"):
        images_of(params)


def run_plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lottery", "plan", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["missing.yaml"], 1, "plan: missing.yaml: cannot be read"),
        (
            ["wrong.yaml"],
            1,
            "plan: wrong.yaml: prune.rounds: got 0; accepted: at least 1",
        ),
        (["folder.yaml"], 1, "run `dvc repro fetch` first"),
        (["--workers", "0"], 2, "got '0'; accepted: a whole number from 1 up"),
    ],
)
def test_mistakes_are_plain_lines(tmp_path, arguments, status, said):
    (tmp_path / "wrong.yaml").write_text(TINY.replace("rounds: 2", "rounds: 0"))
    folder = "{name: image_folder, source: images"
    (tmp_path / "folder.yaml").write_text(TINY.replace("{name: digits, source: null", folder))
    done = run_plan(tmp_path, *arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_costs_are_measured_once_with_real_workers_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "SECONDS", 0.1)
    monkeypatch.setenv("LOTTERY_WORKERS", "1")
    params = changed()
    measured = costs.costs_here(params, images_of(params))
    assert measured.sizes["dense1/kernel"] == 64 * 300
    assert measured.kinds == {
        "dense1/kernel": "dense",
        "dense2/kernel": "dense",
        "output/kernel": "output",
    }
    assert all(
        value > 0
        for name, value in vars(measured.costs[0]).items()
        if name not in ("run", "first_mask")
    )
    kept = list(Path(".runs").iterdir())
    assert [path.name[:5] for path in kept] == ["plan-"]
    assert store.entries() == []  # it is no run

    def never(*_, **__):
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(executors, "execute", never)
        assert costs.costs_here(params, images_of(params)) == measured
        longer = changed(
            train__iterations=4000, train__learning_rate=0.1, seeds=[5, 6, 7], prune__rounds=3
        )
        assert costs.costs_here(longer, images_of(longer)) == measured
        for other in (changed(train__batch_size=20), changed(train__precision="bfloat16")):
            with pytest.raises(AssertionError, match="measured again"):
                costs.costs_here(other, images_of(other))
        with pytest.raises(AssertionError, match="measured again"):
            costs.costs_here(params, images_of(params), again=True)
        kept[0].write_text("damaged")
        with pytest.raises(AssertionError, match="measured again"):
            costs.costs_here(params, images_of(params))


def test_what_is_kept_is_printed_at_once_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(TINY)
    params = changed()
    workers = executors.worker_count(params.train.threads)
    kept = dataclasses.replace(
        MACHINE, costs=(ALONE, dataclasses.replace(PAIR, workers=max(2, workers)))
    )
    path = store.FOLDER / f"plan-{costs.key(params, images_of(params), workers)}.json"
    files.write_json(path, dataclasses.asdict(kept))
    script = "import sys; from lottery import plan; plan.main(['--workers', '1', '8']); assert 'tensorflow' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "lenet_300_100 on digits, 2 seeds, 2 rounds: 14 runs of up to 40 iterations, float32"
    )
    assert "| all | 14 | | 4 | 560 |" in done.stdout
    assert "More than 8 workers do not help." in lines
    assert "| 1 | " in done.stdout
