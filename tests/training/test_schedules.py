import pickle
from itertools import pairwise

import pytest

from vaentropy.errors import UsageError
from vaentropy.training import cyclical, warmup
from vaentropy.training.schedules import LEARNING_RATES, as_schedule


def test_warmup_rises_in_a_straight_line_and_ends_on_the_elbo():
    beta = warmup(0.25)
    assert [beta(done) for done in (0.0, 0.125, 0.25, 0.6, 1.0)] == [0.0, 0.5, 1.0, 1.0, 1.0]


def test_warmup_to_another_weight():
    beta = warmup(0.5, 4.0)
    assert [beta(done) for done in (0.0, 0.25, 0.5, 1.0)] == [0.0, 2.0, 4.0, 4.0]


def test_schedules_go_to_other_processes():
    for beta in (warmup(0.3), cyclical(3, 0.4)):
        again = pickle.loads(pickle.dumps(beta))
        assert [again(done / 10) for done in range(11)] == [beta(done / 10) for done in range(11)]


def test_cyclical_restarts_but_ends_on_the_elbo():
    beta = cyclical(num_cycles=4, ramp=0.5)
    assert [beta(done) for done in (0.0, 0.0625, 0.125, 0.2, 0.25, 0.3125, 1.0)] == [0, 0.5, 1, 1, 0, 0.5, 1]


def test_a_number_is_a_constant_schedule():
    assert {as_schedule(0.5)(done) for done in (0.0, 0.3, 1.0)} == {0.5}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Smith & Topin: from 1/25 up in 30 % of the steps, down to 1e-4 of that; half way up and down the mean of both.
        ("one_cycle", {0.0: 1 / 25, 0.15: (1 + 1 / 25) / 2, 0.3: 1.0, 0.65: (1 + 4e-6) / 2, 1.0: 4e-6}),
        # Loshchilov & Hutter: (1 + cos(π t))/2.
        ("cosine", {0.0: 1.0, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 4e-6}),
        ("constant", {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
    ],
)
def test_learning_rates(name, expected):
    factor = LEARNING_RATES[name]
    assert {done: factor(done) for done in expected} == pytest.approx(expected, abs=5e-6)
    assert factor(1.0) == pytest.approx(expected[1.0], rel=1e-9)


def test_cosine_only_falls():
    factors = [LEARNING_RATES["cosine"](step / 100) for step in range(101)]
    assert all(now < before for before, now in pairwise(factors))


@pytest.mark.parametrize(
    "make",
    [
        lambda: warmup(0.0),
        lambda: warmup(1.5),
        lambda: cyclical(0),
        lambda: cyclical(3, 0.0),
        lambda: as_schedule(-1.0),
    ],
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(UsageError):
        make()
