"""What the adapters share: recognising the classes of a library without importing it."""

from torch import nn

from vaentropy.errors import ModelError

__all__ = ["is_of", "module_of"]


def is_of(cls: type, package: str) -> bool:
    """Whether `cls` itself, not only a base class of it, is defined in `package`."""
    return cls.__module__.partition(".")[0] == package


def module_of(model: object, package: str, expected: str) -> nn.Module:
    """The module of `package` that `model` is, or that it wraps for several devices.

    Raises:
        ModelError: it is something else.
    """
    inner = model
    if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = inner.module
    # A class of the user's own may bear the same name as the library's: the package decides.
    if not isinstance(inner, nn.Module) or not any(is_of(cls, package) for cls in type(inner).__mro__):
        raise ModelError(
            f"{type(inner).__name__} given, expected {expected}; "
            "for any other model use vaentropy.from_functions(encode, decode)"
        )
    return inner
