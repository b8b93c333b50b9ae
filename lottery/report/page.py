"""A self-contained HTML page with Vega-Lite charts: opens offline, on a phone, in dark mode, and prints."""

import html
import json
from typing import Any

NO_NETWORK = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"
STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --faint: #666; --line: #ddd; --back: #fff; --panel: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --faint: #a0a0a0; --line: #444; --back: #161616; --panel: #222; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
code, pre { font-size: .85rem; background: var(--panel); border-radius: .2rem; overflow-wrap: anywhere; }
pre { padding: .8rem; overflow-x: auto; }
figure { margin: 1rem 0; } figcaption, summary { color: var(--faint); font-size: .9rem; }
img { max-width: 100%; background: #fff; }
.chart { width: 100%; } .chart.vega-embed { display: block; padding: 0; }
.vega-bindings { font-size: .9rem; padding-top: .3rem; } .vega-bind { margin-right: 1rem; }
@media print {
  :root { --text: #000; --faint: #444; --line: #bbb; --back: #fff; --panel: #fff; }
  body { max-width: none; padding: 0; } .drawn-twice .chart, .vega-bindings, figcaption { display: none !important; }
  h2, figure, tr { break-inside: avoid; } h2 { break-after: avoid; } pre { white-space: pre-wrap; }
  .wide { overflow: visible; } table { font-size: .65rem; } th, td { white-space: normal; padding: .1rem .3rem; }
  details::details-content { content-visibility: visible; display: block; } summary { display: none; }
}
"""

SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
function config() {
  const ink = dark.matches ? "#e6e6e6" : "#1a1a1a", grid = dark.matches ? "#444" : "#ddd";
  return {background: null, view: {stroke: null}, title: {color: ink, anchor: "start", fontSize: 13},
    axis: {labelColor: ink, titleColor: ink, gridColor: grid, domainColor: grid, tickColor: grid},
    legend: {labelColor: ink, titleColor: ink, orient: "bottom", symbolOpacity: 1, columns: innerWidth < 600 ? 1 : 4, labelLimit: 300}};
}
async function draw() {
  for (const [id, spec] of Object.entries(charts)) {
    const text = JSON.stringify(spec);
    const shown = JSON.parse(dark.matches ? text.replaceAll("#000000", "#ffffff") : text);
    await vegaEmbed("#" + id, shown, {config: config(), actions: false, renderer: "svg"});
  }
  document.documentElement.dataset.drawn = Object.keys(charts).length;
}
dark.addEventListener("change", draw);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => d.open = true));
draw();
"""


def page(title: str, body: str, charts: dict[str, dict[str, Any]]) -> str:
    """The whole page.

    Args:
        body: HTML; each chart has a ``<div class="chart" id="…">``.
        charts: Vega-Lite specifications by id.
    """
    import vl_convert  # takes a second: only the stage and the command that write pages need it

    # "</script" and "<!--" must not occur inside a script element
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )
    specs = json.dumps(charts, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{library}</script>\n"
        f"<script>const charts = {specs};\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def chart(name: str, alternative: str = "") -> str:
    """The place of a chart; ``alternative`` is HTML for print, folded up on the screen."""
    hint = "Click a legend entry to show only that, others to add them; double-click to show all. Hover for values."
    folded = (
        f"<details><summary>as a static figure</summary>{alternative}</details>"
        if alternative
        else ""
    )
    kind = ' class="drawn-twice"' if alternative else ""
    return f'<figure{kind}><div class="chart" id="{name}"></div><figcaption>{hint}</figcaption>{folded}</figure>'


def from_markdown(text: str) -> str:
    """HTML of Markdown with tables; wide tables scroll in a box of their own."""
    from markdown_it import MarkdownIt

    rendered = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return rendered.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
