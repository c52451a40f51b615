"""Steps that several processes take together: each has rows of every batch, and all have the gradients of the whole."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from vaentropy._typing import Tensor
from vaentropy.errors import UsageError
from vaentropy.training.checkpoint import Checkpoints
from vaentropy.training.data import TrainingData
from vaentropy.training.history import Row
from vaentropy.training.interruption import SIGNALS
from vaentropy.training.micro_batches import gradients_in_parts
from vaentropy.training.settings import Settings
from vaentropy.training.state import Snapshot
from vaentropy.vae import VAE
from vaentropy.world import Packet, World

__all__ = ["Shared", "Unwritten", "require_divisible", "require_one_training"]

logger = logging.getLogger(__name__)


class Shared:
    """`gradients` of the rows that a process has, made those of the whole batch by one sum over all processes.

    Flags travel along, so that all processes write a checkpoint, or stop, after the same step.

    Args:
        world: the processes.
        model: in training.
        rows: of a forward and backward pass at most; None takes all that a process has.

    Attributes:
        share: to be set before a call: fraction of the batch that is here.
        due: to be set before a call: whether this process wants a checkpoint after the step. Afterwards: whether any
            does.
        signal: to be set before a call: a signal that has come here. Afterwards: one that has come anywhere.
    """

    def __init__(self, world: World, model: VAE, rows: int | None = None):
        self._world, self._rows = world, rows
        self._learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._flat, self._views = _flat(self._learned)
        self.share, self.due, self.signal = 1.0, False, None
        self.signal: int | None

    def __call__(self, model: VAE, x: Tensor, *args, **options) -> Tensor:
        """See `gradients`; the sums are those of the whole batch."""
        here = {"rows": self._rows, "world": self._world, "share": self.share}
        sums = gradients_in_parts(model, x, *args, **here, **options)
        return self._summed(sums if self.share else torch.zeros_like(sums))

    def _summed(self, sums: Tensor) -> Tensor:
        there = [parameter.grad is not None for parameter in self._learned]
        told = [self.due, *(self.signal == number for number in SIGNALS), *there]
        told = torch.cat([sums, torch.tensor(told, dtype=sums.dtype, device=sums.device)])
        wait = self._world.begin_sum(told)
        for view, parameter in zip(self._views, self._learned, strict=True):
            view.zero_() if parameter.grad is None else view.copy_(parameter.grad)
        for flat in self._flat:
            self._world.sum(flat)
        wait()
        due, *rest = told[len(sums) :].tolist()
        signals, there = rest[: len(SIGNALS)], rest[len(SIGNALS) :]
        self.due = bool(due)
        self.signal = next((int(number) for number, came in zip(SIGNALS, signals, strict=True) if came), None)
        for parameter, view, somewhere in zip(self._learned, self._views, there, strict=True):
            parameter.grad = view if somewhere else None
        return told[: len(sums)]


def _flat(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Memory for all gradients in one piece for each dtype, and each gradient as a view of it."""
    views: dict[int, Tensor] = {}
    pieces = []
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
        own = [parameter for parameter in parameters if parameter.dtype == dtype]
        flat = own[0].new_empty(sum(parameter.numel() for parameter in own))
        for parameter, part in zip(own, flat.split([parameter.numel() for parameter in own]), strict=True):
            # In the order in memory that the parameter has, which a fused optimiser takes for granted.
            dense = torch.empty_like(parameter).stride() == parameter.stride()
            views[id(parameter)] = (
                part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
                if dense
                else part.view(parameter.shape)
            )
        pieces.append(flat)
    return pieces, [views[id(parameter)] for parameter in parameters]


class Unwritten(Checkpoints):
    """The checkpoints of a training, for a process that leaves the writing to the first one."""

    def begin(self) -> None:
        """Nothing."""

    def append(self, row: Row) -> None:
        """Nothing."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def save(self, snapshot: Snapshot, settings: Mapping[str, Any], epoch_start: Snapshot | None = None) -> None:
        """Nothing."""

    def save_best(self, snapshot: Snapshot) -> None:
        """Nothing."""


def require_one_training(
    world: World, model: VAE, settings: Settings, data: TrainingData, held_out: TrainingData | None
) -> None:
    """Refuse what several processes cannot train as one.

    Raises:
        UsageError: data that cannot be shared, or processes that were given different things.
    """
    if world.alone:
        return
    together = f"in {world.size} processes"
    for name, given in (("data", data), ("held_out", held_out)):
        if given is not None and not given.from_any_batch:
            raise UsageError(
                f"{name} is a DataLoader, expected a tensor, array or Source {together}, which share each batch; load "
                "the data by vaentropy.data.load, or train in one process"
            )
    if data.device is not None and data.device.type not in ("cpu", "cuda"):
        raise UsageError(f"a model on {data.device} given {together}, expected one on the CPU or on a GPU of CUDA's")
    if settings.compile and world.first:
        logger.warning("training goes on without torch.compile, which is for one process")
    _require_same(world, model, settings, data, held_out)


def require_divisible(world: World, model: VAE, settings: Settings) -> None:
    """Refuse layers that cannot do with some rows of a batch what they would do with them in the whole.

    Raises:
        UsageError: there is one, and batches are divided: between processes, or by `micro_batch_size`.
    """
    if world.alone and settings.micro_batch_size is None:
        return
    together = f"in {world.size} processes" if not world.alone else "with micro_batch_size"
    instead = "train in one process" if not world.alone else "train without it, in smaller batches"
    for name, module in model.named_modules():
        if reason := _undivided(module, world):
            raise UsageError(
                f"{name} is {type(module).__name__}, {reason}, expected layers that treat each row by itself "
                f"{together}; leave it out, put it into eval mode, or {instead}"
            )


def _undivided(module: nn.Module, world: World) -> str | None:
    if not module.training:
        return None
    if isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats):
        return "whose statistics would be those of a part of the batch"
    if isinstance(module, _DropoutNd) and module.p and not world.alone:
        return "which would draw the same for the rows of each process"
    return None


def _require_same(
    world: World, model: VAE, settings: Settings, data: TrainingData, held_out: TrainingData | None
) -> None:
    weights = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    held_out_now = "none" if held_out is None else f"{held_out.num_points} rows, {held_out.describe()}"
    now = {
        "data": f"{data.num_points} rows, {data.describe()}",
        "held_out": held_out_now,
        "the model": weights.hexdigest(),
        **settings.describe(),
    }
    first = world.from_first(lambda: Packet({}, now)).values
    others = [number for number, name in enumerate(now) if first[name] != now[name]]
    last = int(world.largest(torch.tensor([max(others, default=-1)], device=world.device)))
    if last >= 0:
        raise UsageError(
            f"{list(now)[last]} is not the same in {world.size} processes, expected one training for all; "
            "give them the same (seed where you make the model), or call fit without a process group"
        )
