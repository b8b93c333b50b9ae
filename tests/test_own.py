"""Parts of one's own: the example, and each mistake in one line before anything is computed."""

import importlib.util
import sys
import types

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
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.running import machine
from lottery.streams import stream
from lottery.tickets import own, pruning
from lottery.tickets.ticket import Start

EXAMPLE = {
    "model.name": "mine.example:narrow",
    "prune.criterion": "mine.example:sensitivity",
    "retrain.variants": ["ticket", "mine.example:zeroed"],
}
DIGITS = network("mine.example:narrow", (8, 8, 1))


def test_the_example_is_that_of_the_docs_has_no_mistake_and_its_criterion_is_snip():
    text = (ROOT / "mine/example.py").read_text()
    assert f"```python\n{text}```" in (ROOT / "docs/own-parts.md").read_text()
    params = params_of(EXAMPLE)
    assert own.mistakes(params, DIGITS) == []
    (initial, kinds), (trained, _) = (models.initialise(DIGITS, "test", seed) for seed in (0, 1))
    images = stream("images").integers(1, 256, (40, 8, 8, 1), np.uint8)
    ours, snip = (
        pruning.pruned(
            Mask.full({name: initial[name].shape for name in kinds}),
            weights,
            500,
            criterion=criterion,
            initial=initial,
            network=DIGITS,
            seed=0,
            batch=Part(images, np.arange(40) % 10),
        )
        for criterion, weights in ((params.prune.criterion, trained), ("snip", initial))
    )
    assert ours.within(snip)
    assert snip.within(ours)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_scores_of_ones_own_are_ranked_as_the_numbers_they_are(monkeypatch, dtype):
    least, module = np.iinfo(dtype).min, types.ModuleType("elsewhere")
    module.ranks = lambda layer: (np.arange(layer.w.size) % 7 + least).reshape(layer.w.shape)
    module.narrow = lambda layer: module.ranks(layer).astype(dtype)
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    parts._imported.cache_clear()
    weights, kinds = models.initialise(network("lenet_300_100", (8, 8, 1)), "test")
    full, part = (
        Mask.full({name: weights[name].shape for name in kinds}),
        Part(np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, np.int32)),
    )
    one, other = (
        pruning.pruned(
            full,
            weights,
            500,
            criterion=f"elsewhere:{name}",
            initial=weights,
            network=network("lenet_300_100", (8, 8, 1)),
            seed=0,
            batch=part,
        )
        for name in ("ranks", "narrow")
    )
    assert one.within(other)
    assert other.within(one)


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


# Mistakes


def layered(*inner, last=None, units=None):
    """An architecture of these layers before the last one."""

    def built(images, classes):
        x = images
        for make in (*inner, lambda: layers.Flatten(name="flatten")):
            x = make()(x)
        return (last or (lambda n: layers.Dense(n, name="output")))(units or classes)(x)

    return built


def changed(**changes):
    """A variant: the ticket, but for these fields, functions of the ticket."""
    return lambda t: Start(
        **{
            "weights": t.mask.apply(t.weights),
            "mask": t.mask,
            "iteration": 0,
            "train": t.train,
            **{name: value(t) for name, value in changes.items()},
        }
    )


def by_chance(array):
    return np.random.default_rng().random(array.shape)


class Scaled(layers.Layer):
    """As of ConvNeXt: what it begins with is no attribute of it."""

    def build(self, shape):
        small = tf_keras.initializers.Constant(1e-6)
        self.gamma = self.add_weight("gamma", shape[-1:], initializer=small)

    def call(self, inputs):
        return self.gamma * inputs


def fails(layer):
    return layer.w / undefined  # noqa: F821


