"""Two revisions side by side."""

import json
import re

import pytest
from test_report_page import drawn, needs_browser


@pytest.fixture
def changed(clone):
    """A clone whose workspace has other results than its last commit."""
    clone.change("train.learning_rate", 0.003)
    clone.change("retrain.variants", ["ticket", "random_reinit", "random_mask"])
    clone.repro()
    return clone


def test_a_summary_names_the_metrics_with_their_change_and_the_parameters(changed):
    done = changed.run("make", "--no-print-directory", "-o", "env", "compare", "REV=HEAD")
    before = json.loads(changed.run("git", "show", "HEAD:reports/metrics.json").stdout)["dense"][
        "test_accuracy"
    ]["mean"]
    now = json.loads((changed.path / "reports/metrics.json").read_text())["dense"]["test_accuracy"][
        "mean"
    ]
    assert before != now
    lines = done.stdout.splitlines()
    assert (
        f"| dense: test accuracy | {before:.2%} | {now:.2%} | {100 * (now - before):+.2f} points |"
        in lines
    )
    assert any(
        re.match(r"\| random_mask, best round: test accuracy \| – \| \d\d\.\d\d% \|  \|", line)
        or re.match(
            r"\| random_mask, best round: test accuracy \| – \| \d+\.\d\d% \| changed \|", line
        )
        for line in lines
    )
    assert "- `train.learning_rate was 0.0012, now 0.003`" in lines
    assert sum(line.startswith("- `") for line in lines) == 2
    assert lines[-1] == "Plots: reports/compare.html"
    assert changed.run("git", "status", "--porcelain", "reports/compare.html").stdout == ""


@needs_browser
def test_both_revisions_appear_in_the_plots_and_their_legends(changed, tmp_path):
    changed.run("python", "-m", "lottery", "compare", "HEAD")
    content, console = drawn(changed.path / "reports" / "compare.html", tmp_path)
    assert console == []
    for name in ("accuracy", "early_stop"):
        plot = content.partition(f'id="{name}"')[2].partition("</figure>")[0]
        legends = re.findall(r"<text[^>]*>([^<]+)</text>", plot)
        assert {"HEAD", "workspace", "dense", "ticket", "random_mask"} <= set(legends)


def test_the_same_revision_has_no_differences(clone):
    done = clone.run("python", "-m", "lottery", "compare", "main")
    assert "The parameters are the same." in done.stdout
    changes = {
        line.split("|")[4].strip() for line in done.stdout.splitlines() if line.startswith("| ")
    } - {"change"}
    assert changes <= {"", "+0", "+0.00 points"}


@pytest.mark.parametrize(
    ("revision", "why"),
    [
        ("nowhere", "compare: nowhere: not a revision that git knows here\n"),
        (
            "HEAD~1",
            "compare: HEAD~1: has no reports/plots/accuracy.csv: run `dvc repro` there and commit reports/\n",
        ),
    ],
)
def test_a_revision_without_results_is_one_line(clone, revision, why):
    done = clone.run("python", "-m", "lottery", "compare", revision, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", why)
