"""Processes that torchrun has started, as one command: a group of torch.distributed, one voice, one end."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from vaentropy.errors import TrainingError, UsageError, VaentropyError, shown

__all__ = ["launched", "require_alone"]

# What torchrun tells each process; without all of them this one is alone.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FAILED, ENDED = "vaentropy/failed", "vaentropy/ended"
# For the first process to have written a checkpoint; torchrun ends all others where one has ended.
PATIENCE = timedelta(seconds=25)


@contextmanager
def launched() -> Iterator[bool]:
    """The group of the processes that torchrun (or what sets its variables) has started, for one command.

    Yields:
        Whether this is the process that speaks: the first one, or the only one.

    Raises:
        UsageError: the variables hold no numbers, or the processes do not find each other.
        SystemExit: in all processes but one, where the command fails; that one has something to say.
    """
    if any(not os.environ.get(name) for name in VARIABLES) or _number("WORLD_SIZE") == 1:
        yield True
        return
    import torch.distributed as dist

    rank, store = _number("RANK"), _begin()
    try:
        yield rank == 0
    except BaseException as error:
        if _speaks(error, rank, store):
            raise
        raise SystemExit(_status(error)) from None
    else:
        if rank:
            _leave()
    finally:
        with suppress(Exception):  # of a group that has lost a process
            dist.destroy_process_group()


def _leave() -> None:
    """End this process, which has nothing left to do: of those that ended as usual one was seen to abort (SIGABRT)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0)


def require_alone() -> None:
    """Refuse to be one of several processes of torchrun, for what each of them would do as a whole.

    Raises:
        UsageError: it is one.
    """
    if all(os.environ.get(name) for name in VARIABLES) and (size := _number("WORLD_SIZE")) > 1:
        raise UsageError(
            f"started {size} times by torchrun, which is for train and continue; start this once, with --workers {size}"
        )


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise UsageError(f"{name}={shown(value)} in the environment, expected a whole number as torchrun sets it")
    return int(value)


def _begin() -> Any:
    """The group's store, once all processes are there."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UsageError("WORLD_SIZE is set for several processes, but this PyTorch has no torch.distributed")
    from torch.distributed.rendezvous import rendezvous

    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    local = os.environ.get("LOCAL_RANK", "0")
    if on_gpu and local.isdecimal() and int(local) < torch.cuda.device_count():
        torch.cuda.set_device(int(local))
    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"the processes do not find each other ({reason}); start them with torchrun") from error
    return store


def _speaks(error: BaseException, rank: int, store: Any) -> bool:
    """Whether this process says what has happened: of a signal the first one, of all else whoever meets it first."""
    from vaentropy.world import FailedElsewhere

    interrupted = isinstance(error, KeyboardInterrupt)
    try:
        if isinstance(error, FailedElsewhere):
            store.wait([FAILED], PATIENCE)  # for the one that it failed in
        if not interrupted:
            return store.add(FAILED, 1) == 1
        store.set(ENDED, "1") if rank == 0 else store.wait([ENDED], PATIENCE)
        return rank == 0
    except RuntimeError:  # the store has ended with the first process
        return rank == 0 or (isinstance(error, TrainingError) and not interrupted)


def _status(error: BaseException) -> int:
    """The exit status that the command would have had."""
    from vaentropy.cli import INTERRUPTED, SIGNALLED, USER_ERROR

    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "signal", None)
        return SIGNALLED + number if number else INTERRUPTED
    if isinstance(error, VaentropyError | OSError):
        return USER_ERROR
    return 1
