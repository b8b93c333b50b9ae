"""An architecture, a criterion and a variant of one's own, from a package outside the repository."""

import sys

import numpy as np
import pandas as pd
import pytest
from clones import STAGES

from lottery import code
from lottery.__main__ import main
from lottery.artifacts import files
from lottery.errors import LotteryError

PACKAGE = '''\
"""Parts of my own."""

import numpy as np
from tf_keras import layers

from mine.sizes import HIDDEN
from lottery.training.architectures import Dropout
from lottery.tickets.variants import Start


def narrow(images, classes):
    x = layers.Flatten(name="flatten")(images)
    x = Dropout(0.1, name="dropout")(layers.Dense(HIDDEN, activation="relu", name="hidden")(x))
    return layers.Dense(classes, name="output")(x)


def smallest(w, w0, g):
    return -np.abs(w)


def zeroed(t):
    """The ticket with its biases at zero and all its weights at their mean magnitude."""
    weights = {n: np.zeros_like(v) for n, v in t.weights.items()}
    for name in t.mask.layers:
        weights[name] = np.sign(t.weights[name]) * np.abs(t.weights[name]).mean()
    return Start(t.mask.apply(weights), t.mask, t.rewind_iteration, t.train)
'''


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The package's file of parts, as it would be found through PYTHONPATH."""
    folder = tmp_path / "elsewhere"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "parts.py").write_text(PACKAGE)
    (folder / "mine" / "sizes.py").write_text("HIDDEN = 20\n")
    monkeypatch.syspath_prepend(folder)
    yield folder / "mine" / "parts.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_own_parts_run_through_the_pipeline_and_their_source_is_part_of_the_fingerprint(
    clone, parts, capsys, monkeypatch
):
    clone.change("model.name", "mine.parts:narrow")
    clone.change("prune.criterion", "mine.parts:smallest")
    clone.change("retrain.variants", ["ticket", "mine.parts:zeroed"])
    clone.change("seeds", [0])
    clone.stage(*STAGES[1:])
    said = capsys.readouterr().err
    unseen = "to the deps of train_dense in dvc.yaml: `dvc repro` does not see its changes"
    for path in (parts, parts.with_name("sizes.py")):  # which the other imports
        assert f"add {path} {unseen}" in said
    _, mask, _ = files.read_masked_weights(files.round_file(clone.path / files.PRUNED, 0, 1))
    assert mask.sizes == {"hidden/kernel": 64 * 20, "output/kernel": 20 * 10}
    trained, _ = files.read_tensors(clone.path / files.DENSE / "seed-0" / "trained.safetensors")
    for name, keep in mask.layers.items():  # the largest are gone
        assert np.abs(trained[name][keep]).max() <= np.abs(trained[name][~keep]).min()
    results = pd.read_csv(clone.path / "reports/results.csv")
    assert set(results["variant"]) == {"dense", "ticket", "mine.parts:zeroed"}
    assert "| mine.parts:zeroed " in (clone.path / "reports/report.md").read_text()
    monkeypatch.chdir(clone.path)
    main(["export", "--formats", "savedmodel", "tflite", "safetensors"])
    assert "mine.parts:narrow on Optical" in capsys.readouterr().out

    # watched, as the warning asks
    dvc = clone.path / "dvc.yaml"
    deps = f"    - lottery/training\n    - {parts.parent}\n"
    dvc.write_text(dvc.read_text().replace("    - lottery/training\n", deps))
    parts.write_text("# a comment\n" + PACKAGE)
    clone.environment["PYTHONPATH"] = str(parts.parents[1])
    done = clone.run("dvc", "repro", "train_dense")
    assert "does not see its changes" not in done.stderr
    assert done.stdout.count("from the run store") == 1

    def fingerprint():
        return code.of_stage("stages.train_dense", ["mine.parts"], "mine.parts").run

    seen = {fingerprint()}
    for file, before, after in (("parts", '"relu"', '"tanh"'), ("sizes", "20", "21")):
        path = parts.with_name(f"{file}.py")
        path.write_text(path.read_text().replace(before, after))
        seen.add(fingerprint())
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mine.nowhere:narrow", "No module named 'mine.nowhere'"),
        ("mine.parts:missing", "module 'mine.parts' has no attribute 'missing'"),
        ("mine.parts:PI", "not a function"),
    ],
)
def test_a_part_that_cannot_be_had_is_one_line_before_anything_is_computed(clone, parts, name, why):
    parts.write_text(f"{PACKAGE}\nPI = 3\n")
    clone.change("model.name", name)
    with pytest.raises(LotteryError) as error:
        clone.stage("train_dense")
    assert str(error.value).splitlines()[-1].startswith(f"params.yaml: {name}: ")
    assert why in str(error.value)
