"""params.yaml: whatever is wrong with it is found before anything is computed, and said in one line."""

import copy
import dataclasses
import io
import math
import string
from pathlib import Path
from types import UnionType
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from lottery import params
from lottery.datasets.catalogue import DATASETS
from lottery.errors import LotteryError
from lottery.params import Params, Section, load, validate

VARIANTS = (
    "a list of at least one of ticket, random_reinit, sign_preserving_reinit, random_sign_constant, signed_reinit, "
    "random_mask, random_mask_global, shuffled_mask, small_dense, dense_longer or your own module:function"
)
MODELS = "lenet_300_100, conv2, conv4, conv6, resnet20, vgg16 or your own module:function"
INITIALIZERS = "glorot_normal, glorot_uniform, he_normal or he_uniform"
COMMITTED = Path(__file__).parent.parent / "params.yaml"

VALID = {
    "seeds": [0, 1, 2],
    "data": {
        "name": "mnist5k",
        "source": None,
        "sha256": None,
        "validation_size": 500,
        "split_seed": 0,
    },
    "model": {"name": "lenet_300_100", "initializer": "glorot_normal"},
    "train": {
        "optimizer": "adam",
        "learning_rate": 1.2e-3,
        "learning_rate_steps": None,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "batch_size": 60,
        "iterations": 600,
        "epochs": None,
        "evaluate_every": 50,
        "early_stopping": None,
        "precision": "float32",
        "threads": 1,
    },
    "prune": {
        "rounds": 12,
        "rates": {"conv": 0.1, "dense": 0.2, "output": 0.1},
        "scope": "layerwise",
        "rewind_iteration": 0,
    },
    "retrain": {"variants": ["ticket", "random_reinit", "random_mask"], "rounds": [3, 6, 9, 12]},
    "report": {"margin": 0.01, "confidence": 0.95},
}


def fields_of(section, path=()):
    """Every key of the schema with its field; those of a mapping that may be null too."""
    for name, field in section.model_fields.items():
        yield (*path, name), field
        kinds = (
            get_args(field.annotation)
            if isinstance(field.annotation, UnionType)
            else [field.annotation]
        )
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from fields_of(kind, (*path, name))


FIELDS = dict(fields_of(Params))
IN_OPTIONAL = {
    ("train", "early_stopping", "patience"),
    ("train", "learning_rate_steps", "iterations"),
}
IN_OPTIONAL |= {
    ("train", "early_stopping", "min_delta"),
    ("train", "learning_rate_steps", "factor"),
}
IN_OPTIONAL |= {("train", "augmentation", "flip"), ("train", "augmentation", "crop")}
REQUIRED = [
    path for path, field in FIELDS.items() if field.is_required() and path not in IN_OPTIONAL
]
BY_DEFAULT = {
    path: field.default
    for path, field in FIELDS.items()
    if not field.is_required() and path not in IN_OPTIONAL
}


def with_values(**values):
    """The valid parameters with some values replaced; ``train__epochs`` is the key train.epochs."""
    content = copy.deepcopy(VALID)
    for path, value in values.items():
        *sections, key = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    return content


def complaints(content):
    with pytest.raises(LotteryError) as error:
        validate(content)
    return str(error.value).splitlines()


def is_part_of(given, whole):
    if isinstance(given, dict):
        return all(key in whole and is_part_of(value, whole[key]) for key, value in given.items())
    return given == whole


def test_the_parameters_that_the_other_tests_spoil_are_valid():
    assert is_part_of(VALID, validate(VALID).model_dump())


A_WHOLE = "a whole number from 0 up"
A_POSITIVE = "a whole number from 1 up"
A_RATE = "a number from 0 up to, but not, 1"
A_SHA256 = "64 lower-case hexadecimal digits, or null for the sha256 known for the name"
STEPS = "null or {iterations: [whole numbers], factor: number}"
STOPPING = "null or {patience: whole number, min_delta: number}"
NAN, INFINITY = math.nan, math.inf

