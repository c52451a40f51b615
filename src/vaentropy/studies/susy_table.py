"""A table in the format of SUSY (UCI): the file that a plan points at, or a stand-in that is drawn."""

import math
from pathlib import Path

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.data import Dataset, load
from vaentropy.data.catalogue import SUSY_FEATURES, susy_label
from vaentropy.seeding import generator_of
from vaentropy.studies.study import Plan

__all__ = ["ROWS", "stand_in", "susy_table"]

ROWS = 5_000_000
HELD_OUT = 0.5
# Of the stand-in: what its features have in common, how much each has of its own, and how they are skewed.
FACTORS = 6
OWN_NOISE = 0.3
LOG_SCALE = 0.5
ANGLES = 6
# Rows that are drawn at a time, so that little memory is needed beside the table.
ROWS_AT_A_TIME = 100_000


def susy_table(plan: Plan, rows: int) -> tuple[str, Dataset]:
    """Features scaled to [0, 1], half of the rows held out; the class label is left out.

    Args:
        plan: `data` is a .csv or .csv.gz file as UCI has it; None draws a stand-in.
        rows: of the stand-in.

    Returns:
        Its name, and the table in memory, float32.

    Raises:
        UsageError: a file of another kind.
        DataError: a file that is not of this format.
        MissingExtraError: pyarrow is not installed.
    """
    options = {"held_out": HELD_OUT, "scale": "min_max", "stream": False, "seed": plan.seed}
    if plan.data is None:
        return "SUSY stand-in", load(stand_in(rows, plan.seed), **options)
    return "SUSY", load(plan.data, exclude=[susy_label(Path(plan.data))], **options)


def stand_in(rows: int, seed: int) -> Float[Tensor, "N 18"]:
    """Features that resemble momenta and angles of particles: positive, correlated, most of them skewed.

    Each is a function of a normal variable, exp(y/2) or 2π Φ(y), and the y have six factors in common. Not data of
    physics, nor a simulation.

    Args:
        rows: how many.
        seed: of all of it.
    """
    generator = generator_of(seed, "SUSY stand-in")
    loadings = torch.randn(FACTORS, SUSY_FEATURES, generator=generator)
    loadings /= loadings.norm(dim=0)
    x = torch.empty(rows, SUSY_FEATURES)
    for part in x.split(ROWS_AT_A_TIME):
        factors = torch.randn(len(part), FACTORS, generator=generator)
        y = factors @ loadings + OWN_NOISE * torch.randn(len(part), SUSY_FEATURES, generator=generator)
        part[:, ANGLES:] = torch.exp(LOG_SCALE * y[:, ANGLES:])
        part[:, :ANGLES] = 2 * math.pi * torch.special.ndtr(y[:, :ANGLES])
    return x
