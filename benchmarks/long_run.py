"""An experiment computed in pieces on whatever machine there is; what is finished is left in compact form.

    PYTHONPATH=. python benchmarks/long_run.py experiments/cifar10-conv4-notebook.yaml FOLDER \\
        --minutes 9 --seeds 0 1 2 3 4 5 6 7 8 9 --source cifar-10-binary.tar.gz [--gpu]

Needs no DVC and no network. The stages run in FOLDER, one after the other, until the time is over; the same command
goes on. After each piece FOLDER/state has, of what is finished: masks and histories by seed (seed-N/round-NN.npz,
seed-N/history.csv.gz), the finished runs of retrain, reports/ at the end. Copied into a new FOLDER on another machine,
it is gone on from: masks are taken over, and only the last round of each seed is trained again. --gpu measures the
GPU first (benchmarks/gpu.py), which takes two minutes of the first piece; --save-only writes the state and ends.
"""

import argparse
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pooch
from ruamel.yaml import YAML

from lottery import params
from lottery.artifacts import files, tables
from lottery.running import store
from lottery.tickets import given

STAGES = ("fetch", "train_dense", "prune", "extract_masks", "retrain", "report")
NEEDED = (
    "lottery",
    "stages",
    "tickets",
    "dvc.yaml",
    "requirements.txt",
    "docs/results/anchors.csv",
)
ROOT = Path(__file__).parent.parent


def before(folder: Path) -> str:
    """The folder at the head of PYTHONPATH: where nothing is installed, libraries come from there."""
    return os.pathsep.join(filter(None, [str(folder.absolute()), os.environ.get("PYTHONPATH")]))


