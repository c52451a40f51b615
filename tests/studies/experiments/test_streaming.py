"""The study of streams: models learn as each would alone, and choices are judged as counting by hand has it."""

import math

import pytest
import torch

from vaentropy.data.synthetic import streaming as draw
from vaentropy.linear import DataMoments, LinearVAE
from vaentropy.seeding import seeded
from vaentropy.studies.experiments import streaming
from vaentropy.studies.experiments.streaming import Course
from vaentropy.studies.study import Plan

QUIET = Plan(progress=False)


@pytest.fixture(scope="module")
def streams():
    return torch.stack([draw(300, seed=seed)[0] for seed in (0, 1)])


@pytest.fixture(scope="module")
def course(streams):
    return streaming.learn(streams, (0, 1), QUIET)


def course_of(*elbo_by_batch, entropy_sum=None):
    elbo = torch.tensor(elbo_by_batch, dtype=torch.float64).unsqueeze(1)
    return Course(elbo, elbo if entropy_sum is None else entropy_sum)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("number, latent_dim", [(0, 2), (1, 4), (2, 6)])
def test_each_model_learns_from_its_stream_as_it_would_alone(streams, course, seed, number, latent_dim):
    with seeded(seed, torch.device("cpu")):
        large = LinearVAE(10, 6).double()
    model = LinearVAE(10, latent_dim).double()
    with torch.no_grad():
        model.weight.copy_(large.weight[:, :latent_dim])
        model.encoder_weight.copy_(large.encoder_weight[:latent_dim])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step, batch in enumerate(streams[seed].split(10)):
        # Before the step: no model has seen the batch.
        terms = model.elbo_terms(DataMoments.of(batch))
        assert float(course.elbo[step, seed, number]) == pytest.approx(float(terms.elbo.detach()), rel=1e-9)
        entropy_sum = float(terms.entropy_sum.detach())
        assert float(course.entropy_sum[step, seed, number]) == pytest.approx(entropy_sum, rel=1e-9)
        optimizer.zero_grad()
        (-terms.elbo).backward()
        optimizer.step()


def test_bic_counts_what_is_free_and_the_points_of_a_smoothed_score():
    # W, b and σ² less a rotation: 20 + 11 - 1, 40 + 11 - 6, 60 + 11 - 15.
    expected = torch.tensor([30, 45, 56]).double() * math.log(1_000) / 2_000
    torch.testing.assert_close(streaming.penalties(streaming.BIC_POINTS), expected)
    assert streaming.BIC_POINTS == 100 * 10


def test_the_number_of_points_decides_as_bic_has_it(monkeypatch):
    # 4 latents bring 0.5 nats per point: worth 15 parameters of 1,000 points (0.05), not of a batch (1.7).
    course = course_of(*[[1.0, 1.5, 1.5]] * 6)
    assert streaming.chosen(course, "ELBO-BIC", 1, streaming.BIC_POINTS).unique().tolist() == [4]
    assert streaming.chosen(course, "ELBO-BIC", 1, streaming.BATCH).unique().tolist() == [2]
    monkeypatch.setattr(streaming, "learn", lambda *arguments: course)
    monkeypatch.setattr(streaming, "POINTS_PER_PHASE", {"quick": 20})
    rows = streaming.run(QUIET).rows
    for row in rows:
        choice = 2 if row["points_in_bic"] == 10 else 4
        assert row["right_at_end"] == (row["factors"] == choice)


def test_scores_are_smoothed_backwards():
    scores = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = streaming.smoothed(scores, 3)
    for batch in range(7):
        torch.testing.assert_close(found[batch], scores[max(0, batch - 2) : batch + 1].mean(0))
    torch.testing.assert_close(streaming.smoothed(scores, 1), scores)


@pytest.mark.parametrize(
    "right, batches",
    [("1111", 0), ("0111", 1), ("1011", 2), ("0001", 3), ("1110", math.inf), ("0000", math.inf)],
)
def test_the_delay_is_counted_to_the_last_wrong_choice(right, batches):
    assert streaming.delay(torch.tensor([each == "1" for each in right])) == batches


