"""params.yaml: what is wrong with it is found before anything is computed, in a line each."""

import math
import re
from dataclasses import replace
from typing import get_args

import pytest
from clones import ROOT, TINY, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.__main__ import main
from lottery.errors import LotteryError
from lottery.params import Params, Section, Size, check_fit, load, validate
from lottery.params.catalogue import DATASETS
from lottery.params.sections import DatasetName

DEFAULT = ROOT / "params.yaml"
VALID = tiny({})


@pytest.fixture(autouse=True)
def oblong(monkeypatch):
    """Digits that are not square."""
    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], image_shape=(9, 7, 1)))


def fields_of(section, path=()):
    """Every key of the schema with its field; those of a mapping that may be null too."""
    for name, field in section.model_fields.items():
        yield (*path, name), field
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from fields_of(kind, (*path, name))


FIELDS = dict(fields_of(Params))


def complaints(content):
    with pytest.raises(LotteryError) as error:
        validate(content)
    return [line.removeprefix("params.yaml: ") for line in str(error.value).splitlines()]


OWN = "or your own module:function"
MODELS = f"'lenet_300_100', 'conv2', 'conv4', 'conv6', 'resnet20' or 'vgg16' {OWN}"
FOLDER = "a folder, a zip or tar archive, or its URL, that holds train/<class>/<image>"
ARRAYS = "an npz or safetensors file, or its URL, that holds x_train, y_train"
HAS = "digits has 1,500 examples for training and validation"
FITTING = f"a model that fits images of side 7: lenet_300_100, conv2, conv4, resnet20, {OWN}"
FOUR_AT_MOST = "this one with train.evaluate_every of at most 4"
BELOW = "this share of the run's 40 iterations is less than one evaluation"

NO_BATCH_NORM = "ones with lenet_300_100: it has no batch normalisation"
RATES = VALID["prune"]["rates"]

REFUSED = [
    # of the wrong type
    ("train.jit_compile", 1, "true or false"),
    ("prune.rates", None, "a mapping with the keys conv, dense, output"),
    # beyond its limits
    ("prune.rounds", 0, "at least 1"),
    ("prune.rounds", 1001, "at most 1000"),
    ("report.margin", 1.0, "below 1"),
    ("train.learning_rate", 0, "above 0"),
    ("train.learning_rate", math.nan, "a finite number"),
    ("seeds", [], "at least 1 item"),
    ("seeds", [0, 1, 0], "each value once"),
    ("data.sha256", "A" * 64, "64 lower-case hexadecimal digits, or null"),
    # not one of the names
    ("prune.pattern", "units", "'weight' or 'unit' or [2, 4]; did you mean unit?"),
    ("prune.pattern", [4, 2], "'weight' or 'unit' or [2, 4]"),
    ("train.optimizer", "lion", "'adam' or 'sgd'"),
    ("train.precision", "float23", "'float32' or 'bfloat16'; did you mean float32?"),
    ("model.name", "convx", f"{MODELS}; did you mean conv6?"),
    ("model.name", "../module:function", MODELS),
    ("retrain.rounds", "some", "a list or 'all'"),
    # YAML reads it otherwise than it was meant
    ("data.source", 2024, 'a string, in quotes: "2024"'),
    ("seeds", 3, "a list: [3], which is one seed"),
    ("data.image_size", 10, "a list: [10, 10]"),
    ("report.margin", "0,01", "a number, with a decimal point: 0.01"),
    ("train.batch_size", "60", "a whole number, without quotes: 60"),
    # another key rules it out
    ("train.epochs", 3, "null with train.iterations 40: one of the two"),
    ("train.iterations", None, "at least 1, or null with train.epochs given"),
    ("train.momentum", 0.9, "0 with optimizer adam; momentum belongs to sgd"),
    ("data.source", "digits.zip", "null: digits comes with a package"),
    ("data.image_size", [8, 8], "null: only image_folder is resized, not digits"),
    ("retrain.rounds", [1, 3], "rounds from 1 to prune.rounds, 2"),
    ("prune.scoring_rounds", 9, "1 with magnitude: its scores stay the same"),
    ("model.batch_norm_scale", "uniform", NO_BATCH_NORM),
    ("prune.rates", dict.fromkeys(RATES, 0.0), "one above 0: these prune nothing"),
    ("data.split_seed", 7, "0 with data.split per_seed, where the seed itself draws the split"),
    # it does not fit the dataset
    ("data.validation_size", 9, f"from 10 (one example a class) to 1490: {HAS}"),
    ("train.batch_size", 1251, "at most the 1,250 training examples"),
    ("model.name", "vgg16", FITTING),
    # it does not fit the length of a run
    ("train.evaluate_every", 41, "at most the run's 40 iterations"),
    ("train.warmup_iterations", 41, "at most the run's 40 iterations"),
    ("prune.rewind_iteration", 40, "less than the run's 40 iterations"),
    # no evaluation can tell it
    ("report.iteration_margin", 0.1, f"at least 0.25 or {FOUR_AT_MOST}: {BELOW}"),
]