BAD_VALUES = [
    # wrong type
    ("seeds", 3, "a list of at least one whole number from 0 up"),
    ("seeds", None, "a list of at least one whole number from 0 up"),
    ("seeds", {"first": 0}, "a list of at least one whole number from 0 up"),
    ("data", [], "a mapping with the keys name, source, sha256, validation_size"),
    ("model", "conv4", "a mapping with the keys name, initializer"),
    ("train", None, "a mapping with the keys optimizer, learning_rate"),
    ("prune.rates", 0.2, "{conv: rate, dense: rate, output: rate}"),
    ("data.validation_size", "500", A_POSITIVE),
    ("data.validation_size", 500.0, A_POSITIVE),
    ("data.source", 7, "null"),
    ("data.sha256", 7, A_SHA256),
    ("model.initializer", None, INITIALIZERS),
    ("model.width", 0, "a number above 0, at most 16"),
    ("model.width", "half", "a number above 0, at most 16"),
    ("model.dropout", 1, A_RATE),
    ("train.learning_rate", "1.2e-3", "a number above 0"),
    ("train.learning_rate", [0.1], "a number above 0"),
    ("train.batch_size", 60.5, A_POSITIVE),
    ("train.iterations", "600", A_POSITIVE + ", or null with epochs given"),
    ("train.learning_rate_steps", [300], STEPS),
    ("train.early_stopping", 5, STOPPING),
    ("retrain.variants", "ticket", VARIANTS),
    ("retrain.rounds", 3, "a list of at least one whole number from 1 up, or all"),
    ("retrain.rounds", "some", "a list of at least one whole number from 1 up, or all"),
    # a truth value where a number is expected
    ("data.validation_size", True, A_POSITIVE),
    ("data.split_seed", False, A_WHOLE),
    ("train.batch_size", True, A_POSITIVE),
    ("train.threads", True, "a whole number from 1 to 1024"),
    ("train.learning_rate", True, "a number above 0"),
    ("train.momentum", False, A_RATE),
    ("prune.rounds", True, "a whole number from 1 to 1000"),
    ("prune.rates.dense", False, A_RATE),
    ("report.margin", False, A_RATE),
    # a rate outside [0, 1)
    ("prune.rates.conv", 1, A_RATE),
    ("prune.rates.dense", 1.0, A_RATE),
    ("prune.rates.output", -0.1, A_RATE),
    ("prune.rates.dense", 20, A_RATE),
    ("train.momentum", 1.0, A_RATE),
    ("report.margin", 1.5, A_RATE),
    ("report.margin", -1e-9, A_RATE),
    # not a number, or infinite
    ("prune.rates.dense", NAN, A_RATE),
    ("prune.rates.dense", INFINITY, A_RATE),
    ("train.learning_rate", NAN, "a number above 0"),
    ("train.learning_rate", INFINITY, "a number above 0"),
    ("train.weight_decay", INFINITY, "a number from 0 up"),
    ("report.margin", NAN, A_RATE),
    ("report.confidence", NAN, "a number between 0.5 and 1"),
    # an impossible value
    ("seeds", [], "a list of at least one whole number from 0 up"),
    ("seeds", [0, 1, 0], "each value once"),
    ("data.validation_size", 0, A_POSITIVE),
    ("data.validation_size", -500, A_POSITIVE),
    ("data.validation_size", 9, "from 10 (one image a class) to 3990"),
    ("data.validation_size", 4000, "from 10 (one image a class) to 3990: mnist5k has 4,000 images"),
    ("data.validation_size", 60_000, "mnist5k has 4,000 images for training and validation"),
    ("data.split_seed", -1, A_WHOLE),
    ("data.source", "https://example.org", "null: the dataset comes with a package"),
    ("data.sha256", "abc", A_SHA256),
    ("data.sha256", "A" * 64, A_SHA256),
    ("train.learning_rate", 0, "a number above 0"),
    ("train.learning_rate", -0.1, "a number above 0"),
    ("train.weight_decay", -1e-4, "a number from 0 up"),
    ("train.batch_size", 0, A_POSITIVE),
    ("train.batch_size", 3501, "at most the 3,500 training images"),
    ("train.iterations", 0, A_POSITIVE + ", or null with epochs given"),
    ("train.evaluate_every", 0, A_POSITIVE),
    ("train.evaluate_every", 601, "at most the run's 600 iterations"),
    ("train.threads", 0, "a whole number from 1 to 1024"),
    ("train.momentum", 0.9, "0 with optimizer adam; momentum belongs to sgd"),
    ("prune.rounds", 0, "a whole number from 1 to 1000"),
    ("prune.rounds", 1001, "a whole number from 1 to 1000"),
    ("prune.rewind_iteration", -1, A_WHOLE),
    ("prune.rewind_iteration", 600, "an iteration before the run's last, 600"),
    ("retrain.variants", [], VARIANTS),
    ("retrain.variants", ["ticket", "ticket"], "each value once"),
    ("retrain.rounds", [], "a list of at least one whole number from 1 up, or all"),
    ("retrain.rounds", [3, 3], "each value once"),
    ("report.confidence", 1, "a number between 0.5 and 1"),
    ("report.confidence", 0.5, "a number between 0.5 and 1"),
    # an unknown name
    ("data.name", "imagenet", "mnist5k"),
    ("model.name", "resnet18", MODELS),
    ("model.initializer", "lecun_normal", INITIALIZERS),
    ("train.optimizer", "adamw", "adam or sgd"),
    ("train.precision", "float16", "float32 or bfloat16"),
    ("prune.scope", "network", "layerwise or global"),
    ("prune.scoring_rounds", 0, "a whole number from 1 to 1000"),
    ("model.batch_norm_scale", "zeros", "ones or uniform"),
    (
        "prune.criterion",
        "size",
        "magnitude, magnitude_increase, movement, random, snip, grasp, synflow or your own module:function",
    ),
    ("prune.schedule", "gradual", "iterative or one_shot"),
    ("prune.strategy", "restart", "rewind, finetune or learning_rate_rewind"),
]


