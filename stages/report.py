"""Compares the tickets with the dense network and their controls: metrics, plots, figures, the verdict.

Reads   data/dataset/dataset.json, data/dense/history.csv, data/masks/*.csv (with their checksums.json),
        data/retrained/{history.csv,stability.csv,environment.json}; params.yaml: all but data.source
Writes  reports/: metrics.json, report.md, report.html, plots/*.csv, figures/*.{svg,png}
"""

from lottery import artifacts, stage
from lottery.params import Params


def main(params: Params) -> None:
    import pandas as pd

    from lottery import analysis, figures, histories, report_page, report_text

    facts = artifacts.read_json(artifacts.DATASET / "dataset.json")
    environments = artifacts.read_json(artifacts.RETRAINED / "environment.json")
    history = pd.concat([histories.read(folder / "history.csv") for folder in (artifacts.DENSE, artifacts.RETRAINED)])
    masks = {
        name: histories.read_table(artifacts.MASKS / f"{name}.csv")
        for name in ("density", "overlap", "units", "first_layer")
    }
    density = masks["density"]
    runs = analysis.outcomes(history)
    conclusion = analysis.conclude(
        runs,
        margin=params.report.margin,
        confidence=params.report.confidence,
        resolution=params.train.evaluate_every,
    )

    tickets = runs.loc[runs["variant"] == "ticket", "round"].unique().tolist()
    shown = [0, *analysis.spread_out(tickets, 5)]
    accuracy = analysis.by_round(runs, "test_accuracy")
    early_stop = analysis.by_round(runs, "early_stop_iteration")
    shown_history = history[history["variant"].isin(["dense", "ticket"]) & history["round"].isin(shown)]
    curves = analysis.curves(shown_history, "test_accuracy")
    by_layer = density.groupby(["round", "layer"], sort=False)["weights_remaining"].mean().reset_index()

    with artifacts.folder_written_whole(artifacts.REPORTS / "plots") as folder:
        for name, table in (
            ("accuracy", accuracy),
            ("early_stop", early_stop),
            ("training_curves", curves),
            ("density", by_layer),
        ):
            histories.write_table(folder / f"{name}.csv", table)
    with artifacts.folder_written_whole(artifacts.REPORTS / "figures") as folder:
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
    artifacts.write_json(artifacts.REPORTS / "metrics.json", analysis.metrics(runs, conclusion))
    lines = histories.read_table(artifacts.RETRAINED / "stability.csv")
    text = report_text.markdown(params, facts, environments, runs, conclusion, lines)
    artifacts.write(artifacts.REPORTS / "report.md", text.encode())
    web = report_page.write(
        text, params, artifacts.REPORTS / "figures", runs, shown_history, masks, facts["image_shape"]
    )
    artifacts.write(artifacts.REPORTS / "report.html", web.encode())
    print(f"verdict: {conclusion.verdict}")
    print(
        report_text.sentence(conclusion, params, runs.loc[runs["variant"] == "dense", "test_accuracy"].mean()).replace(
            "**", ""
        )
    )
    print(f"report: {artifacts.REPORTS / 'report.html'} (to look at), {artifacts.REPORTS / 'report.md'}")


if __name__ == "__main__":
    stage.main(main)