MODELS = {
    "softmax": (
        layered(last=lambda n: layers.Dense(n, activation="softmax", name="output")),
        "its outputs never leave [-1, 1], as of a softmax; accepted: logits",
    ),
    "seven": (layered(units=7), "its output has the shape [7] for each image; accepted: logits"),
    "unnamed": (layered(lambda: layers.Conv2D(3, 3)), "a layer Conv2D has no name of its own"),
    "twice": (layered(lambda: layers.Flatten(name="output")), "used 2 times in the model"),
    "keras_3": (
        layered(last=lambda n: keras_3.layers.Dense(n, name="output")),
        "no Conv or Dense layer of tf_keras in it",
    ),
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
        layered(last=lambda n: layers.Dense(n, kernel_regularizer="l2", name="output")),
        "it adds losses of its own (a regulariser, add_loss), which the training here leaves out",
    ),
    "bounded": (
        layered(last=lambda n: layers.Dense(n, kernel_constraint="non_neg", name="output")),
        "output has a kernel_constraint, which the training here leaves out",
    ),
    "begun": (
        layered(last=lambda n: layers.Dense(n, kernel_initializer="he_normal", name="output")),
        "output/kernel has an initialiser of its own, which the training here leaves out; accepted",
    ),
    "begun_within": (layered(lambda: Scaled(name="scaled")), "scaled/gamma has an initialiser of"),
    "own_weight": (layered(lambda: layers.PReLU(name="p")), "p/alpha would not be pruned"),
    "too_small": (layered(lambda: layers.MaxPooling2D(9, name="pool")), "ValueError: Exception"),
    "nothing": (lambda images, classes: None, "ValueError: Output tensors of a"),
    "one_argument": (lambda images: images, "TypeError: "),
    "leaves": (lambda images, classes: sys.exit(3), "SystemExit: 3"),
    "noisy": (
        layered(lambda: layers.Lambda(lambda x: x + tf.random.normal((1,)), name="noise")),
        "Random ops require a seed to be set when determinism is enabled",
    ),
}
CRITERIA = {
    "shape": (lambda layer: np.abs(layer.w).sum(), "scores hidden/kernel with float32 []; accept"),
    "nan": (
        lambda layer: layer.w * np.nan,
        "of them NaN; accepted: a number for each weight",
    ),
    "booleans": (lambda layer: layer.w > 0, "scores hidden/kernel with bool [64, 20]; accepted: a"),
    "text": (lambda layer: layer.w.astype(str), "scores hidden/kernel with <U"),
    "in_place": (lambda layer: layer.w.sort(), "ValueError: sort array is read-only"),
    "fails": (fails, "NameError: name 'undefined' is not defined"),
    "chance": (
        lambda layer: by_chance(layer.w),
        "other scores when it is called again; accepted: random numbers of lottery.streams",
    ),
}
VARIANTS = {
    "weights": (lambda t: t.weights, "gives a dict; accepted: lottery.tickets.ticket.Start"),
    "generator": ((lambda t: (yield)), "gives a generator; accepted"),
    "unmasked": (
        changed(weights=lambda t: t.weights),
        "weights of hidden/kernel that its mask prunes are not 0; accepted: mask.apply(weights)",
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
    "rate": (
        changed(train=lambda t: t.train.model_copy(update={"learning_rate": -1.0})),
        "its train.learning_rate: got -1.0; accepted: above 0",
    ),
    "section": (
        changed(train=lambda t: t.train.model_copy(update={"early_stopping": {"patience": 3}})),
        "its train.early_stopping is a dict; accepted: EarlyStopping",
    ),
    "numpy": (
        changed(train=lambda t: t.train.model_copy(update={"learning_rate": np.float32(0.1)})),
        "accepted: Python's own numbers",
    ),
    "typo": (
        changed(train=lambda t: t.train.model_copy(update={"learning_rates": 0.1})),
        "its train.learning_rates is a float; accepted: without it",
    ),
    "half": (changed(iterations=lambda t: 9.5), "its iterations is a float; accepted: int"),
    "masks": (changed(masks=lambda t: "grown"), "its masks are 'grown'; accepted: fixed, rigl"),
    "early": (
        changed(iteration=lambda t: -1),
        "starts at iteration -1, which is none of its run's",
    ),
    "late": (changed(iteration=lambda t: 40), "starts at iteration 40, which is none of its run's"),
    "chance": (
        changed(weights=lambda t: t.mask.apply({n: by_chance(v) for n, v in t.weights.items()})),
        "other weights of hidden/kernel when it is called again",
    ),
}
PARTS = {"model.name": MODELS, "prune.criterion": CRITERIA, "retrain.variants": VARIANTS}
MISTAKES = [(key, name, *one) for key, some in PARTS.items() for name, one in some.items()]


@pytest.mark.parametrize(("key", "name", "function", "why"), MISTAKES, ids=lambda v: str(v)[:20])
def test_a_mistake_is_one_line_with_the_part_and_its_place(monkeypatch, key, name, function, why):
    part, module = f"elsewhere:{name}", types.ModuleType("elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    setattr(module, name, function)
    parts._imported.cache_clear()
    value = [part] if key == "retrain.variants" else part
    params = params_of({**EXAMPLE, key: value})
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
        ("import nowhere", "line 1: cannot be imported: ModuleNotFoundError: No module named 'now"),
        ("", "cannot be imported: AttributeError: module 'elsewhere' has no attribute 'part'"),
        ("part = 3", "a int; accepted: a function"),
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
    assert first == f"params.yaml: elsewhere:part: {why}" or why in first
    assert second.endswith("module 'mine.example' has no attribute 'nothing'")


def test_parts_are_tried_once_until_they_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOTTERY_EXECUTOR", "in-process")
    own.check(params_of(EXAMPLE))
    monkeypatch.setenv("LOTTERY_EXECUTOR", "refused")
    own.check(params_of(EXAMPLE))
    with pytest.raises(LotteryError, match="LOTTERY_EXECUTOR"):
        own.check(params_of({**EXAMPLE, "seeds": [5]}))
    edited = code.Code((("mine.example", code.Module("another", ())),), "")
    for module, name, other in ((own, "_network", None), (code, "of_stage", edited)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, other=other: other)
            with pytest.raises(LotteryError, match="LOTTERY_EXECUTOR"):
                own.check(params_of(EXAMPLE))
    with monkeypatch.context() as patch:  # a file that they may read
        patch.setattr(code, "beside", lambda modules: [f"widths.json of {len(modules)}"])
        with pytest.raises(LotteryError, match="LOTTERY_EXECUTOR"):
            own.check(params_of(EXAMPLE))
    own.check(params_of())  # without any there is nothing to try


HIDING = ("sys.path.insert(0, __file__[:-8])\nimport hidden", "__import__('pack.hidden')")


@pytest.mark.parametrize("line", HIDING)
def test_a_module_imported_in_a_way_that_hides_its_changes_is_refused(tmp_path, monkeypatch, line):
    (tmp_path / "pack").mkdir()
    for name, text in (
        ("__init__", ""),
        ("hidden", "HIDDEN = 20"),
        ("part", f"import sys\n{line}"),
    ):
        (tmp_path / f"pack/{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    machine._other_code.cache_clear()
    began = code.of_stage("stages.prune", ["pack.part"], "pack.part")
    for _ in range(2):  # the next task of a worker, which has imported it by then
        with pytest.raises(LotteryError, match=r"hidden\.py: imported in a way that hides its ch"):
            machine.prepare(1, began, 0)
    forget("pack", "hidden")


def forget(*packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def test_a_module_that_a_part_imports_so_when_it_is_called_is_refused_too(tmp_path, monkeypatch):
    (tmp_path / "pack").mkdir()
    text = """import importlib
from mine.example import narrow as narrow_
def narrow(images, classes):
    importlib.import_module("pack.hidden")
    return narrow_(images, classes)
"""
    for name, content in (("__init__", ""), ("hidden", ""), ("part", text)):
        (tmp_path / f"pack/{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    params = params_of({"model.name": "pack.part:narrow"})
    (line,) = own.mistakes(params, DIGITS._replace(model=params.model))
    assert "pack/hidden.py: imported in a way that hides its changes" in line
    forget("pack")


class Editable:
    """Finds a package as ``pip install -e`` lets Python find it."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path=None, target=None):
        file = self.folder / "edited.py"
        return importlib.util.spec_from_file_location(name, file) if name == "edited" else None


def test_a_package_that_is_installed_to_be_edited_counts_by_its_code(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    (tmp_path / "uses_it.py").write_text("import edited\n")
    (tmp_path / "src/edited.py").write_text("UNITS = 20\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable(tmp_path / "src")])
    monkeypatch.chdir(tmp_path)
    before = code.of_stage("stages.prune", ["uses_it"], "uses_it").run
    (tmp_path / "src/edited.py").write_text("UNITS = 21\n")
    assert code.of_stage("stages.prune", ["uses_it"], "uses_it").run != before
    assert len(list(parts.unseen(["uses_it:x"], "prune", ["uses_it.py"]))) == 1


def test_what_an_own_part_imports_is_part_of_a_runs_code_and_has_to_be_watched(
    tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/sizes.py").write_text("HIDDEN = 20\n")
    (tmp_path / "elsewhere/parts.py").write_text("from elsewhere.sizes import HIDDEN\n")
    (tmp_path / "elsewhere/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def of_run():
        return code.of_stage("stages.prune", ["elsewhere.parts"], "elsewhere.parts").run

    before = of_run()
    (tmp_path / "elsewhere/sizes.py").write_text("# units\nHIDDEN = 20\n")
    assert of_run() == before
    (tmp_path / "elsewhere/sizes.py").write_text("HIDDEN = 21\n")
    assert of_run() != before
    before = of_run()
    (tmp_path / "elsewhere/__init__.py").write_text("from .sizes import HIDDEN\n")  # runs too
    assert of_run() != before
    (tmp_path / "elsewhere/parts.py").write_text("from elsewhere import HIDDEN\n")
    before = of_run()
    (tmp_path / "elsewhere/sizes.py").write_text("HIDDEN = 22\n")
    assert of_run() != before
    before, read = of_run(), files.inputs(["elsewhere"])
    (tmp_path / "elsewhere/__pycache__").mkdir(exist_ok=True)
    cached = "__pycache__/scores-7.py311.nbi"
    for left_over in (".parts.py.swp", "parts.py~", "#parts.py#", cached):
        (tmp_path / "elsewhere" / left_over).touch()  # of editors, of Numba
        assert (of_run(), files.inputs(["elsewhere"])) == (before, read)
    (tmp_path / "elsewhere/widths.json").write_text("[20]")  # which it may read
    assert of_run() != before
    (tmp_path / "beside").mkdir()  # another package, without __init__.py
    (tmp_path / "beside/widths.py").touch()
    (tmp_path / "elsewhere/sizes.py").write_text("import beside.widths\nHIDDEN = 21\n")
    before = of_run()
    (tmp_path / "beside/widths.json").write_text("[20]")
    assert of_run() != before
    (tmp_path / "beside/deeper").mkdir()  # and one in it
    (tmp_path / "beside/deeper/widths.py").touch()
    (tmp_path / "elsewhere/sizes.py").write_text("import beside.deeper.widths\nHIDDEN = 21\n")
    before = of_run()
    (tmp_path / "beside/deeper/widths.py").write_text("HIDDEN = 20\n")
    assert of_run() != before
    (tmp_path / "elsewhere/sizes.py").write_text("import scipy\nHIDDEN = 21\n")
    before = of_run()
    with monkeypatch.context() as updated:
        updated.setattr("lottery.code.metadata.version", lambda name: "another")
        assert of_run() != before
    (tmp_path / "elsewhere/run_by_path.py").touch()
    for number, (line, may_run_it) in enumerate(
        {
            "import importlib.resources": False,
            "from importlib import resources": False,
            "import importlib.metadata; importlib.metadata.version": False,
            "import importlib.metadata; importlib.util.find_spec": True,
            "import importlib.util": True,
            "from importlib import util": True,
            "from importlib import import_module": True,
            "import imp": True,
        }.items()
    ):
        (tmp_path / "elsewhere/sizes.py").write_text(f"{line}\nHIDDEN = 21\n")
        before = of_run()
        (tmp_path / "elsewhere/run_by_path.py").write_text(f"HIDDEN = {number}\n")
        assert (of_run() != before) == may_run_it, line
    assert list(parts.unseen(["elsewhere.parts:x"], "prune", ["elsewhere", {"mine": {}}])) == []
    deps = ["elsewhere/parts.py", "elsewhere/__init__.py"]
    (line,) = parts.unseen(["elsewhere.parts:x"], "prune", deps)
    assert line.startswith("elsewhere.parts:x: elsewhere/sizes.py is not among the deps of prune")
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    watching = [name for name, stage in stages.items() if parts.FOLDER in stage["deps"]]
    assert watching == ["fetch", "train_dense", "prune", "retrain"]


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
