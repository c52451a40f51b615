"""Train and eval mode, set for a while and then put back module by module."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

__all__ = ["Mode", "in_mode"]

Mode = Literal["eval", "train"]


@contextmanager
def in_mode(model: object, mode: Mode, *, keep_buffers: bool = True) -> Iterator[None]:
    """Run the networks of a model in `mode`; afterwards each submodule is in the mode it was in before.

    Args:
        model: its submodules are switched; nothing happens where it is no nn.Module.
        mode: "eval" or "train".
        keep_buffers: also put buffers back, which BatchNorm moves in train mode.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()] if mode == "train" and keep_buffers else []
    try:
        # Not set by hand: a module's own train() may do more, or less.
        model.train(mode == "train")
        yield
    finally:
        for module, training in before:
            module.training = training
        for buffer, value in saved:
            buffer.copy_(value)
