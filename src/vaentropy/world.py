"""`World`: the processes that train one model together, by torch.distributed; one process alone is a world as well."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist

from vaentropy import errors
from vaentropy._typing import Tensor
from vaentropy.errors import TrainingError, VaentropyError

__all__ = [
    "ALONE",
    "FailedElsewhere",
    "Packet",
    "SoFar",
    "World",
    "found",
    "from_bytes",
    "part_of_batch",
    "to_bytes",
    "whole_largest",
    "whole_mean",
]

Held = TypeVar("Held")
Combine = Callable[[Tensor, Tensor], Tensor]
CPU = torch.device("cpu")
ABOUT = "about"  # the name under which a packet has its values beside the tensors


class FailedElsewhere(TrainingError):
    """What another process has met, and tells of, ends this one as well.

    Args:
        what: failed.
        size: number of processes.
    """

    def __init__(self, what: str, size: int):
        super().__init__(f"{what} failed in another one of {size} processes; see what that one says")


class Packet(NamedTuple):
    """What one process tells the others: tensors of the CPU that share no memory, and JSON values."""

    tensors: Mapping[str, Tensor]
    values: Any


def to_bytes(packet: Packet) -> Tensor:
    """A packet as bytes, uint8 (L,), without pickle."""
    about = torch.frombuffer(bytearray(json.dumps(packet.values).encode()), dtype=torch.uint8)
    content = safetensors.torch.save({**packet.tensors, ABOUT: about})
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def from_bytes(content: Tensor) -> Packet:
    """The packet that these bytes, uint8 (L,), hold."""
    tensors = safetensors.torch.load(content.cpu().numpy().tobytes())
    about = tensors.pop(ABOUT)
    return Packet(tensors, json.loads(about.numpy().tobytes()))


@dataclass(frozen=True)
class World:
    """Processes that do the same at the same time, each with its part of the data; alone, all of it is no work.

    Args:
        rank: number of this process.
        size: how many there are.
        device: on which small messages travel.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of so many things are this process's: consecutive ones, as many as the others have or one more."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except VaentropyError:
            raise
        except RuntimeError as error:  # of torch.distributed, whichever backend
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TrainingError(
                f"process {self.rank} of {self.size} has lost another one, which failed or was ended ({reason}); see "
                "what that one says"
            ) from error

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the processes, in place; the same bits in each."""
        if not self.alone:
            with self._talking():
                dist.all_reduce(x)
        return x

    def begin_sum(self, x: Tensor) -> Callable[[], None]:
        """`sum` in the background; what is returned waits for its end."""
        with self._talking():
            work = dist.all_reduce(x, async_op=True)

        def wait() -> None:
            with self._talking():
                work.wait()  # type: ignore[union-attr]

        return wait

    def largest(self, x: Tensor) -> Tensor:
        """Maximum over the processes, in place."""
        if not self.alone:
            with self._talking():
                dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def any(self, given: bool) -> bool:
        """Whether it is so in any process."""
        return given if self.alone else bool(self.largest(torch.tensor([int(given)], device=self.device)))

    def gather(self, x: Tensor) -> Tensor:
        """Tensors of one shape, on `device`, of all processes in their order (size, *shape)."""
        gathered = x.new_empty(self.size, *x.shape)
        with self._talking():
            dist.all_gather(list(gathered.unbind()), x)
        return gathered

    def exchange(self, sent: Sequence[tuple[Tensor, int]], received: Sequence[tuple[Tensor, int]]) -> None:
        """Send tensors of the CPU to other processes while some of theirs come in.

        Args:
            sent: each with the process that it goes to.
            received: each with the process that it comes from; filled in place. Between two processes they come in the
                order in which they were sent.
        """
        outgoing = [(x.contiguous().to(self.device), rank) for x, rank in sent]
        incoming = [(x, torch.empty_like(x, device=self.device), rank) for x, rank in received]
        messages = [dist.P2POp(dist.isend, x, rank) for x, rank in outgoing]
        messages += [dist.P2POp(dist.irecv, x, rank) for _, x, rank in incoming]
        with self._talking():
            for work in dist.batch_isend_irecv(messages) if messages else ():
                work.wait()
        for into, x, _ in incoming:
            into.copy_(x)

    def spread(self, *tensors: Tensor) -> None:
        """Give all processes the values that tensors have in the first."""
        for tensor in () if self.alone else tensors:
            with self._talking():
                dist.broadcast(tensor.detach(), 0)

    def from_first(self, call: Callable[[], Packet]) -> Packet:
        """What a function returns, which is called in the first process only.

        Raises:
            VaentropyError: the function has raised it, in the first process; then it is raised in all.
        """
        if self.alone:
            return call()
        told, failure = Packet({}, None), None
        if self.first:
            try:
                told = Packet(*call())
            except VaentropyError as error:
                failure = error
            kind = None if failure is None else type(failure).__name__
            told = Packet(told.tensors, {"error": kind, "text": str(failure), "values": told.values})
        tensors, values = from_bytes(self._broadcast(to_bytes(told)))
        if failure is not None:
            raise failure
        if values["error"] is not None:
            raise getattr(errors, values["error"], TrainingError)(values["text"])
        return Packet(tensors, values["values"])

    @contextmanager
    def held(self, hold: Callable[[], AbstractContextManager[Held]], path: Callable[[Held], str]) -> Iterator[str]:
        """Hold something in the first process while all go on.

        Args:
            hold: what to enter there.
            path: of what it gives; all get it.

        Raises:
            VaentropyError: in all, where it cannot be held.
        """
        with ExitStack() as stack:
            yield self.from_first(lambda: Packet({}, path(stack.enter_context(hold())))).values

    def _broadcast(self, content: Tensor) -> Tensor:
        length = torch.tensor([len(content)], device=self.device)
        self.spread(length)
        message = content.to(self.device) if self.first else content.new_empty(int(length), device=self.device)
        self.spread(message)
        return message


ALONE = World()


def found(device: torch.device | None = None) -> World:
    """The processes of torch.distributed's default group where that is initialised; otherwise this one, alone.

    Args:
        device: of the model; None means the CPU.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    on_cpu = "cpu" in dist.get_backend_config()
    messages = CPU if on_cpu else device if device is not None and device.type == "cuda" else torch.device("cuda")
    return World(dist.get_rank(), dist.get_world_size(), messages)


