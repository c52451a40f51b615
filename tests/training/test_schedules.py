import pytest

from vaentropy.errors import UsageError
from vaentropy.training import cyclical, warmup
from vaentropy.training.schedules import as_schedule


def test_warmup_rises_in_a_straight_line_and_ends_on_the_elbo():
    beta = warmup(0.25)
    assert [beta(done) for done in (0.0, 0.125, 0.25, 0.6, 1.0)] == [0.0, 0.5, 1.0, 1.0, 1.0]


def test_cyclical_restarts_but_ends_on_the_elbo():
    beta = cyclical(num_cycles=4, ramp=0.5)
    assert [beta(done) for done in (0.0, 0.0625, 0.125, 0.2, 0.25, 0.3125, 1.0)] == [0, 0.5, 1, 1, 0, 0.5, 1]


def test_a_number_is_a_constant_schedule():
    assert {as_schedule(0.5)(done) for done in (0.0, 0.3, 1.0)} == {0.5}


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
