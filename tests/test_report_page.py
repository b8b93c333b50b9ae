"""``reports/report.html`` in a headless browser, and offline."""

import json
import re
import shutil
import subprocess

import pytest

from lottery.report import page

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
CHARTS = {"accuracy", "early_stop", "training_curves", "density", "first_layer", "overlap"}
DARK = "rgb(22, 22, 22)"
WIDTHS = (
    "[document.documentElement.scrollWidth, innerWidth, "
    "getComputedStyle(document.body).backgroundColor].join()"
)


def drawn(path, folder, *options):
    """The page's DOM after its scripts have run, and the lines that it wrote to the console."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--virtual-time-budget=10000", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'browser'}", "--enable-logging=stderr"]
    command += [*options, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(finished_clone):
    return finished_clone.path / "reports" / "report.html"


def probed(report, folder, script, *options):
    """The page, drawn, with widths noted, and another line at its end."""
    noted = f"draw().then(() => document.body.dataset.widths = {WIDTHS}); {script}"
    content = report.read_text().replace("draw();\n</script>", f"{noted};\n</script>")
    (folder / "probe.html").write_text(content)
    return drawn(folder / "probe.html", folder, *options)


def background_where_all_fits(content):
    """Its colour, on a page on which nothing is wider than the screen."""
    width, screen, background = re.search(r'data-widths="(\d+),(\d+),([^"]*)"', content).groups()
    assert int(width) <= int(screen)
    return background


@pytest.fixture(scope="module")
def dom(report, tmp_path_factory):
    """On a wide screen, in the light; in the end it asks the network for something."""
    ask = 'fetch("http://127.0.0.1:9/").catch(() => 0)'
    return probed(report, tmp_path_factory.mktemp("browser"), ask, "--window-size=1280,900")


@needs_browser
def test_every_chart_is_drawn_without_a_console_message(dom):
    content, console = dom
    assert [line for line in console if "Content Security Policy" not in line] == []
    assert background_where_all_fits(content) != DARK
    assert set(re.findall(r'<div class="chart[^"]*" id="(\w+)"[^>]*>.*?<svg', content)) == CHARTS
    assert f'data-drawn="{len(CHARTS)}"' in content
    assert "No unit is dead" in content  # rather than a chart of zeros


@needs_browser
def test_the_page_may_not_ask_the_network_for_anything(dom):
    """A page that tries is stopped by its own policy, as the console says."""
    assert any("Content Security Policy" in line for line in dom[1])


@needs_browser
def test_what_a_reader_may_choose_is_there_and_only_where_it_has_an_effect(dom):
    figures = re.findall(r"<figure.*?</figure>", dom[0], re.DOTALL)
    curves = next(figure for figure in figures if 'id="training_curves"' in figure)
    assert re.findall(r"<option[^>]*>([^<]*)</option>", curves) == ["none", "0", "1"]
    assert re.findall(r"1 \(\d+\.\d%\)|2 \(\d+\.\d%\)", curves)  # a round each
    assert "random_reinit" in curves
    hinted = {re.search(r'id="(\w+)"', f)[1] for f in figures if "legend entry" in f}
    assert hinted == {"accuracy", "early_stop", "training_curves"}


@needs_browser
def test_on_a_narrow_screen_in_the_dark_nothing_is_wider(report, tmp_path):
    narrow = "--window-size=500,900"  # no window of Chromium is narrower
    dark = "--blink-settings=preferredColorScheme=0"
    content, console = probed(report, tmp_path, "0", narrow, dark)
    assert console == []
    assert background_where_all_fits(content) == DARK


def test_the_page_is_one_small_file_that_names_no_other_and_shows_the_verdict(report):
    content = report.read_text()
    assert len(content) < 5e6
    body = re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL)
    assert len(re.findall(r'src="data:image/svg\+xml;base64,', body)) == 5
    assert not re.search(r'(?:src|href)="(?!data:|#)', body)
    assert str(report.parents[1]) not in content
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert f"<strong>{metrics['verdict'].capitalize()}" in body
    assert f"{metrics['dense_accuracy']:.2f} [" in re.sub(r"</?span>", "", body)


def test_the_report_stage_writes_the_same_bytes_again_and_says_what_to_do_next(clone, capsys):
    before = clone.files("reports")
    clone.stage("report")
    assert clone.files("reports") == before
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "Look at reports/report.html; commit params.yaml dvc.lock reports"


def test_a_page_cannot_be_broken_by_what_its_data_say():
    body = page.from_markdown("a <script>alert(1)</script> b")
    content = page.page("<b>", body, {"x": {"a": "</script><!--"}})
    assert "<title>&lt;b&gt;</title>" in content
    assert "&lt;script&gt;alert(1)" in content
    assert content.count("</script>") == 2


def test_cells_carry_their_column_for_a_phone():
    table = page.from_markdown("| a\\|b | c |\n|---|---|\n| 1 | 2.0 [1.0, 3.0] |\n")
    assert '<td data-label="a|b">1</td>' in table
    assert '<td data-label="c">2.0 <span>[1.0, 3.0]</span></td>' in table
