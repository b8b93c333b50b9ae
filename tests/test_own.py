"""An architecture, a criterion and a variant of one's own, from a package outside the repository."""

import numpy as np
import pandas as pd
import pytest

from lottery.artifacts import files

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
def package(tmp_path):
    """The package's folder, as it would be on PYTHONPATH."""
    folder = tmp_path / "elsewhere"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "parts.py").write_text(PACKAGE)
    (folder / "mine" / "sizes.py").write_text("HIDDEN = 20\n")
    return folder


def test_own_parts_run_through_the_pipeline_and_their_source_is_part_of_the_fingerprint(
    clone, package
):
    clone.change("model.name", "mine.parts:narrow")
    clone.change("prune.criterion", "mine.parts:smallest")
    clone.change("retrain.variants", ["ticket", "mine.parts:zeroed"])
    clone.change("seeds", [0])
    parts = package / "mine" / "parts.py"
    done = clone.run("dvc", "repro", PYTHONPATH=str(package))
    warning = (
        f"add {parts} to the deps of train_dense in dvc.yaml: `dvc repro` does not see its changes"
    )
    assert warning in done.stderr
    assert warning.replace("parts.py", "sizes.py") in done.stderr  # which it imports
    _, mask, _ = files.read_masked_weights(files.round_file(clone.path / files.PRUNED, 0, 1))
    assert mask.sizes == {"hidden/kernel": 64 * 20, "output/kernel": 20 * 10}
    trained, _ = files.read_tensors(clone.path / files.DENSE / "seed-0" / "trained.safetensors")
    for name, keep in mask.layers.items():  # the largest are gone
        assert np.abs(trained[name][keep]).max() <= np.abs(trained[name][~keep]).min()
    results = pd.read_csv(clone.path / "reports/results.csv")
    assert set(results["variant"]) == {"dense", "ticket", "mine.parts:zeroed"}
    assert "| mine.parts:zeroed " in (clone.path / "reports/report.md").read_text()

    export = (
        "python",
        "-m",
        "lottery",
        "export",
        "--formats",
        "savedmodel",
        "tflite",
        "safetensors",
    )
    assert "mine.parts:narrow on Optical" in clone.run(*export, PYTHONPATH=str(package)).stdout

    # watched, as the warning asks
    dvc = clone.path / "dvc.yaml"
    dvc.write_text(
        dvc.read_text().replace(
            "    - lottery/training\n", f"    - lottery/training\n    - {package}\n"
        )
    )
    parts.write_text("# a comment\n" + PACKAGE)
    done = clone.run("dvc", "repro", "train_dense", PYTHONPATH=str(package))
    assert "does not see its changes" not in done.stderr
    assert done.stdout.count("from the run store") == 1
    for file, before, after in (("parts", '"relu"', '"tanh"'), ("sizes", "20", "21")):
        path = parts.with_name(f"{file}.py")
        path.write_text(path.read_text().replace(before, after))
        done = clone.run("dvc", "repro", "train_dense", PYTHONPATH=str(package))
        assert done.stdout.count(": 40 iterations") == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mine.nowhere:narrow", "No module named 'mine.nowhere'"),
        ("mine.parts:missing", "module 'mine.parts' has no attribute 'missing'"),
        ("mine.parts:PI", "not a function"),
    ],
)
def test_a_part_that_cannot_be_had_is_one_line_before_anything_is_computed(
    clone, package, name, why
):
    with open(package / "mine" / "parts.py", "a") as file:
        file.write("\nPI = 3\n")
    clone.change("model.name", name)
    done = clone.run("python", "-m", "stages.train_dense", check=False, PYTHONPATH=str(package))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"train_dense: params.yaml: {name}: ")
    assert why in done.stderr
    assert "Traceback" not in done.stderr
