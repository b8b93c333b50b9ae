"""params.yaml, typed and checked before anything is computed."""
# ruff: noqa: F401 - what the others import from here

from lottery.params.checks import PARAMS_FILE, SMALLEST_IMAGE, Size, check_fit, load, validate
from lottery.params.early_stopping import EarlyStopping
from lottery.params.reading import Section
from lottery.params.sections import (
    ARCHITECTURES,
    CRITERIA,
    FEWEST,
    VARIANTS,
    Augmentation,
    Data,
    LearningRateSteps,
    Model,
    Network,
    Params,
    Pattern,
    Prune,
    Rates,
    Train,
)
