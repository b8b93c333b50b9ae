"""The documentation: it builds, its links lead somewhere, it knows every parameter and command."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from clones import ROOT
from scipy import stats
from test_params import FIELDS

from benchmarks import paired
from lottery.__main__ import COMMANDS
from lottery.params import Section
from lottery.report.outcomes import instabilities
from lottery.running import store

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_the_site_builds_strictly_and_names_no_other_host(tmp_path):
    command = f"{sys.executable} -m mkdocs build --strict --site-dir {tmp_path / 'site'}"
    done = subprocess.run(command.split(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    foreign = r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]+"'
    for path in pages:
        assert re.findall(foreign, path.read_text()) == [], path.name


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda p: p.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_parameter_is_documented_with_the_names_it_accepts_and_its_default():
    rows = {}
    for line in (ROOT / "docs/parameters.md").read_text().splitlines():
        if line.startswith("| `"):
            key, accepted, default, _ = (cell.strip() for cell in line.strip("|").split("|"))
            rows[key.strip("`")] = (accepted, default)
    sections = {path for path, f in FIELDS.items() if f.annotation in Section.__subclasses__()}
    leaves = {".".join(path): field for path, field in FIELDS.items() if path not in sections}
    assert list(rows) == list(leaves)
    for key, field in leaves.items():
        accepted, default = rows[key]
        assert default == ("" if field.is_required() else f"`{json.dumps(field.default)}`"), key
        names = [one for kind in kinds(field.annotation) for one in get_args(kind)]
        assert all(name in accepted for name in names if isinstance(name, str)), key


def kinds(annotation):
    """A type and the types that it is made of."""
    return [annotation, *(kind for inner in get_args(annotation) for kind in kinds(inner))]


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda p: p.name)
def test_every_make_target_and_command_named_exists(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = path.read_text()
    named = set(re.findall(r"(?:^ {4}|`)make (?:[A-Z]+=\S+ )*([a-z]+)", text, flags=re.MULTILINE))
    assert named <= targets, named - targets
    for module in re.findall(r"python -m ((?:stages|benchmarks)\.[\w.]*)", text):
        assert Path(ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
    assert set(re.findall(r"python -m lottery ([a-z]+)", text)) <= set(COMMANDS)


def test_a_benchmark_that_is_asked_for_help_does_not_begin():
    for path in (ROOT / "benchmarks").glob("*.py"):
        text = path.read_text()
        assert ('"__main__"' in text) == (".parse_args(" in text), path.name


def test_every_paper_that_is_cited_is_among_the_references_and_no_other():
    text, _, listed = (ROOT / "docs/concepts.md").read_text().partition("## References")
    others = [page.read_text() for page in PAGES if page.name != "concepts.md"]
    cited = r"([A-Z]\w+)(?: et al\.| & \w+) (\d{4})"
    references = set(re.findall(r"^- (\w+).*? (\d{4}),", listed, flags=re.MULTILINE))
    assert {found for page in (text, *others) for found in re.findall(cited, page)} <= references
    assert all(re.search(rf"\b{name}\b.*?{year}", text + str(others)) for name, year in references)


# Numbers that come from files


def of_file(name):
    return pd.read_csv(ROOT / name)


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def interval(values, scale=1, sign="", decimals=2):
    """As README writes a median and its interval."""
    middle, low, high = (f"{scale * v:{sign}.{decimals}f}" for v in values)
    return f"{middle} [{low}, {high}]"


def test_readme_has_the_numbers_of_the_committed_results():
    text = text_of("README.md")
    metrics = json.loads(text_of("reports/metrics.json"))
    for said in (
        "verdict `{verdict}`; dense network {dense_accuracy:.2f} %",
        "ticket {ticket_weights:.2f} % of the weights with {ticket_accuracy:.2f} %",
        "5,000 MNIST images, {seeds} seeds",
    ):
        assert said.format(**metrics) in text
    rows = of_file("reports/results.csv").to_dict("records")
    assert len(rows) == len(re.findall(r"\| \d+\.\d\d % \| \d\d\.\d\d \[", text))
    for r in rows:
        accuracy = [100 * r[f"test_accuracy_{s}"] for s in ("mean", "min", "max")]
        stop = [r[f"early_stop_iteration_{s}"] for s in ("mean", "min", "max")]
        first = f"| {r['round']} | {100 * r['weights_remaining']:.2f} % | {interval(accuracy)} | "
        rest = f"{100 * r['initial_test_accuracy_mean']:.1f} | {interval(stop, decimals=0)} |"
        assert first + rest in text, (r["variant"], r["round"])


def test_readme_has_the_comparisons_of_the_committed_verdict():
    text = text_of("README.md")
    found = json.loads(text_of("reports/verdict.json"))
    rounds = found["rounds"]
    rows = {
        "early stop / dense": [interval(j["early_stop_ratio"]) for j in rounds],
        "p": [f"{j['p_win']:.2g}" for j in rounds],
        "outcome": [j["outcome"] for j in rounds],
    }
    missed = [[f"{c['misses']} of {found['seeds']}" for c in j["criteria"]] for j in rounds]
    rows["seeds that miss accuracy, iterations, gain"] = map(", ".join, missed)
    for other in ("dense", "`random_reinit`", "`random_mask`"):
        gains = [interval(j["accuracy_minus"][other.strip("`")], 100, "+") for j in rounds]
        rows[f"accuracy − {other} (points)"] = gains
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} |" in text


def test_readme_says_how_many_blocks_of_fresh_seeds_agree():
    text = text_of("README.md")
    found = json.loads(text_of("reports/verdict.json"))
    blocks = of_file("docs/results/replications/blocks.csv")
    page = text_of("docs/results/replications/index.md")
    agree = int((blocks["verdict"] == found["verdict"]).sum())
    mean = blocks["gain"].mean()
    covered = int(((blocks["low"] <= mean) & (mean <= blocks["high"])).sum())
    assert agree >= 9
    assert covered >= 9
    assert f"{agree} of {len(blocks)} further blocks of {found['seeds']} fresh seeds" in text
    assert f"{covered} of {len(blocks)} of their intervals" in text
    assert f"at round {found['round']} cover the mean over all blocks, {mean:.2f} points" in text
    assert f"**{agree} of {len(blocks)}** blocks give the committed verdict" in page
    assert f"**{covered} of {len(blocks)}** intervals" in page


def test_the_design_page_has_the_powers_of_the_pilot():
    page = text_of("docs/results/replications/design.md")
    pilot = of_file("docs/results/replications/pilot.csv").set_index("round")
    for number in (6, 8):
        assert f"at round {number} ({pilot.loc[number, 'power_23']:.3f})" in page
    assert f"is at {pilot['latest_early_stop'].max():,.0f}:" in page
    assert not pilot["censored"].any()


def test_the_page_of_exports_has_the_measured_latencies_of_every_pattern():
    page = text_of("docs/export.md")
    found = of_file("docs/results/latency.csv")
    for name, rows in found.groupby("network"):
        cells = [f"{r.batch:.3g} ({r.times_as_fast:.2f}×)" for r in rows.itertuples()]
        assert f"| {name} | {rows['bytes'].iloc[-1]:,} | {' | '.join(cells)} |" in page
        if name in ("5 % of the weights", "2 of 4 inputs", "a quarter of the units"):
            assert rows["times_as_fast"].between(0.95, 1.05).all()
    small = found[found["network"] == "a quarter of the units, dead ones removed"]["times_as_fast"]
    assert f"{small.min():.0f} to {small.max():.0f} times as fast" in page


def test_the_questions_page_has_the_numbers_of_its_tables():
    page = text_of("docs/results/questions/index.md")
    results = of_file("docs/results/questions/results.csv")
    of_question = results.groupby("question")
    shown = {("dense", 0), ("ticket", 4), ("ticket", 8), ("random_reinit", 8)}
    for name, rows in of_question:
        for row in rows.to_dict("records"):
            if (row["variant"], row["round"]) in shown or name == "controls":
                cell = interval([100 * row[s] for s in ("mean", "min", "max")])
                assert cell in page, (name, row["variant"], row["round"])
    lines = of_file("docs/results/questions/stability.csv")
    found = instabilities(lines).groupby("round")["instability"].agg(["mean", "min", "max"])
    for values in found.to_numpy():
        assert f"| {interval(100 * values)} | 4 of 4 |" in page


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("mnist-lenet", 2 * (1 + 19 + 1 + 19)),
        ("cifar10-conv4-evening", 2 * (1 + 4 + 1 + 6)),
        ("cifar10-conv4-notebook", 2 * (1 + 10 + 1 + 16)),
    ],
)
def test_the_tables_of_an_experiment_are_what_its_finished_runs_say(
    name, lines, monkeypatch, capsys
):
    page = ROOT / "docs/results" / name
    kept = page / "params.yaml"  # as it was computed, where that is not its present file
    experiment = kept if kept.exists() else ROOT / f"experiments/{name}.yaml"
    monkeypatch.setattr(sys, "argv", ["paired", str(experiment), str(page / "state")])
    paired.main()

    def rows(text):
        lines = [line for line in text.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.split("|")] for line in lines if "--" not in line]

    printed, shown = rows(capsys.readouterr().out), rows((page / "index.md").read_text())
    assert len(printed) == lines
    assert all(row in shown for row in printed)


def test_what_is_said_of_the_notebooks_experiment_is_what_its_results_have():
    folder = ROOT / "docs/results/cifar10-conv4-notebook"
    page = (folder / "index.md").read_text(encoding="utf-8")
    runs = pd.concat(of_file(path) for path in sorted(folder.glob("state/seed-*/history.csv.gz")))
    runs = runs[(runs["variant"] != "pruning")].groupby(["variant", "round", "seed"])
    ends = 100 * runs["test_accuracy"].last().unstack("seed")
    shown = {"ticket": "ticket", "random_reinit": "re-initialised", "random_mask": "random mask"}
    shares = {15: "5.37%", 10: "13.35%", 5: "35.61%"}
    rows = {(v, r): f"{shown[v]} of {share}" for r, share in shares.items() for v in shown}
    for key, row in ({("dense", 0): "dense"} | rows).items():
        cells = [f"{value:.2f}" for value in (*ends.loc[key], ends.loc[key].mean())]
        assert f"| {row} | {' | '.join(cells)} |" in page
    dense, ticket = ends.loc["dense", 0], ends.loc["ticket", 15]
    fresh, chance = (ends.loc[variant, 15] for variant in ("random_reinit", "random_mask"))

    def with_interval(values):
        """The mean and Student's interval over the seeds, as pages write them."""
        spread = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
        return [f"{value:.2f}".replace("-", "−") for value in (values.mean(), *spread)]

    for gap, said in (
        (dense - ticket, "{} points below it (Student's 95 % interval over the seeds: {} to {})"),
        (dense - ends.loc["ticket", 10], "it ends {} points below ({} to {}), with"),
        (dense - ends.loc["ticket", 5], "with 35.61 % {} points ({} to {}), above"),
        (ticket - fresh, "ends {} points below the ticket of 5.37 % ({} to {})"),
        (ticket - chance, "with the ticket's weights {} points ({} to {})"),
    ):
        assert said.format(*with_interval(gap)) in page
    readme = text_of("README.md")
    for values, said in (
        (dense, "| {} % [{}, {}], after 8 or 9 |"),
        (dense - ticket, "| {} points below [{}, {}], in all five seeds |"),
        (ticket - fresh, "| re-initialised {} points below the ticket [{}, {}], random"),
        (ticket - chance, "random masks {} [{}, {}] |"),
    ):
        assert said.format(*with_interval(values)) in readme
    dense, ticket, fresh, chance = (f"{v.mean():.1f} %" for v in (dense, ticket, fresh, chance))
    said = f"dense {dense} and a ticket of {ticket}, re-initialised {fresh}, random masks {chance}"
    assert said in text_of("docs/notebook.md")
    said = f"dense {dense} at the end, the ticket of 5.37 % {ticket}"
    assert said in text_of("experiments/cifar10-conv4-notebook.yaml")


