"""params.yaml, typed and validated before anything is computed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lottery import parts
from lottery.datasets.catalogue import DATASETS
from lottery.errors import LotteryError
from lottery.masks import surviving_count

PARAMS_FILE = Path("params.yaml")

SMALLEST_IMAGE = {
    "lenet_300_100": 1,
    "conv2": 2,
    "conv4": 4,
    "conv6": 8,
    "resnet20": 1,
    "vgg16": 16,
}
"""The smallest image side, in pixels, that each model's pooling leaves something of."""

WITHOUT_BATCH_NORM = ("lenet_300_100", "conv2", "conv4", "conv6")

Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Own = Annotated[str, Field(pattern=parts.PATTERN)]
Side = Annotated[int, Field(ge=1, le=4096)]

A_POSITIVE = "a whole number from 1 up"
A_WHOLE = "a whole number from 0 up"
A_RATE = "a number from 0 up to, but not, 1"


class Section(BaseModel):
    """A mapping of params.yaml. Each field's description says what it accepts, in its error message too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    name: Literal[
        "mnist5k", "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "image_folder"
    ] = Field(
        description="mnist5k, digits, mnist, fashion_mnist, cifar10, cifar100 or image_folder"
    )
    source: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="a URL, a local file or a folder, or null for the dataset's own"
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None,
        description="64 lower-case hexadecimal digits, or null for the sha256 known for the name",
    )
    validation_size: Positive = Field(description=A_POSITIVE)
    split: Literal["per_seed", "shared"] = Field("per_seed", description="per_seed or shared")
    split_seed: Whole = Field(0, description=A_WHOLE)
    image_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        None, description="null or [height, width], whole numbers from 1 to 4096"
    )


class Model(Section):
    name: Literal["lenet_300_100", "conv2", "conv4", "conv6", "resnet20", "vgg16"] | Own = Field(
        description="lenet_300_100, conv2, conv4, conv6, resnet20, vgg16 or your own module:function"
    )
    initializer: Literal["glorot_normal", "glorot_uniform", "he_normal", "he_uniform"] = Field(
        description="glorot_normal, glorot_uniform, he_normal or he_uniform"
    )
    width: float = Field(1.0, gt=0, le=16, description="a number above 0, at most 16")
    dropout: Rate = Field(0.0, description=A_RATE)
    batch_norm_scale: Literal["ones", "uniform"] = Field("ones", description="ones or uniform")


class LearningRateSteps(Section):
    """The learning rate is multiplied by ``factor`` at each of these iterations."""

    iterations: Annotated[list[Positive], Field(min_length=1)] = Field(
        description="a list of rising whole numbers from 1 up"
    )
    factor: float = Field(gt=0, description="a number above 0")

    def __hash__(self) -> int:  # pydantic's own cannot hash a list
        return hash((*self.iterations, self.factor))


class Augmentation(Section):
    """What happens to each training image anew in each epoch; never to validation and test images."""

    flip: bool = Field(description="true or false")
    crop: Annotated[int, Field(ge=0, le=64)] = Field(description="a whole number from 0 to 64")


class EarlyStopping(Section):
    """Stop after ``patience`` evaluations without a validation loss lower by ``min_delta``."""

    def ends(self, validation_losses: Sequence[float]) -> bool:
        """Whether it ends a run with these losses (the first is the one before training)."""
        best, waited = math.inf, 0
        for loss in validation_losses:
            if loss < best - self.min_delta:
                best, waited = loss, 0
            else:
                waited += 1
        return waited >= self.patience

    patience: Positive = Field(description=A_POSITIVE)
    min_delta: float = Field(0.0, ge=0, description="a number from 0 up")


class Train(Section):
    optimizer: Literal["adam", "sgd"] = Field(description="adam or sgd")
    learning_rate: float = Field(gt=0, description="a number above 0")
    learning_rate_steps: LearningRateSteps | None = Field(
        None, description="null or {iterations: [whole numbers], factor: number}"
    )
    warmup_iterations: Whole = Field(0, description=A_WHOLE)
    momentum: Rate = Field(0.0, description=A_RATE)
    weight_decay: float = Field(0.0, ge=0, description="a number from 0 up")
    augmentation: Augmentation | None = Field(
        None, description="null or {flip: true or false, crop: whole number}"
    )
    batch_size: Positive = Field(description=A_POSITIVE)
    iterations: Positive | None = Field(
        None, description=f"{A_POSITIVE}, or null with epochs given"
    )
    epochs: Positive | None = Field(
        None, description=f"{A_POSITIVE}, or null with iterations given"
    )
    evaluate_every: Positive = Field(description=A_POSITIVE)
    early_stopping: EarlyStopping | None = Field(
        None, description="null or {patience: whole number, min_delta: number}"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="float32 or bfloat16")
    jit_compile: bool = Field(False, description="true or false")
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="a whole number from 1 to 1024"
    )

    def last_learning_rate(self) -> "Train":
        """The same, at the learning rate that the steps end with."""
        steps = self.learning_rate_steps
        rate = self.learning_rate * (steps.factor ** len(steps.iterations) if steps else 1)
        return self.model_copy(
            update={"learning_rate": rate, "learning_rate_steps": None, "warmup_iterations": 0}
        )

    def stretched(self, factor: float) -> "Train":
        """The same for a run of ``factor`` times the length, which nothing stops early.

        Warm-up and learning-rate steps come at the same share of the run (Liu et al. 2019, section 3).
        """
        steps = self.learning_rate_steps
        if steps is not None:
            later = [round(factor * iteration) for iteration in steps.iterations]
            steps = LearningRateSteps(iterations=later, factor=steps.factor)
        return self.model_copy(
            update={
                "learning_rate_steps": steps,
                "warmup_iterations": round(factor * self.warmup_iterations),
                "early_stopping": None,
            }
        )

    def length(self, training_images: int) -> int:
        """Iterations of one run; an epoch has ``training_images // batch_size``."""
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return self.epochs * (training_images // self.batch_size)


class Rates(Section):
    """The share of the surviving weights that one round prunes, by kind of layer."""

    conv: Rate = Field(description=A_RATE)
    dense: Rate = Field(description=A_RATE)
    output: Rate = Field(description=A_RATE)


Criterion = Literal[
    "magnitude", "magnitude_increase", "movement", "random", "snip", "grasp", "synflow"
]
CRITERIA = get_args(Criterion)
AT_INITIALISATION = ("snip", "grasp", "synflow")
Strategy = Literal["rewind", "finetune", "learning_rate_rewind"]


class Prune(Section):
    rounds: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="a whole number from 1 to 1000"
    )
    rates: Rates = Field(description="{conv: rate, dense: rate, output: rate}")
    criterion: Criterion | Own = Field(
        "magnitude", description=", ".join(CRITERIA) + " or your own module:function"
    )
    scope: Literal["layerwise", "global"] = Field("layerwise", description="layerwise or global")
    schedule: Literal["iterative", "one_shot"] = Field(
        "iterative", description="iterative or one_shot"
    )
    scoring_rounds: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="a whole number from 1 to 1000"
    )
    strategy: Strategy = Field("rewind", description="rewind, finetune or learning_rate_rewind")
    rewind_iteration: Whole = Field(description=A_WHOLE)

    @property
    def at_initialisation(self) -> bool:
        """Whether the dense network is pruned before it is trained."""
        return self.criterion in AT_INITIALISATION

    @property
    def trains(self) -> bool:
        """Whether each round trains what it has pruned, for the next one to prune."""
        return self.schedule == "iterative" and not self.at_initialisation

    def left_whole(self, kinds: Mapping[str, str]) -> list[str]:
        """The layers that pruning with one threshold for all leaves out: those of a rate of 0."""
        rates = self.rates.model_dump()
        return [n for n, kind in kinds.items() if self.scope == "global" and not rates[kind]]

    def surviving(
        self, sizes: Mapping[str, int], kinds: Mapping[str, str], round_: int
    ) -> dict[str, int] | int:
        """Weights that survive a round: by layer, or in the whole network where the scope is global."""
        rates = self.rates.model_dump()
        if self.scope == "global":
            whole = sum(sizes[name] for name in self.left_whole(kinds))
            rest = sum(sizes.values()) - whole
            return whole + surviving_count(rest, max(rates.values()), round_)
        return {
            name: surviving_count(sizes[name], rates[kind], round_) for name, kind in kinds.items()
        }


