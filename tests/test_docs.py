"""The documentation: it builds, its links lead somewhere, it knows every parameter and command."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from clones import ROOT
from test_params import FIELDS

from lottery.params import Section

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_the_site_builds_strictly_and_names_no_other_host(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for path in pages:
        loads = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:)?//([^"]+)"', path.read_text()
        )
        assert [host for _, host in loads] == [], path.name


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
    leaves = {
        ".".join(path): field
        for path, field in FIELDS.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    }
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
    for module in re.findall(r"python -m ((?:lottery|stages|benchmarks)[\w.]*)", text):
        assert Path(ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
