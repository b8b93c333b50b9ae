"""``reports/report.html`` in a headless browser, and offline."""

import json
import re
import shutil
import subprocess

import pytest

from lottery.report import page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
CHARTS = {"accuracy", "early_stop", "training_curves", "density", "units", "first_layer", "overlap"}


def drawn(path, folder, *options):
    """The page's DOM after its scripts have run, and the lines that it wrote to the console."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--virtual-time-budget=10000",
    ]
    command += [
        "--disable-background-networking",
        f"--user-data-dir={folder / 'browser'}",
        "--enable-logging=stderr",
    ]
    command += [*options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(finished_clone):
    return finished_clone.path / "reports" / "report.html"


@pytest.fixture(scope="module")
def dom(report, tmp_path_factory):
    return drawn(report, tmp_path_factory.mktemp("browser"))


@needs_browser
def test_every_chart_is_drawn_without_a_console_message(dom):
    content, console = dom
    assert console == []
    assert f'data-drawn="{len(CHARTS)}"' in content
    for name in CHARTS:
        assert re.search(rf'<div class="chart[^"]*" id="{name}"[^>]*>.*?<svg', content), name


@needs_browser
def test_the_page_may_not_ask_the_network_for_anything(report, tmp_path):
    """A page that tried would be stopped by its own policy, and the browser would say so on the console."""
    assert page.NO_NETWORK in report.read_text()
    assert "http" not in page.NO_NETWORK
    probe = report.read_text().replace(
        "draw();\n</script>", 'fetch("http://127.0.0.1:9/");\n</script>'
    )
    (tmp_path / "probe.html").write_text(probe)
    _, console = drawn(tmp_path / "probe.html", tmp_path)
    assert any("Content Security Policy" in line for line in console)


@needs_browser
def test_the_numbers_of_the_metrics_are_shown(dom, finished_clone):
    metrics = json.loads((finished_clone.path / "reports/metrics.json").read_text())
    body = dom[0].partition("<script>")[0]

    def shown(spread):
        return f"{100 * spread['mean']:.2f} [{100 * spread['min']:.2f}, {100 * spread['max']:.2f}]"

    spreads = [metrics["dense"]] + [variant["best"] for variant in metrics["variants"].values()]
    for of in spreads:
        assert shown(of["test_accuracy"]) in body
        assert shown(of["final_test_accuracy"]) in body
    for variant in metrics["variants"].values():
        assert f"{variant['best']['weights_remaining']:.2%}" in body
    assert f"<strong>{metrics['verdict'].capitalize()}" in body


@needs_browser
def test_a_legend_and_a_menu_of_seeds_are_there_to_choose_by(dom):
    accuracy = dom[0].partition('id="accuracy"')[2].partition("</figure>")[0]
    assert "random_reinit" in accuracy
    assert re.findall(r"<option[^>]*>([^<]*)</option>", accuracy) == ["all", "0", "1"]


@needs_browser
def test_on_a_phone_in_the_dark_nothing_is_wider_than_the_screen(report, tmp_path):
    probe = report.read_text().replace(
        "draw();\n</script>",
        "draw().then(() => document.body.dataset.widths = "
        "[document.documentElement.scrollWidth, innerWidth, getComputedStyle(document.body).backgroundColor].join());\n</script>",
    )
    (tmp_path / "probe.html").write_text(probe)
    content, console = drawn(
        tmp_path / "probe.html",
        tmp_path,
        "--window-size=500,900",
        "--blink-settings=preferredColorScheme=0",
    )
    assert console == []
    width, screen, background = re.search(r'data-widths="(\d+),(\d+),([^"]*)"', content).groups()
    assert int(width) <= int(screen)
    assert background == "rgb(22, 22, 22)"


def test_the_page_is_one_small_file_that_names_no_other(report):
    content = report.read_text()
    assert len(content) < 5e6
    body = re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL)
    assert len(re.findall(r'src="data:image/svg\+xml;base64,', body)) == 4
    assert not re.search(r'(?:src|href)="(?!data:|#)', body)
    assert "@import" not in body
    assert str(report.parents[1]) not in content


def test_the_report_stage_writes_the_same_page_again(clone):
    before = (clone.path / "reports/report.html").read_bytes()
    clone.run("python", "-m", "stages.report")
    assert (clone.path / "reports/report.html").read_bytes() == before


def test_a_page_cannot_be_broken_by_what_its_data_say():
    content = page.page(
        "<b>", page.from_markdown("a <script>alert(1)</script> b"), {"x": {"a": "</script><!--"}}
    )
    assert "<title>&lt;b&gt;</title>" in content
    assert "&lt;script&gt;alert(1)" in content
    assert content.count("</script>") == 2