@pytest.mark.parametrize(
    ("key", "value", "accepted"), BAD_VALUES, ids=[f"{k}={v!r:.30}" for k, v, _ in BAD_VALUES]
)
def test_a_bad_value_gives_one_line_with_key_value_and_what_is_accepted(key, value, accepted):
    (line,) = complaints(with_values(**{key.replace(".", "__"): value}))
    start = f"params.yaml: {key}: got {value!r}; accepted: "
    assert line.startswith(start)
    assert accepted in line.removeprefix(start)


BAD_ITEMS = [
    ("seeds", [0, True], 1, "a list of at least one whole number from 0 up"),
    ("seeds", [0, 1.0], 1, "a list of at least one whole number from 0 up"),
    ("seeds", ["0"], 0, "a list of at least one whole number from 0 up"),
    ("seeds", [3, 1, -2], 2, "a list of at least one whole number from 0 up"),
    ("seeds", [2**31], 0, "a list of at least one whole number from 0 up"),
    ("retrain.variants", ["ticket", "winner"], 1, VARIANTS),
    ("retrain.variants", [None], 0, VARIANTS),
    ("retrain.rounds", [3, 0], 1, "a list of at least one whole number from 1 up, or all"),
    ("retrain.rounds", [True], 0, "a list of at least one whole number from 1 up, or all"),
    ("retrain.rounds", ["all"], 0, "a list of at least one whole number from 1 up, or all"),
]


@pytest.mark.parametrize(("key", "values", "index", "accepted"), BAD_ITEMS)
def test_a_bad_item_of_a_list_is_named_by_its_position(key, values, index, accepted):
    (line,) = complaints(with_values(**{key.replace(".", "__"): values}))
    assert line == f"params.yaml: {key}.{index}: got {values[index]!r}; accepted: {accepted}"


