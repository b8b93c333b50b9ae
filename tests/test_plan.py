"""What an experiment will cost: its runs counted, its time and disk."""

import pytest
from clones import network, tiny
from networks import models

from lottery.__main__ import main
from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import validate
from lottery.running import machine, store
from lottery.tickets import given
from lottery.tools import plan
from lottery.tools.plan import Work, tasks_of, wall_seconds

MASK = Mask.full({"a/kernel": (2, 3)})


def params_of(changes=None):
    return validate(tiny(changes or {}))


def test_three_seeds_three_rounds_two_of_them_retrained_with_a_control():
    params = params_of({"seeds": [0, 1, 2], "prune.rounds": 3, "retrain.rounds": [2, 3]})
    assert tasks_of(params, 40) == {
        "train_dense": [(1, 40)] * 3,
        "prune": [(3, 120)] * 3,
        "retrain": [(1, 40)] * 12,  # two variants, two rounds
    }


def test_rewound_rounds_are_shorter_one_shot_trains_none_longer_networks_and_copies_take_longer():
    assert tasks_of(params_of({"prune.rewind_iteration": 10}), 40)["prune"] == [(2, 2 * 30)] * 2
    for untrained in ({"prune.schedule": "one_shot"}, {"prune.criterion": "snip"}):
        assert tasks_of(params_of(untrained), 40)["prune"] == [(0, 0)] * 2
    values = {"retrain.variants": ["dense_longer"], "retrain.rounds": [2]}
    values["retrain.analysis"] = "linear_mode_connectivity"
    longer = [(1, 3 * 40)]  # dense, round 1, the ticket
    copies = [(2, 80)] * 2  # of the dense network and of the ticket
    assert tasks_of(params_of(values), 40)["retrain"] == (longer + copies) * 2


def test_masks_that_are_taken_over_are_not_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {prune: {deps: [tickets]}}")
    params = params_of({"seeds": [0, 1], "prune.rounds": 2, "retrain.masks": "tickets"})
    for seed, rounds in ((0, [1]), (1, [1, 2])):
        for number in rounds:
            given.write_file(given.round_file(tmp_path / "tickets", seed, number), MASK)
    found = tasks_of(params, 40, MASK.shapes)["prune"]
    assert found == [(2, 80), (0, 0)]  # round 1 once more, from which 2 is pruned


def test_wall_time_is_work_over_workers_but_a_chain_is_not_divided():
    stages = [[Work(1, 100)] * 4, [Work(5, 500)] * 4]
    for workers, iterations in ((1, 2400), (2, 1200), (3, 200 + 1000), (64, 600)):
        expected = 2 * plan.START + 0.1 * iterations
        assert wall_seconds(stages, workers, 0.1) == pytest.approx(expected)


def test_seconds_an_iteration_come_from_the_run_store_else_from_a_short_training(
    monkeypatch, finished_clone
):
    monkeypatch.chdir(finished_clone.path)
    monkeypatch.setenv("LOTTERY_RUNS", finished_clone.env()["LOTTERY_RUNS"])
    pace, known_from = plan.pace_of(params_of(), network("lenet_300_100", (8, 8, 1)))
    assert known_from == "14 finished runs in the run store"
    assert 1e-5 < pace < 1
    monkeypatch.setattr(plan, "TIMED", 0.05)
    monkeypatch.setenv("LOTTERY_WORKERS", "1")  # no other process is timed beside it
    augmented = {"train.augmentation": {"flip": True, "crop": 1}}
    for other in (
        {"train.batch_size": 10},
        augmented,
        {"data": {"name": "mnist5k", "validation_size": 500}},
    ):
        pace, known_from = plan.pace_of(params_of(other), network("lenet_300_100", (8, 8, 1)))
        assert known_from == "a short training on this machine"
        assert 1e-5 < pace < 1


def test_disk_is_that_of_a_real_run_within_30_percent(finished_clone):
    held = finished_clone.files("data", ".runs").items()
    held = sum(len(content) for name, content in held if "dataset" not in name)
    weights = models.build(network("lenet_300_100", (8, 8, 1))).count_params()
    assert plan.disk(params_of(), weights) == pytest.approx(held, rel=0.3)


def test_an_image_folder_is_known_once_it_is_fetched_and_mistakes_are_plain_lines(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    params = params_of({"data": {"name": "image_folder", "source": "x", "validation_size": 4}})
    with pytest.raises(LotteryError, match="run `dvc repro fetch` first"):
        plan.network_of(params)
    with pytest.raises(SystemExit, match="1"):
        main(["plan", "nowhere.yaml"])
    assert capsys.readouterr().err.startswith("plan: nowhere.yaml: cannot be read")


def test_the_pace_of_other_data_of_the_same_general_name_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOTTERY_RUNS", str(tmp_path))
    params = params_of({"data": {"name": "arrays", "source": "x", "validation_size": 4}})
    files.write_json(files.DATASET / "dataset.json", {"files": {"images.npy": "small"}})
    by = params.model_dump(mode="json", include={"model", "train"}) | {"masks": "fixed"}
    for images, seconds in (("small", 10.0), ("large", 7000.0), ("larger", 9000.0)):
        by |= {"cpu": machine.cpu_model(), "dataset": {"images.npy": images}}
        facts = {"dataset": "arrays", "trained": 10, "seconds": seconds, "determined by": by}
        store.save(store.file(images, store.FINISHED), {}, facts)
    assert plan.pace_of(params, network("lenet_300_100", (8, 8, 1)))[0] == 1.0
