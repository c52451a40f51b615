"""What a conditional model is: one of p(x|c), made a model of p(x) for each batch by the conditions of its points.

Inside, rows carry their condition behind their features: (N, D + k), D numbers of x and k of c. So all that cuts,
shuffles and stores rows need not know of it; `split_rows` takes them apart where a model meets a batch.
"""

import math
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.distributions import Distribution

from vaentropy._typing import Num, Tensor
from vaentropy.data.conditioned import as_condition, side_by_side
from vaentropy.data.source import Source
from vaentropy.errors import DataError, UsageError
from vaentropy.model import LatentVariableModel, placement
from vaentropy.rows import as_tensor, rows_of

__all__ = [
    "ConditionalModel",
    "Given",
    "bound_to",
    "checked_condition",
    "condition_width",
    "packed",
    "require_condition",
    "require_conditions",
    "require_rows",
    "row_shape",
    "split_rows",
]

HOW = "pass ve.given(x, condition) for the data"


@runtime_checkable
class ConditionalModel(Protocol):
    """Anything with these can be evaluated, calibrated and diagnosed on data that carry a condition, `given(x, c)`.

    Attributes:
        data_shape: of one data point.
        condition_width: k, width of the condition; 0 for a model without one.
    """

    data_shape: tuple[int, ...]
    condition_width: int

    def given(self, condition: Tensor) -> LatentVariableModel:
        """The model of a batch whose conditions are (B, k), or (1, k) for all of it."""
        ...


class Given(nn.Module):
    """A `VAE` at the conditions of a batch.

    Args:
        model: conditional; it is not copied.
        condition: c (B, k), one for each point of the batch, or (1, k) for all.
    """

    def __init__(self, model: Any, condition: Tensor):
        super().__init__()
        self.model, self.condition = model, condition
        self.data_shape: tuple[int, ...] = model.data_shape
        self.latent_shape: tuple[int, ...] = model.latent_shape

    def posterior(self, x: Num[Tensor, "B *data"]) -> Distribution:
        """q(z|x, c) for x (B, *data_shape)."""
        return self.model.posterior(x, self._of(x))

    def prior(self) -> Distribution:
        """p(z), which does not depend on c."""
        return self.model.prior()

    def likelihood(self, z: Num[Tensor, "B H"]) -> Distribution:
        """p(x|z, c) for z (B, H)."""
        return self.model.likelihood(z, self._of(z))

    def _of(self, rows: Tensor) -> Tensor:
        if len(self.condition) not in (1, len(rows)):
            raise UsageError(
                f"{len(rows)} rows given to a model given {len(self.condition)} conditions, expected one for each row"
            )
        return self.condition


def condition_width(model: object) -> int:
    """k of a conditional model; 0 for any other."""
    width = getattr(model, "condition_width", 0) if isinstance(model, ConditionalModel) else 0
    return width if isinstance(width, int) else 0


def row_shape(model: Any) -> tuple[int, ...]:
    """Shape of a row of data for the model: data_shape, or (D + k,) for a conditional one."""
    width = condition_width(model)
    return (math.prod(model.data_shape) + width,) if width else model.data_shape


def require_condition(model: ConditionalModel, condition: object) -> None:
    """Refuse a condition for a model without one, and none for a conditional one.

    Raises:
        UsageError: it is so.
    """
    if condition is None and model.condition_width:
        raise UsageError(
            f"no condition given, expected (N, {model.condition_width}) for a conditional model; {HOW}, or take "
            "model.given(condition) for the model of a batch"
        )
    if condition is not None and not model.condition_width:
        raise UsageError(
            "a condition given for a model that takes none; leave it out, or make it VAE(..., condition=k)"
        )