@pytest.mark.parametrize(
    ("section", "value", "key", "found", "accepted"),
    [
        ("learning_rate_steps", {"iterations": [300], "factor": 0}, "factor", "got 0", "a number above 0"),
        ("learning_rate_steps", {"iterations": [300], "factor": NAN}, "factor", "got nan", "a number above 0"),
        ("learning_rate_steps", {"iterations": [300]}, "factor", "missing", "a number above 0"),
        ("learning_rate_steps", {"iterations": [], "factor": 0.1}, "iterations", "got []", "rising whole numbers"),
        ("learning_rate_steps", {"iterations": [0], "factor": 0.1}, "iterations.0", "got 0", "rising whole numbers"),
        ("learning_rate_steps", {"iterations": [4, 2], "factor": 0.1}, "iterations", "got [4, 2]", "rising iterations"),
        ("learning_rate_steps", {"iterations": [2, 2], "factor": 0.1}, "iterations", "got [2, 2]", "rising iterations"),
        ("learning_rate_steps", {"iterations": [600], "factor": 0.1}, "iterations", "got [600]", "below the run's 600"),
        ("learning_rate_steps", {"iterations": [3], "factor": 0.1, "rate": 1}, "rate", "unknown key", "iterations, factor"),
        ("augmentation", {"flip": True}, "crop", "missing", "a whole number from 0 to 64"),
        ("augmentation", {"flip": 1, "crop": 4}, "flip", "got 1", "true or false"),
        ("early_stopping", {"min_delta": 0.001}, "patience", "missing", A_POSITIVE),
        ("early_stopping", {"patience": 0}, "patience", "got 0", A_POSITIVE),
        ("early_stopping", {"patience": True}, "patience", "got True", A_POSITIVE),
        ("early_stopping", {"patience": 5, "min_delta": -0.1}, "min_delta", "got -0.1", "a number from 0 up"),
        ("early_stopping", {"patience": 5, "min_delta": INFINITY}, "min_delta", "got inf", "a number from 0 up"),
        ("early_stopping", {"patience": 5, "after": 3}, "after", "unknown key", "patience, min_delta"),
    ],
)  # fmt: skip
def test_a_mistake_inside_an_optional_mapping_is_named_by_its_full_path(
    section, value, key, found, accepted
):
    (line,) = complaints(with_values(**{f"train__{section}": value}))
    assert line.startswith(f"params.yaml: train.{section}.{key}: {found}")
    assert accepted in line.split("; accepted: ")[1]


@pytest.mark.parametrize(
    "section", ["", "data.", "model.", "train.", "prune.", "prune.rates.", "retrain.", "report."]
)
def test_an_unknown_key_gives_one_line_with_the_keys_that_are_known(section):
    (line,) = complaints(with_values(**{f"{section}speed".replace(".", "__"): 3}))
    assert line.startswith(f"params.yaml: {section}speed: ")
    assert "unknown key" in line
    *_, accepted = line.split("accepted: ")
    known = [path[-1] for path in FIELDS if "".join(f"{name}." for name in path[:-1]) == section]
    assert accepted.split(", ") == known
    assert len(known) >= 2


def test_what_determines_an_experiment_has_no_default():
    assert len(REQUIRED) >= 23
    assert {
        ("seeds",),
        ("data", "name"),
        ("train", "learning_rate"),
        ("prune", "rates", "dense"),
    } < set(REQUIRED)


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_a_missing_key_gives_one_line(path):
    content = copy.deepcopy(VALID)
    *sections, name = path
    section = content
    for part in sections:
        section = section[part]
    del section[name]
    (line,) = complaints(content)
    assert line.startswith(f"params.yaml: {'.'.join(path)}: missing; accepted: ")
    assert len(line.split("; accepted: ")[1]) >= len("adam or sgd")


@pytest.mark.parametrize(("iterations", "epochs"), [(600, 10), (None, None)])
def test_both_or_neither_of_iterations_and_epochs_give_one_line(iterations, epochs):
    (line,) = complaints(with_values(train__iterations=iterations, train__epochs=epochs))
    assert line.startswith(
        f"params.yaml: train.iterations, train.epochs: got [{iterations}, {epochs}]; accepted: one of"
    )


def test_iterations_and_epochs_both_left_out_are_neither():
    content = copy.deepcopy(VALID)
    del content["train"]["iterations"], content["train"]["epochs"]
    (line,) = complaints(content)
    assert line.startswith(
        "params.yaml: train.iterations, train.epochs: got [None, None]; accepted: one of the two"
    )


