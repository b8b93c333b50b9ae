"""What is drawn: alike everywhere, and whatever legal results and names there are."""

import contextlib
import csv
import io
import json
import math
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import vl_convert
from clones import ROOT, tiny
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from lottery import params
from lottery.artifacts import tables
from lottery.errors import LotteryError
from lottery.report import charts, figures, outcomes, page, styles, summary, text, verdict

OWN = ["mine.parts:other", "mine.parts:zulu"]
NONE = tables.read_table(ROOT / figures.ANCHORS).head(0)


def by_round(variants):
    """A table of means, by variant, in rounds 1 and 2."""
    rows = [("dense", 0, 1.0, 0.95)]
    rows += [(v, r, 0.8**r, 0.9 - 0.01 * i) for i, v in enumerate(variants) for r in (1, 2)]
    table = pd.DataFrame(rows, columns=["variant", "round", "weights_remaining", "mean"])
    return table.assign(min=table["mean"] - 0.01, max=table["mean"] + 0.01, n=3)


def test_every_variant_has_a_colour_and_a_marker_of_its_own():
    assert set(params.VARIANTS) < set(styles.STYLES)
    drawn = styles.styles([*styles.STYLES, *OWN])
    del drawn["pruning"]  # a thin line in the ticket's colour
    assert len({style.colour for style in drawn.values()}) == len(drawn)
    del drawn["dense"]  # a dashed line
    assert len({style.marker for style in drawn.values()}) == len(drawn)
    assert len({style.symbol for style in drawn.values()}) == len(drawn)


def test_the_templates_of_dvc_are_those_that_the_charts_make():
    kept = {path.name: path.read_text() for path in (ROOT / ".dvc/plots").glob("*.json")}
    assert kept == charts.templates(), "run `python -m lottery.report.page`"
    for template in kept.values():
        for anchor in ("DATA", "TITLE", "PLOT_WIDTH", "PLOT_HEIGHT", "X_LABEL", "Y_LABEL"):
            assert f'"<DVC_METRIC_{anchor}>"' in template


def test_the_page_of_dvc_holds_the_library_and_names_no_network():
    content = (ROOT / ".dvc/plots.html").read_text()
    assert content == page.for_dvc(), "run `python -m lottery.report.page`"
    assert content.count("{plot_divs}") == 1
    assert len(content.encode()) < 1e6


def test_dvc_draws_own_variants_as_the_figures_do():
    template = json.loads(charts.templates()["weights_remaining.json"])
    variants = ["ticket", "small_dense", *OWN]
    rows = csv.DictReader(io.StringIO(by_round(variants).to_csv(index=False)))
    template["data"]["values"] = [row | {"rev": "workspace"} for row in rows]  # words, as of DVC
    template |= {"width": 300, "height": 300}
    template["layer"][4]["encoding"].pop("stroke")
    drawn = vl_convert.vegalite_to_svg(template)
    for variant, style in styles.styles(variants).items():
        assert f">{variant}<" in drawn
        assert f'fill="{style.colour}"' in drawn


def test_points_look_as_in_the_figures_however_many_variants_are_ones_own():
    variants = ["dense", "random_reinit", "ticket", *(f"own.part:{n}" for n in "abcdef"), "z:last"]
    chart = charts.by_density(by_round(variants[1:]), ("", "x", "y"), ".2%").to_dict()
    expected = styles.styles(variants).items()
    drawn = {
        "fill": {n: s.colour for n, s in expected},
        "shape": {n: s.symbol for n, s in expected},
    }
    found = {}
    for layer in chart["layer"]:
        for channel in drawn:
            if scale := layer["encoding"].get(channel, {}).get("scale"):
                found[channel] = dict(zip(scale["domain"], scale["range"], strict=True))
    assert found == drawn


