"""Clones of the working tree in which the real pipeline runs, as a user's clone would."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lottery.params import Model, Network

ROOT = Path(__file__).parent.parent

STAGES = ["fetch", "train_dense", "prune", "extract_masks", "retrain", "report"]

TINY = """\
seeds: [0, 1]
data: {name: digits, source: null, sha256: null, validation_size: 250, split: per_seed,
  split_seed: 0, image_size: null}
model: {name: lenet_300_100, initializer: glorot_normal, width: 1.0, dropout: 0.0,
  batch_norm_scale: ones}
train: {optimizer: adam, learning_rate: 1.2e-3, learning_rate_steps: null, warmup_iterations: 0,
  momentum: 0.0, weight_decay: 0.0, augmentation: null, batch_size: 50, iterations: 40,
  epochs: null, evaluate_every: 10, early_stopping: null, precision: float32, jit_compile: false,
  threads: 1}
prune: {rounds: 2, rates: {conv: 0.1, dense: 0.2, output: 0.1}, criterion: magnitude, pattern: weight,
  scope: layerwise, schedule: iterative, scoring_rounds: 1, strategy: rewind, rewind_iteration: 0}
retrain: {variants: [ticket, random_reinit], rounds: all, analysis: none, masks: null}
report: {margin: 0.005, iteration_margin: 0.3, confidence: 0.95}
"""


def tiny(values: Mapping[str, Any]) -> dict[str, Any]:
    """TINY's parameters with some values replaced, as in ``{"train.epochs": 3}``."""
    content = YAML(typ="safe").load(TINY)
    for key, value in values.items():
        *sections, last = key.split(".")
        section = content
        for name in sections:
            section = section[name]
        section[last] = value
    return content


def network(
    name: str, image_shape: tuple[int, int, int], classes: int = 10, **model: Any
) -> Network:
    """A network whose model has these keys, or their defaults."""
    return Network(
        Model(name=name, **{"initializer": "glorot_normal", **model}), image_shape, classes
    )


@dataclass
class Clone:
    """A git clone with a tiny experiment."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def env(self) -> dict[str, str]:
        """What the clone's commands run in: this Python, no git identity of the user."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "LOTTERY_RUNS": str(self.path / ".runs"),
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
            **self.environment,
        }

    def run(
        self, *command: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        env = {**self.env(), **environment}
        done = subprocess.run(
            command, cwd=self.path, env=env, capture_output=True, text=True, timeout=280
        )
        assert not (check and done.returncode), f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def stage(self, *names: str) -> None:
        """Runs stages in this process. The code is the tests' own, not the clone's."""
        from stages import command

        in_process = {"LOTTERY_EXECUTOR": "in-process"}
        with contextlib.chdir(self.path), pytest.MonkeyPatch.context() as patch:
            for variable, value in (in_process | self.env()).items():
                patch.setenv(variable, value)
            for name in names:
                command.run(name)

    def repro(self, *arguments: str, **environment: str) -> list[str]:
        """Runs `dvc repro` and gives the stages that it ran."""
        out = self.run("dvc", "repro", *arguments, **environment).stdout
        return [
            line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage ")
        ]

    def change(self, key: str, value: object) -> None:
        """Sets one key of params.yaml, e.g. ``train.learning_rate``."""
        yaml = YAML()
        content = yaml.load(self.params)
        section, _, name = key.rpartition(".")
        (content[section] if section else content)[name] = value
        self.write(content)

    def write(self, content: object) -> None:
        """Writes params.yaml."""
        with open(self.path / "params.yaml", "w") as file:
            YAML().dump(content, file)

    @property
    def params(self) -> str:
        return (self.path / "params.yaml").read_text()

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)

    def files(self, *folders: str) -> dict[str, bytes]:
        """The files in folders, by their path in the clone; git's own left out."""
        paths = [path for folder in folders for path in sorted((self.path / folder).rglob("*"))]
        found = {str(p.relative_to(self.path)): p.read_bytes() for p in paths if p.is_file()}
        return {name: content for name, content in found.items() if ".gitignore" not in name}


def make_clone(path: Path) -> Clone:
    """What git would clone: tracked files and those not ignored, in a repository of their own.

    No results, and no published tickets.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = done.stdout.split("\0")
    for name in filter(None, listed):
        if (
            name == "dvc.lock"
            or name.startswith(("reports/", "tests/", "notebooks/"))
            or (name.startswith("tickets/") and name != "tickets/README.md")
            or (name.startswith("docs/") and name != "docs/results/anchors.csv")
            or not (ROOT / name).exists()
        ):
            continue
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path / name)
    (path / "params.yaml").write_text(TINY)
    clone = Clone(path)
    clone.run("git", "init", "-q", "-b", "main")
    clone.commit("a tiny experiment")
    return clone