EPOCHS = {"train.iterations": None, "train.epochs": 2, "train.evaluate_every": 10}
ONE_RATE = "one rate for all kinds, or 0: left whole"
NO_XLA = "false with conv2: XLA has no deterministic gradient of its max-pooling"
ONE_SHOT = {"prune.criterion": "snip", "prune.schedule": "one_shot"}
SCORES_ONCE = "1 with prune.schedule one_shot, which scores once"
UNTRAINED = "rewind with retrain.masks: they come without trained weights"
ALONG = "connectivity_of_pruning"
NO_TRAINING = "none or linear_mode_connectivity: the rounds here are not trained"
BEFORE_TRAINING = "rewind: snip prunes before any training"
NO_DROPOUT = "0 with vgg16: it has no hidden dense layer"
UNIT = {"prune.pattern": "unit", "prune.rates.output": 0, "prune.rates.conv": 0.2}
FOUR = {"prune.pattern": [2, 4], "prune.rounds": 1, "retrain.rounds": [1]}
FOUR |= {"prune.rates": {"conv": 0.5, "dense": 0.5, "output": 0}}
CLASSES = "0 with prune.pattern unit: the output units are the classes"
HALF = "0.5, the share that prune.pattern [2, 4] prunes, or 0: left whole"
WEIGHT, SNIP = "with prune.pattern weight", {"prune.criterion": "snip"}
LONG = {"train.iterations": 134}
CHANGING = ("set", "rigl")


def never(name):
    why = "its mask would never change in the run's 133 iterations, only in more than 133"
    return f"without {name}: {why}"


SINGLE = ("random_mask_global", "random_mask_erk", "set", "rigl", "supermask")
SINGLE += ("supermask_signed_constant",)
REFUSED_BESIDE_OTHERS = [
    (EPOCHS, "train.evaluate_every", 51, "at most the run's 50 iterations"),
    ({"model.name": "conv2"}, "train.jit_compile", True, NO_XLA),
    ({"prune.scope": "global"}, "prune.rates", RATES, f"with prune.scope global {ONE_RATE}"),
    ({"prune.scope": "erk"}, "prune.rates", RATES, f"with prune.scope erk {ONE_RATE}"),
    (ONE_SHOT, "prune.scoring_rounds", 9, SCORES_ONCE),
    (UNIT, "prune.scope", "global", "layerwise with a prune.pattern other than weight"),
    (UNIT, "prune.rates.output", 0.1, CLASSES),
    (FOUR, "prune.rounds", 2, "1 with prune.pattern [2, 4]: its density is fixed"),
    (FOUR | SNIP, "prune.scoring_rounds", 9, "1 with prune.pattern [2, 4]: its density is fixed"),
    (FOUR, "prune.rates", {"conv": 0.0, "dense": 0.2, "output": 0.0}, HALF),
    *((UNIT | LONG, "retrain.variants", [name], f"without {name}, or {WEIGHT}") for name in SINGLE),
    *(({"train.iterations": 133}, "retrain.variants", [name], never(name)) for name in CHANGING),
    (SNIP, "prune.strategy", "finetune", BEFORE_TRAINING),
    ({"retrain.masks": "tickets/tiny"}, "prune.strategy", "finetune", UNTRAINED),
    ({"retrain.masks": "tickets/tiny"}, "retrain.analysis", ALONG, NO_TRAINING),
    ({"prune.schedule": "one_shot"}, "retrain.analysis", ALONG, NO_TRAINING),
    ({"data.name": "cifar10", "model.name": "vgg16"}, "model.dropout", 0.5, NO_DROPOUT),
    ({"data.name": "image_folder"}, "data.source", None, FOLDER),
    ({"data.name": "arrays"}, "data.source", None, ARRAYS),
    ({"data.name": "a:b"}, "data.source", "x.npz", "null: a:b is called without one"),
]


