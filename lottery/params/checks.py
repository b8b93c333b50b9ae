"""params.yaml read and checked, its values against one another and against the dataset too."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from lottery.params.catalogue import DATASETS
from lottery.params.reading import Refusal, read_yaml, refuse, refused, typed
from lottery.params.sections import Params, Prune
from lottery.parts import is_own

PARAMS_FILE = Path("params.yaml")

SMALLEST_IMAGE = {
    "lenet_300_100": 0,
    "conv2": 2,
    "conv4": 4,
    "conv6": 8,
    "resnet20": 1,
    "vgg16": 16,
}
"""The smallest image side, in pixels, that each model's pooling leaves something of; 0: it takes
what are no images too."""

WITHOUT_BATCH_NORM = ("lenet_300_100", "conv2", "conv4", "conv6")
MAX_POOLING = ("conv2", "conv4", "conv6", "vgg16")

OF_SINGLE_WEIGHTS = (
    "random_mask_global",
    "random_mask_erk",
    "set",
    "rigl",
    "supermask",
    "supermask_signed_constant",
)
"""Variants whose masks have no other ``prune.pattern`` than weight."""

UNCHANGED = 133  # iterations, at most, of a run in which set and rigl change no mask


class Size(NamedTuple):
    """A dataset's examples for training and validation, its classes, the shape of an example."""

    examples: int
    classes: int
    shape: tuple[int, ...]

    @property
    def side(self) -> int:
        """The shorter one of images, in pixels; 0 of what are no images."""
        return min(self.shape[:2]) if len(self.shape) == 3 else 0


def load(path: Path = PARAMS_FILE) -> Params:
    """The parameters of a file; they must fit their dataset where it is known by name.

    Raises LotteryError with a line for every mistake: the full key, what it got, what it takes.
    """
    return validate(read_yaml(path), str(path))


def validate(content: Any, context: str = str(PARAMS_FILE)) -> Params:
    """The same for parameters already read: nested dicts, lists and scalars."""
    params, lines = typed(content, Params)
    known = DATASETS.get(params.data.name) if params.data else None
    size = Size(known.training, known.classes, known.image_shape) if known else None
    lines += refused(params, _contradictions(params)) + refused(params, _misfits(params, size))
    refuse(context, lines)
    return params


def check_fit(params: Params, size: Size, path: Path = PARAMS_FILE) -> None:
    """The same for a dataset whose size is known only once it has been read."""
    refuse(str(path), refused(params, _misfits(params, size)))


def _contradictions(p: Params) -> Iterator[Refusal]:
    """Keys whose values others rule out, with what is accepted; a faulty section is None."""
    known = DATASETS.get(p.data.name) if p.data else None
    if known and known.package and p.data.source is not None:
        yield "data.source", f"null: {p.data.name} comes with a package"
    if p.data and is_own(p.data.name) and p.data.source is not None:
        yield "data.source", f"null: {p.data.name} is called without one"
    if p.data and p.data.name == "image_folder" and p.data.source is None:
        images = "that holds train/<class>/<image>"
        yield "data.source", f"a folder, a zip or tar archive, or its URL, {images}"
    if p.data and p.data.name == "arrays" and p.data.source is None:
        yield "data.source", "an npz or safetensors file, or its URL, that holds x_train, y_train"
    if p.data and p.data.name != "image_folder" and p.data.image_size is not None:
        yield "data.image_size", f"null: only image_folder is resized, not {p.data.name}"
    if p.model and p.model.dropout and p.model.name in ("resnet20", "vgg16"):
        yield "model.dropout", f"0 with {p.model.name}: it has no hidden dense layer"
    if p.model and p.model.batch_norm_scale != "ones" and p.model.name in WITHOUT_BATCH_NORM:
        yield "model.batch_norm_scale", f"ones with {p.model.name}: it has no batch normalisation"
    if p.train and p.model and p.train.jit_compile and p.model.name in MAX_POOLING:
        why = "XLA has no deterministic gradient of its max-pooling"
        yield "train.jit_compile", f"false with {p.model.name}: {why}"
    if p.train and p.train.iterations is None and p.train.epochs is None:
        yield "train.iterations", "at least 1, or null with train.epochs given"
    if p.train and p.train.iterations is not None and p.train.epochs is not None:
        yield "train.epochs", f"null with train.iterations {p.train.iterations}: one of the two"
    if p.train and p.train.momentum and p.train.optimizer != "sgd":
        yield "train.momentum", f"0 with optimizer {p.train.optimizer}; momentum belongs to sgd"
    if p.prune:
        yield from _contradictions_of_pruning(p.prune)
        if not any(p.prune.rates.model_dump().values()):
            yield "prune.rates", "one above 0: these prune nothing"
    if p.data and p.data.split_seed and p.data.split == "per_seed":
        yield "data.split_seed", "0 with data.split per_seed, where the seed itself draws the split"
    if p.prune and p.retrain and p.retrain.masks and p.prune.strategy != "rewind":
        yield "prune.strategy", "rewind with retrain.masks: they come without trained weights"
    if p.prune and p.retrain:
        along = p.retrain.analysis == "connectivity_of_pruning"
        if along and (p.retrain.masks or not p.prune.trains):
            untrained = "none or linear_mode_connectivity: the rounds here are not trained"
            yield "retrain.analysis", untrained
        if p.prune.pattern != "weight":
            for variant in (v for v in p.retrain.variants if v in OF_SINGLE_WEIGHTS):
                yield "retrain.variants", f"without {variant}, or with prune.pattern weight"
        if max(p.retrain_rounds()) > p.prune.rounds:
            yield "retrain.rounds", f"rounds from 1 to prune.rounds, {p.prune.rounds}"


