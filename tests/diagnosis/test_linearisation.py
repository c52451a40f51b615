"""Products with J against finite differences of the model's outputs, moves by hand, conjugate gradients by solve."""

import copy
import math

import pytest
import torch
from torch import nn

from vaentropy.diagnosis.linearisation import (
    Linearisation,
    ScalesAndShifts,
    column_scales,
    conjugate_gradients,
    flat,
    num_elements,
    split,
)
from vaentropy.families import vae3
from vaentropy.likelihoods import Gaussian, _LowerBound
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.vae import VAE

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def seeded_model(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def outputs_at(model: VAE, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Posterior and likelihood parameters in one vector, float64."""
    q, p = model.posterior(x), model.likelihood(z)
    return torch.cat([v.double().flatten() for v in (q.mean, q.log_variance, p.mean, p.log_variance)])


def central_differences(model: nn.Module, outputs, direction: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Derivative along a direction of the parameters, from two moved copies in float64."""
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(model).double()
        parameters = list(moved.parameters())
        with torch.no_grad():
            vector = nn.utils.parameters_to_vector(parameters) + sign * step * direction
            nn.utils.vector_to_parameters(vector, parameters)
            ends.append(outputs(moved))
    return (ends[0] - ends[1]) / (2 * step)


# --- J v and Jᵀ u -----------------------------------------------------------------------------------------------------

MODELS = {
    "dense": (lambda: vae3(4, 2, (6, 5), networks=None), (4,)),
    "convolutional": (
        lambda: VAE(
            ConvEncoder((1, 4, 4), (3,), nn.Tanh),
            ConvDecoder((1, 4, 4), (3, 2), nn.Tanh),
            data_shape=(1, 4, 4),
            latent_dim=2,
            likelihood=Gaussian("function"),
        ),
        (1, 4, 4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_forward_is_the_derivative_along_a_direction(name, dtype):
    make, shape = MODELS[name]
    model = seeded_model(make).to(dtype)
    x, z = draw(7, *shape).to(dtype), draw(7, 2, seed=1).to(dtype)
    parameters = list(model.parameters())
    linear = Linearisation(outputs_at(model, x, z), parameters)
    v = draw(num_elements(parameters), seed=2)
    expected = central_differences(model, lambda m: outputs_at(m, x.double(), z.double()), v)
    found = linear.forward(v)
    assert found.dtype == F64
    assert float((found - expected).norm() / expected.norm()) < (1e-8 if dtype == F64 else 1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_transpose_is_the_adjoint(name, dtype):
    make, shape = MODELS[name]
    model = seeded_model(make).to(dtype)
    parameters = list(model.parameters())
    linear = Linearisation(outputs_at(model, draw(7, *shape).to(dtype), draw(7, 2, seed=1).to(dtype)), parameters)
    v, u = draw(num_elements(parameters), seed=2), draw(len(linear.outputs), seed=3)
    gradient = linear.transpose(u)
    assert gradient.dtype == F64
    product = linear.forward(v)
    scale = float(product.norm() * u.norm())
    assert float(u @ product) == pytest.approx(float(gradient @ v), abs=(1e-13 if dtype == F64 else 1e-5) * scale)


def test_matrices_of_a_known_function():
    # y = (a b, sin a, c²): J by hand.
    a, b, c = (torch.tensor(value, dtype=F64, requires_grad=True) for value in (0.7, -1.3, 2.0))
    linear = Linearisation(torch.stack([a * b, a.sin(), c.square()]), [a, b, c])
    jacobian = torch.tensor([[-1.3, 0.7, 0], [math.cos(0.7), 0, 0], [0, 0, 4.0]], dtype=F64)
    for i in range(3):
        unit = torch.eye(3, dtype=F64)[i]
        assert torch.allclose(linear.forward(unit), jacobian[:, i], rtol=1e-14, atol=0)
        assert torch.allclose(linear.transpose(unit), jacobian[i], rtol=1e-14, atol=0)
    # The graph is kept: the second time is as the first.
    assert torch.equal(linear.forward(unit), linear.forward(unit))


def test_parameters_without_a_part_in_the_outputs():
    used, unused = draw(3).requires_grad_(), draw(2, 2, seed=1).requires_grad_()
    linear = Linearisation(2 * used, [unused, used])
    v = torch.arange(7, dtype=F64)
    assert linear.forward(v).tolist() == [8, 10, 12]
    assert linear.transpose(torch.ones(3, dtype=F64)).tolist() == [0, 0, 0, 0, 2, 2, 2]


def test_outputs_that_depend_on_nothing():
    parameter = draw(3).requires_grad_()
    constant = Linearisation(draw(4), [parameter])
    assert constant.forward(torch.ones(3, dtype=F64)).tolist() == [0] * 4
    assert constant.transpose(torch.ones(4, dtype=F64)).tolist() == [0] * 3
    # With a graph, but to something else.
    other = Linearisation(draw(4).requires_grad_() * 2, [parameter])
    assert other.forward(torch.ones(3, dtype=F64)).tolist() == [0] * 4
    assert other.transpose(torch.ones(4, dtype=F64)).tolist() == [0] * 3
    # Some depend on nothing.
    partly = Linearisation(torch.cat([draw(2), 3 * parameter]), [parameter])
    assert partly.forward(torch.ones(3, dtype=F64)).tolist() == [0, 0, 3, 3, 3]
    assert partly.transpose(torch.ones(5, dtype=F64)).tolist() == [3] * 3


def test_a_floor_has_no_derivative_below_and_the_transpose_agrees():
    # The gradient of a floor passes where it would raise the value again: backward is not linear there.
    raw = torch.tensor([-3.0, -1.0, 0.5, 2.0], dtype=F64, requires_grad=True)
    linear = Linearisation(_LowerBound.apply(raw, -2.0), [raw])
    for u in (torch.ones(4, dtype=F64), -torch.ones(4, dtype=F64), draw(4)):
        expected = u * torch.tensor([0, 1, 1, 1], dtype=F64)
        assert torch.equal(linear.forward(u), expected)
        assert torch.equal(linear.transpose(u), expected)


class OnceDifferentiable(torch.autograd.Function):
    """x², whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def test_what_cannot_be_differentiated_twice_says_so():
    parameter = draw(3).requires_grad_()
    with pytest.raises(RuntimeError):
        linear = Linearisation(OnceDifferentiable.apply(parameter), [parameter])
        linear.forward(torch.ones(3, dtype=F64))


def test_parameters_stay_as_they_are():
    model = seeded_model(MODELS["dense"][0])
    before = copy.deepcopy(model.state_dict())
    linear = Linearisation(outputs_at(model, draw(3, 4).float(), draw(3, 2).float()), list(model.parameters()))
    linear.transpose(linear.forward(torch.ones(num_elements(list(model.parameters())), dtype=F64)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_flat_and_split_are_inverse():
    like = [draw(2, 3), draw(seed=1), draw(4, seed=2).float()]
    vector = flat([like[0], None, like[2]], like)
    assert vector.tolist() == [*like[0].flatten().tolist(), 0, *like[2].double().tolist()]
    parts = split(vector, like)
    assert [part.shape for part in parts] == [p.shape for p in like] and parts[2].dtype == torch.float32
    assert torch.equal(parts[0], like[0]) and torch.equal(parts[2], like[2]) and parts[1] == 0


# --- Scales and shifts ------------------------------------------------------------------------------------------------

LAYERS = {
    "linear": lambda: nn.Linear(3, 2),
    "convolution": lambda: nn.Conv2d(2, 3, 2),
    "transposed convolution": lambda: nn.ConvTranspose2d(2, 3, (2, 1)),
    "one dimension": lambda: nn.Conv1d(2, 4, 3, bias=False),
    "normalisation": lambda: nn.BatchNorm1d(5),
}


def parameters_of(name: str) -> list[torch.Tensor]:
    layer = seeded_model(LAYERS[name]).double()
    return [*layer.parameters(), nn.Parameter(draw(seed=4)), nn.Parameter(draw(3, seed=5))]


@pytest.mark.parametrize("name", LAYERS)
def test_contract_is_the_transpose_of_expand(name):
    parameters = parameters_of(name)
    basis = ScalesAndShifts(parameters)
    direction = draw(num_elements(parameters), seed=1)
    coefficients = draw(len(basis.contract(direction)), seed=2)
    assert float(basis.expand(coefficients) @ direction) == pytest.approx(
        float(coefficients @ basis.contract(direction)), abs=1e-12
    )


@pytest.mark.parametrize("name", LAYERS)
def test_expand_scales_rows_and_columns_and_shifts_biases(name):
    parameters = parameters_of(name)
    basis = ScalesAndShifts(parameters)
    wanted = []  # each direction by hand, in the order of the coefficients
    for i, p in enumerate(parameters):
        axes = range(min(p.ndim, 2)) if p.ndim > 1 else [None]
        for axis in axes:
            for j in range(p.numel() if axis is None else p.shape[axis]):
                change = [torch.zeros_like(q) for q in parameters]
                with torch.no_grad():
                    if axis is None:
                        change[i].view(-1)[j] = 1.0
                    else:
                        # By a factor 1.5: the change is half of the row.
                        scaled = p.clone()
                        scaled.select(axis, j).mul_(1.5)
                        change[i] = 2 * (scaled - p)
                wanted.append(torch.cat([c.flatten() for c in change]))
    unit = torch.eye(len(wanted), dtype=F64)
    found = torch.stack([basis.expand(row) for row in unit])
    assert torch.allclose(found, torch.stack(wanted), rtol=1e-14, atol=1e-15)


def test_scales_of_columns():
    matrix = draw(200, 6) * torch.tensor([1e-3, 1, 10, 0, 1e3, 1], dtype=F64)
    scales = column_scales(lambda u: matrix.T @ u, 200, matrix)
    sizes = scales * matrix.norm(dim=0)
    assert scales[3] == 0
    # Estimated from 8 probes: √(χ²₈/8).
    assert bool(((sizes[[0, 1, 2, 4, 5]] > 0.4) & (sizes[[0, 1, 2, 4, 5]] < 2.5)).all())
    without_small = column_scales(lambda u: matrix.T @ u, 200, matrix, least=1.0)
    assert without_small[0] == 0 and torch.equal(without_small[1:], scales[1:])


# --- Conjugate gradients ----------------------------------------------------------------------------------------------


def positive(size: int, rank: int | None = None) -> torch.Tensor:
    root = draw(size, rank or size)
    return root @ root.T / size


def test_conjugate_gradients_solve():
    matrix, right = positive(8) + torch.eye(8, dtype=F64), draw(8, seed=1)
    x = conjugate_gradients(lambda v: matrix @ v, right, iterations=100)
    assert torch.allclose(x, torch.linalg.solve(matrix, right), rtol=1e-12, atol=1e-14)


def test_conjugate_gradients_take_as_many_iterations_as_there_are_dimensions():
    matrix, right = torch.diag(torch.logspace(0, 3, 6, dtype=F64)), draw(6, seed=1)
    x = conjugate_gradients(lambda v: matrix @ v, right, iterations=6)
    assert torch.allclose(x, right / matrix.diagonal(), rtol=1e-8)


def test_conjugate_gradients_of_a_singular_system_give_the_shortest_solution():
    matrix = positive(8, 3)
    right = matrix @ draw(8, seed=1)
    x = conjugate_gradients(lambda v: matrix @ v, right, iterations=100)
    expected = torch.linalg.pinv(matrix, hermitian=True, rtol=1e-10) @ right
    # Rounding must not be followed into the directions that the matrix does not see.
    assert float((x - expected).norm() / expected.norm()) < 1e-7


def test_a_right_side_of_zeros_and_one_without_curvature():
    matrix, zeros = positive(4), torch.zeros(4, dtype=F64)
    assert conjugate_gradients(lambda v: matrix @ v, zeros, iterations=10).tolist() == [0] * 4
    assert conjugate_gradients(torch.zeros_like, torch.ones(4, dtype=F64), iterations=10).tolist() == [0] * 4
    # Of a right side partly outside the range, what is in it comes back, and nothing is made of the rest.
    diagonal = torch.tensor([2.0, 0.0], dtype=F64)
    x = conjugate_gradients(lambda v: diagonal * v, torch.ones(2, dtype=F64), iterations=1)
    assert bool(x.isfinite().all())


def test_iterations_are_an_upper_bound():
    matrix, right = positive(30), draw(30, seed=1)
    calls = []

    def apply(v: torch.Tensor) -> torch.Tensor:
        calls.append(v)
        return matrix @ v

    conjugate_gradients(apply, right, iterations=5)
    assert len(calls) == 5


def test_enough_hears_how_far_it_has_risen_and_stops():
    matrix, right, heard, calls = positive(60) + 0.01 * torch.eye(60, dtype=F64), draw(60, seed=1), [], []

    def apply(v: torch.Tensor) -> torch.Tensor:
        calls.append(v)
        return matrix @ v

    def enough(risen: float) -> bool:
        heard.append(risen)
        return len(heard) == 2

    x = conjugate_gradients(apply, right, iterations=100, enough=enough)
    assert len(calls) == 20 and len(heard) == 2
    assert heard[-1] == pytest.approx(float(x @ right - 0.5 * x @ matrix @ x), rel=1e-10)
    assert heard[0] < heard[1] < float(0.5 * right @ torch.linalg.solve(matrix, right))