Variant = Literal[
    "ticket",
    "random_reinit",
    "sign_preserving_reinit",
    "random_sign_constant",
    "signed_reinit",
    "random_mask",
    "random_mask_global",
    "shuffled_mask",
    "small_dense",
    "dense_longer",
]
VARIANTS = get_args(Variant)


class Retrain(Section):
    variants: Annotated[list[Variant | Own], Field(min_length=1)] = Field(
        description=f"a list of at least one of {', '.join(VARIANTS)} or your own module:function"
    )
    rounds: Annotated[list[Positive], Field(min_length=1)] | Literal["all"] = Field(
        description="a list of at least one whole number from 1 up, or all"
    )
    analysis: Literal["none", "linear_mode_connectivity"] = Field(
        "none", description="none or linear_mode_connectivity"
    )


class Report(Section):
    margin: Rate = Field(description=A_RATE)
    iteration_margin: Rate = Field(0.1, description=A_RATE)
    confidence: float = Field(gt=0.5, lt=1, description="a number between 0.5 and 1")


class Params(Section):
    seeds: Annotated[list[Whole], Field(min_length=1)] = Field(
        description="a list of at least one whole number from 0 up"
    )
    data: Data
    model: Model
    train: Train
    prune: Prune
    retrain: Retrain
    report: Report

    def retrain_rounds(self) -> list[int]:
        """The pruning rounds whose tickets are retrained, in order."""
        if self.retrain.rounds == "all":
            return list(range(1, self.prune.rounds + 1))
        return list(self.retrain.rounds)

    def tickets_train(self) -> Train:
        """How tickets are trained: as the dense network was or, fine-tuned, at its last learning rate."""
        return self.train.last_learning_rate() if self.prune.strategy == "finetune" else self.train