def test_epochs_are_counted_in_whole_batches_of_the_training_images():
    content = with_values(train__iterations=None, train__epochs=2)
    assert validate(content).train.length(3500) == 2 * (3500 // 60) == 116
    content = with_values(train__iterations=None, train__epochs=2, train__evaluate_every=117)
    (line,) = complaints(content)
    assert (
        line
        == "params.yaml: train.evaluate_every: got 117; accepted: at most the run's 116 iterations"
    )


def test_a_warmup_longer_than_the_run_gives_one_line():
    (line,) = complaints(with_values(train__warmup_iterations=601))
    assert (
        line
        == "params.yaml: train.warmup_iterations: got 601; accepted: at most the run's 600 iterations"
    )


@pytest.mark.parametrize("name", ["package.module:function", "module:_function2"])
def test_parts_of_ones_own_are_named_by_module_and_function(name):
    found = validate(
        with_values(model__name=name, prune__criterion=name, retrain__variants=["ticket", name])
    )
    assert (found.model.name, found.prune.criterion, found.retrain.variants[1]) == (
        name,
        name,
        name,
    )
    for bad in ("package.module", ":function", "module:", "a b:c", "../module:function"):
        assert complaints(with_values(model__name=bad)) == [
            f"params.yaml: model.name: got {bad!r}; accepted: {MODELS}"
        ]


def test_rewinding_beyond_a_run_given_in_epochs_gives_one_line():
    content = with_values(train__iterations=None, train__epochs=2, prune__rewind_iteration=115)
    assert validate(content).prune.rewind_iteration == 115
    (line,) = complaints(
        with_values(train__iterations=None, train__epochs=2, prune__rewind_iteration=116)
    )
    assert line.startswith(
        "params.yaml: prune.rewind_iteration: got 116; accepted: an iteration before"
    )


def test_global_pruning_at_different_rates_gives_one_line():
    rates = {"conv": 0.1, "dense": 0.2, "output": 0.1}
    (line,) = complaints(with_values(prune__scope="global"))
    assert (
        line
        == f"params.yaml: prune.rates: got {rates}; accepted: with prune.scope global the same rate for "
        "all kinds, or 0 for those left whole"
    )
    for equal in (dict.fromkeys(rates, 0.2), {"conv": 0.2, "dense": 0.2, "output": 0}):
        assert validate(with_values(prune__scope="global", prune__rates=equal)).prune.scope


def test_one_threshold_for_all_layers_leaves_those_of_rate_0_whole():
    rates = {"conv": 0.2, "dense": 0.2, "output": 0.0}
    prune = validate(with_values(prune__scope="global", prune__rates=rates)).prune
    sizes = {"conv1/kernel": 1000, "dense1/kernel": 3000, "output/kernel": 100}
    kinds = {"conv1/kernel": "conv", "dense1/kernel": "dense", "output/kernel": "output"}
    assert prune.left_whole(kinds) == ["output/kernel"]
    assert prune.surviving(sizes, kinds, 2) == 100 + 2560
    layerwise = prune.model_copy(update={"scope": "layerwise"})
    assert layerwise.left_whole(kinds) == []
    assert layerwise.surviving(sizes, kinds, 2) == dict(zip(sizes, (640, 1920, 100), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prune__criterion": "movement"},
        {"prune__criterion": "snip", "prune__schedule": "one_shot"},
    ],
)
def test_scoring_the_same_weights_again_gives_one_line(changes):
    (line,) = complaints(with_values(prune__scoring_rounds=100, **changes))
    assert line.startswith(
        "params.yaml: prune.scoring_rounds: got 100; accepted: 1, or prune.criterion"
    )
    synflow = with_values(prune__scoring_rounds=100, prune__criterion="synflow")
    assert validate(synflow).prune.scoring_rounds == 100


def test_scales_of_no_batch_normalisation_give_one_line():
    (line,) = complaints(with_values(model__batch_norm_scale="uniform"))
    assert line == (
        "params.yaml: model.batch_norm_scale: got 'uniform'; accepted: ones with lenet_300_100: it has "
        "no batch normalisation"
    )


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_trained_weights_cannot_be_kept_where_nothing_has_trained_them(criterion):
    (line,) = complaints(with_values(prune__criterion=criterion, prune__strategy="finetune"))
    assert line == (
        f"params.yaml: prune.strategy: got 'finetune'; accepted: rewind: {criterion} prunes before any training"
    )


def test_the_last_learning_rate_is_what_the_steps_end_with():
    steps = {"iterations": [300, 450], "factor": 0.1}
    train = validate(with_values(train__learning_rate_steps=steps)).train
    assert train.last_learning_rate().learning_rate == pytest.approx(1.2e-5)
    assert train.last_learning_rate().learning_rate_steps is None
    assert hash(train) != hash(train.last_learning_rate())
    assert validate(with_values()).train.last_learning_rate().learning_rate == 1.2e-3


def test_a_retrain_round_beyond_the_rounds_pruned_gives_one_line():
    (line,) = complaints(with_values(retrain__rounds=[3, 13, 12, 40]))
    assert (
        line
        == "params.yaml: retrain.rounds: got [13, 40]; accepted: rounds from 1 to prune.rounds, 12"
    )


def test_all_retrains_every_round_and_a_list_is_put_in_order():
    assert validate(with_values(retrain__rounds="all")).retrain_rounds() == list(range(1, 13))
    assert validate(with_values(retrain__rounds=[9, 3])).retrain_rounds() == [3, 9]


@pytest.mark.parametrize(
    ("side", "model", "fitting"),
    [
        (7, "conv6", "lenet_300_100, conv2, conv4, resnet20"),
        (3, "conv6", "lenet_300_100, conv2, resnet20"),
        (3, "conv4", "lenet_300_100, conv2, resnet20"),
        (1, "conv2", "lenet_300_100, resnet20"),
    ],
)
def test_a_model_that_pools_the_image_away_gives_one_line(monkeypatch, side, model, fitting):
    smaller = dataclasses.replace(DATASETS["digits"], image_shape=(28, side, 1))
    monkeypatch.setitem(params.DATASETS, "digits", smaller)
    content = with_values(data__name="digits", model__name=model)
    (line,) = complaints(content)
    assert (
        line
        == f"params.yaml: model.name: got '{model}'; accepted: a model that fits images of side {side}: {fitting}"
    )
    assert validate(with_values(data__name="digits")).model.name == "lenet_300_100"


@pytest.mark.parametrize("model", ["lenet_300_100", "conv2", "conv4", "conv6"])
@pytest.mark.parametrize("dataset", ["mnist5k", "digits"])
def test_every_model_fits_every_dataset_of_the_catalogue(dataset, model):
    assert validate(with_values(data__name=dataset, model__name=model)).model.name == model


def test_several_mistakes_give_a_line_each():
    lines = complaints(
        with_values(seeds=[], prune__rates__dense=2, report__margin="small", train__speed=1)
    )
    keys = [line.removeprefix("params.yaml: ").split(": ")[0] for line in lines]
    assert sorted(keys) == ["prune.rates.dense", "report.margin", "seeds", "train.speed"]


def test_a_long_value_is_cut_in_the_message():
    (line,) = complaints(with_values(model__name="x" * 10_000))
    assert line.startswith("params.yaml: model.name: got 'xxx")
    assert len(line) < 250


@pytest.mark.parametrize(
    ("content", "kind"), [(None, "NoneType"), ([], "list"), ("seeds", "str"), (3, "int")]
)
def test_anything_but_a_mapping_gives_one_line_with_the_keys(content, kind):
    (line,) = complaints(content)
    assert line.startswith(
        f"params.yaml: got {kind}; accepted: a mapping with the keys seeds, data, model, train, prune"
    )


def failure_to_load(path):
    with pytest.raises(LotteryError) as error:
        load(path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def test_a_missing_file_gives_one_line(tmp_path):
    assert "No such file" in failure_to_load(tmp_path / "params.yaml")


def test_a_folder_in_place_of_the_file_gives_one_line(tmp_path):
    assert "cannot be read" in failure_to_load(tmp_path)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_an_empty_file_gives_one_line(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    assert "accepted: a mapping with the keys seeds, data" in failure_to_load(
        tmp_path / "params.yaml"
    )


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08\x00", b"seeds: [\xff]", bytes(range(256))[::-1]],
)
def test_a_binary_file_gives_one_line(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    assert "cannot be read" in failure_to_load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seeds: [0, 1\ndata: {}\n", "line 2"),
        ("seeds: [0]\n\tdata: 3\n", "line 2"),
        ("seeds: [0]\nseeds: [1]\n", "line 2"),
        ("seeds: 'open\n", "line"),
        ("seeds: *nothing\n", "line 1, column 8"),
        ("seeds: [0]\n}\n", "line 2"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("seeds: !!python/object:os.system x\n", "line 1"),
    ],
)
def test_invalid_yaml_gives_one_line_with_the_place(tmp_path, text, place):
    (tmp_path / "params.yaml").write_text(text)
    line = failure_to_load(tmp_path / "params.yaml")
    assert line.startswith("not valid YAML at line ")
    assert place in line


# Random parameters


@st.composite
def valid_contents(draw):
    name = draw(st.sampled_from(["mnist5k", "digits"]))
    dataset = DATASETS[name]
    validation = draw(st.integers(dataset.classes, dataset.training - dataset.classes))
    training = dataset.training - validation
    batch = draw(st.integers(1, training))
    in_epochs = draw(st.booleans())
    amount = draw(st.integers(1, 40 if in_epochs else 50_000))
    length = amount * (training // batch) if in_epochs else amount
    optimizer = draw(st.sampled_from(["adam", "sgd"]))
    rate = st.floats(0, 1, exclude_max=True)
    positive = st.floats(0, 100, exclude_min=True) | st.integers(1, 3)
    steps = st.fixed_dictionaries(
        {
            "iterations": st.lists(
                st.integers(1, max(1, length - 1)), min_size=1, max_size=4, unique=True
            ).map(sorted)
        }
        | {"factor": positive}
    )
    stopping = st.fixed_dictionaries(
        {"patience": st.integers(1, 50)}, optional={"min_delta": st.floats(0, 10)}
    )
    rounds = draw(st.integers(1, 30))
    train = {
        "optimizer": optimizer,
        "learning_rate": draw(positive),
        "learning_rate_steps": draw(st.none() | steps) if length > 1 else None,
        "momentum": draw(rate) if optimizer == "sgd" else 0,
        "weight_decay": draw(st.floats(0, 1)),
        "batch_size": batch,
        "iterations": None if in_epochs else amount,
        "epochs": amount if in_epochs else None,
        "evaluate_every": draw(st.integers(1, length)),
        "early_stopping": draw(st.none() | stopping),
        "precision": draw(st.sampled_from(["float32", "bfloat16"])),
        "threads": draw(st.integers(1, 64)),
    }
    content = {
        "seeds": draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8, unique=True)),
        "data": {
            "name": name,
            "source": None,
            "sha256": draw(st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)),
            "validation_size": validation,
            "split_seed": draw(st.integers(0, 2**31 - 1)),
        },
        "model": {
            "name": draw(st.sampled_from(["lenet_300_100", "conv2", "conv4", "conv6"])),
            "initializer": draw(st.sampled_from(["glorot_normal", "glorot_uniform"])),
        },
        "train": train,
        "prune": {
            "rounds": rounds,
            "rates": {kind: draw(rate) for kind in ("conv", "dense", "output")},
            "scope": "layerwise",
            "schedule": draw(st.sampled_from(["iterative", "one_shot"])),
            "rewind_iteration": draw(st.integers(0, length - 1)),
        },
        "retrain": {
            "variants": draw(
                st.lists(
                    st.sampled_from(["ticket", "random_reinit", "random_mask"]),
                    min_size=1,
                    unique=True,
                )
            ),
            "rounds": draw(
                st.just("all")
                | st.lists(st.integers(1, rounds), min_size=1, max_size=6, unique=True)
            ),
        },
        "report": {
            "margin": draw(rate),
            "confidence": draw(st.floats(0.5, 1, exclude_min=True, exclude_max=True)),
        },
    }
    for (section, key), default in draw(
        st.lists(st.sampled_from(list(BY_DEFAULT.items())), unique=True)
    ):
        if key in content[section] and content[section][key] == default:
            del content[section][key]
    return content


@settings(max_examples=100, deadline=None)
@given(valid_contents())
def test_valid_parameters_validate_and_round_trip(content):
    before = copy.deepcopy(content)
    validated = validate(content)
    assert content == before
    training = DATASETS[validated.data.name].training - validated.data.validation_size
    dumped = validated.model_dump()
    assert is_part_of(content, dumped)
    assert validate(dumped) == validated
    assert 0 <= validated.prune.rewind_iteration < validated.train.length(training)
    assert max(validated.retrain_rounds()) <= validated.prune.rounds


@settings(max_examples=50, deadline=None)
@given(valid_contents())
def test_valid_parameters_are_the_same_when_read_from_a_file(tmp_path_factory, content):
    text = io.StringIO()
    YAML(typ="safe").dump(content, text)
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(text.getvalue())
    assert load(path) == validate(content)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.binary(max_size=4)
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=8) | st.integers() | st.none() | st.booleans(), inner, max_size=4
        )
    ),
    max_leaves=8,
)


