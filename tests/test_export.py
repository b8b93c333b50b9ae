"""Exports of a finished pipeline: the files, each read back by its own runtime, and what the table says of them."""

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest

from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.tools import export, export_text, formats

ALL = [name for name in formats.FORMATS if name != "onnx" or importlib.util.find_spec("tf2onnx")]
FLOAT32 = [name for name in ALL if not formats.FORMATS[name].quantised]


def run(clone, *arguments, **options):
    return clone.run("python", "-m", "lottery", "export", *arguments, **options)


@pytest.fixture(scope="module")
def exported(finished_clone, tmp_path_factory):
    """The folder of an export of seed 1, round 2, trained, in every format; and what was printed."""
    out = tmp_path_factory.mktemp("home") / "export"
    done = run(finished_clone, "--seed", "1", "--round", "2", "--out", str(out), "--formats", *ALL)
    return out, done.stdout


@pytest.fixture(scope="module")
def recorded(finished_clone):
    """Of each (folder, seed, round): the first and last test accuracy in its history."""
    from lottery.artifacts import tables

    found = {}
    for folder in (files.DENSE, files.PRUNED):
        history = tables.read(finished_clone.path / folder / "history.csv")
        for (seed, round_), rows in history.groupby(["seed", "round"]):
            accuracy = rows["test_accuracy"]
            found[folder, seed, round_] = float(accuracy.iloc[0]), float(accuracy.iloc[-1])
    return found


def table(out):
    return {
        row["file"]: row
        for row in json.loads((out / "export.json").read_text())["table"]
        if row["file"]
    }


def test_every_float32_file_has_the_accuracy_that_the_pipeline_recorded(exported, recorded):
    out, printed = exported
    _, accuracy = recorded[files.PRUNED, 1, 2]
    rows = table(out)
    assert {row.name for row in out.iterdir()} == {*rows, "export.json", "export.md"}
    assert len(rows) == len(ALL)
    for name in FLOAT32:
        row = rows[formats.FORMATS[name].file]
        assert (float(f"{row['test_accuracy']:.7g}"), row["classed_otherwise"]) == (accuracy, 0)
    assert abs(rows["ticket-int8.tflite"]["test_accuracy"] - accuracy) < 0.05
    text = (out / "export.md").read_text()
    assert text in printed
    assert "No unit is dead: every layer keeps its size." in text
    assert (
        f"Test accuracy in data/pruned/history.csv: {accuracy:.2%}; evaluated again in float32: {accuracy:.2%}, equal."
        in text
    )
    assert "Unstructured zeros do not speed up dense kernels" in text
    assert all(row["one_image"] > 0 and row["batch"] > 0 for row in rows.values())


def test_bytes_are_those_of_the_files_and_the_mask_with_values_is_the_smallest_exact_one(
    exported, finished_clone
):
    out, _ = exported
    rows = table(out)
    for name, row in rows.items():
        path = out / name
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        assert row["bytes"] == sum(p.stat().st_size for p in files)
        assert 0 < row["gzip"] < row["bytes"]
    kept = rows["ticket.safetensors"]["bytes"]
    assert kept < 0.75 * rows["ticket.tflite"]["bytes"]  # 64 % of the values, and 3 % for the mask
    assert rows["ticket-int8.tflite"]["bytes"] < 0.4 * rows["ticket.tflite"]["bytes"]


def test_a_safetensors_ticket_read_back_is_the_pipelines_weight_for_weight(
    exported, finished_clone
):
    from lottery.training.models import variables

    out, _ = exported
    path = files.round_file(finished_clone.path / files.PRUNED, 1, 2)
    weights, mask, _ = files.read_masked_weights(path)
    model = formats.load_ticket(out / "ticket.safetensors")
    for name, variable in variables(model).items():
        np.testing.assert_array_equal(variable.numpy(), weights[name])
    _, kept, facts = files.read_masked_weights(out / "ticket.safetensors")
    assert kept.counts == mask.counts
    assert (facts["seed"], facts["round"], facts["state"]) == (1, 2, "trained")
    assert facts["input"] == "images: float32 [n, height, width, channels] in [0, 1]"
    with pytest.raises(LotteryError, match=r"not an exported ticket: its metadata lacks 'model'"):
        formats.load_ticket(path)


