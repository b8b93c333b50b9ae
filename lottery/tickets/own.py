"""Parts of one's own tried before anything is computed: built, scored with, started from."""

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import PydanticSerializationError

from lottery import code, parts
from lottery.artifacts import files
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import Network, Params, Train
from lottery.params.catalogue import DATASETS
from lottery.params.reading import typed
from lottery.running import executors, machine
from lottery.running.executors import Task
from lottery.running.progress import Report
from lottery.streams import stream
from lottery.tickets import variants
from lottery.tickets.search import by_criterion, check_that_something_survives
from lottery.tickets.ticket import Dense, Start, Ticket, rewound_ticket

DRAWN = "random numbers of lottery.streams.stream, a function of purpose, seed and round"
OF_A_START = {"weights": Mapping, "mask": Mask, "train": Train, "iteration": int, "iterations": int}
TRIED = Path(".dvc/tmp/own-parts")  # what was found without mistakes last


def check(params: Params, *, fetched: bool = True) -> None:
    """Raises LotteryError with a line for each part of one's own that is not what it has to be.

    A worker tries them, in the seconds that it takes to import TensorFlow; not again while neither
    they nor the parameters change. Where the size of the dataset's images is not known yet
    (``fetched`` is false), they are only imported.
    """
    names = _names(params)
    if not names:
        return
    network, threads = _network(params, fetched), params.train.threads
    modules = code.of_stage(__name__, map(parts.module_of, names)).modules
    own = {name: module for name, module in modules if not code.is_ours(name)}
    tried = repr((params, network, modules, [*code.beside(own)]))
    digest = hashlib.sha256(tried.encode()).hexdigest().encode()
    if TRIED.exists() and TRIED.read_bytes() == digest:
        return
    task = Task(", ".join(names), partial(mistakes, params, network))
    prepare = partial(machine.prepare, threads, code.of_stage(__name__))
    (lines,) = executors.compute([task], prepare, title="own parts", threads=threads)
    if lines:
        raise LotteryError("\n".join(lines))
    files.write(TRIED, digest)


def _names(params: Params) -> list[str]:
    return parts.named([params.model.name, params.prune.criterion, *params.retrain.variants])


def _network(params: Params, fetched: bool) -> Network | None:
    if known := DATASETS.get(params.data.name):
        return Network(params.model, known.image_shape, known.classes)
    path = files.DATASET / "dataset.json"
    facts = files.read_json(path) if fetched and path.exists() else {}
    if facts.get("name") != params.data.name:
        return None
    return Network(params.model, tuple(facts["image_shape"]), facts["classes"])


def mistakes(params: Params, network: Network | None, _: Report | None = None) -> list[str]:
    """A line for each mistake; without a network, for each part that cannot be imported."""
    problems, before, names = list[str](), {*sys.modules}, _names(params)

    def attempt(name: str, call: Callable[..., Any], *args: Any) -> Any:
        """What the call gives; None, and a line more, where the part has a mistake."""
        try:
            return call(*args)
        except LotteryError as error:
            problems.append(str(error))
        except (Exception, SystemExit) as error:
            if not parts.is_own(name):
                raise
            problems.append(str(parts.mistake(name, error)))

    for name in names:
        attempt(name, parts.find, {}, name)
    if network is None or problems:
        return problems
    model, criterion = network.model.name, params.prune.criterion
    if parts.is_own(model):
        attempt(model, _check_architecture, network, params.train.precision)
    if not problems:
        if parts.is_own(criterion):
            attempt(criterion, _check_scores, params, network, criterion)
        ticket = attempt("random", _ticket, params, network, "random")
        for variant in params.retrain.variants if ticket else ():
            attempt(variant, _check_start, variant, ticket)
    known = code.read(*map(parts.module_of, names))  # what is imported in functions counts, too
    imported = {n for n in {*sys.modules} - before - known.keys() if not code.is_ours(n)}
    problems += filter(None, [machine.hidden(imported)])
    return list(dict.fromkeys(problems))


def _check_architecture(network: Network, precision: str) -> None:
    """Raises LotteryError where a network cannot be trained as it is, or begins otherwise."""
    from lottery.training.models import build, check, kinds, variables

    from tf_keras import initializers  # isort: skip  (after models, which sets TF_USE_LEGACY_KERAS)

    check(network, precision, network.model.dropout)
    names = ("glorot_uniform", network.model.initializer, None)  # of None Keras makes the first
    accepted, model = {type(initializers.get(name)) for name in names}, build(network)
    for name, variable in variables(model).items():
        if name in kinds(model):
            layer = model.get_layer(name.removesuffix("/kernel"))
            usual = type(layer.kernel_initializer) in accepted
        else:
            one = name.endswith(("/gamma", "/moving_variance"))
            usual = bool(np.all(variable.numpy() == one))
        if not usual:
            why = f"{name} has an initialiser of its own, which the training here leaves out"
            instead = "accepted: none; kernels begin by model.initializer"
            raise parts.mistake(network.model.name, f"{why}; {instead}")


