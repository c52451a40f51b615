"""What a training finds in its folder: the first process reads it, and all go on from it."""

from collections.abc import Mapping

from vaentropy.training.checkpoint import Checkpoints
from vaentropy.training.history import Row
from vaentropy.training.settings import require_same
from vaentropy.training.state import Progress, Snapshot
from vaentropy.world import Packet, World

__all__ = ["newest", "past"]


def newest(
    world: World, checkpoints: Checkpoints, circumstances: Mapping[str, str]
) -> tuple[Snapshot, Snapshot] | None:
    """The newest intact checkpoint: state, and state to roll back to. None where there is no checkpoint.

    Args:
        world: the processes.
        checkpoints: the folder, of which only the first process needs to see the files.
        circumstances: that it has to have been made under.

    Raises:
        UsageError: it was made under others.
        DataError: there are checkpoints, and none of them can be read.
    """

    def read() -> Packet:
        found = checkpoints.newest()
        if found is None:
            return _packet()
        now, start, stored = found
        require_same(circumstances, stored)
        return _packet(now) if start is now else _packet(now, start)

    snapshots = _snapshots(world.from_first(read))
    return (snapshots[0], snapshots[-1]) if snapshots else None


def past(
    world: World, checkpoints: Checkpoints, progress: Progress, *, patience: bool
) -> tuple[list[Row], Snapshot | None]:
    """The history up to where training is, and the best state so far where training may end with it.

    Raises:
        DataError: the history is damaged.
    """
    step = progress.best_step if patience and progress.best_elbo is not None else None

    def read() -> Packet:
        rows = checkpoints.rows(progress.rows)
        best = None if step is None else checkpoints.best(step)
        tensors, numbers = _packet() if best is None else _packet(best)
        return Packet(tensors, {"rows": [dict(row) for row in rows], "numbers": numbers})

    tensors, values = world.from_first(read)
    best = _snapshots(Packet(tensors, values["numbers"]))
    return values["rows"], best[0] if best else None


def _packet(*snapshots: Snapshot) -> Packet:
    tensors = {f"{i}.{name}": x for i, snapshot in enumerate(snapshots) for name, x in snapshot.tensors.items()}
    return Packet(tensors, [snapshot.numbers for snapshot in snapshots])


def _snapshots(packet: Packet) -> list[Snapshot]:
    def below(prefix: str) -> dict:
        return {name.removeprefix(prefix): x for name, x in packet.tensors.items() if name.startswith(prefix)}

    return [Snapshot(below(f"{i}."), numbers) for i, numbers in enumerate(packet.values)]
