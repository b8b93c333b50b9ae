"""The sections of params.yaml: a key is a line here, its type is what it takes."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field

from lottery.masks import erk_counts, surviving_count
from lottery.params.early_stopping import EarlyStopping
from lottery.params.reading import Section
from lottery.params.values import Once, Own, Positive, Rate, Sha256, Side, TwoOfFour, Whole

DatasetName = Literal[
    "mnist5k", "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "image_folder", "arrays"
]


class Data(Section):
    """Where the images, or other arrays, come from and how they are split."""

    name: DatasetName | Own
    source: Annotated[str, Field(min_length=1)] | None = None
    sha256: Sha256 | None = None
    validation_size: Positive
    split: Literal["per_seed", "shared"] = "per_seed"
    split_seed: Whole = 0
    image_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None


ArchitectureName = Literal["lenet_300_100", "conv2", "conv4", "conv6", "resnet20", "vgg16"]
"""Functions of lottery.training.architectures."""
ARCHITECTURES = get_args(ArchitectureName)


class Model(Section):
    """The architecture."""

    name: ArchitectureName | Own
    initializer: Literal["glorot_normal", "glorot_uniform", "he_normal", "he_uniform"]
    width: float = Field(1.0, gt=0, le=16)
    dropout: Rate = 0.0
    batch_norm_scale: Literal["ones", "uniform"] = "ones"


class Network(NamedTuple):
    """A model for the images of a dataset: all that a network is built and initialised by."""

    model: Model
    image_shape: tuple[int, ...]  # height, width, channels; of what are no images any other
    classes: int


class LearningRateSteps(Section):
    """The learning rate is multiplied by ``factor`` at each of these iterations."""

    iterations: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)]
    factor: float = Field(gt=0)


class Augmentation(Section):
    """What happens to each training image in each epoch; never to validation and test images."""

    flip: bool
    crop: Annotated[int, Field(ge=0, le=64)]


class Train(Section):
    """How a network is trained."""

    optimizer: Literal["adam", "sgd"]
    learning_rate: float = Field(gt=0)
    learning_rate_steps: LearningRateSteps | None = None
    warmup_iterations: Whole = 0
    momentum: Rate = 0.0
    weight_decay: float = Field(0.0, ge=0)
    augmentation: Augmentation | None = None
    batch_size: Positive
    iterations: Positive | None = None
    epochs: Positive | None = None
    evaluate_every: Positive
    early_stopping: EarlyStopping | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    jit_compile: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] = 1

    def last_learning_rate(self) -> "Train":
        """The same, at the learning rate that the steps end with."""
        steps = self.learning_rate_steps
        rate = self.learning_rate * (steps.factor ** len(steps.iterations) if steps else 1)
        return self.model_copy(
            update={"learning_rate": rate, "learning_rate_steps": None, "warmup_iterations": 0}
        )

    def stretched(self, factor: float) -> "Train":
        """The same for a run of ``factor`` times the length, which nothing stops early.

        Warm-up and learning-rate steps come at the same share of it (Liu et al. 2019, section 3).
        """
        steps = self.learning_rate_steps
        if steps is not None:
            later = tuple(round(factor * iteration) for iteration in steps.iterations)
            steps = LearningRateSteps(iterations=later, factor=steps.factor)
        warmup = round(factor * self.warmup_iterations)
        changes = {"learning_rate_steps": steps, "warmup_iterations": warmup}
        return self.model_copy(update={**changes, "early_stopping": None})

    def length(self, training_images: int) -> int:
        """Iterations of one run; an epoch has ``training_images // batch_size``."""
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return self.epochs * (training_images // self.batch_size)


class Rates(Section):
    """The share of the surviving weights that one round prunes, by kind of layer."""

    conv: Rate
    dense: Rate
    output: Rate


CriterionName = Literal[
    "magnitude", "magnitude_increase", "movement", "random", "snip", "grasp", "synflow"
]
"""Functions of lottery.tickets.criteria."""
CRITERIA = get_args(CriterionName)
AT_INITIALISATION = ("snip", "grasp", "synflow")

Pattern = Literal["weight", "unit"] | TwoOfFour
"""What goes together (lottery.tickets.patterns)."""


class Prune(Section):
    """How weights are pruned, round by round."""

    rounds: Annotated[int, Field(ge=1, le=1000)]
    rates: Rates
    criterion: CriterionName | Own = "magnitude"
    pattern: Pattern = "weight"
    scope: Literal["layerwise", "global", "uniform", "erk"] = "layerwise"
    schedule: Literal["iterative", "one_shot"] = "iterative"
    scoring_rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    strategy: Literal["rewind", "finetune", "learning_rate_rewind"] = "rewind"
    rewind_iteration: Whole

    @property
    def at_initialisation(self) -> bool:
        """Whether the dense network is pruned before it is trained."""
        return self.criterion in AT_INITIALISATION

    @property
    def trains(self) -> bool:
        """Whether each round trains what it has pruned, for the next one to prune."""
        return self.schedule == "iterative" and not self.at_initialisation

    @property
    def controls(self) -> tuple[str, ...]:
        """The variants that a ticket must beat: Ma et al. 2021, section 3, of weights that are
        rewound; Frankle et al. 2021, section 5, of those pruned at initialisation.
        """
        if self.strategy != "rewind":
            return ()
        return ("shuffled_mask", "random_reinit") if self.at_initialisation else ("random_reinit",)

    def never_pruned(self, kinds: Mapping[str, str]) -> list[str]:
        """The layers of a rate of 0."""
        rates = self.rates.model_dump()
        return [name for name, kind in kinds.items() if not rates[kind]]

    def left_whole(self, kinds: Mapping[str, str]) -> list[str]:
        """Those, where one rate is for the network and not for each layer."""
        return self.never_pruned(kinds) if self.scope in ("global", "erk") else []

    def surviving(
        self, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, str], round_: int
    ) -> dict[str, int] | int:
        """Weights that survive a round: by layer, or in all where the scope is global.

        Of whole units their number is rounded. Of two of four inputs, a layer that they do not fit
        stays whole.
        """
        rates, sizes = self.rates.model_dump(), {n: math.prod(s) for n, s in shapes.items()}
        if self.pattern == "unit":
            units = {n: surviving_count(shapes[n][-1], rates[k], round_) for n, k in kinds.items()}
            return {n: sizes[n] // shapes[n][-1] * count for n, count in units.items()}
        if self.pattern != "weight":
            halved = {n for n, kind in kinds.items() if rates[kind] and shapes[n][-2] % 4 == 0}
            return {name: size // (1 + (name in halved)) for name, size in sizes.items()}
        if self.scope not in ("global", "erk"):
            return {n: surviving_count(sizes[n], rates[kind], round_) for n, kind in kinds.items()}
        whole = {name: sizes[name] for name in self.left_whole(kinds)}
        rest = {name: shape for name, shape in shapes.items() if name not in whole}
        left = surviving_count(sum(sizes[n] for n in rest), max(rates.values()), round_)
        if self.scope == "global":
            return sum(whole.values()) + left
        return whole | erk_counts(rest, left)


VariantName = Literal[
    "ticket",
    "random_reinit",
    "sign_preserving_reinit",
    "random_sign_constant",
    "signed_reinit",
    "random_mask",
    "random_mask_global",
    "random_mask_erk",
    "shuffled_mask",
    "small_dense",
    "dense_longer",
    "set",
    "rigl",
    "supermask",
    "supermask_signed_constant",
]
"""Functions of lottery.tickets.variants."""
VARIANTS = get_args(VariantName)
FEWEST = 5  # seeds that can show something: 0.5 ** 5 is the first power of a half below 5 %


class Retrain(Section):
    """Which tickets are trained again, with which controls."""

    variants: Annotated[list[VariantName | Own], Field(min_length=1), Once]
    rounds: Annotated[list[Positive], Field(min_length=1), Once] | Literal["all"]
    analysis: Literal["none", "linear_mode_connectivity", "connectivity_of_pruning"] = "none"
    masks: Annotated[str, Field(min_length=1)] | None = None


class Report(Section):
    """What counts as similar, and how sure the verdict is."""

    margin: Rate
    iteration_margin: float = Field(0.1, gt=0, lt=1)
    confidence: float = Field(gt=0.5, lt=1)


class Params(Section):
    """The whole file."""

    seeds: Annotated[list[Whole], Field(min_length=1), Once]
    data: Data
    model: Model
    train: Train
    prune: Prune
    retrain: Retrain
    report: Report

    def missing(self) -> str:
        """What keeps any result of these parameters from being a win; empty where nothing does."""
        needed = ("ticket", *self.prune.controls)
        absent = [name for name in needed if name not in self.retrain.variants]
        if absent:
            return f"add to retrain.variants: {', '.join(absent)}"
        seeds = len(self.seeds)
        few = f"{seeds} seed{'s' * (seeds != 1)} cannot tell: {self.fewest_seeds()} are the fewest"
        return f"{few} that can" if seeds < self.fewest_seeds() else ""

    def fewest_seeds(self) -> int:
        """The least number of seeds that can win a round, if all of them meet every criterion."""
        alpha = 1 - self.report.confidence
        rounds = self.prune.rounds if self.retrain.rounds == "all" else 1  # Holm's first step
        return max(FEWEST, math.floor(math.log2(rounds / alpha)) + 1)

    def retrain_rounds(self) -> list[int]:
        """The pruning rounds whose tickets are retrained, in the order in which they are listed."""
        if self.retrain.rounds == "all":
            return list(range(1, self.prune.rounds + 1))
        return list(self.retrain.rounds)

    def tickets_train(self) -> Train:
        """How tickets are trained: as the dense network was, or fine-tuned at its last rate."""
        return self.train.last_learning_rate() if self.prune.strategy == "finetune" else self.train