def _ticket(params: Params, network: Network, criterion: str) -> Ticket:
    """The ticket of the last round that is retrained, of networks that have not been trained."""
    from lottery.training.models import initialise

    prune = params.prune.model_copy(update={"criterion": criterion, "scoring_rounds": 1})
    (initial, kinds), (trained, _) = (initialise(network, "check", seed) for seed in range(2))
    dense, labels = Dense(initial, trained, kinds), np.arange(4 * network.classes, dtype=np.int32)
    check_that_something_survives(prune, dense)
    shape = (len(labels), *network.image_shape)
    images = stream("images of a check").integers(0, 256, shape, np.uint8)
    one_round = by_criterion(prune, dense, network, 0, Part(images, labels % network.classes))
    round_ = params.retrain_rounds()[-1]
    mask = one_round(dense.full_mask, trained, round_)
    iterations = params.train.iterations or prune.rewind_iteration + 1000
    return rewound_ticket(params, network, iterations, dense, 0, round_, mask)


def _check_scores(params: Params, network: Network, criterion: str) -> None:
    """Raises LotteryError where a criterion makes no mask, or not the same one each time."""
    mask, again = (_ticket(params, network, criterion).mask for _ in range(2))
    if not mask.within(again):
        raise parts.mistake(criterion, f"other scores when it is called again; accepted: {DRAWN}")


def _check_start(variant: str, ticket: Ticket) -> None:
    """Raises LotteryError where a variant does not start a run, or not the same one each time."""
    start, again = (parts.find(vars(variants), variant)(ticket) for _ in range(2))
    if parts.is_own(variant):
        for why in _misfits(start, again, ticket):
            raise parts.mistake(variant, why)


def _misfits_of_train(train: Train) -> Iterator[str]:
    """What a copy with other values has that no ``params.yaml`` gives: pydantic looks at none."""
    with warnings.catch_warnings(action="ignore"):
        try:
            plain, lines = typed(train.model_dump(mode="json"), Train)
        except PydanticSerializationError as error:
            yield f"its train: {error}; accepted: Python's own numbers"
            return
    if lines:
        yield f"its train.{lines[0]}"
    elif (known := vars(plain)) != (got := vars(train)):
        name = next(name for name in got if name not in known or known[name] != got[name])
        kind = type(known[name]).__name__ if name in known else "without it"
        yield f"its train.{name} is a {type(got[name]).__name__}; accepted: {kind}"


def _misfits(start: Start, again: Start, ticket: Ticket) -> Iterator[str]:
    """What is wrong with a start, and with that of a second call: as far as the first mistake."""
    if not isinstance(start, Start):
        yield f"gives a {type(start).__name__}; accepted: lottery.tickets.ticket.Start"
    start = replace(start, iterations=start.iterations or ticket.iterations)
    for name, kind in OF_A_START.items():
        if not isinstance(value := getattr(start, name), kind):
            yield f"its {name} is a {type(value).__name__}; accepted: {kind.__name__}"
    from lottery.training.learned_masks import TRAINERS
    from lottery.training.models import initialise

    if start.masks not in TRAINERS:
        yield f"its masks are {start.masks!r}; accepted: {', '.join(TRAINERS)}"
    yield from _misfits_of_train(start.train)
    for name in ("iterations", "epochs", "threads"):
        if (got := getattr(start.train, name)) != (own := getattr(ticket.train, name)):
            yield f"its train.{name} is {got}; accepted: {own}; Start.iterations makes runs longer"
    known = ticket.network.model.name
    model = start.model or ticket.network.model
    if parts.is_own(model.name) and model.name != known:
        why = "changes of the code of another would go unseen"
        yield f"starts the network {model.name}; accepted: {known}, of model.name: {why}"
    fresh, kinds = initialise(ticket.network._replace(model=model), "check")
    expected = {name: value.shape for name, value in fresh.items()}
    given = {name: np.shape(value) for name, value in start.weights.items()}
    for name in [name for name in {**expected, **given} if given.get(name) != expected.get(name)]:
        got, accepted = given.get(name, "missing"), expected.get(name, "no such variable")
        yield f"its weights: {name}: {got}; accepted: {accepted}"
    if start.mask.shapes != {name: expected[name] for name in kinds}:
        yield f"its mask is of {', '.join(start.mask.layers)}; accepted: {', '.join(kinds)}"
    for name, value in start.weights.items():
        beyond = value[~start.mask.layers[name]] if name in kinds else np.zeros(0)
        if start.masks == "edge_popup" and beyond.size and not beyond.any():
            why = "that edge_popup is to choose among"
            yield f"weights of {name} that its mask prunes are 0; accepted: all, {why}"
        if start.masks != "edge_popup" and beyond.any():
            yield f"weights of {name} that its mask prunes are not 0; accepted: mask.apply(weights)"
        if not np.isfinite(value).all():
            yield f"weights of {name} are not finite"
        if not np.array_equal(value, again.weights[name]):
            yield f"other weights of {name} when it is called again; accepted: {DRAWN}"
    if not 0 <= start.iteration < (start.iterations or ticket.iterations):
        yield f"starts at iteration {start.iteration}, which is none of its run's"