def mistakes(params: Params) -> list[str]:
    """What no single key shows: values that contradict one another or the dataset.

    Of an image folder nothing is known yet: ``misfits`` compares once it has been read.
    """
    found = _contradictions(params)
    known = DATASETS.get(params.data.name)
    if found:
        return found + (_validation_misfits(params, known.training, known.classes) if known else [])
    if known:
        found = misfits(
            params, images=known.training, classes=known.classes, side=min(known.image_shape[:2])
        )
    elif params.train.iterations is not None:
        found = _length_misfits(params, params.train.iterations)
    beyond = [r for r in params.retrain_rounds() if r > params.prune.rounds]
    if beyond:
        found.append(
            _line("retrain.rounds", beyond, f"rounds from 1 to prune.rounds, {params.prune.rounds}")
        )
    return found


def _contradictions(params: Params) -> list[str]:
    """Values that contradict one another, whatever the dataset holds."""
    found = []

    def mistake(key: str, value: Any, accepted: str) -> None:
        found.append(_line(key, value, accepted))

    data, train = params.data, params.train
    if (train.iterations is None) == (train.epochs is None):
        both = [train.iterations, train.epochs]
        mistake(
            "train.iterations, train.epochs", both, "one of the two; leave the other out, or null"
        )
    if train.momentum and train.optimizer != "sgd":
        mistake("train.momentum", train.momentum, "0 with optimizer adam; momentum belongs to sgd")
    if params.model.dropout and params.model.name in ("resnet20", "vgg16"):
        mistake(
            "model.dropout",
            params.model.dropout,
            f"0 with {params.model.name}: it has no hidden dense layer",
        )
    if params.model.batch_norm_scale != "ones" and params.model.name in WITHOUT_BATCH_NORM:
        mistake(
            "model.batch_norm_scale",
            params.model.batch_norm_scale,
            f"ones with {params.model.name}: it has no batch normalisation",
        )
    prune = params.prune
    rates = prune.rates.model_dump()
    if prune.scope == "global" and len({rate for rate in rates.values() if rate}) > 1:
        mistake(
            "prune.rates",
            rates,
            "with prune.scope global the same rate for all kinds, or 0 for those left whole",
        )
    if prune.scoring_rounds > 1 and not (prune.at_initialisation and prune.schedule == "iterative"):
        mistake(
            "prune.scoring_rounds",
            prune.scoring_rounds,
            f"1, or prune.criterion {', '.join(AT_INITIALISATION)} with prune.schedule iterative: "
            "other scores are the same again",
        )
    if prune.strategy != "rewind" and prune.criterion in AT_INITIALISATION:
        mistake(
            "prune.strategy",
            prune.strategy,
            f"rewind: {prune.criterion} prunes before any training",
        )
    lists: dict[str, Sequence[Any]] = {
        "seeds": params.seeds,
        "retrain.variants": params.retrain.variants,
        "retrain.rounds": params.retrain_rounds(),
    }
    for key, values in lists.items():
        if len(set(values)) < len(values):
            mistake(key, values, "each value once")
    known = DATASETS.get(data.name)
    if known and known.packaged and data.source is not None:
        mistake("data.source", data.source, "null: the dataset comes with a package")
    if data.name == "image_folder" and data.source is None:
        mistake(
            "data.source",
            None,
            "a folder, a zip or tar archive, or its URL, that holds train/<class>/<image>",
        )
    if data.name != "image_folder" and data.image_size is not None:
        mistake(
            "data.image_size",
            data.image_size,
            f"null: only image_folder is resized, not {data.name}",
        )
    return found


