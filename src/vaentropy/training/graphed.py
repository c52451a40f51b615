"""`Graphed`: gradients recorded as a CUDA graph and replayed, which spares the launch of each operation."""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vaentropy._typing import Tensor

__all__ = ["Graphed"]

logger = logging.getLogger(__name__)

# Calls of a shape before it is recorded: libraries choose their kernels at the first ones.
WARMUP = 3
# Recordings that may fail before none is tried any more: what is done only once in a process can spoil one.
MOST_FAILURES = 2
# Shapes that get a graph, each with memory of its own: an epoch has two sizes of batches, a stream may have more.
MOST_GRAPHS = 6


class Graphed:
    """A function that leaves gradients in tensors, with what it does on the GPU recorded for each shape of its inputs.

    The first calls run as they are, and then one is recorded and replayed: the same kernels, so that results are the
    same. Where the function cannot be recorded, such as one that waits for the device, it runs as it is for good, with
    a line in the log.

    Args:
        function: returns a tensor, which is overwritten at the next call, and leaves gradients. Whatever else it reads
            stays where it is in memory.
        learned: gives the tensors that get gradients.
    """

    def __init__(self, function: Callable[..., Tensor], learned: Callable[[], Iterable[Tensor]]):
        self._function, self._learned = function, learned
        self._calls: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._failures = 0
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, *args, **options) -> Tensor:
        """Call the function; gradients that the tensors had are lost."""
        if self._failures >= MOST_FAILURES:
            return self._function(*args, **options)
        values = (*args, *options.values())
        key = tuple((value.shape, value.dtype) if isinstance(value, Tensor) else value for value in values)
        recording = self._recordings.get(key)
        if recording is None:
            self._calls[key] = self._calls.get(key, 0) + 1
            if self._calls[key] <= WARMUP or len(self._recordings) >= MOST_GRAPHS:
                return self._run_aside(*args, **options)
            recording = self._record(args, options)
            if recording is None:
                return self._function(*args, **options)
            self._recordings[key] = recording
        return recording.replay(values)

    def _run_aside(self, *args, **options) -> Tensor:
        """On a stream of its own, as recording will be: what libraries keep for each stream is then there."""
        current = torch.cuda.current_stream()
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function(*args, **options)
        current.wait_stream(self._stream)
        return result

    def _record(self, args: Sequence[Any], options: dict[str, Any]) -> "_Recording | None":
        """Nothing runs: the first replay is the step."""
        learned = [tensor for tensor in self._learned() if tensor.requires_grad]
        args = [value.clone() if isinstance(value, Tensor) else value for value in args]
        options = {name: value.clone() if isinstance(value, Tensor) else value for name, value in options.items()}
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        for tensor in learned:
            tensor.grad = None
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = self._function(*args, **options)
        except Exception as error:
            # What stops a recording is no one family of errors; an error of the function's own comes again.
            self._failures += 1
            for tensor in learned:
                tensor.grad = None
            logger.debug("a step could not be recorded", exc_info=True)
            if self._failures == MOST_FAILURES:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                logger.warning("training goes on without CUDA graphs, which failed: %s", reason)
            return None
        gradients = [(tensor, tensor.grad) for tensor in learned if tensor.grad is not None]
        return _Recording(graph, [*args, *options.values()], gradients, result)


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Any]
    gradients: Sequence[tuple[Tensor, Tensor]]
    result: Tensor

    def replay(self, values: Sequence[Any]) -> Tensor:
        for own, value in zip(self.inputs, values, strict=True):
            if isinstance(own, Tensor):
                own.copy_(value)
        self.graph.replay()
        for tensor, gradient in self.gradients:
            tensor.grad = gradient
        return self.result
