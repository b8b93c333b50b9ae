"""Compares the tickets with the dense network and their controls: the verdict, metrics, plots.

Reads   data/dataset/dataset.json, data/{dense,pruned,retrained}/{history.csv,environment.json},
        data/dense/layers.csv, data/masks/*.csv, data/retrained/stability.csv,
        where masks are taken over, data/masks/seed-*/ (by data/masks/checksums.json),
        docs/results/anchors.csv; params.yaml: all, of data the split and validation_size
Writes  reports/: metrics.json, verdict.json, results.csv, report.md, report.html, plots/*.csv,
        figures/*.{svg,png}
"""

from functools import partial

from lottery.artifacts import files
from lottery.errors import say
from stages import command


def main(stage: command.Stage) -> None:
    """The stage."""
    import pandas as pd

    from lottery.artifacts import tables
    from lottery.report import figures, flops, outcomes, page, summary, text, verdict

    params, reports = stage.params, files.REPORTS
    facts = files.read_json(files.DATASET / "dataset.json")
    parts = {
        "dense networks": files.DENSE,
        "the search for tickets": files.PRUNED,
        "retraining": files.RETRAINED,
    }
    environments = {what: files.read_json(f / "environment.json") for what, f in parts.items()}
    dense, pruned, retrained = (tables.read(f / "history.csv") for f in parts.values())
    names = ("density", "overlap", "units", "first_layer")
    masks = {name: tables.read_table(files.MASKS / f"{name}.csv") for name in names}
    stability = tables.read_table(files.RETRAINED / "stability.csv")
    layers = tables.read_table(files.DENSE / "layers.csv")
    anchors = figures.fitting(tables.read_table(figures.ANCHORS), params.model, facts["title"])

    history = pd.concat([dense, retrained])
    chance = outcomes.guess(facts)
    of_runs = partial(outcomes.outcomes, chance=chance, stopping=params.train.early_stopping)
    runs, pruning = of_runs(history), of_runs(pruned)
    conclusion = verdict.conclude(runs, params, chance=chance, test_images=facts["test"])
    plots = outcomes.plots(runs, pruning, history, masks["density"])
    costs = flops.flops(masks["density"], layers, pd.concat([history, pruned]), params)
    results = summary.results(runs, conclusion).merge(costs, "left", ["variant", "round"])
    results = results.merge(outcomes.anatomy(masks["density"]), "left", ["variant", "round"])

    files.write_json(reports / "metrics.json", summary.metrics(conclusion))
    explained = summary.as_json(conclusion, params.report.confidence)
    files.write_json(reports / "verdict.json", explained)
    tables.write_table(reports / "results.csv", results)
    with files.folder_written_whole(reports / "plots") as folder:
        for name, table in plots.items():
            tables.write_table(folder / f"{name}.csv", table)
    title = f"{params.model.name}, {facts['title']}"
    failed = figures.write(reports / "figures", {**plots, "cost": results}, title, anchors)
    about = (params, facts, environments, runs, pruning, conclusion, stability, results, failed)
    paths = files.MASKS.glob("seed-*/round-*")
    own = (path for path in paths if "from" not in files.read_mask(path)[1])
    searched = params.retrain.masks is None or any(own)
    words = text.markdown(*about, searched=searched)
    files.write(reports / "report.md", words.encode())
    web = page.report(words, params, plots, outcomes.shown(history), masks, facts["image_shape"])
    files.write(reports / "report.html", web.encode())
    say(text.sentence(conclusion, params).replace("**", ""))
    say(f"Look at {reports / 'report.html'}; commit params.yaml dvc.lock {reports}")


if __name__ == "__main__":
    command.main("report")