def test_the_files_take_float32_images_of_any_number_and_int8_is_integer_inside(exported):
    import tensorflow as tf

    out, _ = exported
    signature = tf.saved_model.load(out / "savedmodel").signatures["serving_default"]
    assert signature.structured_input_signature[1]["images"].shape.as_list() == [None, 8, 8, 1]
    for file in ("ticket.tflite", "ticket-int8.tflite"):
        interpreter = tf.lite.Interpreter(str(out / file))
        assert interpreter.get_signature_list() == {
            "serving_default": {"inputs": ["images"], "outputs": ["logits"]}
        }
        (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
        assert given["shape_signature"].tolist() == [-1, 8, 8, 1]
        assert (given["dtype"], taken["dtype"]) == (np.float32, np.float32)
        floats = [t for t in interpreter.get_tensor_details() if t["dtype"] == np.float32]
        assert file == "ticket.tflite" or len(floats) == 2  # images and logits alone


@pytest.mark.skipif("onnx" not in ALL, reason="tf2onnx is not installed")
def test_an_onnx_file_names_its_input_and_output_and_holds_the_facts(exported):
    import onnx

    model = onnx.load(exported[0] / "ticket.onnx")
    (given,), (taken,) = model.graph.input, model.graph.output
    sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, taken.name, sizes) == ("images", "logits", ["n", 8, 8, 1])
    assert json.loads(model.metadata_props[0].value)["round"] == 2


def test_initial_tickets_and_dense_networks_agree_with_the_first_evaluations(
    finished_clone, recorded, tmp_path, monkeypatch
):
    monkeypatch.chdir(finished_clone.path)
    loaded = export.params.load()
    cases = [(0, False, files.DENSE, 1), (0, True, files.DENSE, 0), (1, True, files.PRUNED, 0)]
    for round_, initial, folder, which in cases:
        ticket = export.read_ticket(loaded, 0, round_, initial=initial)
        assert ticket.recorded == recorded[folder, 0, round_][which]
        text = export.export(
            loaded, ticket, tmp_path / "out", ["safetensors"], keep_dead_units=False
        )
        row = table(tmp_path / "out")["ticket.safetensors"]
        assert float(f"{row['test_accuracy']:.7g}") == ticket.recorded
        assert ", equal." in text
    assert text.startswith("# Ticket of seed 0, round 1, before training\n")


def test_dead_units_are_removed_or_kept_on_request_and_the_saving_is_told(
    finished_clone, tmp_path, monkeypatch
):
    monkeypatch.chdir(finished_clone.path)
    loaded = export.params.load()
    ticket = export.read_ticket(loaded, 0, 2, initial=True)
    keep = {name: layer.copy() for name, layer in ticket.mask.layers.items()}
    keep["dense1/kernel"][:, :30] = False
    keep["dense2/kernel"][:, 5:7] = False
    mask = export.Mask(keep)
    sparser = export.Ticket(
        0,
        2,
        True,
        mask.apply(ticket.weights),
        mask,
        ticket.dense,
        ticket.source,
        ticket.folder,
        None,
    )
    text = export.export(
        loaded, sparser, tmp_path / "fewer", ["safetensors"], keep_dead_units=False
    )
    before, after = 64 * 300 + 300 + 300 * 100 + 100 + 1010, 64 * 270 + 270 + 270 * 98 + 98 + 990
    assert (
        f"Dead units removed: {before:,} values become {after:,}, zeros counted; {4 * (before - after):,} bytes"
        in text
    )
    assert "| dense1 | 300 | 30 | 0 |" in text
    assert "| dense2 | 100 | 2 | 0 |" in text
    assert "The pipeline recorded no accuracy of these weights" in text
    model = formats.load_ticket(tmp_path / "fewer" / "ticket.safetensors")
    assert [layer.units for layer in model.layers if hasattr(layer, "units")] == [270, 98, 10]
    text = export.export(loaded, sparser, tmp_path / "all", ["safetensors"], keep_dead_units=True)
    assert (
        "Dead units were kept. Units without a surviving incoming weight, by layer: dense1 30, dense2 2."
        in text
    )
    rows = [table(tmp_path / folder)["ticket.safetensors"] for folder in ("fewer", "all")]
    assert rows[0]["test_accuracy"] == rows[1]["test_accuracy"]