def misfits(params: Params, *, images: int, classes: int, side: int) -> list[str]:
    """Values that do not fit a dataset of so many images for training and validation, of so small a shorter side."""
    found = _validation_misfits(params, images, classes)
    if found:
        return found
    training = images - params.data.validation_size
    if params.train.batch_size > training:
        return [
            _line(
                "train.batch_size",
                params.train.batch_size,
                f"at most the {training:,} training images",
            )
        ]
    if side < SMALLEST_IMAGE.get(params.model.name, 1):
        fitting = [name for name, least in SMALLEST_IMAGE.items() if side >= least]
        fits = f"a model that fits images of side {side}: {', '.join(fitting)}"
        found.append(_line("model.name", params.model.name, fits))
    return found + _length_misfits(params, params.train.length(training))


def _validation_misfits(params: Params, images: int, classes: int) -> list[str]:
    if classes <= params.data.validation_size <= images - classes:
        return []
    accepted = (
        f"from {classes} (one image a class) to {images - classes}: {params.data.name} has "
        f"{images:,} images for training and validation"
    )
    return [_line("data.validation_size", params.data.validation_size, accepted)]


def _length_misfits(params: Params, iterations: int) -> list[str]:
    """Iterations named in the parameters that a run of this length does not reach."""
    found = []
    every, rewind = params.train.evaluate_every, params.prune.rewind_iteration
    if every > iterations:
        found.append(
            _line("train.evaluate_every", every, f"at most the run's {iterations} iterations")
        )
    if rewind >= iterations:
        found.append(
            _line(
                "prune.rewind_iteration",
                rewind,
                f"an iteration before the run's last, {iterations}",
            )
        )
    if params.train.warmup_iterations > iterations:
        accepted = f"at most the run's {iterations} iterations"
        found.append(_line("train.warmup_iterations", params.train.warmup_iterations, accepted))
    steps = params.train.learning_rate_steps
    if steps and (
        steps.iterations != sorted(set(steps.iterations)) or steps.iterations[-1] >= iterations
    ):
        accepted = f"rising iterations below the run's {iterations}"
        found.append(_line("train.learning_rate_steps.iterations", steps.iterations, accepted))
    return found