def checked_condition(model: ConditionalModel, condition: Any, num_rows: int | None = None) -> Tensor:
    """Conditions for a model as it takes them, (N, k) or (1, k), on its device and of its dtype.

    Args:
        model: conditional.
        condition: (N, k), or (k,) for all rows.
        num_rows: N, where it is known.

    Raises:
        UsageError: the model takes no condition.
        DataError: conditions of another shape, or not finite.
    """
    require_condition(model, condition)
    c = as_tensor(condition)
    c = as_condition(c.unsqueeze(0) if c.ndim == 1 else c)
    width, number = model.condition_width, "N" if num_rows is None else num_rows
    if c.shape[1] != width or (num_rows is not None and len(c) not in (1, num_rows)):
        raise DataError(f"the condition of shape {tuple(c.shape)} given, expected ({number}, {width}), or ({width},)")
    device, dtype = placement(model)
    return c.to(device=device, dtype=dtype)


def split_rows(model: Any, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """x (B, *data_shape) and c (B, k) of rows that carry their condition; the rows and None without one."""
    width = model.condition_width
    if not width:
        return rows, None
    return rows[:, :-width].reshape(-1, *model.data_shape), rows[:, -width:]


def packed(model: object, batch: Any, name: str = "data") -> Tensor:
    """A batch as rows for the model: as they are, or x and c of a pair [x, c] side by side for a conditional model.

    Raises:
        DataError: a batch of another shape, or a condition that is not finite.
        UsageError: a conditional model, and no condition.
    """
    width = condition_width(model)
    if not width:
        return rows_of(batch)
    assert isinstance(model, ConditionalModel)
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        x, c = batch[0], as_condition(batch[1])
        if tuple(x.shape[1:]) != model.data_shape or tuple(c.shape) != (len(x), width):
            given = f"a batch of shapes {tuple(x.shape)} and {tuple(c.shape)} given"
            expected = ", ".join(map(str, model.data_shape))
            raise DataError(f"{given}, expected data (B, {expected}) and their condition (B, {width})")
        return side_by_side(x, c)
    rows = rows_of(batch)
    require_rows(model, tuple(rows.shape), name)
    return rows


def require_rows(model: object, shape: tuple[int, ...], name: str) -> None:
    """Refuse rows of another shape than a conditional model takes; whatever others take is checked elsewhere.

    Raises:
        UsageError: they carry no condition.
        DataError: they have another shape.
    """
    width = condition_width(model)
    if not width or shape[1:] == row_shape(model):
        return
    assert isinstance(model, ConditionalModel)
    if shape[1:] == model.data_shape:
        raise UsageError(f"{name} without a condition given, expected one of width {width} for each row; {HOW}")
    expected = ", ".join(map(str, model.data_shape))
    raise DataError(f"{name} of shape {shape} given, expected (N, {expected}) with a condition (N, {width}); {HOW}")


def require_conditions(model: object, data: object, name: str) -> None:
    """Refuse data that carry a condition, where they do not fit the model; of other data nothing is known here.

    Raises:
        UsageError: the model takes no condition.
        DataError: the condition is of another width, or the data of another shape.
    """
    if not isinstance(data, Source) or not data.condition_width:
        return
    width = condition_width(model)
    if not width:
        how = "leave it out, or make the model conditional: VAE(..., condition=k)"
        raise UsageError(f"{name} with a condition given for a model that takes none; {how}")
    if data.condition_width != width:
        raise DataError(
            f"{name} with a condition of width {data.condition_width} given, expected {width}, as in training"
        )
    assert isinstance(model, ConditionalModel)
    if data.features_shape != model.data_shape:
        expected = ", ".join(map(str, model.data_shape))
        raise DataError(f"{name} of shape {(len(data), *data.features_shape)} given, expected (N, {expected})")


def bound_to(model: LatentVariableModel, rows: Tensor) -> tuple[LatentVariableModel, Tensor, Tensor | None]:
    """The model for some rows, x and c: `model.given(c)` for a conditional one, else the model itself and None."""
    if not condition_width(model):
        return model, rows, None
    assert isinstance(model, ConditionalModel)
    x, c = split_rows(model, rows)
    assert c is not None
    return model.given(c), x, c
