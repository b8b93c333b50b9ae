"""Exports of a finished pipeline: the files by their own runtimes, the card, the folder they own."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from ruamel.yaml import YAML

from lottery import params
from lottery.__main__ import main
from lottery.artifacts import files, tables
from lottery.datasets.dataset import open_dataset
from lottery.errors import LotteryError
from lottery.tools import export, formats


@pytest.fixture(scope="module")
def exported(finished_clone, tmp_path_factory):
    """The folder of an export of seed 1, round 2, in every format; and what was printed."""
    out = tmp_path_factory.mktemp("home") / "export"
    of = ["--seed", "1", "--round", "2", "--no-latency", "--out", str(out)]
    said = io.StringIO()
    with contextlib.chdir(finished_clone.path), contextlib.redirect_stdout(said):
        main(["export", *of])
    return out, said.getvalue()


@pytest.fixture
def loaded(finished_clone, monkeypatch):
    """The parameters of the finished clone, which is the present folder."""
    monkeypatch.chdir(finished_clone.path)
    return params.load()


def written(loaded, ticket, out, *names, keep=False):
    """The card, and the facts of an export of the safetensors file, and in further formats."""
    card = export.export(loaded, ticket, out, ["safetensors", *names], keep_dead_units=keep)
    return card, json.loads((out / "export.json").read_text())


def accuracies(folder, seed, round_):
    """The first and the last test accuracy of a run."""
    history = tables.read(folder / "history.csv")
    of_run = history[(history["seed"] == seed) & (history["round"] == round_)]["test_accuracy"]
    return of_run.iloc[0], of_run.iloc[-1]


def test_every_file_is_listed_and_has_the_accuracy_that_the_pipeline_recorded(exported, loaded):
    out, done = exported
    facts = json.loads((out / "export.json").read_text())
    assert facts["images"] == {"shape": [8, 8, 1], "type": "float32", "range": [0, 1]}
    assert (out / "README.md").read_text() in done
    rows = {row["file"]: row for row in facts["table"]}
    assert set(rows) == {None, *(chosen.file for chosen in formats.FORMATS.values())}
    assert {path.name for path in out.iterdir()} == {*rows, "README.md", "export.json"} - {None}
    _, accuracy = accuracies(files.PRUNED, 1, 2)
    for name, (file, _, _, exact) in formats.FORMATS.items():
        assert rows[file]["test_accuracy"] == pytest.approx(accuracy, abs=1e-6 if exact else 0.05)
        assert rows[file]["distance"] <= (1e-4 if exact else 0.1), name
        path = out / file
        members = path.rglob("*") if path.is_dir() else [path]
        assert rows[file]["bytes"] == sum(p.stat().st_size for p in members if p.is_file())
    assert facts["latency"] == []
    float32 = rows["ticket.tflite"]["bytes"]
    assert rows["ticket.safetensors"]["bytes"] < 0.75 * float32  # 64 % of the values, 3 % of masks
    assert rows["ticket-int8.tflite"]["bytes"] < 0.4 * float32


def test_the_models_take_any_number_of_float32_images_and_int8_is_integer_inside(exported):
    import onnx
    import tensorflow as tf

    for file in ("ticket.tflite", "ticket-int8.tflite"):
        interpreter = tf.lite.Interpreter(str(exported[0] / file))
        (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert given["shape_signature"].tolist() == [-1, 8, 8, 1]
        assert (given["dtype"], taken["dtype"]) == (np.float32, np.float32)
        floats = [t for t in interpreter.get_tensor_details() if t["dtype"] == np.float32]
        assert file == "ticket.tflite" or len(floats) == 2  # images and logits alone
    model = onnx.load(exported[0] / "ticket.onnx")
    (given,), (taken,) = model.graph.input, model.graph.output
    sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, taken.name, sizes) == ("images", "logits", ["n", 8, 8, 1])
    assert json.loads(model.metadata_props[0].value)["round"] == 2


def test_the_card_says_what_the_network_is_and_its_snippets_load_it(exported, loaded, monkeypatch):
    out, _ = exported
    _, header, text = (out / "README.md").read_text().split("---\n", 2)
    result = YAML(typ="safe").load(header)["model-index"][0]["results"][0]
    both = [accuracies(files.PRUNED, seed, 2)[1] for seed in (0, 1)]
    assert result["metrics"][0]["value"] == pytest.approx(both[1], abs=1e-5)
    spread = f"{np.mean(both):.2%}, standard deviation {100 * np.std(both, ddof=1):.2f} points"
    assert f"Such networks of 2 seeds: {spread}, {min(both):.2%} to {max(both):.2%}." in text
    assert '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]' in text
    recipe = YAML(typ="safe").load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe["train"] == loaded.train.model_dump()
    weights, _, _ = files.read_masked_weights(files.round_file(files.PRUNED, 1, 2))
    monkeypatch.chdir(out)
    tensorflow, numpy = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    of_tensorflow, of_numpy = {}, {}
    exec(tensorflow, of_tensorflow)
    assert of_tensorflow["logits"].shape == (1, 10)
    exec(numpy, of_numpy)
    assert of_numpy["weights"].keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(of_numpy["weights"][name], value)


def test_initial_tickets_and_dense_networks_are_those_that_the_pipeline_evaluated(loaded, tmp_path):
    cases = [(0, False, files.DENSE, 1), (0, True, files.DENSE, 0), (1, True, files.PRUNED, 0)]
    for round_, initial, folder, which in cases:
        ticket = export.read_ticket(loaded, 0, round_, initial=initial)
        card, facts = written(loaded, ticket, tmp_path / "out")
        accuracy = accuracies(folder, 0, round_)[which]
        assert facts["table"][-1]["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert "accepted within 0.00%" in card  # recorded on this machine: equal
    assert "# Ticket of seed 0, round 1, before training\n" in card
    finetuned = loaded.prune.model_copy(update={"strategy": "finetune"})
    changed = loaded.model_copy(update={"prune": finetuned})  # tickets did not begin there
    other = export.read_ticket(changed, 0, 1, initial=True)
    assert "The pipeline recorded no accuracy" in written(loaded, other, tmp_path / "out")[0]


def test_three_networks_are_timed_in_formats_with_a_runtime_of_their_own(
    loaded, tmp_path, monkeypatch
):
    monkeypatch.setattr(formats, "SECONDS", 0.01)
    ticket = export.read_ticket(loaded, 0, 2, initial=False)
    card, facts = written(loaded, ticket, tmp_path / "out", "onnx")
    timed = facts["latency"]
    names = ["dense network", "ticket", "ticket, dead units removed"]
    title = formats.FORMATS["onnx"].title
    assert [(row["format"], row["network"]) for row in timed] == [(title, name) for name in names]
    assert timed[0]["times_as_fast"] == 1
    assert all(min(row["bytes"], row["one_image"], row["batch"]) > 0 for row in timed)
    assert all(f"| {name} |" in card for name in names)


def test_dead_units_are_removed_or_kept_on_request_and_counted(loaded, tmp_path):
    ticket = export.read_ticket(loaded, 0, 2, initial=True)
    keep = {name: layer.copy() for name, layer in ticket.mask.layers.items()}
    keep["dense1/kernel"][:, :30] = False
    keep["dense2/kernel"][:, 5:7] = False
    mask = export.Mask(keep)
    none = ticket.evaluations[:0]
    ticket = ticket._replace(mask=mask, weights=mask.apply(ticket.weights), evaluations=none)
    card, fewer = written(loaded, ticket, tmp_path / "fewer")
    assert "| dense1 | 300 | 30 | 0 |\n| dense2 | 100 | 2 | 0 |\n| output | 10 | 0 | 0 |" in card
    kernels = [[64, 270], [270, 98], [98, 10]]
    assert list(fewer["kernels"].values()) == kernels
    card, kept = written(loaded, ticket, tmp_path / "all", keep=True)
    assert "| dense1 | 300 | 0 | 30 |\n| dense2 | 100 | 0 | 2 |" in card
    assert fewer["table"][-1]["test_accuracy"] == kept["table"][-1]["test_accuracy"]


def test_the_accuracy_equals_the_recorded_one_or_differs_by_images_between_two_classes(
    clone, monkeypatch
):
    monkeypatch.chdir(clone.path)
    loaded, dataset = params.load(), open_dataset()
    ticket = export.read_ticket(loaded, 0, 2, initial=False)
    near = 10 - 1.5 * 10 * formats.ROUNDING["bfloat16"]  # each of the two may be off by one
    logits = np.array([[0, 10, near], [0, 10, 9], [10, 0, 0], [10, 1, 0]], np.float32)

    def agrees(precision, points):
        evaluations = ticket.evaluations.copy()
        evaluations["test_accuracy"] += points / 100
        changed = ticket._replace(evaluations=evaluations)
        train = loaded.train.model_copy(update={"precision": precision})
        other, split = loaded.model_copy(update={"train": train}), dataset.split(loaded.data, 0)
        try:
            return "evaluated again" in export.agreement(other, changed, dataset, split, logits)
        except LotteryError as error:
            assert "round 2, trained: diverged, or not what the pipeline recorded." in str(error)
            return False

    assert agrees("float32", 0)
    assert not agrees("float32", 0.2)  # no image is between two classes
    assert agrees("bfloat16", 0.2)  # one of four is
    assert not agrees("bfloat16", 60)


def test_other_logits_another_model_and_a_diverged_run_are_refused(loaded, tmp_path, monkeypatch):
    def other(network, path):
        path.write_bytes(b"")
        return lambda images: np.zeros((len(images), 10), np.float32)

    ticket = export.read_ticket(loaded, 0, 2, initial=False)
    chosen = formats.FORMATS["safetensors"]
    monkeypatch.setitem(formats.FORMATS, "safetensors", chosen._replace(write=other))
    with pytest.raises(LotteryError, match="of the largest away from the pipeline's"):
        written(loaded, ticket, tmp_path / "out")
    model = params.Model(name="conv2", initializer="he_normal")
    with pytest.raises(LotteryError, match="not of params"):
        written(loaded.model_copy(update={"model": model}), ticket, tmp_path / "out")
    ticket.evaluations.loc[0, "validation_loss"] = np.nan
    with pytest.raises(LotteryError, match="diverged"):
        written(loaded, ticket, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_replaces_its_own_folder_and_nothing_else(exported, tmp_path):
    changes = (
        lambda out: (out / "notes.txt").write_text("mine"),
        lambda out: (out / "savedmodel" / "mine").mkdir(),
        lambda out: (out / "ticket.onnx").write_bytes(b"mine"),
        lambda out: (out / "link").symlink_to(tmp_path),
        lambda out: (out / "export.json").write_text('{"other": "program"}'),
        lambda out: (out / "export.json").unlink(),
    )
    for number, change in enumerate(changes):
        out = tmp_path / str(number)
        shutil.copytree(exported[0], out)
        export.check_out(out)
        (out / "ticket.tflite").unlink()  # what is gone is no hindrance
        export.check_out(out)
        change(out)
        with pytest.raises(LotteryError, match="where no export wrote"):
            export.check_out(out)
    (tmp_path / "empty").mkdir()
    export.check_out(tmp_path / "empty")
    export.check_out(tmp_path / "new")


def test_a_mistake_is_told_in_one_line(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone.path)
    clone.change("prune.schedule", "one_shot")
    out, round_2 = f"--out: got {clone.path}", ["--round", "2"]
    for arguments, said in [
        (["--seed", "9"], "--seed: got 9; accepted: 0, 1"),
        (["--round", "3"], "--round: got 3; accepted: 0, 1, 2"),
        ([*round_2, "--initial", "--out", "lottery"], f"{out}/lottery, where no export wrote"),
        ([*round_2, "--initial", "--out", "dvc.yaml"], f"{out}/dvc.yaml, where no export wrote"),
        (round_2, "--round: got 2; accepted: 0, or --initial: magnitude, one_shot pruning trains"),
        (
            [*round_2, "--initial"],
            "out of date: prune, extract_masks, retrain, report: `dvc repro`",
        ),
    ]:
        with pytest.raises(SystemExit, match="1"):
            main(["export", *arguments])
        error = capsys.readouterr().err
        assert error.startswith(f"export: {said}")
        assert error.count("\n") == 1


def test_the_round_is_the_verdicts_or_the_last_retrained(clone, monkeypatch):
    monkeypatch.chdir(clone.path)
    for verdict, expected in (({"round": 1}, 1), ({"round": None}, 2), ({"round": 7}, 2), ({}, 2)):
        files.write_json(files.REPORTS / "verdict.json", verdict)
        assert export.choose_round(params.load()) == expected
    clone.change("retrain.rounds", [2, 1])
    files.write_json(files.REPORTS / "verdict.json", {"round": 2})
    assert export.choose_round(params.load()) == 2
