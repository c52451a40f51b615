"""`Compiled`: an objective by torch.compile where that works, and as it is where it does not."""

import logging
from types import FunctionType

import torch

from vaentropy._typing import Tensor
from vaentropy.training.step import Objective, objective

__all__ = ["COMPILING_PAYS", "Compiled"]

logger = logging.getLogger(__name__)

# Steps from which compiling is worth its time on the CPU: it was after 1,000 to 45,000 (docs/performance.md).
COMPILING_PAYS = 50_000


class Compiled:
    """`objective`, compiled at the first call; it falls back to the original for good, with a line in the log."""

    def __init__(self, original: Objective = objective):
        self._call: Objective | None = None
        self._original = original

    def __call__(self, *args, **options) -> tuple[Tensor, Tensor]:
        """See `objective`."""
        if self._call is self._original:
            return self._original(*args, **options)
        try:
            self._call = self._call or _compiled(self._original)
            return self._call(*args, **options)
        except Exception as error:
            # What torch.compile raises is no one family of errors, and depends on the backend. An error of the model's
            # own comes again, below.
            self._call = self._original
            result = self._original(*args, **options)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            logger.warning("training goes on without torch.compile, which failed: %s", reason)
            return result


def _compiled(original: Objective) -> Objective:
    # Code of its own: what has been compiled for other models, of which torch.compile keeps eight for each code, stays
    # out of it. No shape is made variable: an epoch has two sizes of batches at most, and which graph a size gets must
    # not depend on which one came first. And no break in the graph: where something fails, nothing has run before.
    code = original.__code__.replace(co_name=original.__code__.co_name)  # type: ignore[attr-defined]
    call = FunctionType(code, original.__globals__, original.__name__, original.__defaults__, original.__closure__)  # type: ignore[attr-defined]
    call.__kwdefaults__ = original.__kwdefaults__  # type: ignore[attr-defined]
    return torch.compile(call, dynamic=False, fullgraph=True)
