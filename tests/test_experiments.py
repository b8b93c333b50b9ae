"""The published experiments: each file is complete, and is the experiment that it says it is."""

import math
import re
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from clones import STAGES, tiny
from networks import models
from ruamel.yaml import YAML
from test_params import FIELDS

from lottery.params import Network, load, validate
from lottery.params.catalogue import DATASETS

ROOT = Path(__file__).parent.parent
CIFAR = ROOT.parent / "shared" / "data" / "cifar-10-binary.tar.gz"
FILES = sorted((ROOT / "experiments").glob("*.yaml"))

# Frankle & Carbin 2019, figure 2: prunable weights; Adam's rate, iterations, rates of pruning (Conv-6 as described);
# percent of weights remaining at the best speed-up, and at the best accuracy
PAPER = {
    "mnist-lenet": (266_200, 1.2e-3, 50_000, None, (21.1, 13.5)),
    "cifar10-conv2": (4_300_992, 2e-4, 20_000, 0.1, (8.8, 4.6)),
    "cifar10-conv4": (2_425_024, 3e-4, 25_000, 0.1, (9.2, 11.1)),
    "cifar10-conv6": (2_261_184, 3e-4, 30_000, 0.15, (15.1, 26.4)),
}
# Percent of weights remaining by round, as the paper's figures label them
REMAINING = {
    "mnist-lenet": {3: 51.3, 7: 21.1, 9: 13.5, 12: 7.0, 15: 3.6, 18: 1.85},
    "cifar10-conv2": {11: 8.8, 14: 4.6, 16: 3.0},
    "cifar10-conv4": {1: 81.08, 11: 11.06, 12: 9.18, 15: 5.37, 21: 2.01},
    "cifar10-conv4-notebook": {15: 5.37},
    "cifar10-conv4-evening": {5: 5.37},
    "cifar10-conv6": {20: 2.5},
    "cifar10-resnet20-rewind": {8: 16.8},
}


def experiment(name):
    return load(ROOT / "experiments" / f"{name}.yaml")


def network_of(loaded):
    own = loaded.data.name.startswith("mine.")  # as large as MNIST's images
    known = DATASETS["mnist5k" if own else loaded.data.name]
    return Network(loaded.model, known.image_shape, known.classes)


@cache
def shapes_and_kinds(network):
    model = models.build(network)
    variables, kinds = models.variables(model), models.kinds(model)
    return {name: tuple(variables[name].shape) for name in kinds}, kinds


def percent_remaining(loaded, round_):
    shapes, kinds = shapes_and_kinds(network_of(loaded))
    surviving = loaded.prune.surviving(shapes, kinds, round_)
    count = surviving if isinstance(surviving, int) else sum(surviving.values())
    return 100 * count / sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_complete_builds_its_model_and_says_what_it_is(path):
    loaded = load(path)
    # `dvc exp run -S train.momentum=0.5` sets only keys that the file has
    assert loaded.model_dump(mode="json") == YAML(typ="safe").load(path)
    assert shapes_and_kinds(network_of(loaded))[0]
    comment = path.read_text(encoding="utf-8").split("\nseeds:")[0]
    assert all(line.startswith("#") for line in comment.splitlines() if line)
    for said in (f"Command: make repro EXPERIMENT={path.stem}\n", "Takes:   ", "Result:  "):
        assert f"\n# {said}" in comment


def test_every_key_of_the_tests_experiment_is_written_out():
    assert validate(tiny({})).model_dump(mode="json") == tiny({})


def test_every_key_of_the_default_has_a_comment_that_documents_it():
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for name, *keys in FIELDS:
        section = re.search(rf"^{name}:.*\n(?: .*\n|\n(?= ))*", text, flags=re.MULTILINE)[0]
        line = re.search(rf"^ *{[name, *keys][:2][-1]}:.*\n? +# .*", section, flags=re.MULTILINE)
        assert line or not keys, keys
        assert all(f"{inner}:" in line[0] for inner in keys[1:])  # of a mapping: on its line


def test_mnist5k_lenet_is_the_default_experiment():
    read = YAML(typ="safe")
    assert read.load(ROOT / "experiments/mnist5k-lenet.yaml") == read.load(ROOT / "params.yaml")