@pytest.mark.parametrize(
    ("others", "key", "value", "accepted"),
    [*(({}, *one) for one in REFUSED), *REFUSED_BESIDE_OTHERS],
)
def test_a_mistake_gives_one_line_with_the_key_what_it_got_and_what_it_takes(
    others, key, value, accepted
):
    found = complaints(tiny(others | {key: value}))
    assert found == [f"{key}: got {value!r}; accepted: {accepted}"]


STEPS = "train.learning_rate_steps"
NO_FACTOR = {"iterations": [3]}
FALLING, TWICE, LATE = ({"iterations": of, "factor": 0.1} for of in ([20, 10], [9, 9], [9, 40]))
RISING = "accepted: rising ones, less than the run's 40 iterations"
UNKNOWN = "unknown key; accepted: conv, dense, output"
COMMA = {"conv": 0, 1: None, "dense": 0.2, "output": 0.1}  # YAML's {conv: 0,1, dense: …}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seeds", [0, True], "seeds.1: got True; accepted: a whole number"),
        ("retrain.rounds", [2, 0], "retrain.rounds.1: got 0; accepted: at least 1"),
        ("data.image_size", [32, 0], "data.image_size.1: got 0; accepted: at least 1"),
        (STEPS, NO_FACTOR, f"{STEPS}.factor: missing; accepted: a number"),
        (STEPS, FALLING, f"{STEPS}.iterations: got [20, 10]; {RISING}"),
        (STEPS, TWICE, f"{STEPS}.iterations: got [9, 9]; {RISING}"),
        (STEPS, LATE, f"{STEPS}.iterations: got [9, 40]; {RISING}"),
        ("prune.rates.dence", 0.2, f"prune.rates.dence: {UNKNOWN}; did you mean dense?"),
        ("prune.rates", COMMA, f"prune.rates.1: {UNKNOWN}; a decimal comma? write a point"),
        ("model.name", "x" * 10_000, f"model.name: got '{'x' * 76}...; accepted: {MODELS}"),
    ],
)
def test_a_mistake_inside_a_value_is_named_by_its_full_path(key, value, line):
    assert complaints(tiny({key: value})) == [line]


def test_all_mistakes_of_a_file_are_named_at_once():
    spoilt = {"seeds": [], "prune.rounds": "2", "model.speed": 1, "report.margin": "0,01"}
    between = {"data.validation_size": 9, "train.evaluate_every": 41, "train.momentum": 0.5}
    keys = {line.split(": ")[0] for line in complaints(tiny(spoilt | between))}
    assert keys == {*spoilt, *between}


def test_a_dataset_that_is_known_only_once_it_is_read_is_compared_then():
    loaded = validate(tiny(EPOCHS | {"data.name": "image_folder", "data.source": "images"}))
    check_fit(loaded, Size(1500, 10, (8, 8, 1)))
    with pytest.raises(LotteryError, match=r"^a: .*20 or more"):
        check_fit(loaded, Size(19, 10, (8, 8, 1)), path="a")


def test_convolutions_and_augmentation_are_for_images_alone():
    augmented = {"train.augmentation": {"flip": True, "crop": 0}, "model.name": "resnet20"}
    for shape in ((30,), (28, 28), (8, 8, 8, 1)):
        check_fit(validate(tiny({})), Size(1500, 10, shape))
        with pytest.raises(LotteryError) as error:
            check_fit(validate(tiny(augmented)), Size(1500, 10, shape))
        assert str(error.value).splitlines() == [
            "params.yaml: model.name: got 'resnet20'; accepted: a model that fits the shape "
            f"{list(shape)}, no image's: lenet_300_100, {OWN}",
            "params.yaml: train.augmentation: got {'flip': True, 'crop': 0}; accepted: null with "
            f"examples of the shape {list(shape)}: no image's",
        ]


@pytest.mark.parametrize(
    ("margin", "every", "key", "value"),
    [
        (0.29, 29, "report.iteration_margin", 0.725),
        (0.29, 29, "train.evaluate_every", 11),
        (0.01, 40, "train.iterations", 4000),
    ],
)
def test_what_is_advised_for_a_margin_below_one_evaluation_is_the_least_that_does(
    margin, every, key, value
):
    values = {"report.iteration_margin": margin, "train.evaluate_every": every}
    (line,) = complaints(tiny(values))
    assert re.search(f"at (least|most) {value}", line)
    assert validate(tiny(values | {key: value}))
    nearly = value + {"train.evaluate_every": 1, "train.iterations": -1}.get(key, -0.0001)
    assert complaints(tiny(values | {key: nearly}))


def test_an_epoch_has_as_many_iterations_as_whole_batches():
    assert validate(tiny(EPOCHS)).train.length(1249) == 2 * 24


