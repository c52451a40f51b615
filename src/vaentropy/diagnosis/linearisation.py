"""Derivatives of a model's outputs with respect to its parameters, as products with vectors: no matrix is made."""

from collections.abc import Callable, Sequence

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.distributions import to_float64

__all__ = ["Linearisation", "ScalesAndShifts", "conjugate_gradients", "flat", "num_elements", "split"]

Linear = Callable[[Tensor], Tensor]

# Random directions from which the size of each column of a matrix is estimated, good to a factor of two.
NUM_PROBES = 8
# Columns and curvatures smaller than this, relative to the largest, count as zero.
NEGLIGIBLE = 1e-12


def num_elements(tensors: Sequence[Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(tensor.numel() for tensor in tensors)


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """All numbers in one vector (P,) in float64; 0 for None, the gradient of what has no part in a result."""
    each = (torch.zeros_like(p) if t is None else t for t, p in zip(tensors, like, strict=True))
    return torch.cat([to_float64(t.detach()).reshape(-1) for t in each])


def split(vector: Float[Tensor, "P"], like: Sequence[Tensor]) -> list[Tensor]:
    """A vector (P,) as tensors of the shapes, dtypes and devices of those in `like`."""
    parts = vector.split([p.numel() for p in like])
    return [part.view(p.shape).to(p) for part, p in zip(parts, like, strict=True)]


class Linearisation:
    """J, the derivative of outputs (M,) with respect to parameters, (M, P); vectors are float64.

    Args:
        outputs: (M,) float64, with a graph back to the parameters.
        parameters: of the model; not changed while this is in use.

    Raises:
        RuntimeError: some operation of the model cannot be differentiated twice.
    """

    def __init__(self, outputs: Float[Tensor, "M"], parameters: Sequence[Tensor]):
        self.outputs, self.parameters = outputs, parameters
        self._reached: list[int] = []
        if not outputs.requires_grad:
            return
        # Jᵀu is linear in u, and its derivative with respect to u is J: one graph serves both products. (Forward mode
        # would ask more of a model: torch.func knows no custom functions without a jvp.)
        self._cotangent = torch.zeros_like(outputs, requires_grad=True)
        products = torch.autograd.grad(outputs, parameters, self._cotangent, create_graph=True, allow_unused=True)
        self._reached = [i for i, product in enumerate(products) if product is not None and product.requires_grad]
        if not self._reached:
            return
        self._products = [products[i] for i in self._reached]
        # The transpose is that of `forward`, and not what backward makes of u: the gradient of a floor on σ² depends on
        # the sign of u, so that it is no linear function of it.
        self._direction = [torch.zeros_like(parameters[i], requires_grad=True) for i in self._reached]
        self._product = self._forward(self._direction, create_graph=True)

    def _forward(self, parts: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
        (product,) = torch.autograd.grad(
            self._products, self._cotangent, parts, retain_graph=True, create_graph=create_graph
        )
        return product

    def forward(self, direction: Float[Tensor, "P"]) -> Float[Tensor, "M"]:
        """J v."""
        if not self._reached:
            return torch.zeros_like(self.outputs)
        parts = split(direction, self.parameters)
        return self._forward([parts[i] for i in self._reached])

    def transpose(self, cotangent: Float[Tensor, "M"]) -> Float[Tensor, "P"]:
        """Jᵀ u."""
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        if self._reached:
            parts = torch.autograd.grad(self._product, self._direction, cotangent, retain_graph=True)
            for i, part in zip(self._reached, parts, strict=True):
                gradients[i] = part
        return flat(gradients, self.parameters)


class ScalesAndShifts:
    """Directions that scale a row or a column of a layer's weight, or shift one number of a bias.

    The moves that the theorem speaks of are among them wherever heads are affine and the first decoder layer is linear.

    Args:
        parameters: those with two axes or more count as weights.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self.parameters = [to_float64(p.detach()) for p in parameters]

    def expand(self, coefficients: Float[Tensor, "S"]) -> Float[Tensor, "P"]:
        """The direction with these coefficients."""
        directions, start = [], 0

        def take(size: int) -> Tensor:
            nonlocal start
            start += size
            return coefficients[start - size : start]

        for p in self.parameters:
            if p.ndim < 2:
                directions.append(take(p.numel()).view(p.shape))
                continue
            rest = [1] * (p.ndim - 2)
            rows, columns = take(p.shape[0]).view(-1, 1, *rest), take(p.shape[1]).view(1, -1, *rest)
            directions.append(p * (rows + columns))
        return flat(directions, self.parameters)

    def contract(self, direction: Float[Tensor, "P"]) -> Float[Tensor, "S"]:
        """The transpose of `expand`."""
        coefficients = []
        for p, part in zip(self.parameters, split(direction, self.parameters), strict=True):
            if p.ndim < 2:
                coefficients.append(part.reshape(-1))
            else:
                product = p * part
                coefficients += [product.flatten(1).sum(1), product.transpose(0, 1).flatten(1).sum(1)]
        return torch.cat(coefficients)


def column_scales(transpose: Linear, num_rows: int, like: Tensor, *, least: float = 0.0) -> Tensor:
    """1 / size of each column of a matrix, estimated from its transpose; 0 for one of zeros, or below `least`."""
    generator = torch.Generator().manual_seed(0)
    probes = (torch.randn(num_rows, generator=generator, dtype=torch.float64).to(like) for _ in range(NUM_PROBES))
    size = torch.stack([transpose(probe).square() for probe in probes]).mean(0).sqrt()
    return torch.where(size > max(NEGLIGIBLE * float(size.max()), least), 1 / size, 0.0)


def conjugate_gradients(
    apply: Linear,
    right: Tensor,
    *,
    iterations: int,
    enough: Callable[[float], bool] | None = None,
) -> Tensor:
    """x with A x ≈ right, A symmetric and not negative; stopped early, it stays where A says most.

    Args:
        apply: x to A x.
        right: in the range of A, or nearly.
        iterations: at most.
        enough: called now and then with how far xᵀright - ½ xᵀA x has risen; True stops.
    """
    x, residual, direction = torch.zeros_like(right), right, right
    square = residual.dot(residual)
    start, risen, steepest = square, 0.0, 0.0
    for iteration in range(1, iterations + 1):
        applied = apply(direction)
        curvature, length = direction.dot(applied), direction.dot(direction)
        steepest = max(steepest, float(curvature / length)) if length > 0 else 0.0
        # Along what A does not see, rounding alone would make steps, and large ones.
        level = not curvature > NEGLIGIBLE * steepest * length
        if level or square <= torch.finfo(right.dtype).eps ** 2 * start:
            break
        step = square / curvature
        x, residual = x + step * direction, residual - step * applied
        risen += 0.5 * float(step * square)
        before, square = square, residual.dot(residual)
        direction = residual + square / before * direction
        if enough is not None and iteration % 10 == 0 and enough(risen):
            break
    return x
