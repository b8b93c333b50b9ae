"""What an experiment will cost: its runs counted, its time and disk."""

from pathlib import Path

import pytest
from clones import TINY
from ruamel.yaml import YAML

from lottery.errors import LotteryError
from lottery.params import validate
from lottery.tools import plan
from lottery.tools.plan import Stage, duration, stages_of, wall_seconds


def params_of(**changes):
    """TINY's parameters; changes by dotted key."""
    content = YAML(typ="safe").load(TINY)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section] = {**content[section], name: value} if name else value
    return validate(content)


def test_three_seeds_three_rounds_two_of_them_retrained_with_a_control():
    params = params_of(seeds=[0, 1, 2], prune__rounds=3, retrain__rounds=[2, 3])
    found = stages_of(params, 40)
    assert found[:2] == [Stage("train_dense", 3, 1, 40), Stage("prune", 3, 3, 120)]
    assert found[2:] == [Stage("retrain", 3, 1, 40)] * 4  # two variants, two rounds


def test_rewound_rounds_are_shorter_one_shot_trains_none_and_longer_networks_take_longer():
    assert stages_of(params_of(prune__rewind_iteration=10), 40)[1].iterations == 2 * 30
    assert stages_of(params_of(prune__schedule="one_shot"), 40)[1] == Stage("prune", 2, 0, 0)
    longer = params_of(retrain__variants=["dense_longer"], retrain__rounds=[2])
    assert stages_of(longer, 40)[2].iterations == 3 * 40  # dense, round 1, the ticket


def test_linear_mode_connectivity_adds_two_copies_of_each_network():
    params = params_of(retrain__analysis="linear_mode_connectivity", retrain__rounds=[2])
    assert stages_of(params, 40)[-1] == Stage("retrain", 4, 2, 80)


def test_wall_time_is_work_over_workers_but_a_chain_is_not_divided():
    stages = [Stage("train_dense", 4, 1, 100), Stage("prune", 4, 5, 500)]
    start = 2 * plan.START
    assert wall_seconds(stages, 1, 0.1) == pytest.approx(start + 0.1 * 2400)
    assert wall_seconds(stages, 2, 0.1) == pytest.approx(start + 0.1 * 1200)
    assert wall_seconds(stages, 3, 0.1) == pytest.approx(start + 0.1 * (200 + 1000))
    assert wall_seconds(stages, 64, 0.1) == pytest.approx(start + 0.1 * 600)


def test_durations_are_read_at_a_glance():
    given = {0.4: "0 s", 59: "59 s", 80: "1 min 20 s", 4800: "1 h 20 min", 90000: "1 d 1 h"}
    assert {seconds: duration(seconds) for seconds in given} == given


def test_seconds_an_iteration_come_from_the_run_store_else_from_a_short_training(
    monkeypatch, finished_clone
):
    monkeypatch.chdir(finished_clone.path)
    monkeypatch.setenv("LOTTERY_RUNS", finished_clone.env()["LOTTERY_RUNS"])
    pace, known_from = plan.pace_of(params_of(), (8, 8, 1), 10)
    assert known_from == "14 finished runs in the run store"
    assert 1e-5 < pace < 1
    monkeypatch.setattr(plan, "TIMED", 0.05)
    pace, known_from = plan.pace_of(params_of(train__batch_size=10), (8, 8, 1), 10)
    assert known_from == "a short training on this machine, alone"
    assert 1e-5 < pace < 1


def test_disk_is_that_of_a_real_run_within_30_percent(finished_clone):
    from lottery.training.models import build

    folders = [finished_clone.path / "data", Path(finished_clone.env()["LOTTERY_RUNS"])]
    held = sum(
        path.stat().st_size
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "dataset" not in path.parts
    )
    weights = build("lenet_300_100", (8, 8, 1), 10).count_params()
    assert plan.disk(params_of(), weights) == pytest.approx(held, rel=0.3)


def test_an_image_folder_is_known_once_it_is_fetched_and_mistakes_are_plain_lines(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    params = params_of(data={"name": "image_folder", "source": "x", "validation_size": 4})
    with pytest.raises(LotteryError, match="run `dvc repro fetch` first"):
        plan.shape_of(params)
    with pytest.raises(SystemExit) as end:
        plan.main(["nowhere.yaml"])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("plan: nowhere.yaml: cannot be read")
