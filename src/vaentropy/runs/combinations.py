"""Combinations of settings: what a sweep trains, each checked beforehand and with a name for its folder."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import PurePath
from typing import Any

from vaentropy.checks import require_count
from vaentropy.config import RunConfig
from vaentropy.errors import UsageError, nearest, shown
from vaentropy.runs.build import with_absolute_paths

__all__ = ["LONGEST_NAME", "SEED", "Combination", "combinations", "settings_named"]

SEED = "seed"
MAX_RUNS = 10_000  # more are a slip
# File systems take names of 255 bytes, and a number may have to be added.
LONGEST_NAME, LONGEST_VALUE = 200, 40
UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")


@dataclass(frozen=True, eq=False)
class Combination:
    """One run of a sweep.

    Attributes:
        name: of its folder, such as "latent_dim=2,seed=0"; no two differ in upper and lower case alone.
        varied: the settings that other runs have other values of, and the seed, by name.
        config: all its settings.
    """

    name: str
    varied: Mapping[str, Any]
    config: RunConfig


def combinations(config: RunConfig, vary: Mapping[str, Sequence[Any]], num_seeds: int) -> list[Combination]:
    """Every combination of the values, from every seed; all with the first seed come first.

    Args:
        config: the settings that all have in common; its seed is the first.
        vary: values for each setting by its name; lists or tuples of them, as in a settings file.
        num_seeds: how many runs of each combination.

    Raises:
        UsageError: an unknown setting, no value, one that is there twice, or a combination that cannot be.
    """
    require_count("num_seeds", num_seeds)
    values = _checked(vary)
    seeds = values.pop(SEED, range(config.seed, config.seed + num_seeds))
    if SEED in vary and num_seeds != 1:
        raise UsageError(f"num_seeds={num_seeds} given with a varied seed, expected one of the two")
    count = math.prod(map(len, [*values.values(), seeds]))
    if count > MAX_RUNS:
        raise UsageError(f"{count:,} combinations given, expected at most {MAX_RUNS:,}; vary less at a time")
    made: dict[RunConfig, Combination] = {}
    taken: set[str] = set()
    for seed in seeds:
        for chosen in product(*values.values()):
            varied = {**dict(zip(values, chosen, strict=True)), SEED: seed}
            where = ",".join(f"{name}={'null' if value is None else shown(value)}" for name, value in varied.items())
            each = RunConfig.from_dict({**config.to_dict(), **varied}, where)
            each = with_absolute_paths(each, missing=True)
            if each in made:
                raise UsageError(f"{where} given twice, expected different combinations; leave a value out")
            # As the run has them: lists are tuples, and text may stand for a number.
            varied = {name: getattr(each, name) for name in varied}
            made[each] = Combination(_name(varied, taken), varied, each)
    return list(made.values())


def settings_named(folder: str) -> tuple[str, ...]:
    """The settings in the name of a run's folder, in order; () where `combinations` gives no such name."""
    parts = [part.partition("=") for part in folder.split(",")]
    found = tuple(name for name, equals, _ in parts if equals)
    whole = len(found) == len(parts) and found[-1] == SEED
    known = {f.name for f in fields(RunConfig)}
    return found if found and set(found) <= known and (whole or len(folder) >= LONGEST_NAME) else ()


def _checked(vary: Any) -> dict[str, Sequence[Any]]:
    known = [f.name for f in fields(RunConfig)]
    if not isinstance(vary, Mapping):
        raise UsageError(f"vary={shown(vary)} given, expected values by name, such as {{'latent_dim': [2, 5]}}")
    for name, values in vary.items():
        if name not in known:
            hint = nearest(name, known) or f"there are {', '.join(known)}"
            raise UsageError(f"unknown setting {shown(name)} to vary; {hint.strip()}")
        if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not len(values):
            raise UsageError(f"{name}={shown(values)} given to vary, expected a list of one or more values")
    return dict(vary)


def _name(varied: Mapping[str, Any], taken: set[str]) -> str:
    """A name for a folder on any system, which says what is varied, and which none has that is taken."""
    whole = ",".join(f"{name}={_text(value)}" for name, value in varied.items())[:LONGEST_NAME]
    name, number = whole, 1
    while name.casefold() in taken:
        number += 1
        name = f"{whole}-{number}"
    taken.add(name.casefold())
    return name


def _text(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return "-".join(map(_text, value))[:LONGEST_VALUE]
    if isinstance(value, bool):
        return str(value).lower()
    # Of a path its last part.
    text = PurePath(value).name if isinstance(value, str) else str(value)
    return UNSAFE.sub("_", text)[:LONGEST_VALUE]
