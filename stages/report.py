"""Compares the tickets with the dense network and their controls: the verdict, metrics, plots.

Reads   data/dataset/dataset.json, data/dense/history.csv, data/masks/*.csv (with checksums.json),
        data/retrained/{history.csv,stability.csv,environment.json}; params.yaml: all but data.source
Writes  reports/: metrics.json, verdict.json, results.csv, report.md, report.html, plots/*.csv,
        figures/*.{svg,png}
"""

from lottery.artifacts import files
from stages import command


def main(stage: command.Stage) -> None:
    """The stage."""
    params = stage.params
    import pandas as pd

    from lottery.artifacts import tables
    from lottery.report import charts, figures, outcomes, text, verdict

    facts = files.read_json(files.DATASET / "dataset.json")
    environments = files.read_json(files.RETRAINED / "environment.json")
    history = pd.concat(
        [tables.read(folder / "history.csv") for folder in (files.DENSE, files.RETRAINED)]
    )
    masks = {
        name: tables.read_table(files.MASKS / f"{name}.csv")
        for name in ("density", "overlap", "units", "first_layer")
    }
    chance = max(facts["class_counts"]) / sum(facts["class_counts"])
    runs = outcomes.outcomes(history, chance=chance, stopping=params.train.early_stopping)
    conclusion = verdict.conclude(runs, params, chance=chance, test_images=facts["test"])

    files.write_json(files.REPORTS / "metrics.json", verdict.metrics(conclusion))
    files.write_json(
        files.REPORTS / "verdict.json", verdict.as_json(conclusion, params.report.confidence)
    )
    tables.write_table(files.REPORTS / "results.csv", verdict.results(runs, conclusion))
    plots = outcomes.plots(runs, history, masks["density"])
    with files.folder_written_whole(files.REPORTS / "plots") as folder:
        for name, table in plots.items():
            tables.write_table(folder / f"{name}.csv", table)
    with files.folder_written_whole(files.REPORTS / "figures") as folder:
        title = f"{params.model.name}, {facts['title']}"
        for name, figure in figures.all_of(plots, title, conclusion.seeds):
            figures.save(figure, folder / name)
    stability = tables.read_table(files.RETRAINED / "stability.csv")
    words = text.markdown(params, facts, environments, runs, conclusion, stability)
    files.write(files.REPORTS / "report.md", words.encode())
    shown = outcomes.shown(history)
    web = charts.write(
        words, params, files.REPORTS / "figures", runs, shown, masks, facts["image_shape"]
    )
    files.write(files.REPORTS / "report.html", web.encode())
    print(f"verdict: {conclusion.verdict}")
    print(text.sentence(conclusion, params).replace("**", ""))
    print(f"report: {files.REPORTS / 'report.html'} (to look at), {files.REPORTS / 'report.md'}")


if __name__ == "__main__":
    command.main("report")