def test_the_page_of_supermasks_has_the_numbers_of_its_runs():
    page, folder = text_of("docs/results/supermask/index.md"), "docs/results/cifar10-conv4-notebook"
    known = of_file(f"{ROOT / folder}/state/seed-0/history.csv.gz")
    learned = of_file("docs/results/supermask/cifar10-conv4.csv").query("variant != 'dense'")
    runs = pd.concat([known[(known["variant"] != "pruning")], learned]).query("round in (0, 15)")
    of_run = (100 * runs.set_index("iteration")["test_accuracy"]).groupby(
        runs["variant"].to_numpy()
    )
    assert len(of_run) == 6
    for variant, found in of_run:
        at = [found.get(750 * epochs, np.nan) for epochs in (1, 4, 8, 10)]
        cells = [f"{value:.2f}".replace("nan", "–") for value in at]
        row = f" % | {' | '.join(cells)} | {found.iloc[-1]:.2f} ({found.index[-1] // 750:.0f}) |"
        assert re.search(rf"\n\| `?{variant}\b.*{re.escape(row)}\n", page), variant


def test_the_page_of_resnet20_has_the_numbers_of_its_run():
    page = text_of("docs/results/resnet20/index.md")
    run = of_file("docs/results/resnet20/history.csv").set_index("iteration")
    assert (run.index[-1], *run.iloc[0][["seed", "variant"]]) == (63_000, 0, "dense")
    rows = re.findall(r"^\| ([\d,]+) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) > 5
    for iteration, cells in rows:
        found = run.loc[int(iteration.replace(",", ""))]
        losses, shares = (
            [found[f"{part}_{what}"] for part in ("train", "validation", "test")]
            for what in ("loss", "accuracy")
        )
        pairs = [
            f"{loss:.3f} | {100 * share:.2f}" for loss, share in zip(losses, shares, strict=True)
        ]
        assert cells == " | ".join([*pairs[:2], pairs[2].partition(" | ")[2]])
    best = run["validation_loss"].idxmin()
    at_the_end, at_best = (f"{100 * run['test_accuracy'][i]:.2f}" for i in (run.index[-1], best))
    assert f"| here, at the end | 45,000 | {at_the_end} |" in page
    assert f"(iteration {best:,}) | 45,000 | {at_best} |" in page
    assert f"ends {float(at_the_end) - float(at_best):.2f} points higher" in page
    for file in ("README.md", "experiments/cifar10-resnet20-rewind.yaml"):
        assert f"{at_the_end} %" in text_of(file)


def test_what_is_said_of_the_gpu_is_what_its_runs_have():
    folder = ROOT / "docs/results/cifar10-conv4-notebook"
    page = " ".join(text_of("docs/performance.md").split())
    facts = [store.load(path)[1] for path in folder.glob("state/runs/*")]
    assert len(facts) == 45
    trained, seconds = (sum(run[name] for run in facts) for name in ("trained", "seconds"))
    speed = 16 * 60 * trained / seconds  # 11 of these side by side, and 5 of other seeds
    assert f"16 processes then trained on {round(speed, -3):,.0f} a second" in page
    apart, ends = [], []
    for path in sorted(folder.glob("cpu/seed-*/history.csv.gz")):
        tables = (of_file(path), of_file(folder / "state" / path.parent.name / path.name))
        cpu, gpu = (table[table["variant"] == "dense"] for table in tables)
        both = cpu.merge(gpu, "inner", "iteration", suffixes=("", "_gpu"))
        first = both.iloc[0]
        assert first["validation_loss"] == pytest.approx(first["validation_loss_gpu"], abs=2e-6)
        apart.append((both["train_loss"] - both["train_loss_gpu"]).abs().max())
        ends.append([table["test_accuracy"].iloc[-1] for table in (gpu, cpu)])
    assert f"within {max(apart):.3f} of the CPU's" in page
    gpu, cpu = 100 * np.mean(ends, axis=0)
    assert f"they end at {gpu:.2f} % in the mean, there at {cpu:.2f} %" in page


def test_what_is_said_of_the_notebooks_protocol_is_what_its_runs_have():
    folder = ROOT / "docs/results/cifar10-conv4-evening"
    page = (folder / "index.md").read_text(encoding="utf-8")
    ours = of_file(folder / "state/seed-0/history.csv.gz").groupby(["variant", "round"]).last()
    runs = of_file(folder / "protocol.csv").set_index(["variant", "round"])
    for key, run in runs.iterrows():
        here = ours.loc[key]
        cells = [f"{run['weights_remaining']:.2%}"]
        cells += [f"{here['iteration']:,.0f}", f"{100 * here['test_accuracy']:.2f}"]
        cells += [f"{run['iterations']:,.0f}", f"{100 * run['test_accuracy']:.2f}"]
        assert f"| {key[0]} | {key[1]} | {' | '.join(cells)} |" in page
    accuracies = (100 * of["test_accuracy"] for of in (runs, ours))
    gaps = [of["dense", 0] - of["ticket", 5] for of in accuracies]
    said = f"the ticket is {gaps[0]:.2f} points below the dense network instead of {gaps[1]:.2f}"
    assert said in page


def test_what_is_said_of_the_evening_is_what_its_results_have():
    results = of_file("docs/results/cifar10-conv4-evening/results.csv")
    ends = 100 * results.set_index("variant")["final_test_accuracy_mean"]
    said = "dense {dense:.1f} % at the end, the ticket of 5.37 % {ticket:.1f} %, re-initialised "
    said = (said + "{random_reinit:.1f} %, random masks {random_mask:.1f} %").format(**ends)
    exact = of_file("docs/results/cifar10-conv4-evening/precision.csv").set_index("network")
    coarse = of_file("docs/results/cifar10-conv4-evening/state/seed-0/history.csv.gz")
    coarse = coarse.set_index(["variant", "round"])
    page = text_of("docs/results/cifar10-conv4-evening/index.md")
    for name, precision, run in (
        ("dense", "bfloat16", coarse.loc["dense", 0]),
        ("dense", "float32", exact.loc["dense"]),
        ("5.37%", "bfloat16", coarse.loc["pruning", 5]),
        ("5.37%", "float32", exact.loc["ticket"]),
    ):
        best, last = run.iloc[run["validation_loss"].argmin()], run.iloc[-1]
        row = f"| {name} | {precision} | {best.iteration:,.0f} | {100 * best.test_accuracy:.2f} | "
        assert f"{row}{100 * last.test_accuracy:.2f} |" in page
    for name in ("README.md", "experiments/cifar10-conv4-evening.yaml"):
        assert said in " ".join(text_of(name).replace("\n#", " ").split())