def places(content, path=()):
    """Every key and list index of nested content."""
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def spoiled_contents(draw):
    content = draw(st.just(VALID) | valid_contents())
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(content))
        if not found:
            break
        *path, key = draw(st.sampled_from(found))
        section = content
        for name in path:
            section = section[name]
        change = draw(st.sampled_from(["drop", "replace", "add"]))
        if change == "drop":
            del section[key]
        elif change == "replace":
            section[key] = draw(anything)
        elif isinstance(section, list):
            section.append(draw(anything))
        else:
            section[draw(st.text(max_size=8) | st.integers() | st.none())] = draw(anything)
    return content


@settings(max_examples=200, deadline=None)
@given(spoiled_contents() | anything)
def test_spoiled_parameters_are_either_valid_or_a_lottery_error(content):
    try:
        validated = validate(content)
    except LotteryError as error:
        lines = str(error).splitlines()
        assert lines
        assert lines[0].startswith("params.yaml: ")
        assert "accepted: " in str(error)
    else:
        assert validate(validated.model_dump()) == validated


@st.composite
def spoiled_texts(draw):
    text = COMMITTED.read_text(encoding="utf-8")
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        new = draw(
            st.text(NEW_CHARACTERS, max_size=6)
            | st.sampled_from(["&a ", "*a", "? ", "- ", "<<: ", "--- ", "%YAML 3"])
        )
        text = text[:start] + new + text[end:]
    return text