def copy(source: Path, target: Path) -> None:
    """A file or a folder; what is there already of a copy that was cut off is written again."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def prepare(folder: Path, experiment: Path, seeds: list[int] | None, source: str | None) -> None:
    """Makes the project in the folder; a state that lies there already is gone on from."""
    for name in NEEDED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, path)
    yaml = YAML()
    content = yaml.load(experiment.read_text(encoding="utf-8"))
    content["seeds"] = seeds or content["seeds"]
    recipe = folder / "state/params.yaml"
    if recipe.exists() and not given.of_same_search(recipe, params.load(experiment)):
        raise SystemExit(f"{recipe}: of another experiment; give another folder")
    if source and Path(source).is_dir():  # where fetch sees it
        copy(Path(source), folder / "data/own/source")
        content["data"]["source"] = "data/own/source"
    elif source:
        path = str(Path(source).absolute())
        content["data"] |= {"source": path, "sha256": pooch.file_hash(path)}
    if (folder / "state/runs").is_dir():  # git keeps no empty folder
        copy(folder / "state/runs", folder / "runs")
    if (folder / "state").is_dir() and content["retrain"]["masks"] is None:
        copy(folder / "state", folder / "tickets/state")
        for seed in content["seeds"]:
            files.seed_folder(folder / "tickets/state", seed).mkdir(exist_ok=True)
        content["retrain"]["masks"] = "tickets/state"
    with open(folder / "params.yaml", "w", encoding="utf-8") as file:
        yaml.dump(content, file)


def compute(folder: Path, until: float, keep: Callable[[], object]) -> bool:
    """Runs the stages that have not ended; whether all have when the time is over.

    ``keep`` is called before a stage is ended, which then removes its unfinished folder.
    """
    done = folder / "done.txt"
    environment = {**os.environ, "LOTTERY_RUNS": str(folder.absolute() / "runs")}
    environment |= {"PYTHONPATH": before(folder), "LOTTERY_CHECKPOINT_SECONDS": "20"}
    for name in STAGES:
        if done.exists() and name in done.read_text(encoding="utf-8").split():
            continue
        command = [sys.executable, "-m", f"stages.{name}"]
        process = subprocess.Popen(command, cwd=folder, env=environment)
        try:
            code = process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                try:
                    keep()
                finally:
                    process.terminate()
                    process.wait()
        if code:
            raise SystemExit(f"{name}: exit status {code}")
        with open(done, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    return True


def set_apart(state: Path, environment: dict) -> None:
    """Moves histories of another environment than this to ``state/elsewhere``; writes this one."""
    known = state / "environment.json"
    if known.exists() and files.read_json(known) != [environment]:
        for path in (known, *state.glob("seed-*/history.csv.gz")):
            target = state / "elsewhere" / path.relative_to(state)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    state.mkdir(parents=True, exist_ok=True)
    files.write_json(known, [environment])


def save(folder: Path, runs: Path, state: Path) -> int:
    """Writes what is finished in a project's folder and run store; how many runs that is.

    Masks of rounds whose stage has not ended lie in its unfinished folder. Histories that the state
    has from another environment are moved to state/elsewhere.
    """
    if not (folder / files.DATASET / "dataset.json").exists():
        return 0
    loaded = params.load(folder / "params.yaml")
    dataset = files.read_json(folder / files.DATASET / "dataset.json")["files"]
    wanted = loaded.train.model_dump(mode="json"), loaded.tickets_train().model_dump(mode="json")
    finished = []
    for path in sorted(runs.glob(f"*{store.FINISHED}")):
        weights, facts = store.load(path) or ({}, {})
        by = facts.get("determined by", {})
        if by.get("dataset") == dataset and by.get("train") in wanted:
            finished.append((path, any(weights.values()), facts, by["environment"]))
    here = [environment for _, kept, _, environment in finished if kept]
    if not here:  # runs with weights are computed here; others may come from elsewhere
        return 0
    set_apart(state, here[0])
    histories: dict[int, list[pd.DataFrame]] = {}
    runs_found = 0
    (state / "runs").mkdir(parents=True, exist_ok=True)
    for path, kept, facts, environment in finished:
        if environment != here[0]:
            continue
        seed, variant, *round_ = facts["name"].removeprefix("seed ").split(", ")
        table = pd.DataFrame(facts["history"]).assign(
            seed=int(seed), variant=variant, round=int(round_[0].split()[1]) if round_ else 0
        )
        histories.setdefault(int(seed), []).append(table)
        runs_found += 1
        if not kept:
            shutil.copy(path, state / "runs")
    for ended in (files.DENSE, files.PRUNED, files.RETRAINED):
        known = folder / ended / "environment.json"  # of taken-over histories it may be another's
        if known.exists() and files.read_json(known) == [here[0]]:
            # it has the weights remaining, too
            for seed, table in tables.read(folder / ended / "history.csv").groupby("seed"):
                histories.setdefault(int(seed), []).append(table)
    for seed, found in histories.items():
        for pruned in (folder / files.PRUNED, folder / "data/.pruned.partial"):
            for path in files.seed_folder(pruned, seed).glob("round-*.safetensors"):
                _, mask, _ = files.read_masked_weights(path)
                given.write_file(state / path.relative_to(pruned).with_suffix(".npz"), mask)
        path = files.seed_folder(state, seed) / "history.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        # of rounds whose masks were taken over the runs are elsewhere; one trained anew replaces one
        before = [pd.read_csv(path)] if path.exists() else []
        whole = {of: run for t in (*before, *found) for of, run in t.groupby(["variant", "round"])}
        table = pd.concat(whole.values()).sort_values(["variant", "round", "iteration"])
        columns = [name for name in tables.COLUMNS if name in table]
        table["iteration"] = table["iteration"].astype(int)
        text = table[columns].to_csv(index=False, float_format="%.7g")
        files.write(path, gzip.compress(text.encode(), mtime=0))
    shutil.copy(folder / "params.yaml", state)
    if (folder / files.REPORTS).is_dir():
        shutil.copytree(folder / files.REPORTS, state / "reports", dirs_exist_ok=True)
    return runs_found


def main() -> None:
    """A piece: prepares where there is nothing yet, computes, saves."""
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as of `timeout`: saved, none left
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0, help="that this piece takes, in all")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the experiment's")
    parser.add_argument("--source", help="a local copy of the dataset")
    parser.add_argument("--gpu", action="store_true", help="measure the GPU before the first piece")
    parser.add_argument("--save-only", action="store_true")
    options = parser.parse_args()
    folder = options.folder
    if not (folder / "params.yaml").exists():
        prepare(folder, options.experiment, options.seeds, options.source)
        if options.gpu:
            command = [sys.executable, ROOT / "benchmarks/gpu.py", "--minutes", "2"]
            environment = {**os.environ, "PYTHONPATH": before(ROOT)}
            measured = folder.absolute() / "state/gpu.md"
            measured.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*command, "--out", measured], env=environment, check=True)
    asked, here = (params.load(p) for p in (options.experiment, folder / "params.yaml"))
    seeds = options.seeds or (here if options.save_only else asked).seeds
    beside = {"data": {"source", "sha256"}, "seeds": True, "retrain": {"masks"}}
    alike = asked.model_dump(exclude=beside) == here.model_dump(exclude=beside)
    if not alike or [*seeds] != [*here.seeds]:
        raise SystemExit(f"{folder}: of another experiment; give another folder")
    keep = partial(save, folder, folder / "runs", folder / "state")
    ended, runs = False, 0
    try:
        if not options.save_only:
            ended = compute(folder, begun + 60 * options.minutes - 30, keep)  # the rest: saving
    finally:
        runs = keep()
    print(f"{runs} runs finished{', all stages ended' if ended else ''}: {folder / 'state'}")


if __name__ == "__main__":
    main()
