"""What an experiment can show, by how it prunes, and the words for it."""

from dataclasses import dataclass

from lottery.params import Prune


@dataclass(frozen=True)
class Claim:
    """What is tested, and the words for it."""

    won: str
    lost: str
    subject: str
    iterations: bool  # whether it must not stop later than the dense network


WINNING_TICKET = Claim("winning ticket", "no winning ticket", "ticket", True)
"""Frankle & Carbin 2019, section 1; better than re-initialised after Ma et al. 2021, section 3."""
MATCHING = Claim("matching subnetwork", "no matching subnetwork", "subnetwork", True)
"""Frankle et al. 2020, section 2: weights rewound to an early iteration, not to the first."""
PRUNED_NETWORK = Claim(
    "the pruned network matches the dense one",
    "the pruned network does not match the dense one",
    "pruned network",
    False,
)
"""Renda et al. 2020: the survivors keep their trained values; none is a lottery ticket."""
SANITY_CHECKS = Claim(
    "pruning at initialisation passes its sanity checks",
    "pruning at initialisation fails its sanity checks",
    "network pruned at initialisation",
    False,
)
"""Frankle et al. 2021, section 5: which weights are kept, and their values, must matter."""


def claim_of(prune: Prune) -> Claim:
    """What an experiment with these parameters can show."""
    if prune.strategy != "rewind":
        return PRUNED_NETWORK
    if prune.at_initialisation:
        return SANITY_CHECKS
    return MATCHING if prune.rewind_iteration else WINNING_TICKET