def check_fit(
    params: Params, *, images: int, classes: int, side: int, where: Path = PARAMS_FILE
) -> None:
    """Raises LotteryError with a line for each of the ``misfits``: for a dataset known only once it has been read."""
    lines = misfits(params, images=images, classes=classes, side=side)
    if lines:
        raise LotteryError(_together(str(where), lines))


def load(path: Path = PARAMS_FILE) -> Params:
    """The parameters of a file.

    Raises LotteryError with one line for every mistake: the key's full path, what was found there,
    what is accepted.
    """
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f" at line {place.line + 1}, column {place.column + 1}" if place else ""
        raise LotteryError(
            f"{path}: not valid YAML{where}: {error.problem or error.context}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LotteryError(f"{path}: cannot be read: {error}") from None
    except (YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # the last five come from values that contradict their tags, and from thousands of brackets
        why = str(error).splitlines()[:1] or [type(error).__name__]
        raise LotteryError(f"{path}: not valid YAML: {why[0]}") from None
    return validate(content, str(path))


def validate(content: Any, where: str = str(PARAMS_FILE)) -> Params:
    """The same for parameters already read: nested dicts, lists and scalars."""
    if not isinstance(content, dict):
        raise LotteryError(f"{where}: got {type(content).__name__}; accepted: {_keys_of(Params)}")
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise LotteryError(_together(where, _explain(error))) from None
    lines = mistakes(params)
    if lines:
        raise LotteryError(_together(where, lines))
    return params


def _together(where: str, lines: list[str]) -> str:
    return "\n".join(f"{where}: {line}" for line in dict.fromkeys(lines))


def _line(key: str, value: Any, accepted: str) -> str:
    text = repr(value)
    return f"{key}: got {text if len(text) <= 80 else text[:77] + '...'}; accepted: {accepted}"


def _keys_of(section: type[Section]) -> str:
    return f"a mapping with the keys {', '.join(section.model_fields)}"


def _explain(error: ValidationError) -> list[str]:
    """One line of plain words for each mistake that pydantic found."""
    fields: dict[str, dict[str, str]] = {}  # of a field: full key to line
    for one in error.errors():
        section: type[Section] | None = Params
        accepted, path, field = _keys_of(Params), [], ""
        for part in one[
            "loc"
        ]:  # besides keys and indices, it holds the types of a union that were tried
            if isinstance(part, int):
                path.append(str(part))
            elif section and part in section.model_fields:
                path.append(part)
                field = ".".join(path)
                accepted, section = _accepted(section, part)
            elif section and one["type"] in ("extra_forbidden", "invalid_key"):
                path.append(str(part))
        key = ".".join(path)
        if one["type"] in ("extra_forbidden", "invalid_key"):
            assert section is not None
            line = f"{key}: unknown key; accepted: {', '.join(section.model_fields)}"
        elif one["type"] == "missing":
            line = f"{key}: missing; accepted: {accepted}"
        else:
            line = _line(key, one["input"], accepted)
        fields.setdefault(field, {}).setdefault(key, line)
    for field, lines in fields.items():
        if len(lines) > 1:  # an item is at fault: the other members of the union say nothing new
            lines.pop(field, None)
    return [line for lines in fields.values() for line in lines.values()]


def _accepted(section: type[Section], key: str) -> tuple[str, type[Section] | None]:
    """What a key accepts, in words, and the section behind it where there is one."""
    field = section.model_fields[key]
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return field.description or _keys_of(candidate), candidate
    return field.description or "", None
