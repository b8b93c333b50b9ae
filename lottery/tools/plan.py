"""What an experiment will cost before it is started: ``python -m lottery plan [PARAMS]``.

Prints the number of runs and how many must follow one another, core-hours, wall time by number of workers, and
disk. Single steps are timed once on this machine, which takes about a minute, and kept in the run store; the rest is
arithmetic. Downloads are not counted, nor is what the run store spares.
"""

import argparse
import configparser
from pathlib import Path

from lottery.artifacts import files
from lottery.datasets.catalogue import DATASETS, read_params
from lottery.errors import LotteryError
from lottery.params import PARAMS_FILE, Params, check_fit
from lottery.running.machine import cpu_model
from lottery.tools.costs import Images, Machine, costs_here
from lottery.tools.workload import Plan, plan, total_of


def images_of(params: Params, where: Path = PARAMS_FILE) -> Images:
    """The images of the dataset: of the catalogue's, or, of an image folder, those that were fetched.

    Raises LotteryError where that is still to be done, or where the parameters do not fit it.
    """
    data, known = params.data, DATASETS.get(params.data.name)
    if known:
        training = known.training - data.validation_size
        return Images(known.image_shape, known.classes, training, data.validation_size, known.test)
    path = files.DATASET / "dataset.json"
    facts = files.read_json(path) if path.exists() else {}
    if facts.get("name") != data.name:
        raise LotteryError(
            f"data.name: {data.name}: its images are not known before they are read: run `dvc repro fetch` first"
        )
    try:
        (height, width, channels), classes, counts = (
            facts["image_shape"],
            facts["classes"],
            facts["counts"],
        )
        known_images = sum(counts[name] for name in ("train", "validation"))
        shape, test = (int(height), int(width), int(channels)), int(counts["test"])
    except (KeyError, TypeError, ValueError) as error:
        raise files.broken(path, f"lacks a field or has one of another kind ({error})") from None
    check_fit(params, images=known_images, classes=classes, side=min(shape[:2]), where=where)
    return Images(shape, classes, known_images - data.validation_size, data.validation_size, test)


def cache_is_linked() -> bool:
    """Whether DVC is set to link data/ to its cache: by default it copies, where the file system has no reflinks."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([".dvc/config", ".dvc/config.local"])
    return "link" in config.get("cache", "type", fallback="copy").split(",")[0].replace(
        "reflink", ""
    )


def duration(seconds: float) -> str:
    """In the two largest units: ``1 h 20 min``."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    large = next((i for i, (_, length) in enumerate(units[:3]) if seconds >= length), 2)
    (big, _), (small, length) = units[large : large + 2]
    whole, rest = divmod(round(seconds / length), units[large][1] // length)
    return f"{whole} {big} {rest} {small}" if whole else f"{rest} {small}"


def size(number: float) -> str:
    """Bytes, as in ``1.6 GB``."""
    unit, name = next(
        ((u, name) for u, name in ((1e9, "GB"), (1e6, "MB")) if number >= u), (1e3, "kB")
    )
    return f"{number / unit:,.1f} {name}"


def _hours(number: float) -> str:
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 3}f}"


def _short(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def notes(params: Params, machine: Machine, cpu: str) -> list[str]:
    """What makes the experiment slow on this machine and need not; ``cpu``: as ``cpu_model()`` gives it."""
    convolutions = "conv" in machine.kinds.values() and not machine.gpus
    if (
        convolutions
        and params.train.precision == "bfloat16"
        and "avx2" in cpu
        and "avx512f" not in cpu
    ):
        return [
            "Note: this CPU lacks AVX-512; then TensorFlow mostly has only slow kernels for bfloat16 convolutions: "
            "compare with `train.precision: float32`"
        ]
    return []


def describe(p: Plan, machine: Machine, counts: list[int], *, linked: bool) -> str:
    """The plan in Markdown; ``counts``: numbers of workers to give the wall time for."""
    params, train = p.params, p.params.train
    total = total_of(stage.total for stage in p.stages)
    what = "GPU-hours" if machine.gpus else "core-hours"
    hours = [p.core_seconds(machine, stage) / 3600 for stage in p.stages]
    lines = [
        f"{params.model.name} on {params.data.name}, {len(params.seeds)} seeds, {params.prune.rounds} rounds: "
        f"{total.runs:,} runs of up to {p.longest_run:,} iterations, {train.precision}, batches of {train.batch_size}",
        *(
            ["early stopping: runs may be shorter, so time and core-hours are upper bounds"]
            if train.early_stopping
            else []
        ),
        "",
        f"| stage | runs | side by side | one after another | iterations | {what} |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for stage, hour in zip(p.stages, hours, strict=True):
        lines.append(
            f"| {stage.name} | {stage.total.runs:,} | {stage.chains:,} | {stage.depth:,} | "
            f"{stage.total.iterations:,} | {_hours(hour)} |"
        )
    depth = sum(stage.depth for stage in p.stages)
    lines += [
        f"| all | {total.runs:,} | | {depth:,} | {total.iterations:,} | {_hours(sum(hours))} |",
        "",
        "| workers | wall time |",
        "|--:|--:|",
    ]
    lines += [
        f"| {n:,}{' *' * (n > machine.workers)} | {duration(p.wall_seconds(machine, n))} |"
        for n in counts
    ]
    lines += ["", f"More than {p.most_workers:,} workers do not help."]
    if max(counts) > machine.workers:
        lines.append(
            f"*: more than this machine takes ({machine.workers}): the others on machines of the same kind"
        )
    disk = p.disk_bytes(machine, machine.workers, linked=linked)
    checkpoints = disk.pop("checkpoints")
    share = " (linked)" if linked else ""
    lines += [
        "",
        f"Disk: {size(sum(disk.values()))}: {', '.join(f'{name} {size(n)}' for name, n in disk.items())}{share}; "
        f"on the way, checkpoints of {size(checkpoints)} with {machine.workers} workers",
        f"Memory: {size(machine.memory)} a worker",
        f"Measured on {machine.device}: "
        + "; ".join(
            f"{c.workers} worker{'s' * (c.workers > 1)}: {_short(c.iteration)} an iteration, "
            f"{_short(p.images.held_out * c.evaluated_image)} an evaluation, {c.start:.1f} s to start"
            for c in machine.costs
        ),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lottery plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "params", nargs="?", type=Path, default=PARAMS_FILE, help="default: params.yaml"
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        type=_count,
        metavar="N",
        help="give the wall time for these numbers",
    )
    parser.add_argument(
        "--measure", action="store_true", help="time the steps again, although they are known"
    )
    options = parser.parse_args(arguments)
    try:
        params = read_params(options.params)
        images = images_of(params, options.params)
        planned = plan(params, images)
        machine = costs_here(params, images, again=options.measure)
    except LotteryError as error:
        parser.exit(1, "".join(f"plan: {line}\n" for line in str(error).splitlines()))
    except KeyboardInterrupt:
        parser.exit(130, "plan: interrupted\n")
    most = planned.most_workers
    usual = {n for n in (1, 2, 4, 8, 16, 32, 64, 128, machine.workers) if n < most} | {most}
    print(describe(planned, machine, options.workers or sorted(usual), linked=cache_is_linked()))
    for note in notes(params, machine, cpu_model()):
        print(note)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; accepted: a whole number from 1 up")
    return int(text)