def _contradictions_of_pruning(prune: Prune) -> Iterator[Refusal]:
    pruned = {rate for rate in prune.rates.model_dump().values() if rate}
    if prune.scope != "layerwise" and len(pruned) > 1:
        whole = f"with prune.scope {prune.scope} one rate for all kinds, or 0: left whole"
        yield "prune.rates", whole
    if prune.pattern != "weight" and prune.scope != "layerwise":
        yield "prune.scope", "layerwise with a prune.pattern other than weight"
    if prune.pattern == "unit" and prune.rates.output:
        yield "prune.rates.output", "0 with prune.pattern unit: the output units are the classes"
    elif prune.pattern == (2, 4):
        if pruned != {0.5}:
            yield "prune.rates", "0.5, the share that prune.pattern [2, 4] prunes, or 0: left whole"
        for key, rounds in ("rounds", prune.rounds), ("scoring_rounds", prune.scoring_rounds):
            if rounds > 1:
                yield f"prune.{key}", "1 with prune.pattern [2, 4]: its density is fixed"
    if prune.strategy != "rewind" and prune.at_initialisation:
        yield "prune.strategy", f"rewind: {prune.criterion} prunes before any training"
    if prune.scoring_rounds > 1 and not prune.at_initialisation:
        yield "prune.scoring_rounds", f"1 with {prune.criterion}: its scores stay the same"
    elif prune.scoring_rounds > 1 and prune.schedule == "one_shot":
        yield "prune.scoring_rounds", "1 with prune.schedule one_shot, which scores once"


def _misfits(p: Params, size: Size | None) -> Iterator[Refusal]:
    """Keys whose values do not fit the dataset, where its size is known, or a run's length."""
    training = None  # examples; None where they are not known, or no number of them would do
    if p.data and size:
        fewest, most = size.classes, size.examples - size.classes
        has = f"{p.data.name} has {size.examples:,} examples for training and validation"
        if most < fewest:
            yield "data.name", f"a dataset of {2 * fewest} or more examples, two a class: {has}"
        elif not fewest <= p.data.validation_size <= most:
            yield "data.validation_size", f"from {fewest} (one example a class) to {most}: {has}"
        else:
            training = size.examples - p.data.validation_size
    shape = list(size.shape) if size else []
    if p.model and size and size.side < SMALLEST_IMAGE.get(p.model.name, 0):
        fitting = ", ".join(name for name, least in SMALLEST_IMAGE.items() if size.side >= least)
        what = f"images of side {size.side}" if size.side else f"the shape {shape}, no image's"
        yield "model.name", f"a model that fits {what}: {fitting}, or your own module:function"
    if p.train and p.train.augmentation and size and not size.side:
        yield "train.augmentation", f"null with examples of the shape {shape}: no image's"
    if p.train and training is not None and p.train.batch_size > training:
        yield "train.batch_size", f"at most the {training:,} training examples"
        training = None
    if p.train and (p.train.iterations or (p.train.epochs and training is not None)):
        yield from _beyond_the_run(p, p.train.length(training or 0))


def _beyond_the_run(p: Params, iterations: int) -> Iterator[Refusal]:
    """Keys that name iterations which a run does not reach, or a margin below its evaluations."""
    every, run = p.train.evaluate_every, f"the run's {iterations} iterations"
    if every > iterations:
        yield "train.evaluate_every", f"at most {run}"
    if p.train.warmup_iterations > iterations:
        yield "train.warmup_iterations", f"at most {run}"
    steps = p.train.learning_rate_steps.iterations if p.train.learning_rate_steps else ()
    if list(steps) != sorted(set(steps)) or max(steps, default=0) >= iterations:
        yield "train.learning_rate_steps.iterations", f"rising ones, less than {run}"
    if p.prune and p.prune.rewind_iteration >= iterations:
        yield "prune.rewind_iteration", f"less than {run}"
    for variant in ("set", "rigl") if p.retrain and iterations <= UNCHANGED else ():
        if variant in p.retrain.variants:
            why = f"its mask would never change in {run}, only in more than {UNCHANGED}"
            yield "retrain.variants", f"without {variant}: {why}"
    margin = Fraction(str(p.report.iteration_margin)) if p.report else 1
    if margin * iterations < every <= iterations:
        least = math.ceil(Fraction(every, iterations) * 10_000) / 10_000
        most = math.floor(margin * iterations)
        ways = [f"at least {least}"] * (least < 1)
        ways += [f"this one with train.evaluate_every of at most {most}"] * (most > 0)
        ways = ways or [f"this one with runs of at least {math.ceil(every / margin)} iterations"]
        why = f"this share of {run} is less than one evaluation"
        yield "report.iteration_margin", f"{' or '.join(ways)}: {why}"