class SoFar:
    """What parts of a batch that one process goes through, one after the other, have said so far when asked.

    Args:
        num_parts: how many there are; each has to be asked for the same in the same order.
    """

    def __init__(self, num_parts: int):
        self._num_parts, self._part, self._asked = num_parts, 0, 0
        self._values: list[Tensor] = []

    def begin(self) -> None:
        """The next part."""
        self._part, self._asked = self._part + 1, 0

    @property
    def complete(self) -> bool:
        """Whether this is the last part."""
        return self._part == self._num_parts

    def add(self, value: Tensor, combine: Combine) -> Tensor:
        """What this part says, combined with what those before it have said in this place."""
        if self._part == 1:
            self._values.append(value)
        else:
            self._values[self._asked] = combine(self._values[self._asked], value)
        self._asked += 1
        return self._values[self._asked - 1]


class _Part(NamedTuple):
    world: World
    share: float
    so_far: SoFar | None

    def whole(self, value: Tensor, combine: Combine, over_processes: Callable[[Tensor], Tensor]) -> Tensor:
        if self.so_far is not None:
            value = self.so_far.add(value, combine)
            if not self.so_far.complete:
                return value
        return over_processes(value)


class _Current:
    part: _Part | None = None


@contextmanager
def part_of_batch(world: World, share: float, so_far: SoFar | None = None) -> Iterator[None]:
    """Inside, `whole_mean` and `whole_largest` are those of a batch of which this process has a part.

    Args:
        world: of which each process is inside as well, and asks for the same.
        share: fraction of the batch's rows that are here; 0 of a row that is another process's and counts there.
        so_far: where this process has several parts, each of which is inside in its turn; within the last one the
            answers are those of the whole batch, before it those of the parts until then.
    """
    if so_far is not None:
        so_far.begin()
    before, _Current.part = _Current.part, _Part(world, share, so_far)
    try:
        yield
    finally:
        _Current.part = before


def whole_mean(mean: Tensor) -> Tensor:
    """A mean over the rows that are here as that over the whole batch, of which they may be a part.

    Args:
        mean: without gradient; of any shape.
    """
    part = _Current.part
    return mean if part is None else part.whole(mean * part.share, torch.add, part.world.sum)


def whole_largest(largest: Tensor) -> Tensor:
    """The largest values of the rows that are here as those of the whole batch, of which they may be a part."""
    part = _Current.part
    return largest if part is None else part.whole(largest.clone(), torch.maximum, part.world.largest)