NEW_CHARACTERS = "".join(c for c in string.printable if c.isprintable() and c != "!") + "\n\t äΩ中🎟"


@settings(max_examples=100, deadline=None)
@given(spoiled_texts())
def test_a_spoiled_file_is_either_valid_or_a_lottery_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "spoiled.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        loaded = load(path)
    except LotteryError as error:
        assert all(line.startswith(f"{path}: ") for line in str(error).splitlines()[:1])
        assert str(error) != f"{path}: "
    else:
        assert validate(loaded.model_dump()) == loaded


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_a_file_cut_short_is_a_lottery_error(tmp_path, share):
    content = COMMITTED.read_bytes()
    (tmp_path / "params.yaml").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(LotteryError, match=r"params\.yaml: "):
        load(tmp_path / "params.yaml")


# The committed file


def test_the_committed_file_is_valid():
    assert load(COMMITTED).seeds


def test_the_schema_has_the_keys_of_the_design():
    keys = {".".join(path) for path in FIELDS}
    assert {
        "train.early_stopping.patience",
        "train.learning_rate_steps.factor",
        "prune.rewind_iteration",
    } < keys
    assert len(keys) >= 38


@pytest.mark.parametrize("path", list(FIELDS), ids=".".join)
def test_every_key_is_in_the_committed_file_with_a_comment_on_its_line(path):
    lines = COMMITTED.read_text(encoding="utf-8").splitlines()
    section = YAML().load(COMMITTED)
    for depth, name in enumerate(path[:-1]):
        if (
            section[name] is None
        ):  # a mapping left out: its keys are shown in the comment on its line
            comment = lines[section.lc.key(name)[0]].partition(" # ")[2]
            assert all(f"{key}:" in comment for key in path[depth + 1 :])
            return
        section = section[name]
    line = lines[section.lc.key(path[-1])[0]]
    if len(path) > 1 and path != (
        "train",
        "learning_rate",
    ):  # the sections' names say what they are
        assert len(line.partition(" # ")[2]) >= len("sgd")
