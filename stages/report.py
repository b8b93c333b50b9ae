"""Compares the tickets with the dense network and their controls: the verdict, metrics, plots.

Reads   data/dataset/dataset.json, data/{dense,pruned,retrained}/{history.csv,environment.json},
        data/dense/layers.csv, data/masks/*.csv, data/retrained/stability.csv,
        docs/results/anchors.csv; params.yaml: all but data.source
Writes  reports/: metrics.json, verdict.json, results.csv, report.md, report.html, plots/*.csv,
        figures/*.{svg,png}
"""

from lottery.artifacts import files
from lottery.errors import say
from stages import command


def main(stage: command.Stage) -> None:
    """The stage."""
    params = stage.params
    import pandas as pd

    from lottery.artifacts import tables
    from lottery.report import figures, flops, outcomes, page, summary, text, verdict

    facts, reports = files.read_json(files.DATASET / "dataset.json"), files.REPORTS
    dense, pruned, retrained = (
        tables.read(folder / "history.csv")
        for folder in (files.DENSE, files.PRUNED, files.RETRAINED)
    )
    masks = {
        name: tables.read_table(files.MASKS / f"{name}.csv")
        for name in ("density", "overlap", "units", "first_layer")
    }
    stability = tables.read_table(files.RETRAINED / "stability.csv")
    environments = {
        what: files.read_json(folder / "environment.json")
        for what, folder in (
            ("dense networks", files.DENSE),
            ("the search for tickets", files.PRUNED),
            ("retraining", files.RETRAINED),
        )
    }
    history = pd.concat([dense, retrained])
    chance = max(facts["class_counts"]) / sum(facts["class_counts"])
    rule = {"chance": chance, "stopping": params.train.early_stopping}
    runs, pruning = (outcomes.outcomes(table, **rule) for table in (history, pruned))
    conclusion = verdict.conclude(runs, params, chance=chance, test_images=facts["test"])
    plots = outcomes.plots(runs, pruning, history, masks["density"])

    files.write_json(reports / "metrics.json", summary.metrics(conclusion))
    explained = summary.as_json(conclusion, params.report.confidence)
    files.write_json(reports / "verdict.json", explained)
    layers = tables.read_table(files.DENSE / "layers.csv")
    costs = flops.flops(masks["density"], layers, pd.concat([history, pruned]), params)
    results = summary.results(runs, conclusion)
    for known in (costs, outcomes.anatomy(masks["density"])):
        results = results.merge(known, "left", ["variant", "round"])
    tables.write_table(reports / "results.csv", results)
    tables.write_folder(reports / "plots", plots)
    anchors = figures.fitting(tables.read_table(figures.ANCHORS), params.model, facts["title"])
    title = f"{params.model.name}, {facts['title']}"
    failed = figures.write(reports / "figures", {**plots, "cost": results}, title, anchors)
    words = text.markdown(params, facts, environments, runs, conclusion, stability, results, failed)
    files.write(reports / "report.md", words.encode())
    web = page.report(words, params, plots, outcomes.shown(history), masks, facts["image_shape"])
    files.write(reports / "report.html", web.encode())
    say(text.sentence(conclusion, params).replace("**", ""))
    say(f"Look at {reports / 'report.html'}; commit params.yaml dvc.lock {reports}")


if __name__ == "__main__":
    command.main("report")