def test_weights_that_do_not_agree_with_the_history_end_it_and_nothing_is_written(clone):
    history = clone.path / files.PRUNED / "history.csv"
    lines = history.read_text().splitlines(keepends=True)
    place = max(i for i, line in enumerate(lines) if line.startswith("0,pruning,2,"))
    was = lines[place].rstrip().rpartition(",")[2]
    lines[place] = lines[place].replace(was, "0.5")
    history.write_text("".join(lines))
    (history.parent / files.CHECKSUMS).unlink()
    done = run(clone, "--round", "2", "--formats", "safetensors", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "export: data/pruned/seed-0/round-02.safetensors: does not agree with what the pipeline recorded: test accuracy in "
        f"data/pruned/history.csv: 50.00%; evaluated again in float32: {float(was):.2%}"
    )
    assert not (clone.path / "export").exists()


@pytest.fixture
def ticket(finished_clone, monkeypatch):
    monkeypatch.chdir(finished_clone.path)
    found = export.read_ticket(export.params.load(), 0, 2, initial=False)
    return export.Ticket(**{**vars(found), "recorded": 0.9})


@pytest.mark.parametrize(
    ("precision", "same", "again", "float32", "says"),
    [
        ("float32", True, 0.9, 0.9, "equal."),
        ("float32", True, 0.899, 0.899, None),
        ("float32", True, 0.9, 0.899, None),
        (
            "float32",
            False,
            0.891,
            0.891,
            "other versions: accepted within 1.00 points, the images between two classes).",
        ),
        ("float32", False, 0.88, 0.88, None),
        (
            "bfloat16",
            True,
            0.9,
            0.91,
            "in float32 on the CPU: 91.00% (the first two are equal; float32 on the CPU rounds",
        ),
        ("bfloat16", True, 0.9, 0.92, None),
        ("bfloat16", True, 0.901, 0.901, None),
    ],
)
def test_agreement_is_exact_on_the_same_machine_and_bounded_elsewhere(
    ticket, precision, same, again, float32, says
):
    def compared():
        alike = {"same_machine": same, "same_kernels": precision == "float32"}
        return export.compare_with_recorded(ticket, again, float32, precision, 0.01, **alike)

    if says is None:
        with pytest.raises(LotteryError, match="does not agree with what the pipeline recorded"):
            compared()
    else:
        assert says in compared()


def test_rounding_can_change_the_class_of_images_whose_two_highest_logits_are_near():
    logits = np.array([[0, 10, 9.99], [0, 10, 9.5], [10, 0, 0], [1, 1, 0]], np.float32)
    assert export.undecided(logits, "float32") == 0.25
    assert export.undecided(logits, "bfloat16") == 0.75  # within 2 · 10 / 32: 0.01, 0.5 and 0


def test_a_file_that_gives_other_logits_is_refused(finished_clone, ticket, tmp_path, monkeypatch):
    def other(network, path):
        weights = {n: v.numpy() + 0.001 for n, v in models.variables(network.model).items()}
        files.write_masked_weights(path, weights, network.mask, network.facts)

    from lottery.training import models

    ticket = export.read_ticket(export.params.load(), 0, 2, initial=False)
    monkeypatch.setitem(
        formats.FORMATS, "safetensors", formats.FORMATS["safetensors"]._replace(write=other)
    )
    with pytest.raises(
        LotteryError,
        match=r"ticket.safetensors: does not agree with the pipeline's network: test accuracy",
    ):
        export.export(
            export.params.load(), ticket, tmp_path / "out", ["safetensors"], keep_dead_units=True
        )
    assert list(tmp_path.iterdir()) == []


