"""Stationary points of small models to the last digits: L-BFGS, then Newton in a trust region (scipy)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.errors import MissingExtraError

__all__ = ["StationaryPoint", "curvature", "descend"]

# L-BFGS only has to reach the valley; Newton does the rest.
FIRST_ORDER_STEPS = 400
FIRST_ORDER_TOLERANCE = 1e-5
SECOND_ORDER_STEPS = 300
# Near the end the objective's digits no longer tell a better point from a worse one, only the gradient's do.
NEWTON_STEPS = 10


@dataclass(frozen=True)
class StationaryPoint:
    """Where an objective is stationary.

    Attributes:
        gradient_norm: Euclidean norm of the gradient.
        hessian_min: smallest eigenvalue of the Hessian; positive at a strict minimum.
    """

    gradient_norm: float
    hessian_min: float


def _gradient(objective: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective, parameters, create_graph=create_graph)])


def _hessian(objective: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    gradient = _gradient(objective, parameters, create_graph=True)
    basis = torch.eye(len(gradient), dtype=gradient.dtype)
    rows = torch.autograd.grad(gradient, parameters, basis, is_grads_batched=True, materialize_grads=True)
    hessian = torch.cat([row.reshape(len(gradient), -1) for row in rows], 1)
    return (hessian + hessian.T) / 2


def curvature(objective: Callable[[], Tensor], parameters: Sequence[Tensor]) -> StationaryPoint:
    """Gradient norm and smallest curvature of an objective (to be minimised) where its parameters are."""
    gradient = _gradient(objective(), parameters)
    smallest = torch.linalg.eigvalsh(_hessian(objective(), parameters))[0]
    return StationaryPoint(float(gradient.norm()), float(smallest))


@contextmanager
def _one_thread() -> Iterator[None]:
    # Matrices this small cost more to share between threads than to multiply.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def descend(
    objective: Callable[[], Tensor], parameters: Sequence[Tensor], *, tolerance: float = 1e-9
) -> StationaryPoint:
    """Minimise a smooth deterministic objective over a few hundred float64 parameters, in place.

    Args:
        objective: a function of the current values of `parameters`, ().
        parameters: leaves that require gradients.
        tolerance: of the gradient norm, at which Newton stops; rounding may stop it before.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError("scipy", "studies") from None

    def at(vector: np.ndarray) -> Tensor:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(vector), parameters)
        return objective()

    def value(vector: np.ndarray) -> float:
        with torch.no_grad():
            return float(at(vector))

    def gradient(vector: np.ndarray) -> np.ndarray:
        return _gradient(at(vector), parameters).numpy()

    def hessian(vector: np.ndarray) -> np.ndarray:
        return _hessian(at(vector), parameters).detach().numpy()

    with _one_thread():
        start = torch.nn.utils.parameters_to_vector(parameters).detach().numpy()
        first = {"maxiter": FIRST_ORDER_STEPS, "maxcor": 30, "ftol": 0, "gtol": FIRST_ORDER_TOLERANCE}
        valley = minimize(value, start, jac=gradient, method="L-BFGS-B", options=first).x
        second = {"maxiter": SECOND_ORDER_STEPS, "gtol": tolerance}
        point = minimize(value, valley, jac=gradient, hess=hessian, method="trust-exact", options=second).x
        at(_polish(point, gradient, hessian))
        return curvature(objective, parameters)


def _polish(
    point: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray], hessian: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Newton's steps while they shorten the gradient."""
    slope = gradient(point)
    for _ in range(NEWTON_STEPS):
        candidate = point - np.linalg.solve(hessian(point), slope)
        new_slope = gradient(candidate)
        if not np.linalg.norm(new_slope) < np.linalg.norm(slope):
            break
        point, slope = candidate, new_slope
    return point
