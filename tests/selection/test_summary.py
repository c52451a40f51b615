"""From fitted candidates to table, remarks and verdict: candidates made up, so that each case is there."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from vaentropy.errors import UsageError
from vaentropy.files import to_json
from vaentropy.linear import LinearVAE
from vaentropy.selection.candidates import Fitted, Parts
from vaentropy.selection.report import COLUMNS
from vaentropy.selection.summary import summarise

from ..models import F64

N, M = 400, 100
PARTS = Parts(torch.zeros(N, 3), torch.zeros(M, 3))


def around(mean, num, seed):
    """Numbers whose mean is exactly `mean` and whose differences from others vary by about 0.1."""
    noise = torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return mean + 0.1 * (noise - noise.mean())


def candidate(latent_dim, elbo, train=None, *, active=None, elbos=(), residuals=((0.0, 0.0),), **more):
    train = elbo if train is None else train
    options = {
        "model": LinearVAE(3, latent_dim),
        "num_parameters": 3 * latent_dim,
        "active": latent_dim if active is None else active,
        "train": around(train, N, latent_dim),
        "held_out": around(elbo, M, latent_dim),
        "entropy_sum": train - 0.25,
        "gap": 0.25,
        "residuals": residuals,
        "seeds": (0, 1)[: max(1, len(elbos))],
        "train_elbos": elbos,
        "held_out_elbos": elbos,
    }
    return Fitted(latent_dim=latent_dim, **{**options, **more})


def table(*fitted, failures=None, parts=PARTS, num_errors=2.0, model="vae1", data=""):
    return summarise(fitted, failures or {}, parts, model=model, data=data, num_errors=num_errors)


CLEAR = (candidate(1, -5.0), candidate(2, -3.0), candidate(3, -3.0), candidate(4, -3.2, -2.9))


def test_the_best_comes_first_and_differences_are_to_it():
    s = table(*CLEAR[::-1])
    assert [c.latent_dim for c in s.candidates] == [2, 3, 4, 1]
    assert [c.elbo_diff for c in s.candidates] == pytest.approx([0, 0, 0.2, 2.0], abs=1e-12)
    apart = (CLEAR[1].held_out - CLEAR[0].held_out).std() / M**0.5
    assert s[1].elbo_error == pytest.approx(float(apart)) and s[2].elbo_error == 0
    assert s[1].stderr == pytest.approx(float(CLEAR[0].held_out.std()) / M**0.5)
    # By BIC, 3 parameters more per latent cost 3 log 400/800 nats, which is less than what 4 gains on training data.
    cost = 3 * math.log(N) / (2 * N)
    bics = {1: -5 - cost, 2: -3 - 2 * cost, 3: -3 - 3 * cost, 4: -2.9 - 4 * cost}
    assert {h: s[h].bic for h in bics} == pytest.approx(bics)
    assert {h: s[h].bic_diff for h in bics} == pytest.approx({h: bics[4] - bic for h, bic in bics.items()}, abs=1e-12)
    assert s.supported == 2 and set(s.models) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("fitted", "words"),
    [
        (CLEAR, r"2 latents are supported: 1 would cost 2\.0000 ± 0\.0\d{3} nats; .*"),
        ((candidate(1, -3), candidate(2, -3.1, -2.9)), r"1 latent is supported; more bring nothing that counts\."),
        ((candidate(1, -5), candidate(2, -3)), r"2 latents are supported: 1 would cost .*; offer more than 2\."),
        ((candidate(2, -3), candidate(3, -3.1, -2.9)), r"2 latents.*; fewer than 2 were not offered\."),
        (
            (candidate(1, -3.01), candidate(2, -3, -2.5), candidate(3, -3, -2.5)),
            r"1 latent is.*; whether 2 and 3 would be better, this evidence does not decide; offer more than 3\.",
        ),
        ((candidate(1, -3, active=0), candidate(2, -3, active=0)), "no latent is supported: all are collapsed; more.*"),
        (
            (candidate(2, -3, active=1), candidate(4, -3, active=1)),
            r"2 latents are supported, 1 of them used; more .*; fewer than 2 were not offered\.",
        ),
        (
            # The 2 of three are enough, and of two the one is in a bad optimum.
            (candidate(2, -4, active=1), candidate(3, -3, active=2)),
            r"2 latents are supported; more bring nothing that counts; fewer than 2 were not offered\.",
        ),
    ],
)
def test_the_verdict_is_one_sentence(fitted, words):
    verdict = table(*fitted).verdict
    assert re.fullmatch(words, verdict), verdict
    assert str(table(*fitted)).endswith(f"\n{verdict}") and "\n" not in verdict


def test_of_a_linear_model_fewer_than_one_can_be_offered():
    assert "fewer than 1 were not offered" in table(candidate(1, -3), candidate(2, -3.1), model="linear").verdict
    none = table(candidate(1, -3.1, -2.9), replace(candidate(2, -3), latent_dim=0, active=0), model="linear")
    assert none.verdict == "no latent is supported; more bring nothing that counts."


# --- What cannot be relied on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("residual", "error", "reliable"),
    [(0.5, 0.0, True), (2.5, 0.0, False), (-2.5, 0.0, False), (2.5, 0.5, True), (2.5, 0.1, False)],
)
def test_a_gap_counts_where_as_much_would_change_the_choice(residual, error, reliable):
    # 1 is 2 nats below: with 2 nats more it would be supported. The parts of the gap can cancel.
    s = table(candidate(1, -5, residuals=((0.0, 0.0), (residual, error))), candidate(2, -3), candidate(3, -3))
    assert s[1].reliable == reliable and s.supported == 2
    assert ("as much would change the choice" in " ".join(s[1].remarks)) != reliable
    assert ("not to be relied on, since training of 1 has not" in s.verdict) != reliable


def test_a_gap_that_changes_nothing_is_told_where_it_is_large():
    far = table(candidate(1, -5, residuals=((0.3, 0.0),)), candidate(2, -3))
    assert far[1].reliable and "0.3000 nats: training has not reached a stationary point" in far[1].remarks[0]
    assert table(candidate(1, -5, residuals=((0.05, 0.0),)), candidate(2, -3))[1].remarks == ()


def test_what_was_trained_worse_than_what_it_contains_is_no_evidence():
    s = table(candidate(1, -5), candidate(2, -3), candidate(3, -4), candidate(4, -3, -3.001))
    assert not s[3].reliable and "trained 1.0000 nats worse than 2" in s[3].remarks[0]
    # 4 is so by less than can be told, and is level with the best.
    assert s[4].reliable and "bad optimum" not in " ".join(s[4].remarks)
    # In closed form there is no training, and the optimum of 3 cannot be below that of 2.
    assert table(candidate(1, -5), candidate(2, -6, seeds=()))[2].reliable


def test_a_supported_one_that_was_trained_worse_is_named():
    s = table(candidate(2, -4, active=1), candidate(3, -3), candidate(4, -3.01, active=2))
    assert s.supported == 2 and "clearly below 4, which uses no more latents: prune models[4]" in s[2].remarks[1]


def test_bic_may_say_otherwise():
    s = table(candidate(1, -5), candidate(2, -3, -5.5), candidate(3, -3.01, -6))
    assert s.supported == 2 and "clearly the best by BIC" in s[1].remarks


# --- Noise of training ----------------------------------------------------------------------------------------------


def test_what_another_training_changes_is_in_the_errors():
    one = table(candidate(1, -3.2, elbos=(-3.2,)), candidate(2, -3, elbos=(-3.0,)))
    two = table(candidate(1, -3.2, elbos=(-3.2, -3.4)), candidate(2, -3, elbos=(-3.0, -3.1)))
    assert one.supported == 2 and one.training_noise is None and one[1].spread is None
    assert "what another would change is not known" in str(one)
    assert two.supported == 1 and two.training_noise == pytest.approx(0.15 / 0.9539)
    assert two[1].spread == pytest.approx(0.2)
    assert two[1].elbo_error == pytest.approx(math.hypot(one[1].elbo_error, 2**0.5 * two.training_noise))
    assert "another training moves an ELBO by ± 0.16" in str(two)
    assert "another" not in str(table(candidate(1, -3, seeds=()), candidate(2, -3, seeds=()), model="linear"))


# --- Those that are not possible ------------------------------------------------------------------------------------


def test_what_is_not_possible_comes_last_and_says_why():
    infinite = candidate(3, -3, held_out=torch.tensor([-math.inf] + [-3.0] * (M - 1), dtype=F64))
    s = table(candidate(1, -5), candidate(2, -3), infinite, failures={5: "diverged"})
    assert [c.latent_dim for c in s.candidates] == [2, 1, 3, 5]
    assert s[5].remarks == ("diverged",) and s[3].remarks == ("its ELBO is not finite",)
    assert s[5].elbo is None and set(s.models) == {1, 2}
    # The largest that is possible: more may be so as well.
    assert "offer more than 2" in s.verdict
    with pytest.raises(UsageError, match="no candidate has a finite ELBO"):
        table(infinite)


# --- How it shows ---------------------------------------------------------------------------------------------------


def test_it_prints_a_table_of_equal_lines():
    text = str(table(*CLEAR, data="mine, in metres"))
    heading, sizes, *_ = text.splitlines()
    assert heading == "vae1 on mine, in metres"
    assert sizes == "400 data points to train on, 100 held out; nats per data point"
    _, names, *rows = text.splitlines()[4:10]
    assert names.split()[:4] == ["latents", "active", "ELBO", "error"]
    assert {len(row) for row in rows} == {len(names)} == {sum(c.width for c in COLUMNS)} and len(names) <= 120
    assert rows[0].split()[:3] == ["2", "2", "-3.0000"]


def test_numbers_near_0_have_no_sign():
    assert "-0.0000" not in str(table(*(replace(f, gap=-1e-9) for f in CLEAR)))


def test_it_becomes_plain_values_and_a_frame():
    s = table(*CLEAR, failures={7: "diverged"})
    plain = json.loads(to_json(s.to_dict()))
    assert plain["supported"] == 2 and plain["undecided"] == [] and plain["verdict"] == s.verdict
    assert [c["latent_dim"] for c in plain["candidates"]] == [2, 3, 4, 1, 7]
    assert plain["candidates"][3]["elbo_diff"] == pytest.approx(2.0) and plain["candidates"][4]["elbo"] is None
    frame = s.to_frame()
    assert isinstance(frame, pd.DataFrame) and list(frame.index) == [2, 3, 4, 1, 7]
    assert frame.loc[1, "elbo_diff"] == pytest.approx(2.0) and np.isnan(frame.loc[7, "elbo"])


def test_without_pandas_the_frame_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        table(*CLEAR).to_frame()


def test_html_is_escaped():
    s = table(*CLEAR, failures={7: "<script>"}, data="<b>&")
    page = s._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;&amp;" in page
    assert page.count("<tr>") == 6 and "2 latents are supported" in page


def test_a_number_that_was_not_offered_is_a_key_error():
    with pytest.raises(KeyError, match="no candidate with latent_dim 9; there are 2, 3, 4, 1"):
        table(*CLEAR)[9]
