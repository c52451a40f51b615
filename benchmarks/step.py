"""How far a training step is from the floor: the same networks' forward, backward and Adam alone."""

from benchmarks.results import Result


def run(quick: bool) -> Result:
    """To be measured."""
    return Result("Per-step floor", rows=[])
