"""Exceptions a user meets.

Every message is one line that says what was given, what was expected and what to do.
"""

__all__ = [
    "DataError",
    "MissingExtraError",
    "ModelError",
    "TrainingError",
    "UnsupportedError",
    "UsageError",
    "VaentropyError",
]


class VaentropyError(Exception):
    """Base of all errors that vaentropy raises on purpose; the command prints it and exits with 2."""


class UsageError(VaentropyError, ValueError):
    """An argument has a wrong value or does not fit another argument."""


class DataError(VaentropyError, ValueError):
    """A data file or array cannot be used as it is."""


class ModelError(VaentropyError, TypeError):
    """A model does not return what the three-method interface asks for."""


class TrainingError(VaentropyError, RuntimeError):
    """Training cannot go on."""


class UnsupportedError(VaentropyError, NotImplementedError):
    """A model or distribution for which the mathematics here does not hold, refused with the reason."""


class MissingExtraError(VaentropyError, ImportError):
    """An optional dependency is missing.

    Args:
        package: name that failed to import.
        extra: the extra of vaentropy that brings it.
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed; run: pip install 'vaentropy[{extra}]'")