def test_figures_are_the_same_bytes_whatever_the_settings_of_the_user(tmp_path):
    plots = {"accuracy": by_round(["ticket", *OWN])}
    for folder, size in (("a", 10), ("b", 30)):
        with matplotlib.rc_context({"font.size": size}):
            failed = figures.write(tmp_path / folder, plots, "a title", NONE)
        # each fails alone
        assert set(failed) == {"early_stop", "training_curves", "density", "cost"}
    for name in ("accuracy.svg", "accuracy.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_published_results_are_drawn_where_network_and_data_fit():
    anchors = tables.read_table(ROOT / figures.ANCHORS)
    network = params.Model(name="conv4", initializer="glorot_normal")
    fitting = figures.fitting(anchors, network, "CIFAR-10")
    drawn = figures.anchored(fitting, 0.75, percent=True).set_index("label")["value"]
    gained = 0.785  # 3.5 points above
    assert drawn["Frankle & Carbin 2019, winning ticket"] == pytest.approx(gained)
    assert drawn["TensorFlow 2 notebook, winning ticket"] == 0.7629
    stops = figures.anchored(fitting, 1000, percent=False)
    assert stops[["density", "value"]].values.tolist() == [[0.092, 286.0]]
    assert figures.fitting(anchors, network, "CIFAR-100").empty
    half = network.model_copy(update={"width": 0.5})
    assert figures.fitting(anchors, half, "CIFAR-10").empty


def test_a_kernel_over_steps_is_drawn_as_one():
    kernel = pd.DataFrame({"round": 1, "input": range(36), "weights_remaining": 0.5})
    chart = charts.first_layer(kernel, [128, 9])  # four of the steps, nine features
    assert chart.height == 280 * 4 // 9


def test_what_is_drawn_are_the_numbers_of_its_variant_and_round():
    ends = {"min": 0.5, "max": 0.9, "weights_remaining": 0.5}
    means = [("dense", 0, 0.8), ("ticket", 1, 0.6), ("ticket", 2, 0.7)]
    rows = [(v, r, i, m) for v, r, m in means for i in (0, 10)]
    curves = pd.DataFrame(rows, columns=["variant", "round", "iteration", "mean"]).assign(**ends)
    panels = figures.training_curves(curves, "a title").axes
    drawn = [[line.get_ydata()[0] for line in axes.lines] for axes in panels]
    assert drawn == [[0.8, 0.6], [0.8, 0.7]]  # the dense network's and the ticket's
    accuracy = {f"test_accuracy_{name}": [0.8, 0.7] for name in ("mean", "min", "max")}
    costs = {"training_flops": [4.0, 2.0], "finding_flops": [0.0, 4.0], "n": 3}
    shares = {"variant": ["dense", "ticket"], "round": [0, 1], "weights_remaining": [1.0, 0.5]}
    (axes,) = figures.against_cost(pd.DataFrame({**shares, **accuracy, **costs}), "a title").axes
    assert [line.get_xdata().tolist() for line in axes.lines[:3]] == [[4], [2], [6]]
    cells = [("b", 1, 0.5), ("a", 1, 0.25), ("b", 2, 0.4), ("a", 2, 0.2)]
    table = pd.DataFrame(cells, columns=["layer", "round", "weights_remaining"])
    axes = figures.density_map(table).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    assert [words.get_text() for words in axes.texts] == ["50", "40", "25", "20"]
    matplotlib.pyplot.close("all")


LEGAL = ["$x$", "a|b*c", "<b>_1_", "null", "NA", "1", "中文/核", "_", "n" * 300, "{0}"]
NAMES = st.sampled_from(LEGAL)
ALIKE = ["density", "units", "overlap"]  # tables, by layer
SHARES = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@st.composite
def results(draw):
    """Histories and mask tables of legal runs; of each a few seeds, rounds and evaluations."""
    seeds, rounds = draw(st.integers(1, 6)), draw(st.sampled_from([[1], [1, 2], [2, 1, 3]]))
    known = st.sampled_from(["ticket", "random_reinit", *OWN])
    variants = draw(st.lists(known, unique=True, min_size=1))
    losses = st.sampled_from([0.1, 1.0, 2.0, math.nan])
    layers = draw(st.lists(NAMES, unique=True, min_size=1, max_size=3))

    def runs(names):
        for seed in range(seeds):
            for variant, number in names:
                loss = 1.0
                for iteration in (0, 50, 100):
                    loss = draw(losses) if loss == loss else loss  # what diverged stays so
                    yield seed, variant, number, 0.8**number, iteration, loss, draw(SHARES)

    columns = ["seed", "variant", "round", "weights_remaining", "iteration", "validation_loss"]
    retrained = [(v, r) for v in variants for r in rounds]
    pruned = draw(st.sampled_from([[], [("pruning", r) for r in rounds]]))
    history, pruning = (
        pd.DataFrame(runs(names), columns=[*columns, "test_accuracy"])
        for names in ([("dense", 0), *retrained], pruned)
    )
    both = (table.assign(validation_accuracy=0.5) for table in (history, pruning))
    cells = [(r, layer, draw(SHARES)) for r in sorted(rounds) for layer in layers]
    masks = pd.DataFrame(cells, columns=["round", "layer", "weights_remaining"])
    masks = masks.assign(units=3, dead=0, jaccard=0.5, jaccard_by_chance=masks["weights_remaining"])
    inputs = pd.DataFrame([(r, i) for r in rounds for i in range(6)], columns=["round", "input"])
    inputs["weights_remaining"] = 0.5
    return rounds, variants, *both, {**dict.fromkeys(ALIKE, masks), "first_layer": inputs}


@pytest.mark.filterwarnings("error")
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(results(), NAMES)
def test_a_report_is_whole_whatever_the_results_and_names(tmp_path_factory, capsys, found, title):
    rounds, variants, history, pruning, masks = found
    changes = {"prune.rounds": 3, "retrain.variants": variants, "retrain.rounds": rounds}
    p = params.Params.model_validate(tiny(changes | {"report.iteration_margin": 0.99}))
    facts = {"title": title, "source": title, "test": 10, "class_counts": [10] * 10}
    facts |= {"own_test": False, "image_shape": [8, 8, 1], "sha256": "0" * 64}
    runs, while_pruning = (outcomes.outcomes(h, chance=0.1) for h in (history, pruning))
    try:
        conclusion = verdict.conclude(runs, p, chance=0.1, test_images=10)
    except LotteryError:  # a margin below the noise floor, as the message says
        reject()
    plots = outcomes.plots(runs, while_pruning, history, masks["density"])
    found = summary.results(runs, conclusion)
    found = found.assign(inference_flops=1e6, finding_flops=0.0, training_flops=1e9)
    found = found.assign(effective_weights_remaining=0.1, empty_layers=rounds[0] - 1)
    plots, lines = {**plots, "cost": found}, pd.DataFrame()
    with contextlib.chdir(tmp_path_factory.mktemp("report")):
        failed = figures.write(Path("reports/figures"), plots, title, NONE)
        words = text.markdown(p, facts, {}, runs, while_pruning, conclusion, lines, found, failed)
        web = page.report(words, p, plots, outcomes.shown(history), masks, [2, 3, 1])
        assert ("The thin line: while pruning" in web) == (not while_pruning.empty)
        assert len(list(Path("reports/figures").iterdir())) == 10
    assert failed == {}
    assert capsys.readouterr().err == ""
    assert "Left out" not in words
    assert "could not be made" not in web
    assert "<b>" not in web.partition("<body>")[2].partition("<script>")[0]