def test_rows_tell_delays_and_changes(monkeypatch):
    # Ten batches a phase; the right model is the last, the first, the second. The ELBO finds it after 3 batches and
    # errs once later in phase 2, the entropy sum always takes the largest model.
    large, small, middle = [0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]
    phase2 = [*[large] * 3, *[small] * 3, middle, *[small] * 3]
    phase3 = [*[small] * 3, *[middle] * 7]
    course = course_of(*[large] * 10, *phase2, *phase3, entropy_sum=torch.tensor([large] * 30).double().unsqueeze(1))
    monkeypatch.setattr(streaming, "learn", lambda *arguments: course)
    monkeypatch.setattr(streaming, "POINTS_PER_PHASE", {"quick": 100})
    outcome = streaming.run(QUIET)
    assert len(outcome.rows) == 3 * 2 * 3

    def raw(criterion):
        return [row for row in outcome.rows if row["criterion"] == criterion and row["smoothed_over_batches"] == 1]

    by_elbo, by_entropies = raw("ELBO-BIC"), raw("entropy-BIC")
    assert [row["factors"] for row in by_elbo] == [6, 2, 4]
    assert [row["delay_batches"] for row in by_elbo] == [0, 7, 3]
    assert [row["right_at_end"] for row in by_elbo] == [1, 1, 1]
    assert [row["fraction_right"] for row in by_elbo] == pytest.approx([1, 0.6, 0.7])
    assert [row["changes_of_choice"] for row in by_elbo] == [0, 3, 1]
    assert [row["delay_batches"] for row in by_entropies] == [0, None, None]
    assert [row["right_at_end"] for row in by_entropies] == [1, 0, 0]
    assert "changes 0 times per stream by entropy-BIC and 4 by ELBO-BIC" in outcome.finding
    assert "in 1, 0, 0 of 1 streams by entropy-BIC and in 1, 0, 0 by ELBO-BIC" in outcome.finding


def test_what_was_published_stands_beside_rows_of_its_own_kind(monkeypatch):
    monkeypatch.setattr(streaming, "POINTS_PER_PHASE", {"quick": 30})
    outcome = streaming.run(Plan(replicates=2, progress=False))
    keys = ("criterion", "smoothed_over_batches", "points_in_bic")
    published = {tuple(row[key] for key in keys): [] for row in outcome.rows}
    for row in outcome.rows:
        published[tuple(row[key] for key in keys)].append(row["delay_published"])
        assert row["streams"] == 2
    assert published.pop(("ELBO-BIC", 100, 10)) == [1_857, 105, 46]
    assert published.pop(("entropy-BIC", 100, 10)) == [2_292, 137, 603]
    assert list(published.values()) == [[None] * 3] * 4
    assert len(outcome.figure.axes) == 3


def test_all_models_see_one_stream_of_changing_factors(monkeypatch):
    seen = []

    def spy(streams, seeds, plan):
        seen.append(streams)
        return course_of(*[[0.0, 0.0, 0.0]] * 15)

    monkeypatch.setattr(streaming, "learn", spy)
    monkeypatch.setattr(streaming, "POINTS_PER_PHASE", {"quick": 4_000})
    streaming.run(Plan(progress=False, seed=5))
    assert seen[0].shape == (1, 12_000, 10)
    for factors, part in zip((6, 2, 4), seen[0][0].tensor_split(3), strict=True):
        values = torch.linalg.eigvalsh(part.T.cov()).flip(0)
        assert int((values > 0.5).sum()) == factors and values[factors:].max() < 0.02


def test_exact_settings_draw_100_samples(streams, course):
    plan = Plan(scale="paper", exact_settings=True, progress=False)
    sampled = streaming.learn(streams[:, :50], (0, 1), plan)
    # Before the first step all is the same but the noise, of 10 points with 100 draws each.
    torch.testing.assert_close(sampled.entropy_sum[0], course.entropy_sum[0])
    difference = (sampled.elbo[0] - course.elbo[0]).abs()
    assert difference.min() > 0 and difference.max() < 0.05 * course.elbo[0].abs().max()
    assert streaming.EXACT_SAMPLES == 100 and streaming.LEARNING_RATE == 2e-3 and streaming.BATCH == 10


@pytest.mark.parametrize("exact_settings", [False, True])
def test_surplus_latents_stay_collapsed(streams, monkeypatch, exact_settings):
    kept = []

    def stacked(models, shape):
        kept.append(streaming_stacked(models, shape))
        return kept[0]

    streaming_stacked = streaming.stacked
    monkeypatch.setattr(streaming, "stacked", stacked)
    plan = Plan(scale="paper", exact_settings=exact_settings, progress=False)
    streaming.learn(streams[:, :50], (0, 1), plan)
    for number, latent_dim in enumerate(streaming.LATENT_DIMS):
        own = {name: rows[:, number].detach() for name, rows in kept[0].items()}
        for surplus in (own["weight"][..., latent_dim:], own["encoder_weight"][:, latent_dim:]):
            assert not surplus.any()
        assert not own["latent_log_variance"][:, latent_dim:].any() and not own["encoder_bias"][:, latent_dim:].any()
        assert own["weight"][..., :latent_dim].all()
