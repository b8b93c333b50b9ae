"""When a run is stopped early: what trains and what reports ask alike. A run's result depends on
this code."""

import math
from collections.abc import Sequence

from pydantic import Field

from lottery.params.reading import Section


class EarlyStopping(Section):
    """Stop after ``patience`` evaluations without a validation loss lower by ``min_delta``."""

    patience: int = Field(ge=1, le=2**31 - 1)
    min_delta: float = Field(0.0, ge=0)

    def ends(self, validation_losses: Sequence[float]) -> bool:
        """Whether it ends a run with these losses (the first is the one before training)."""
        best, waited = math.inf, 0
        for loss in validation_losses:
            if loss < best - self.min_delta:
                best, waited = loss, 0
            else:
                waited += 1
        return waited >= self.patience
