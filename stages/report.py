"""Compares the tickets with the dense network and their controls: metrics, plots, figures, the verdict.

Reads   data/dataset/dataset.json, data/dense/history.csv, data/masks/*.csv (with their checksums.json),
        data/retrained/{history.csv,stability.csv,environment.json}; params.yaml: all but data.source
Writes  reports/: metrics.json, report.md, report.html, plots/*.csv, figures/*.{svg,png}
"""

from lottery.artifacts import files
from lottery.params import Params
from stages import command


def main(params: Params) -> None:
    import pandas as pd

    from lottery.artifacts import tables
    from lottery.report import charts, figures, text, verdict

    facts = files.read_json(files.DATASET / "dataset.json")
    environments = files.read_json(files.RETRAINED / "environment.json")
    history = pd.concat(
        [tables.read(folder / "history.csv") for folder in (files.DENSE, files.RETRAINED)]
    )
    masks = {
        name: tables.read_table(files.MASKS / f"{name}.csv")
        for name in ("density", "overlap", "units", "first_layer")
    }
    density = masks["density"]
    runs = verdict.outcomes(history)
    conclusion = verdict.conclude(
        runs,
        margin=params.report.margin,
        confidence=params.report.confidence,
        resolution=params.train.evaluate_every,
    )

    tickets = runs.loc[runs["variant"] == "ticket", "round"].unique().tolist()
    shown = [0, *verdict.spread_out(tickets, 5)]
    accuracy = verdict.by_round(runs, "test_accuracy")
    early_stop = verdict.by_round(runs, "early_stop_iteration")
    shown_history = history[
        history["variant"].isin(["dense", "ticket"]) & history["round"].isin(shown)
    ]
    curves = verdict.curves(shown_history, "test_accuracy")
    by_layer = (
        density.groupby(["round", "layer"], sort=False)["weights_remaining"].mean().reset_index()
    )

    with files.folder_written_whole(files.REPORTS / "plots") as folder:
        for name, table in (
            ("accuracy", accuracy),
            ("early_stop", early_stop),
            ("training_curves", curves),
            ("density", by_layer),
        ):
            tables.write_table(folder / f"{name}.csv", table)
    with files.folder_written_whole(files.REPORTS / "figures") as folder:
        where = f"{params.model.name}, {facts['title']}"
        figures.save(
            figures.against_weights_remaining(
                accuracy, "test accuracy at early stop", f"Test accuracy: {where}", percent=True
            ),
            folder / "accuracy",
        )
        figures.save(
            figures.against_weights_remaining(
                early_stop,
                "early-stop iteration",
                f"Early-stop iteration (lowest validation loss): {where}",
                percent=False,
            ),
            folder / "early_stop",
        )
        figures.save(figures.training_curves(curves, len(params.seeds)), folder / "training_curves")
        figures.save(figures.density_map(by_layer), folder / "density")
    files.write_json(files.REPORTS / "metrics.json", verdict.metrics(runs, conclusion))
    lines = tables.read_table(files.RETRAINED / "stability.csv")
    words = text.markdown(params, facts, environments, runs, conclusion, lines)
    files.write(files.REPORTS / "report.md", words.encode())
    web = charts.write(
        words, params, files.REPORTS / "figures", runs, shown_history, masks, facts["image_shape"]
    )
    files.write(files.REPORTS / "report.html", web.encode())
    print(f"verdict: {conclusion.verdict}")
    print(
        text.sentence(
            conclusion, params, runs.loc[runs["variant"] == "dense", "test_accuracy"].mean()
        ).replace("**", "")
    )
    print(f"report: {files.REPORTS / 'report.html'} (to look at), {files.REPORTS / 'report.md'}")


if __name__ == "__main__":
    command.main(main)