@pytest.mark.parametrize("name", PAPER)
def test_the_protocol_is_the_papers_and_the_rounds_nearest_to_its_best_results_are_retrained(name):
    weights, rate, iterations, conv, percents = PAPER[name]
    loaded = experiment(name)
    assert sum(map(math.prod, shapes_and_kinds(network_of(loaded))[0].values())) == weights
    train = loaded.train
    assert (train.optimizer, train.learning_rate, train.iterations) == ("adam", rate, iterations)
    assert (train.batch_size, train.evaluate_every, train.early_stopping) == (60, 100, None)
    assert loaded.data.validation_size == 5000
    assert loaded.model.initializer == "glorot_normal"
    assert len(loaded.seeds) >= 5
    assert (loaded.prune.rates.dense, loaded.prune.rates.output) == (0.2, 0.1)
    if conv is not None:
        assert loaded.prune.rates.conv == conv
    assert loaded.prune.rewind_iteration == 0
    assert set(loaded.retrain.variants) >= {"ticket", "random_reinit"}
    retrained, last = loaded.retrain_rounds(), loaded.prune.rounds
    assert last in retrained
    remaining = {r: percent_remaining(loaded, r) for r in range(1, last + 1)}
    for percent in percents:
        nearest = min(remaining, key=lambda r: abs(remaining[r] - percent))
        assert nearest in retrained
        assert remaining[nearest] == pytest.approx(percent, abs=0.25)
    assert 1.8 <= remaining[last] <= 4  # percent, or the paper's last


@pytest.mark.parametrize(
    ("name", "round_", "percent"), [(n, r, p) for n, by in REMAINING.items() for r, p in by.items()]
)
def test_as_many_weights_remain_after_a_round_as_published(name, round_, percent):
    loaded = experiment(name)
    assert round_ <= loaded.prune.rounds
    digits = len(str(percent).split(".")[1])
    assert percent_remaining(loaded, round_) == pytest.approx(percent, abs=0.5001 * 10**-digits)


def test_the_notebooks_evaluation_is_an_epoch_and_its_stop_is_three_of_them():
    loaded = experiment("cifar10-conv4-notebook")
    train = loaded.train
    assert DATASETS["cifar10"].training - loaded.data.validation_size == 45_000
    assert train.evaluate_every == 45_000 // train.batch_size == 750
    assert loaded.train.length(45_000) == 20 * 750
    assert (train.early_stopping.patience, train.early_stopping.min_delta) == (3, 0.001)
    assert loaded.model.initializer == "glorot_uniform"
    assert loaded.retrain_rounds() == [15, 10, 5]


def test_the_residual_network_is_trained_and_pruned_as_published():
    """Frankle et al. 2020, table 1: ResNet-20."""
    loaded = experiment("cifar10-resnet20-rewind")
    train, prune = loaded.train, loaded.prune
    assert (train.optimizer, train.momentum, train.learning_rate) == ("sgd", 0.9, 0.1)
    assert (train.warmup_iterations, train.learning_rate_steps.factor) == (0, 0.1)
    assert train.learning_rate_steps.iterations == (32_000, 48_000)
    assert (train.batch_size, train.iterations) == (128, 63_000)
    assert (prune.scope, prune.strategy, prune.schedule) == ("global", "rewind", "iterative")
    assert 0 < prune.rewind_iteration < 0.05 * train.iterations
    assert (loaded.model.initializer, loaded.model.batch_norm_scale) == ("he_normal", "uniform")
    assert (train.weight_decay, train.augmentation.flip, train.augmentation.crop) == (1e-4, True, 4)
    assert loaded.retrain.analysis == "linear_mode_connectivity"


@pytest.mark.skipif(not CIFAR.exists(), reason="../shared/data/cifar-10-binary.tar.gz is not here")
def test_the_residual_networks_recipe_runs_to_its_report_narrow_and_short(empty_clone):
    with tarfile.open(CIFAR) as archive:  # 500 of its images
        batch = archive.extractfile("cifar-10-batches-bin/data_batch_1.bin").read(500 * 3073)
    rows = np.frombuffer(batch, np.uint8).reshape(500, 3073)
    images = rows[:, 1:].reshape(500, 3, 32, 32).transpose(0, 2, 3, 1)
    source = empty_clone.path / "data/own/cifar10.npz"
    np.savez(source, x_train=images, y_train=rows[:, 0])
    content = YAML(typ="safe").load(ROOT / "experiments/cifar10-resnet20-rewind.yaml")
    content["data"] |= {"name": "arrays", "source": str(source), "validation_size": 50}
    content["model"]["width"] = 0.125
    content["train"] |= {"iterations": 12, "evaluate_every": 4, "batch_size": 16}
    content["train"]["learning_rate_steps"]["iterations"] = [4, 8]
    content["prune"] |= {"rounds": 1, "rewind_iteration": 4}
    content["retrain"] |= {"variants": ["ticket"], "rounds": [1], "analysis": "none"}
    content["report"]["iteration_margin"] = 0.5
    content["seeds"] = [0]
    empty_clone.write(content)
    empty_clone.stage(*STAGES)
    report = (empty_clone.path / "reports/report.md").read_text()
    assert report.startswith("# Lottery tickets: resnet20 on cifar10\n")
    assert "1 seed" in report
    assert re.search(r"^\| ticket +\| +1 \| +80\.00% \|", report, re.MULTILINE)
