"""A run's fingerprint: another one with anything that determines its result, and with that alone."""

from dataclasses import replace

import networks  # noqa: F401 - sets TensorFlow up
import numpy as np
import pytest
from clones import tiny

from lottery.artifacts import files
from lottery.datasets.dataset import write_dataset
from lottery.masks import Mask
from lottery.params import validate
from lottery.running import store
from lottery.running.run import Experiment, Run

PARAMS = validate(tiny({"data.validation_size": 12, "data.split": "shared"}))
IMAGES, LABELS = np.zeros((60, 2, 2, 1), np.uint8), np.arange(60, dtype=np.int32) % 3
WEIGHTS = {"a/kernel": np.ones((2, 3), np.float32), "b/kernel": np.zeros((2, 3), np.float32)}
MASK = Mask.full({name: value.shape for name, value in WEIGHTS.items()})
ORDER, MODEL, TRAIN = "data order of pruning", PARAMS.model, PARAMS.train
RUN = Run(3, "ticket", 1, MODEL, TRAIN, WEIGHTS, MASK, ORDER, iterations=40)
HISTORY, BY = {"iteration": [40], "validation_loss": [1.0]}, {"environment": {}, "cpu": ""}
STORED = {}, {"history": HISTORY, "determined by": BY}


@pytest.fixture
def fingerprint_of(tmp_path, monkeypatch):
    """That of a run on these images, by parameters and code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "load_finished", lambda fingerprint: STORED)

    def fingerprint_of(run=RUN, images=IMAGES, labels=LABELS, params=PARAMS, code="of the stage"):
        facts = {"name": "tiny", "image_shape": [2, 2, 1], "classes": 3}
        write_dataset(files.DATASET, images, labels, facts | {"test": 12, "own_test": False})
        return Experiment(params, code).train(run, lambda *_: None).record.fingerprint

    return fingerprint_of


def other(values, at=0):
    """The same array, but for one of its numbers."""
    values = values.copy()
    values.flat[at] = 1 - values.flat[at]
    return values


def test_what_a_run_begins_with_and_how_it_goes_on_is_in_its_fingerprint(fingerprint_of):
    ones, zeros = WEIGHTS.values()
    runs = {
        "seed": 4,
        "model": MODEL.model_copy(update={"width": 0.5}),
        "train": TRAIN.model_copy(update={"learning_rate": 0.1}),
        "mask": Mask({**MASK.layers, "b/kernel": other(MASK.layers["b/kernel"])}),
        "order": "data order of retraining",
        "iterations": 50,
        "start": 10,
        "keep": (20,),
        "masks": "set",
        "keep_trained": False,
    }
    weights = [
        {"a/kernel": other(ones, 5), "b/kernel": zeros},
        {"a/kernel": ones, "c/kernel": zeros},
        {name: value.reshape(3, 2) for name, value in WEIGHTS.items()},
        {name: value.view(np.int32) for name, value in WEIGHTS.items()},
    ]
    others = [replace(RUN, **{name: value}) for name, value in runs.items()]
    others += [replace(RUN, weights=of) for of in weights]
    assert len({fingerprint_of(run) for run in [RUN, *others]}) == 1 + len(others)


def test_images_labels_split_and_code_are_in_a_runs_fingerprint(fingerprint_of):
    def split(**how):
        return PARAMS.model_copy(update={"data": PARAMS.data.model_copy(update=how)})

    others = [
        {"images": other(IMAGES)},
        {"labels": np.roll(LABELS, 1)},
        {"params": split(validation_size=13)},
        {"params": split(split_seed=1)},
        {"code": "of another stage"},
    ]
    assert len({fingerprint_of(**of) for of in [{}, *others]}) == 1 + len(others)


@pytest.mark.parametrize("what", ["device.device_name", "machine.cpu_model", "machine.variables"])
def test_what_arithmetic_depends_on_is_in_a_runs_fingerprint(fingerprint_of, monkeypatch, what):
    before = fingerprint_of()
    room = {"device": "training", "machine": "running"}[what.partition(".")[0]]
    monkeypatch.setattr(f"lottery.{room}.{what}", lambda: "another")
    assert fingerprint_of() != before


def test_what_only_names_a_run_or_leaves_its_split_as_it_is_makes_no_other_one(fingerprint_of):
    """So that a round whose mask another round has too, or another variant, is trained once."""
    before = fingerprint_of()
    assert fingerprint_of(replace(RUN, variant="random_mask", round=2)) == before
    assert fingerprint_of(params=PARAMS.model_copy(update={"seeds": [3]})) == before
    shared, own = (
        PARAMS.data.model_copy(update=how) for how in ({"split_seed": 3}, {"split": "per_seed"})
    )
    both = (PARAMS.model_copy(update={"data": data}) for data in (shared, own))
    assert len({fingerprint_of(params=params) for params in both}) == 1
