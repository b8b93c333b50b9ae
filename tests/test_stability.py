"""Linear mode connectivity, against its definition."""

import numpy as np
import pandas as pd
import pytest

from lottery.artifacts import files
from lottery.report import verdict
from lottery.tickets import stability
from lottery.training import models


def lines(*accuracies, seed=0, round_=1):
    return pd.DataFrame(
        {
            "seed": seed,
            "round": round_,
            "weights_remaining": 0.5,
            "position": np.linspace(0, 1, len(accuracies)),
            "test_loss": 1.0,
            "test_accuracy": accuracies,
        }
    )


@pytest.mark.parametrize(
    ("accuracies", "barrier"),
    [
        ((0.9, 0.8, 0.6, 0.7, 0.8), 0.25),  # error 0.4 at most, 0.15 at the ends
        ((0.9, 0.95, 0.9), 0.0),  # nowhere worse than the ends
        ((0.9, 0.7), 0.1),
    ],
)
def test_instability_is_the_highest_error_minus_the_mean_of_the_ends(accuracies, barrier):
    table = lines(*accuracies).sample(frac=1, random_state=0)  # in any order of the rows
    assert verdict.instabilities(table)["instability"].tolist() == pytest.approx([barrier])


def test_lines_of_several_networks_are_told_apart():
    table = pd.concat(
        [lines(0.9, 0.5, 0.9), lines(0.8, 0.7, 0.8, seed=1), lines(0.6, 0.6, 0.6, round_=0)]
    )
    found = verdict.instabilities(table).set_index(["seed", "round"])["instability"]
    assert found.to_dict() == pytest.approx({(0, 0): 0, (0, 1): 0.4, (1, 1): 0.1})


def test_the_pipeline_evaluates_the_line_between_two_copies_of_each_network(clone):
    clone.change("retrain.analysis", "linear_mode_connectivity")
    clone.change("retrain.rounds", [2])
    clone.change("train.learning_rate", 0.01)  # so that copies part
    clone.repro()
    table = pd.read_csv(clone.path / files.RETRAINED / "stability.csv")
    assert table.groupby(["seed", "round"]).size().to_dict() == {
        (s, r): 30 for s in (0, 1) for r in (0, 2)
    }
    line = table[(table["seed"] == 0) & (table["round"] == 2)]
    assert line["position"].tolist() == pytest.approx(np.linspace(0, 1, 30), abs=1e-6)
    assert line["test_loss"].iloc[0] != line["test_loss"].iloc[-1]
    report = (clone.path / "reports/report.md").read_text()
    section = report.partition("## Linear mode connectivity")[2].partition("##")[0]
    found = verdict.instabilities(table)
    for round_, remaining in ((0, 1.0), (2, line["weights_remaining"].iloc[0])):
        values = 100 * found.loc[found["round"] == round_, "instability"]
        stable = f"{(values < 2).sum()} of 2"
        spread = f"{values.mean():.2f} [{values.min():.2f}, {values.max():.2f}]"
        assert f"| {round_} | {remaining:.2%} | {spread} | {stable} |" in section


def test_a_line_ends_in_its_copies_and_passes_through_their_mean(finished_clone, monkeypatch):
    monkeypatch.chdir(finished_clone.path)
    from lottery.params import load

    params = load()
    one, other = (
        files.read_tensors(files.seed_folder(files.DENSE, seed) / "trained.safetensors")[0]
        for seed in (0, 1)
    )
    points = stability.Interpolate(
        "line", params.model, params.train, str(files.DATASET), one, other
    )(lambda n: None)
    dataset = files.open_dataset()
    images, labels = (
        np.asarray(dataset.test.images, np.float32) / 255,
        np.asarray(dataset.test.labels),
    )
    network = models.build("lenet_300_100", dataset.image_shape, 10)
    assert len(points) == 30
    for index in (0, 13, 29):
        share = index / 29
        assert points[index]["position"] == pytest.approx(share)
        for name, variable in models.variables(network).items():
            variable.assign((1 - share) * one[name] + share * other[name])
        right = np.mean(network(images).numpy().argmax(axis=1) == labels)
        assert points[index]["test_accuracy"] == pytest.approx(right, abs=1 / len(labels))