def test_one_threshold_for_all_layers_leaves_those_of_rate_0_whole():
    rates = {"conv": 0.2, "dense": 0.2, "output": 0.0}
    shapes = {"conv1/kernel": (10, 100), "dense1/kernel": (100, 30), "output/kernel": (10, 10)}
    kinds = {"conv1/kernel": "conv", "dense1/kernel": "dense", "output/kernel": "output"}
    for scope, whole, left in (
        ("global", ["output/kernel"], 100 + 2560),
        ("erk", ["output/kernel"], dict(zip(kinds, (1000, 1560, 100), strict=True))),
        ("layerwise", [], dict(zip(kinds, (640, 1920, 100), strict=True))),
    ):
        prune = validate(tiny({"prune.scope": scope, "prune.rates": rates})).prune
        assert (prune.left_whole(kinds), prune.surviving(shapes, kinds, 2)) == (whole, left)


def test_the_last_learning_rate_is_what_the_steps_end_with():
    values = {STEPS: {"iterations": [20, 30], "factor": 0.1}}
    train = validate(tiny(values)).train
    last = train.last_learning_rate()
    assert (last.learning_rate, last.learning_rate_steps) == (pytest.approx(1.2e-5), None)
    assert hash(train) != hash(last)
    for strategy, how in (("rewind", train), ("learning_rate_rewind", train), ("finetune", last)):
        assert validate(tiny(values | {"prune.strategy": strategy})).tickets_train() == how


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot be read: [Errno 2] No such file"),
        (b"", "the file: got None; accepted: a mapping with the keys seeds, data, model, train"),
        (b"\x89PNG\r\n", "cannot be read: 'utf-8' codec"),
        (b"seeds: [0]\nseeds: [1]\n", "not valid YAML at line 2, column 1: found duplicate key"),
        (b"[" * 1000, "not valid YAML: maximum recursion depth"),
        (b"a: !!int x\n", "not valid YAML: invalid literal for int()"),
        (b"a: &a [*a]\n", "expands to more than 200,000 values"),
        (b"a: 1\n<<<<<<< HEAD\nb: 1\n", "line 2: <<<<<<< is git's mark of a conflict: keep one"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_parameters_gives_one_line(tmp_path, content, line):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LotteryError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: {line}")
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_spoilt_file_is_either_valid_or_says_in_plain_lines_what_is_wrong(tmp_path_factory, data):
    text = DEFAULT.read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        new = st.text("[]{}:,-#&*?!|>'\"%@` \n\tä0a", max_size=6)
        text = text[:start] + data.draw(new) + text[start + data.draw(st.integers(0, 40)) :]
    path = tmp_path_factory.getbasetemp() / "spoilt.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert validate(load(path).model_dump())
    except LotteryError as error:
        assert all(line.startswith(f"{path}: ") for line in str(error).splitlines())


def test_the_names_of_datasets_are_those_of_the_catalogue():
    assert {*DATASETS, "image_folder", "arrays"} == set(get_args(DatasetName))


def test_a_command_checks_the_file_against_the_catalogue_before_dvc_reads_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    spoilt = TINY.replace("validation_size: 250", "validation_size: 3")
    (tmp_path / "params.yaml").write_text(spoilt)
    with pytest.raises(SystemExit, match="1"):
        main(["check", "--params"])
    accepted = f"from 10 (one example a class) to 1490: {HAS}"
    said = f"check: params.yaml: data.validation_size: got 3; accepted: {accepted}\n"
    assert capsys.readouterr() == ("", said)
    assert load(DEFAULT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "add to retrain.variants: random_reinit"),
        *(
            ({"prune.criterion": name}, "add to retrain.variants: shuffled_mask, random_reinit")
            for name in ("snip", "grasp", "synflow")
        ),
        ({"prune.strategy": "finetune"}, "2 seeds cannot tell: 6 are the fewest that can"),
    ],
)
def test_what_no_verdict_can_come_without_is_known_before(changes, said):
    assert validate(tiny({"retrain.variants": ["ticket"]} | changes)).missing() == said


def test_secrets_of_urls_stay_out_of_refusals():
    urls = ["https://a.org/x.npz", "https://me:word@example.org/b?sig=word"]
    for value in (urls[1], urls, dict([urls])):
        with pytest.raises(LotteryError, match=r"data\.source: got") as error:
            validate(tiny({"data.source": value}))
        assert "word" not in str(error.value)
    (line,) = complaints(tiny({}) | {urls[1]: 3})
    assert line.startswith("https://example.org/b: unknown key")