def refused(clone, monkeypatch, capsys, *arguments):
    monkeypatch.chdir(clone.path)
    with pytest.raises(SystemExit) as caught:
        export.main(list(arguments))
    assert caught.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--seed", "9"], "--seed: got 9; accepted: 0, 1 (seeds in params.yaml)"),
        (["--round", "3"], "--round: got 3; accepted: 0 (the dense network) to 2, prune.rounds"),
        (
            ["--out", "lottery"],
            r"--out: got .*/lottery, which is no earlier export; accepted: a new or empty folder, .*",
        ),
        (["--out", "params.yaml"], r"--out: got .*/params.yaml, which is no earlier export; .*"),
    ],
)
def test_a_mistake_is_told_in_one_line(finished_clone, monkeypatch, capsys, arguments, why):
    said = refused(finished_clone, monkeypatch, capsys, *arguments)
    assert re.fullmatch(f"export: {why if '.*' in why else re.escape(why)}\n", said), said


def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    finished_clone, monkeypatch, capsys
):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert refused(finished_clone, monkeypatch, capsys, "--formats", "onnx", "tflite") == (
        "export: --formats onnx: not installed: onnx, tf2onnx, onnxruntime; `pip install onnx tf2onnx onnxruntime`, "
        "or leave it out: --formats savedmodel tflite tflite-int8 safetensors\n"
    )


def test_a_pipeline_that_has_not_run_or_trains_no_tickets_is_told(clone, monkeypatch, capsys):
    clone.change("prune.schedule", "one_shot")
    arguments = ["--round", "2", "--formats", "safetensors"]
    assert refused(clone, monkeypatch, capsys, *arguments) == (
        "export: --round: got 2; accepted: 0, or --initial: pruning trains no tickets with prune.criterion magnitude, "
        "prune.schedule one_shot\n"
    )
    shutil.rmtree(clone.path / files.DENSE)
    said = "export: data/dense/seed-0/rewind.safetensors: not there; `dvc repro` makes it\n"
    assert refused(clone, monkeypatch, capsys, *arguments, "--initial") == said


def test_weights_of_another_model_are_refused(finished_clone, ticket, tmp_path):
    other = export.params.load().model_copy(
        update={"model": export.params.Model(name="conv2", initializer="he_normal")}
    )
    with pytest.raises(
        LotteryError, match=r"round-02.safetensors: not of the model and the dataset in params.yaml"
    ):
        export.export(other, ticket, tmp_path / "out", ["safetensors"], keep_dead_units=False)


@pytest.mark.parametrize(("best", "expected"), [(1, 1), (7, 2), (None, 2)])
def test_the_round_is_by_default_the_best_by_validation_or_the_last(
    clone, monkeypatch, best, expected
):
    monkeypatch.chdir(clone.path)
    metrics = json.loads(export.METRICS.read_text())
    assert (
        export.choose_round(export.params.load(), None)
        == metrics["variants"]["ticket"]["best"]["round"]
    )
    metrics["variants"]["ticket"]["best"]["round"] = best
    export.METRICS.write_text(json.dumps(metrics))
    assert export.choose_round(export.params.load(), None) == expected
    export.METRICS.unlink()
    assert export.choose_round(export.params.load(), None) == 2
    assert export.choose_round(export.params.load(), 0) == 0


def test_the_table_shows_a_row_a_file_with_thousands_and_percent():
    row = export_text.Row("ONNX", "ticket.onnx", 1234567, 999, 0.9374, 3, 0.01234, 1.5)
    line = export_text._table([row], 100).splitlines()[-1]
    assert line == "| ONNX | `ticket.onnx` | 1,234,567 | 999 | 93.74% | 3 | 0.0123 | 1.5 |"
