"""Parts of one's own: the example, and each mistake in one line before anything is computed."""

import importlib.util
import sys
import types
from functools import partial

import keras as keras_3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from clones import ROOT, network
from networks import models
from ruamel.yaml import YAML
from test_plan import params_of
from tf_keras import layers

from lottery import code, parts
from lottery.artifacts import files
from lottery.datasets.dataset import Dataset
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.running import machine
from lottery.streams import stream
from lottery.tickets import own, pruning
from lottery.tickets.ticket import Start
from lottery.training.architectures import Dropout
from lottery.training.engine import Engine

EXAMPLE = {
    "model.name": "mine.example:narrow",
    "prune.criterion": "mine.example:sensitivity",
    "retrain.variants": ["ticket", "mine.example:zeroed"],
}
DIGITS = network("mine.example:narrow", (8, 8, 1))


@pytest.fixture
def elsewhere(monkeypatch):
    """A module of one's own, to be filled; parts have not been imported yet."""
    module = types.ModuleType("elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    parts._imported.cache_clear()
    return module


def pruned_by(criterion, weights, initial, kinds, of):
    """The mask of 500 weights that a criterion gives."""
    images = stream("images").integers(1, 256, (40, 8, 8, 1), np.uint8)
    return pruning.pruned(
        Mask.full({name: initial[name].shape for name in kinds}),
        weights,
        500,
        criterion=criterion,
        initial=initial,
        network=of,
        seed=0,
        batch=Part(images, np.arange(40) % 10),
    )


def test_the_example_is_that_of_the_docs_has_no_mistake_and_its_criterion_is_snip():
    text = (ROOT / "mine/example.py").read_text()
    assert f"```python\n{text}```" in (ROOT / "docs/own-parts.md").read_text()
    params = params_of(EXAMPLE)
    assert own.mistakes(params, DIGITS) == []
    (initial, kinds), (trained, _) = (models.initialise(DIGITS, "test", seed) for seed in (0, 1))
    ours = pruned_by(params.prune.criterion, trained, initial, kinds, DIGITS)
    snip = pruned_by("snip", initial, initial, kinds, DIGITS)
    assert ours.within(snip)
    assert snip.within(ours)


def test_scores_of_ones_own_are_ranked_as_the_numbers_they_are(elsewhere):
    of = network("lenet_300_100", (8, 8, 1))
    weights, kinds = models.initialise(of, "test")
    elsewhere.ranks = lambda layer: np.arange(layer.w.size).reshape(layer.w.shape) % 7
    expected = pruned_by("elsewhere:ranks", weights, weights, kinds, of)
    for dtype in (np.uint8, np.int8):
        least = np.iinfo(dtype).min
        elsewhere.narrow = lambda of, least=least, dtype=dtype: (
            elsewhere.ranks(of) + least
        ).astype(dtype)
        parts._imported.cache_clear()
        found = pruned_by("elsewhere:narrow", weights, weights, kinds, of)
        assert found.within(expected)
        assert expected.within(found)


def signals(series, classes):
    """Numbers to tokens, an embedding of these as a dense layer, convolutions in time."""
    tokens = layers.Lambda(lambda x: tf.one_hot(tf.cast(x[..., 0], tf.int32), 7), name="tokens")
    x = layers.Dense(4, use_bias=False, name="embedding")(tokens(series))
    zero = tf_keras.initializers.Constant(0.0)  # as usual, in other words
    x = layers.Conv1D(5, 9, strides=4, bias_initializer=zero, name="time")(x)
    return layers.Dense(classes, name="output")(layers.Flatten(name="flatten")(x))


def test_networks_of_signals_and_tokens_are_pruned_as_those_of_images():
    params = params_of({**EXAMPLE, "model.name": "test_own:signals"})
    of_signals = network("test_own:signals", (41, 1), 3)
    assert own.mistakes(params, of_signals) == []
    kinds = {"embedding/kernel": "dense", "time/kernel": "conv", "output/kernel": "output"}
    assert models.kinds(models.build(of_signals)) == kinds


def numbered(numbers, classes):
    return layers.Dense(classes, name="output")(tf.one_hot(tf.cast(numbers[:, 0], tf.int32), 300))


def test_in_bfloat16_layers_compute_but_examples_are_not_rounded():
    """Of whole numbers above 256 it has every second one."""
    examples = np.arange(300, dtype=np.float32)[:, None]
    facts = {"image_shape": (1,), "classes": 2, "test": 0, "own_test": True, "name": "numbers"}
    dataset = Dataset(examples, np.arange(300, dtype=np.int32) % 2, facts)
    train = params_of({"train.precision": "bfloat16"}).train
    engine = Engine(network("test_own:numbered", (1,), 2).model, train, dataset)
    logits = engine._logits(engine._images, training=False).numpy()
    assert len(np.unique(logits, axis=0)) > 290


# Mistakes


def layered(*inner, dense=layers.Dense, units=None, **last):
    """An architecture of these layers before the last one, which has these options."""

    def built(images, classes):
        x = images
        for make in (*inner, lambda: layers.Flatten(name="flatten")):
            x = make()(x)
        return dense(units or classes, name="output", **last)(x)

    return built


def changed(**changes):
    """A variant: the ticket, but for these fields, functions of the ticket."""

    def start(t):
        whole = {"weights": t.mask.apply(t.weights), "mask": t.mask, "iteration": 0}
        return Start(**{**whole, "train": t.train, **{n: of(t) for n, of in changes.items()}})

    return start


def trained(**update):
    """The ticket, trained with other parameters."""
    return changed(train=lambda t: t.train.model_copy(update=update))


def by_chance(array):
    return np.random.default_rng().random(array.shape)


class Scaled(layers.Layer):
    """As of ConvNeXt: what it begins with is no attribute of it."""

    def build(self, shape):
        small = tf_keras.initializers.Constant(1e-6)
        self.gamma = self.add_weight("gamma", shape[-1:], initializer=small)

    def call(self, inputs):
        return self.gamma * inputs


class Within(layers.Layer):
    """A layer around another one."""

    def __init__(self, inner):
        super().__init__(name="around")
        self.inner = inner

    def call(self, inputs, training=None):
        return self.inner(inputs, training=training)


class Penalised(layers.Layer):
    """Adds a loss in training alone."""

    def call(self, inputs, training=None):
        if training:
            self.add_loss(tf.reduce_mean(inputs))
        return inputs


class Standardised(layers.Dense):
    """Multiplies with other weights than it has: of a pruned one it takes the mean away."""

    def call(self, inputs):
        return inputs @ (self.kernel - tf.reduce_mean(self.kernel))


def projected(images, classes):
    drawn = by_chance(np.zeros((64, 8))).astype(np.float32)
    return layers.Dense(classes, name="output")(layers.Flatten()(images) @ drawn)


def twice(inner):
    return layered(*[lambda inner=inner: inner] * 2)


def test_of_scales_those_of_batch_normalisation_alone_are_drawn(elsewhere):
    kinds = {"batch": layers.BatchNormalization, "layer": layers.LayerNormalization}
    elsewhere.scaled = layered(*(partial(kind, name=name) for name, kind in kinds.items()))
    of = network("elsewhere:scaled", (8, 8, 3), batch_norm_scale="uniform")
    weights, _ = models.initialise(of, "test")
    assert len(np.unique(weights["batch/gamma"])) == 3
    assert (weights["layer/gamma"] == 1).all()


LEFT_OUT = "which the training here leaves out"
MODELS = {
    "softmax": (
        layered(activation="softmax"),
        "its outputs never leave [-1, 1], as of a softmax; accepted: logits",
    ),
    "seven": (layered(units=7), "its output has the shape [7] for each image; accepted: logits"),
    "unnamed": (layered(lambda: layers.Conv2D(3, 3)), "a layer Conv2D has no name of its own"),
    "twice": (layered(lambda: layers.Flatten(name="output")), "used 2 times in the model"),
    "keras_3": (layered(dense=keras_3.layers.Dense), "no Conv or Dense layer of tf_keras in it"),
    "dropped": (
        layered(lambda: layers.Dropout(0.5, name="drop")),
        "the layer drop (Dropout) draws random numbers of its own; accepted: lottery.training",
    ),
    "depthwise": (
        layered(lambda: layers.DepthwiseConv2D(3, name="deep")),
        "deep/depthwise_kernel would not be pruned; accepted: Conv1D to Conv3D, Dense",
    ),
    "transposed": (
        layered(lambda: layers.Conv2DTranspose(3, 3, name="up")),
        "up/kernel would not be pruned",
    ),
    "nested": (
        layered(lambda: tf_keras.Sequential([layers.Flatten()], name="head")),
        "head is a model within it; accepted: its layers, one by one",
    ),
    "regularised": (
        layered(kernel_regularizer="l2"),
        f"it adds losses of its own (a regulariser, add_loss), {LEFT_OUT}",
    ),
    "bounded": (
        layered(kernel_constraint="non_neg"),
        f"output/kernel has a constraint, {LEFT_OUT}",
    ),
    "penalised": (
        layered(lambda: Penalised(name="penalty")),
        f"it adds losses of its own (a regulariser, add_loss), {LEFT_OUT}",
    ),
    "dropped_within": (
        layered(lambda: Within(Dropout(0.5, name="drop"))),
        "drop (Dropout) is within a layer, called twice or of another kind; accepted: Dropout and",
    ),
    "normalised_twice": (
        twice(layers.BatchNormalization(name="norm")),
        "norm (BatchNormalization) is within a layer, called twice or of another kind",
    ),
    "standardised": (
        layered(dense=Standardised),
        "output is a Standardised, in which pruned weights may go on acting; accepted: Conv1D",
    ),
    "projected": (projected, "it is another function when it is built or called again; accepted"),
    "frozen": (
        layered(trainable=False),
        f"output/kernel is of a layer with trainable=False, {LEFT_OUT}",
    ),
    "begun": (
        layered(kernel_initializer="he_normal"),
        f"output/kernel has an initialiser of its own, {LEFT_OUT}; accepted",
    ),
    "begun_within": (layered(lambda: Scaled(name="scaled")), "scaled/gamma has an initialiser of"),
    "too_small": (layered(lambda: layers.MaxPooling2D(9, name="pool")), "ValueError: Exception"),
    "leaves": (lambda images, classes: sys.exit(3), "SystemExit: 3"),
    "noisy": (
        layered(lambda: layers.Lambda(lambda x: x + tf.random.normal((1,)), name="noise")),
        "Random ops require a seed to be set when determinism is enabled",
    ),
}
CRITERIA = {
    "shape": (lambda layer: np.abs(layer.w).sum(), "scores hidden/kernel with float32 []; accept"),
    "nan": (lambda layer: layer.w * np.nan, "of them NaN; accepted: a number for each weight"),
    "booleans": (lambda layer: layer.w > 0, "scores hidden/kernel with bool [64, 20]; accepted: a"),
    "masked": (lambda layer: np.ma.masked_less(layer.w, 0), "[64, 20], some of them masked; acc"),
    "text": (lambda layer: layer.w.astype(str), "scores hidden/kernel with <U"),
    "in_place": (lambda layer: layer.w.sort(), "ValueError: sort array is read-only"),
    "chance": (
        lambda layer: by_chance(layer.w),
        "other scores when it is called again; accepted: random numbers of lottery.streams",
    ),
}
VARIANTS = {
    "weights": (lambda t: t.weights, "gives a dict; accepted: lottery.tickets.ticket.Start"),
    "unmasked": (
        changed(weights=lambda t: t.weights),
        "weights of hidden/kernel that its mask prunes are not 0; accepted: mask.apply(weights)",
    ),
    "chosen_among_nothing": (
        changed(masks=lambda t: "edge_popup"),
        "weights of hidden/kernel that its mask prunes are 0; accepted: all, that edge_popup is to",
    ),
    "lost": (
        changed(weights=lambda t: {n: v for n, v in t.weights.items() if n != "hidden/bias"}),
        "its weights: hidden/bias: missing; accepted: (20,)",
    ),
    "infinite": (
        changed(
            weights=lambda t: {n: v + np.inf for n, v in t.weights.items()},
            mask=lambda t: Mask.full({n: keep.shape for n, keep in t.mask.layers.items()}),
        ),
        "weights of hidden/kernel are not finite",
    ),
    "other_mask": (
        changed(mask=lambda t: Mask({"output/kernel": t.mask.layers["output/kernel"]})),
        "its mask is of output/kernel; accepted: hidden/kernel, output/kernel",
    ),
    "other_network": (
        changed(model=lambda t: t.network.model.model_copy(update={"name": "elsewhere:wide"})),
        "starts the network elsewhere:wide; accepted: mine.example:narrow, of model.name",
    ),
    "untrained": (changed(train=lambda t: None), "its train is a NoneType; accepted: Train"),
    "rate": (trained(learning_rate=-1.0), "its train.learning_rate: got -1.0; accepted: above 0"),
    "section": (
        trained(early_stopping={"patience": 3}),
        "its train.early_stopping is a dict; accepted: EarlyStopping",
    ),
    "numpy": (trained(learning_rate=np.float32(0.1)), "accepted: Python's own numbers"),
    "typo": (trained(learning_rates=0.1), "its train.learning_rates is a float; accepted: without"),
    "longer": (
        trained(iterations=80),
        "its train.iterations is 80; accepted: 40; Start.iterations makes runs longer",
    ),
    "half": (changed(iterations=lambda t: 9.5), "its iterations is a float; accepted: int"),
    "masks": (changed(masks=lambda t: "grown"), "its masks are 'grown'; accepted: fixed, rigl"),
    "early": (changed(iteration=lambda t: -1), "starts at iteration -1, which is none of its run"),
    "late": (changed(iteration=lambda t: 40), "starts at iteration 40, which is none of its run"),
    "chance": (
        changed(weights=lambda t: t.mask.apply({n: by_chance(v) for n, v in t.weights.items()})),
        "other weights of hidden/kernel when it is called again",
    ),
}
PARTS = {"model.name": MODELS, "prune.criterion": CRITERIA, "retrain.variants": VARIANTS}
MISTAKES = [(key, name, *one) for key, some in PARTS.items() for name, one in some.items()]


@pytest.mark.parametrize(("key", "name", "function", "why"), MISTAKES, ids=lambda v: str(v)[:20])
def test_a_mistake_is_one_line_with_the_part_and_its_place(elsewhere, key, name, function, why):
    part = f"elsewhere:{name}"
    setattr(elsewhere, name, function)
    value = [part] if key == "retrain.variants" else part
    params = params_of({**EXAMPLE, "prune.criterion": "magnitude", key: value})
    (line,) = own.mistakes(params, DIGITS._replace(model=params.model))
    assert line.startswith(f"params.yaml: {part}: tests/test_own.py, line ")
    assert why in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def part(:", "elsewhere.py, line 1: cannot be imported: SyntaxError: invalid syntax"),
        ("\n1 / 0", "elsewhere.py, line 2: cannot be imported: ZeroDivisionError: division by zer"),
        ("import sys\nsys.exit(3)", "elsewhere.py, line 2: cannot be imported: SystemExit: 3"),
        ("class part: pass", "a type; accepted: a function"),
    ],
)
def test_a_part_that_cannot_be_had_is_one_line(tmp_path, monkeypatch, source, why):
    (tmp_path / "elsewhere.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)
    parts._imported.cache_clear()
    names = {"model.name": "elsewhere:part", "prune.criterion": "mine.example:nothing"}
    first, second = own.mistakes(params_of(names), None)
    assert first.startswith(f"params.yaml: elsewhere:part: {why}")
    lacks = "AttributeError: module 'mine.example' has no attribute 'nothing'"
    assert second.endswith(f"mine/example.py: cannot be imported: {lacks}")


def test_parts_are_tried_once_until_they_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOTTERY_EXECUTOR", "in-process")
    own.check(params_of(EXAMPLE))
    monkeypatch.setenv("LOTTERY_EXECUTOR", "refused")
    own.check(params_of(EXAMPLE))
    own.check(params_of())  # without any there is nothing to try
    tried_again = pytest.raises(LotteryError, match="LOTTERY_EXECUTOR")
    with tried_again:
        own.check(params_of({**EXAMPLE, "seeds": [5]}))
    edited = code.Code((("mine.example", code.Module("another", ())),), "")
    for module, name, other in (
        (own, "_network", None),
        (code, "of_stage", edited),
        (code, "beside", ["widths.json"]),  # a file that they may read
    ):
        with monkeypatch.context() as patch, tried_again:
            patch.setattr(module, name, lambda *_, other=other: other)
            own.check(params_of(EXAMPLE))


HIDING = ("sys.path.insert(0, __file__[:-8])\nimport hidden", "__import__('pack.hidden')")


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """Writes a package's module ``part``, which has another beside it."""

    def written(text):
        (tmp_path / "pack").mkdir()
        for name, content in (("__init__", ""), ("hidden", "HIDDEN = 20"), ("part", text)):
            (tmp_path / f"pack/{name}.py").write_text(content)

    monkeypatch.syspath_prepend(tmp_path)
    yield written
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pack", "hidden")]:
        del sys.modules[name]


@pytest.mark.parametrize("line", HIDING)
def test_a_module_imported_in_a_way_that_hides_its_changes_is_refused(pack, line):
    pack(f"import sys\n{line}")
    machine._other_code.cache_clear()
    began = code.of_stage("stages.prune", ["pack.part"], "pack.part")
    for _ in range(2):  # the next task of a worker, which has imported it by then
        with pytest.raises(LotteryError, match=r"hidden\.py: imported in a way that hides its ch"):
            machine.prepare(1, began, 0)


def test_a_module_that_a_part_imports_so_when_it_is_called_is_refused_too(pack):
    pack("""import importlib
from mine.example import narrow as narrow_
def narrow(images, classes):
    importlib.import_module("pack.hidden")
    return narrow_(images, classes)
""")
    params = params_of({"model.name": "pack.part:narrow"})
    (line,) = own.mistakes(params, DIGITS._replace(model=params.model))
    assert "pack/hidden.py: imported in a way that hides its changes" in line


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder to work in, from which modules are imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    of_package = code.metadata.packages_distributions()  # slow: once for all
    monkeypatch.setattr(code.metadata, "packages_distributions", lambda: of_package)
    return tmp_path


class Editable:
    """Finds a package as ``pip install -e`` lets Python find it."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path=None, target=None):
        file = self.folder / "edited.py"
        return importlib.util.spec_from_file_location(name, file) if name == "edited" else None


def test_a_package_that_is_installed_to_be_edited_counts_by_its_code(here, monkeypatch):
    (here / "src").mkdir()
    (here / "uses_it.py").write_text("import edited\n")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable(here / "src")])
    counted = set()
    for units in (20, 21):
        (here / "src/edited.py").write_text(f"UNITS = {units}\n")
        counted.add(code.of_stage("stages.prune", ["uses_it"], "uses_it").run)
    assert len(counted) == 2
    assert len(list(parts.unseen(["uses_it:x"], "prune", ["uses_it.py"]))) == 1


CHANGES = [  # of a file, its new content, and whether it changes the code of a run
    ("elsewhere/parts.py", "from elsewhere.sizes import HIDDEN\n", True),
    ("elsewhere/__init__.py", "", True),
    ("elsewhere/sizes.py", "HIDDEN = 20\n", True),
    ("elsewhere/sizes.py", "# units\nHIDDEN = 20\n", False),
    ("elsewhere/sizes.py", "HIDDEN = 21\n", True),
    ("elsewhere/__init__.py", "from .sizes import HIDDEN\n", True),  # runs too
    ("elsewhere/parts.py", "from elsewhere import HIDDEN\n", True),
    ("elsewhere/sizes.py", "HIDDEN = 22\n", True),
    ("elsewhere/.parts.py.swp", "", False),  # left over by editors, by Numba
    ("elsewhere/parts.py~", "", False),
    ("elsewhere/#parts.py#", "", False),
    ("elsewhere/__pycache__/scores-7.py311.nbi", "", False),
    ("elsewhere/tables/widths.json", "[20]", True),  # which it may read
    ("beside/widths.py", "", False),  # another package, without __init__.py
    ("elsewhere/sizes.py", "import beside.widths\nHIDDEN = 21\n", True),
    ("beside/widths.json", "[20]", True),
    ("beside/deeper/widths.py", "", False),  # and one in it
    ("elsewhere/sizes.py", "import beside.deeper.widths\nHIDDEN = 21\n", True),
    ("beside/deeper/widths.py", "HIDDEN = 20\n", True),
]
MAY_RUN_A_FILE_BY_ITS_PATH = {
    "from importlib import resources": False,
    "import importlib.metadata; importlib.metadata.version": False,
    "import importlib.metadata; importlib.util.find_spec": True,
    "import importlib.util": True,
    "from importlib import import_module": True,
    "import imp": True,
}


def test_what_an_own_part_imports_is_part_of_a_runs_code_and_has_to_be_watched(here, monkeypatch):
    def of_run():
        return code.of_stage("stages.prune", ["elsewhere.parts"], "elsewhere.parts").run

    def changed(name, content):
        before = of_run()
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(content)
        return of_run() != before

    for name, content, counts in CHANGES:
        assert changed(name, content) == counts, name
    assert [*files.inputs(["elsewhere"])] == ["elsewhere/tables/widths.json"]
    changed("elsewhere/sizes.py", "import scipy\nHIDDEN = 21\n")
    before = of_run()
    with monkeypatch.context() as updated:
        updated.setattr(code.metadata, "version", lambda name: "another")
        assert of_run() != before
    for number, (line, may_run_it) in enumerate(MAY_RUN_A_FILE_BY_ITS_PATH.items()):
        changed("elsewhere/sizes.py", f"{line}\nHIDDEN = 21\n")
        assert changed("elsewhere/run_by_path.py", f"HIDDEN = {number}\n") == may_run_it, line
    assert list(parts.unseen(["elsewhere.parts:x"], "prune", ["elsewhere", {"mine": {}}])) == []
    deps = ["elsewhere/parts.py", "elsewhere/__init__.py"]
    (line,) = parts.unseen(["elsewhere.parts:x"], "prune", deps)
    assert line.startswith("elsewhere.parts:x: elsewhere/sizes.py is not among the deps of prune")
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    watching = [name for name, stage in stages.items() if parts.FOLDER in stage["deps"]]
    assert watching == [*code.CALL_PARTS]


def test_packages_that_pip_put_into_a_folder_of_their_own_count_by_their_versions(
    tmp_path, monkeypatch
):
    record = tmp_path / "libraries/threshold-1.0.dist-info/RECORD"  # pip install --target libraries
    record.parent.mkdir(parents=True)
    record.write_text("threshold/__init__.py,,\nthreshold-1.0.dist-info/RECORD,,\n")
    for name in ("threshold/__init__.py", "beside.py"):
        (tmp_path / "libraries" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "libraries" / name).write_text("import winreg\n")  # as where it is for Windows
    (tmp_path / "mine_too.py").write_text("import beside, threshold\n")
    for folder in (tmp_path, tmp_path / "libraries"):
        monkeypatch.syspath_prepend(folder)
    assert [*code.read("mine_too")] == ["beside", "mine_too"]
