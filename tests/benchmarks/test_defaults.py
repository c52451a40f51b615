import math

import pytest
import torch

from benchmarks.defaults import BASE, SHORT_ONLY, Problem, Run, Setting, regrets, run, settings, without_latents
from vaentropy.expectation import MonteCarlo


def test_base_is_among_the_settings_once_and_all_are_told_apart():
    names = [setting.name for setting in settings()]
    assert len(set(names)) == len(names)
    assert [s.name for s in settings() if s.arguments() == dict(BASE)] == ["base"]
    assert set(SHORT_ONLY) < set(names)


@pytest.mark.parametrize(
    ("setting", "epochs"),
    [
        (Setting("base"), 20),  # 300 steps of 15
        (Setting("draws", {"expectation": MonteCarlo(4)}), 20),
        (Setting("draws", {"expectation": MonteCarlo(4)}, "work"), 8),  # 2.5 times the work, 120 steps
        (Setting("batch", {"batch_size": 500}), 50),  # 300 steps of 6
        (Setting("batch", {"batch_size": 500}, "work"), 20),
        (Setting("batch", {"batch_size": 100}, "work"), 20),
    ],
)
def test_epochs_of_equal_steps_and_equal_work(setting, epochs):
    assert setting.epochs(300, 3000) == epochs


def of(setting: str, *elbos: float, budget: str = "short") -> list[Run]:
    return [Run("p", budget, setting, seed, elbo, elbo, 0, 0.0) for seed, elbo in enumerate(elbos)]


def test_regret_is_below_the_best_and_in_percent_of_what_can_be_gained():
    done = [*of("a", 7.0, 9.0), *of("b", 6.0, 6.0), *of("c", 20.0, 20.0), *of("a", 10.0, 10.0, budget="long")]
    found = regrets(done, "train", {"p": 5.0}, lambda name: name != "c")
    short = {name: found["p", "short", name] for name in "abc"}
    assert (short["a"].nats, short["a"].percent) == (0.0, 0.0)
    # 8 - 6 of 10 - 5; differences 1 and 3.
    assert (short["b"].nats, short["b"].percent, short["b"].spread) == pytest.approx((2.0, 40.0, 1.0))
    # Better than the best that is allowed to be.
    assert short["c"].nats == -12.0


def test_a_training_that_failed_is_the_worst_there_is_and_never_the_best():
    found = regrets([*of("a", 1.0, 2.0), *of("b", 9.0, math.nan)], "held_out", {"p": 0.0})
    assert found["p", "short", "b"].percent == math.inf
    assert found["p", "short", "a"].nats == 0.0


@pytest.mark.parametrize("family", ["vae1", "vae3"])
def test_without_latents_is_minus_the_entropy_on_training_data(family):
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
    variance = ((x - x.mean(0)) ** 2).mean(0).double()
    each = variance if family == "vae3" else variance.mean().expand(3)
    entropy = 0.5 * (2 * math.pi * math.e * each).log().sum()
    assert without_latents(Problem("p", family, 1, x, x[:10]), "train") == pytest.approx(-float(entropy), rel=1e-6)
    far = without_latents(Problem("p", family, 1, x, x + 10), "held_out")
    assert far < -float(entropy)


@pytest.mark.slow
def test_a_quick_run():
    result = run(quick=True)
    assert [row["setting"] for row in result.rows] == ["base", "cosine, 0.005", "expectation=MonteCarlo(2), equal work"]
    assert len(result.data["runs"]) == 3 * 2 * 2
    assert "short, held-out: worst %" in result.markdown()
