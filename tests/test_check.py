"""The pipeline check: what it finds in a clone without data; and whether results come out again."""

import json
import re
import shutil

import pytest

from lottery.tools.verify import differences

UP_TO_DATE = "dvc.lock and reports/ belong to the parameters and the code\n"


@pytest.fixture
def checkout(finished_clone, clone):
    """What a CI job checks out: committed files, no artifacts and no cache."""
    path = clone.path.parent / "checkout"
    clone.run("git", "clone", "-q", str(finished_clone.path), str(path))
    clone.path = path
    assert not any(p.name != ".gitignore" for p in (path / "data").iterdir())
    return clone


def check(checkout):
    done = checkout.run("python", "-m", "lottery", "check", check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def test_a_fresh_checkout_is_up_to_date_and_so_is_the_clone_with_data(checkout, finished_clone):
    done = checkout.run("python", "-m", "lottery", "check")
    assert done.stdout == UP_TO_DATE
    assert finished_clone.run("python", "-m", "lottery", "check").stdout == UP_TO_DATE


def test_a_changed_parameter_is_named_with_both_values_and_the_stages_it_affects(checkout):
    checkout.change("report.confidence", 0.9)
    status, lines, advice = check(checkout)
    assert status == 1
    assert lines == ["report: params.yaml: report.confidence was 0.95 when the stage ran, now 0.9"]
    assert advice == "check: out of date: report: `dvc repro`, then commit dvc.lock and reports/\n"
    checkout.change("prune.rates.dense", 0.3)
    checkout.change("report.confidence", 0.95)
    status, lines, _ = check(checkout)
    why = "params.yaml: prune.rates.dense was 0.2 when the stage ran, now 0.3"
    assert (status, lines) == (
        1,
        [f"{stage}: {why}" for stage in ("prune", "extract_masks", "retrain", "report")],
    )


def test_a_changed_stage_or_subject_is_named(checkout):
    append(checkout.path / "stages" / "extract_masks.py", "# changed\n")
    changed = "has changed since the stage ran"
    assert check(checkout)[:2] == (1, [f"extract_masks: stages/extract_masks.py: {changed}"])
    append(checkout.path / "lottery" / "report" / "figures.py", "# changed\n")
    assert check(checkout)[1][-1] == f"report: lottery/report: {changed}"
    (checkout.path / "lottery" / "streams.py").unlink()
    assert "train_dense: lottery/streams.py: not there" in check(checkout)[1]


def test_a_changed_command_is_named(checkout):
    dvc = checkout.path / "dvc.yaml"
    dvc.write_text(
        dvc.read_text().replace("cmd: python -m stages.report", "cmd: python -u -m stages.report")
    )
    assert check(checkout)[:2] == (1, ["report: its command in dvc.yaml has changed"])


@pytest.mark.parametrize(
    "file", ["reports/report.md", "reports/metrics.json", "reports/figures/accuracy.svg"]
)
def test_an_edited_or_missing_report_file_is_named(checkout, file):
    named = "reports/figures" if "figures" in file else file
    append(checkout.path / file, " ")
    assert check(checkout)[:2] == (1, [f"report: {named}: is not what the stage wrote"])
    (checkout.path / file).unlink()
    how = "is not what the stage wrote" if "figures" in file else "not there"
    assert check(checkout)[:2] == (1, [f"report: {named}: {how}"])


def test_a_figure_too_many_is_found(checkout):
    (checkout.path / "reports" / "plots" / "more.csv").write_text("a,b\n")
    assert check(checkout)[:2] == (1, ["report: reports/plots: is not what the stage wrote"])


def test_a_pipeline_that_has_not_run_is_said_so(checkout):
    lock = checkout.path / "dvc.lock"
    lock.write_text(lock.read_text().partition("  report:\n")[0])
    assert check(checkout)[1][0] in (
        "report: has never run: it is not in dvc.lock",
        "prune: has never run: it is not in dvc.lock",
    )
    lock.unlink()
    shutil.rmtree(checkout.path / "reports")
    status, lines, advice = check(checkout)
    assert (status, lines) == (1, [])
    assert advice.startswith("check: no dvc.lock: the pipeline has not run here: `dvc repro`")


def test_results_that_come_out_again_bit_for_bit_are_said_so(checkout):
    append(checkout.path / "params.yaml", "# not committed, so no part of it\n")
    assert checkout.run("python", "-m", "lottery", "verify").stdout.endswith(
        "\nreproduced bit for bit\n"
    )


def test_what_came_out_otherwise_is_listed_with_the_metrics_differences(checkout):
    assert list(differences(checkout.path)) == []
    metrics = checkout.path / "reports" / "metrics.json"
    before = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**before, "verdict": "another"}, indent=2))
    lock = checkout.path / "dvc.lock"
    lock.write_text(
        re.sub(
            r"(path: data/dense\n +hash: md5\n +md5: )\w+", r"\g<1>" + 32 * "0", lock.read_text()
        )
    )
    append(checkout.path / "reports" / "report.md", " ")
    assert list(differences(checkout.path)) == [
        "train_dense wrote another data/dense",
        "prune reads another data/dense",
        "retrain reads another data/dense",
        "reports/metrics.json: differs",
        "reports/report.md: differs",
        f"  verdict: committed {before['verdict']}, now another",
    ]
