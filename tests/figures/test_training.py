import io
import math

import matplotlib
import numpy as np
import pytest
import torch

from vaentropy.families import vae1
from vaentropy.figures import plot_latent_entropies, plot_training
from vaentropy.training import History, fit

PER_LATENT = ("running_encoder_entropy_per_latent", "running_kl_per_latent")
X = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.tensor([3.0, 1.0, 0.3, 0.3]))


@pytest.fixture(scope="module")
def history():
    torch.manual_seed(0)
    return fit(vae1(4, 2, hidden=(8,)), X[:200], held_out=X[200:], epochs=12, evaluate_every=3)


def made_up(elbos, gap=0.5, held_out=None):
    rows = [
        {"epoch": i + 1, "running_elbo": e, "running_entropy_sum": e - gap, "running_gap": gap}
        for i, e in enumerate(elbos)
    ]
    for epoch, value in (held_out or {}).items():
        rows[epoch - 1] |= {"held_out_elbo": value, "held_out_gap": gap}
    return History(rows)


def drawn(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def as_svg(figure):
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()


def test_training_shows_what_the_history_says(history):
    top, bottom = plot_training(history).axes
    lines = drawn(top)
    assert lines["ELBO"].tolist() == [[row["epoch"], row["running_elbo"]] for row in history.rows]
    assert lines["entropy sum"][:, 1].tolist() == history["running_entropy_sum"]
    assert lines["held-out ELBO"].T.tolist() == [history.at("held_out_elbo"), history["held_out_elbo"]]
    expected = [abs(row["running_gap"] / row["running_elbo"]) for row in history.rows]
    assert drawn(bottom)["relative gap"][:, 1].tolist() == pytest.approx(expected, rel=1e-15)
    assert bottom.get_yscale() == "log"
    assert all((top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()))


def test_replicates_show_median_and_quartiles_of_those_that_came_so_far():
    rng = np.random.default_rng(0)
    elbos = [rng.normal(size=length) for length in (7, 7, 7, 4)]
    top, _ = plot_training([made_up(each) for each in elbos]).axes
    table = np.full((4, 7), np.nan)
    for row, each in zip(table, elbos, strict=True):
        row[: len(each)] = each
    low, median, high = np.nanpercentile(table, (25, 50, 75), axis=0)
    assert drawn(top)["ELBO"][:, 1] == pytest.approx(median)
    (band, *_) = (collection.get_paths()[0] for collection in top.collections)
    edges = {(x, round(y, 9)) for x, y in band.vertices.tolist()}
    for epoch in range(7):
        assert {(epoch + 1, round(low[epoch], 9)), (epoch + 1, round(high[epoch], 9))} <= edges


def test_names_are_shown_as_they_are():
    names = ["_private", "$x_1^", "<script>"]
    figure = plot_training([made_up([1.0, 2.0], held_out={2: 1.5}) for _ in names], labels=names)
    shown = [text.get_text().replace("\u200b", "").replace("\\$", "$") for text in figure.legends[0].texts]
    assert shown == [*names, "held-out ELBO"]
    svg = as_svg(figure)
    assert "<script>" not in svg.replace("<!-- <script> -->", "") and "epoch" in svg


def test_names_of_many_runs_can_be_told_apart_and_hide_nothing():
    names = [f"runs/2026-11-25/a-rather-long-name-of-a-run-{number:02}" for number in range(11)]
    figure = plot_training([made_up([1.0, 0.5])] * 11, labels=names)
    legend = figure.legends[0]
    assert len({text.get_text() for text in legend.texts}) == 11
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
    assert all(box.height > 100 for box in boxes)


def test_first_epochs_do_not_flatten_the_others():
    elbos = [-1e6, -1e4, *np.linspace(10, 12, 38)]
    top, _ = plot_training(made_up(elbos)).axes
    low, high = top.get_ylim()
    assert 8 < low < 10 and 12 < high < 13
    assert [text.get_text() for text in top.texts] == ["begins at -1,000,000.0, below the axis"]
    # Where nothing is cut, nothing is said.
    assert not plot_training(made_up([1.0, 2.0, 3.0])).axes[0].texts


def test_the_band_of_replicates_ends_within_the_axis():
    every = [made_up([-1e6, *np.linspace(10, 12 + more, 39)]) for more in range(3)]
    top, _ = plot_training(every).axes
    low, high = top.get_ylim()
    assert low > 8 and high > 13.5  # the third quartile of 12, 13 and 14


def test_one_epoch_is_seen():
    for axes in plot_training(made_up([3.0])).axes:
        assert {line.get_marker() for line in axes.lines} == {"o"}
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize(
    "history",
    [
        made_up([3.0]),
        made_up([1.0, 2.0], gap=0.0),
        made_up([math.nan, -math.inf, 1.0]),
        made_up([math.nan, math.nan]),
        made_up([0.0, 1.0]),
        made_up([1.0, 2.0], held_out={2: math.nan}),
    ],
    ids=["one epoch", "no gap", "not finite", "nothing", "an ELBO of 0", "held out unknown"],
)
def test_odd_histories_are_drawn(history):
    assert "svg" in as_svg(plot_training(history))
    assert "svg" in as_svg(plot_training([history, made_up([1.0])]))


def test_settings_of_the_user_neither_matter_nor_change(history):
    plain = as_svg_without_date(plot_training(history))
    mine = {
        "lines.linewidth": 17.0,
        "axes.facecolor": "black",
        "font.size": 30.0,
        # Matplotlib looks at these when it draws.
        "xtick.color": "red",
        "ytick.labelsize": 30.0,
        "grid.color": "green",
    }
    with matplotlib.rc_context(mine):
        figure = plot_training(history)
        assert as_svg_without_date(plot_training(history)) == plain
        assert {name: matplotlib.rcParams[name] for name in mine} == mine
    assert as_svg_without_date(figure) == plain
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # how files are written is the user's choice
        assert ">epoch</text>" in as_svg(plot_training(history))


def as_svg_without_date(figure):
    with matplotlib.rc_context({"svg.hashsalt": "same"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()


def test_latent_entropies_show_history_and_evaluation(history):
    top, bottom, bars = plot_latent_entropies(history).axes
    entropies = np.array(history["running_encoder_entropy_per_latent"])
    for h in range(2):
        assert drawn(top)[f"latent {h}"][:, 1].tolist() == entropies[:, h].tolist()
    kl = np.array(history["running_kl_per_latent"])
    active = (kl >= np.maximum(0.01, 0.01 * kl.max(1, keepdims=True))).sum(1)
    assert bottom.lines[0].get_ydata().tolist() == active.tolist()
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == pytest.approx(history.train.encoder_entropy_per_latent.tolist())
    prior = 0.5 * math.log(2 * math.pi * math.e)
    assert [line[0][1] for line in bars.collections[0].get_segments()] == pytest.approx([prior, prior])


def test_latents_that_diverged_are_left_out():
    rows = [
        {"epoch": 1, PER_LATENT[0]: [1.0, 0.5], PER_LATENT[1]: [0.4, 0.001], "running_prior_entropy": 2.0},
        {
            "epoch": 2,
            PER_LATENT[0]: [-math.inf, 0.5],
            PER_LATENT[1]: [math.inf, math.nan],
            "running_prior_entropy": 2.0,
        },
    ]
    figure = plot_latent_entropies(History(rows))
    top, bottom, _ = figure.axes
    assert np.array_equal(drawn(top)["latent 0"][:, 1], [1.0, math.nan], equal_nan=True)
    assert np.array_equal(bottom.lines[0].get_ydata(), [1.0, math.nan], equal_nan=True)
    assert "svg" in as_svg(figure)


def test_many_latents_are_drawn_and_their_bars_stand_without_an_evaluation():
    torch.manual_seed(0)
    history = fit(vae1(4, 100, hidden=(8,)), X, epochs=2)
    figure = plot_latent_entropies(History(history.rows))
    bars = [bar.get_height() for bar in figure.axes[2].patches]
    assert bars == pytest.approx(history.rows[-1]["running_encoder_entropy_per_latent"])
    assert figure.axes[0].get_legend() is None and "svg" in as_svg(figure)
