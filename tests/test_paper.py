"""What a paper takes from the results: figures a column wide, a table, a row a run."""

import re

import pandas as pd

from lottery.tools import paper


def test_figures_embed_their_fonts_a_column_wide_and_the_table_has_standard_deviations(tmp_path):
    rows = [
        (seed, variant, number, 0.5**number, 100, 0.9 + 0.01 * seed)
        for seed in (0, 1)
        for variant, number in (("dense", 0), ("ticket", 1), ("mine.parts:a_b", 1), ("pruning", 1))
    ]
    names = ["seed", "variant", "round", "weights_remaining", "early_stop_iteration"]
    runs = pd.DataFrame(rows, columns=[*names, "test_accuracy"]).assign(final_test_accuracy=0.95)
    runs["censored"] = (runs["variant"] == "ticket") & (runs["seed"] == 1)
    runs["improving"] = (runs["variant"] == "ticket") & (runs["seed"] == 0)
    runs["diverged"] = False
    line = pd.DataFrame([(0, 0, 1.0, 0.0, 0.9), (0, 0, 1.0, 1.0, 0.9)])
    line.columns = ["seed", "round", "weights_remaining", "position", "test_accuracy"]
    line["between"] = "copies"
    paper.write(tmp_path / "paper", runs, line, b"variant,round\n")
    assert (tmp_path / "paper/results.csv").read_bytes() == b"variant,round\n"
    pdfs = sorted((tmp_path / "paper").glob("*.pdf"))
    assert [p.stem for p in pdfs] == ["accuracy", "early_stop", "linear_mode_connectivity"]
    for pdf in pdfs:
        content = pdf.read_bytes()
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
        assert re.search(rb"/MediaBox \[ 0 0 234 ", content)  # points: 3.25 inches
    table = (tmp_path / "paper/results.tex").read_text()
    assert (
        r"ticket & 1 & 50.00 & $90.50 \pm 0.71$ & $95.00 \pm 0.00$ & $100 \pm 0$ & 2 & 0 & 2 \\"
        in table
    )
    assert r"mine.parts:a\_b" in table
    assert len(pd.read_csv(tmp_path / "paper/runs.csv")) == 8
