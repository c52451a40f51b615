"""What is asked of Lightning's Trainer: its packages, its dataloaders, and which rows fill up the last batches."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from torch.utils.data import DistributedSampler

from vaentropy.errors import MissingExtraError, UsageError, shown

__all__ = ["chosen", "dataloaders_of", "for_trainers", "padding_of"]

# The same library under two names, whose classes know nothing of each other.
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def for_trainers(cls: type) -> type:
    """The class with the callbacks of the Trainer's package as bases; itself where it has them already.

    Raises:
        MissingExtraError: neither lightning nor pytorch_lightning is installed.
    """
    bases = _callbacks()
    return cls if issubclass(cls, bases) else _derived(cls, bases)


def _callbacks() -> tuple[type, ...]:
    """Of the packages that are imported already, of which the user's Trainer is one; else of one that is installed."""
    imported = [module for module in map(sys.modules.get, PACKAGES) if module is not None]
    if imported:
        return tuple(module.Callback for module in imported)
    for name in PACKAGES:
        with suppress(ModuleNotFoundError):
            return (import_module(name).Callback,)
    raise MissingExtraError("lightning", "lightning")


@cache
def _derived(cls: type, bases: tuple[type, ...]) -> type:
    about = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_derived_from": cls}
    return type(cls.__name__, (cls, *bases), about)


def dataloaders_of(trainer: Any, stage: str) -> dict[str, Any]:
    """The dataloaders of the validation or test that runs, in the order of their indices, by names.

    Args:
        trainer: of either package.
        stage: "val" or "test".
    """
    if stage == "test":
        loop, given = trainer.test_loop, trainer.test_dataloaders
    else:
        # Not `trainer.val_dataloaders` alone: after fit(), it has those of fit() in a validate() of others too.
        validating = trainer.state.fn == "validate"
        loop = trainer.validate_loop if validating else trainer.fit_loop.epoch_loop.val_loop
        given = trainer.val_dataloaders
    if (combined := getattr(loop, "_combined_loader", None)) is not None:
        given = combined.iterables
    if isinstance(given, Mapping):
        return {str(name): loader for name, loader in given.items()}
    return {str(index): loader for index, loader in enumerate(given if isinstance(given, list | tuple) else [given])}


def chosen(names: Sequence[str], wanted: Sequence[int | str] | None) -> dict[int, str]:
    """Names of the dataloaders that are wanted, by their indices; all of them for None.

    Raises:
        UsageError: none of those that are wanted is there.
    """
    if wanted is None:
        return dict(enumerate(names))
    there = {index: name for index, name in enumerate(names) if index in wanted or name in wanted}
    if not there:
        raise UsageError(f"dataloaders={shown(wanted)} given, expected some of {', '.join(names)}, by index or name")
    return there


def padding_of(dataloader: Any, batch_idx: int) -> tuple[int, int]:
    """How many rows of a batch, the last ones, only repeat others so that all processes have as many.

    A DistributedSampler gives process r the positions r, r + W, r + 2W, … of the data, which it fills up at their end.

    Returns:
        These rows, and all rows of the batch; 0 and 0 where the sampler does not fill up.
    """
    batches = getattr(dataloader, "batch_sampler", None)
    sampler, size = getattr(batches, "sampler", None), getattr(batches, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or not isinstance(size, int):
        return 0, 0
    own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
    if sampler.num_samples <= own:
        return 0, 0
    first = batch_idx * size
    end = min(first + size, sampler.num_samples)
    return max(0, end - max(first, own)), end - first
