"""`Compiled`: the gradients of an objective by torch.compile where that works, and as they are where it does not."""

import logging
from collections.abc import Iterable
from types import FunctionType

import torch

from vaentropy._typing import Tensor
from vaentropy.training.step import Gradients, Objective, gradients, objective
from vaentropy.vae import VAE

__all__ = ["COMPILING_PAYS", "Compiled"]

logger = logging.getLogger(__name__)

# Steps from which compiling is worth its time on the CPU: it was after 1,000 to 45,000 (docs/performance.md).
COMPILING_PAYS = 50_000


class Compiled:
    """`gradients` of an objective that is compiled at the first call, of one model.

    It falls back to the original for good, with a line in the log, wherever the compiled one fails: in the forward
    pass, or in the backward pass, which is compiled by itself. The whole step is then taken anew.

    Args:
        original: the objective.
        step: `gradients`, or what adds up those of parts, with an argument `of`.
    """

    def __init__(self, original: Objective = objective, step: Gradients = gradients):
        self._call: Objective | None = None
        self._step, self._original = step, original
        self._changed: list[Tensor] = []

    def __call__(self, model: VAE, x: Tensor, *args, **options) -> Tensor:
        """See `gradients`."""
        if self._call is self._original:
            return self._step(model, x, *args, of=self._original, **options)
        if self._call is None:
            # What a forward pass changes: running means and σ². There are few, and a copy takes some µs of a step.
            self._changed = [*model.buffers(), *model.variance_parameters()]
        before = [tensor.detach().clone() for tensor in self._changed]
        try:
            self._call = self._call or _compiled(self._original)
            return self._step(model, x, *args, of=self._call, **options)
        except Exception as error:
            # What torch.compile raises is no one family of errors, and depends on the backend. An error of the model's
            # own comes again, below.
            self._call = self._original
            self._put_back(before, model.parameters())
            sums = self._step(model, x, *args, of=self._original, **options)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("training goes on without torch.compile, which failed: %s", reason)
            return sums

    @torch.no_grad()
    def _put_back(self, before: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
        """Undo half a step."""
        for tensor, value in zip(self._changed, before, strict=True):
            tensor.copy_(value)
        for parameter in parameters:
            parameter.grad = None


def _compiled(original: Objective) -> Objective:
    # Code of its own: what has been compiled for other models, of which torch.compile keeps eight for each code, stays
    # out of it. No shape is made variable: an epoch has two sizes of batches at most, or three of parts of them, and
    # which graph a size gets must not depend on which one came first. (A DataLoader may have more; past eight training
    # goes on without.) And no break in the graph: where something fails, nothing has run before.
    code = original.__code__.replace(co_name=original.__code__.co_name)  # type: ignore[attr-defined]
    call = FunctionType(code, original.__globals__, original.__name__, original.__defaults__, original.__closure__)  # type: ignore[attr-defined]
    call.__kwdefaults__ = original.__kwdefaults__  # type: ignore[attr-defined]
    return torch.compile(call, dynamic=False, fullgraph=True)
