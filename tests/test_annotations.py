"""That the tests check annotations at all, as `conftest.py` sets it up."""

import os

import beartype
import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation

from vaentropy.distributions import to_float64
from vaentropy.families import vae1
from vaentropy.results import Entropies

pytestmark = pytest.mark.skipif(os.environ.get("VAENTROPY_TYPECHECK") == "0", reason="checks are turned off")


def test_shapes_are_checked_and_agree_with_each_other():
    model = vae1(5, 2, (4,))
    model.elbo_terms(torch.zeros(3, 5), torch.zeros(1, 3, 2))
    for x, noise in ((torch.zeros(3, 5), torch.zeros(1, 4, 2)), (torch.zeros(3, 5), torch.zeros(3, 2))):
        with pytest.raises(jaxtyping.TypeCheckError, match="noise"):
            model.elbo_terms(x, noise)


def test_types_without_a_shape_are_checked():
    with pytest.raises(BeartypeCallHintParamViolation, match="x="):
        to_float64([0.0])


def test_dataclasses_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="encoder"):
        Entropies(encoder="much", prior=0.0, decoder=0.0)


def test_functions_inside_functions_are_checked_the_first_time():
    def make():
        @jaxtyping.jaxtyped(typechecker=beartype.beartype)
        def inner(x: int) -> int:
            return x

        return inner

    with pytest.raises(BeartypeCallHintParamViolation):
        make()("one")
    assert make()("one") == "one"
