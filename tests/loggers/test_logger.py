"""What all loggers have in common: names of metrics, what happens when writing fails, several at once."""

import logging

import pytest
import torch

import vaentropy as ve
from vaentropy.errors import UsageError
from vaentropy.loggers import Logger, PerModel, Together, metrics
from vaentropy.training import Interrupted

ROW = {"epoch": 1, "step": 20, "beta": 1.0, "running_elbo": -3.5, "running_gap": 0.25}


class Kept(Logger):
    """Keeps what it is given."""

    def __init__(self, *, fails=(), **about):
        super().__init__(**about)
        self.fails, self.written, self.outcome, self.opened = fails, [], None, 0

    def open(self):
        if "open" in self.fails:
            raise UsageError("no room")
        self.opened += 1

    def write(self, step, values):
        if step in self.fails:
            raise OSError("the server\nis gone")
        self.written.append((step, dict(values)))

    def close(self, outcome):
        if "close" in self.fails:
            raise OSError("the server is gone")
        self.outcome = outcome


def test_metrics_are_named_so_that_dashboards_group_them():
    row = {**ROW, "held_out_elbo": -4, "train_gap": 0.5, "at_floor": True, "seconds": 2.5}
    assert metrics(row) == {
        "epoch": 1.0,
        "progress/beta": 1.0,
        "running/elbo": -3.5,
        "running/gap": 0.25,
        "held_out/elbo": -4.0,
        "train/gap": 0.5,
        "progress/at_floor": 1.0,
        "progress/seconds": 2.5,
    }


def test_a_list_is_a_metric_for_each_of_the_first_latents():
    named = metrics({**ROW, "running_kl_per_latent": [float(h) for h in range(70)]})
    lists = {name: value for name, value in named.items() if name.startswith("running_kl_per_latent/")}
    assert lists == {f"running_kl_per_latent/{h}": h for h in range(64)}


def test_fit_gives_every_row_as_it_is_made(history):
    torch.manual_seed(0)
    with Kept() as log:
        log.summary(ve.fit(ve.vae1(3, 2, (4,)), torch.randn(40, 3), epochs=3, progress=False, on_epoch=log))
    steps = [step for step, _ in log.written]
    assert steps == [1, 2, 3, 3] and log.outcome == "finished"
    # Every column but the step is there, under some name.
    per_latent = [f"running_{name}_per_latent/{h}" for name in ("kl", "encoder_entropy") for h in (0, 1)]
    assert set(per_latent) < set(log.written[0][1]) and len(log.written[0][1]) >= 10


def test_the_summary_says_what_the_last_row_does_not(history):
    with Kept() as log:
        for row in history.rows:
            log(row)
        log.summary(history)
    (step, values), last = log.written[-1], log.written[-2][1]
    assert step == history.rows[-1]["step"] and not set(values) & set(last)
    everything = values | last
    for name, e in (("train", history.train), ("held_out", history.held_out)):
        ours = {key.removeprefix(f"{name}/"): x for key, x in everything.items() if key.startswith(f"{name}/")}
        assert (
            ours["elbo"] == e.elbo
            and ours["data_elbo"] == pytest.approx(e.elbo + e.log_jacobian)
            and e.log_jacobian == -4.5
        )
        entropies = ours["encoder_entropy"] - ours["prior_entropy"] - ours["decoder_entropy"]
        assert ours["reconstruction"] - ours["kl"] == pytest.approx(ours["elbo"], abs=1e-9)
        assert entropies + ours["prior_gap"] + ours["decoder_gap"] == pytest.approx(ours["elbo"], abs=1e-9)
        assert ours["bits_per_dim"] == e.bits_per_dim


def test_a_summary_without_new_rows_writes_nothing(history):
    # A finished training that was resumed: all of it has been written.
    with Kept() as log:
        log.summary(history)
    assert log.written == []


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(ValueError(), "failed"), (KeyboardInterrupt(), "interrupted"), (Interrupted(15, "stopped"), "interrupted")],
)
def test_how_a_block_ends_is_how_the_run_ends(error, outcome):
    with pytest.raises(type(error)), Kept() as log:
        raise error
    assert log.outcome == outcome


@pytest.mark.parametrize("fails", [(2,), (2, "close")])
def test_training_goes_on_where_a_logger_fails(history, caplog, fails):
    with caplog.at_level(logging.WARNING), Kept(fails=fails) as log:
        for step in (1, 2, 3):
            log({**ROW, "step": step})
        log.summary(history)
    # How it ended is told if that is possible; one warning is enough.
    assert [step for step, _ in log.written] == [1] and log.outcome == (None if "close" in fails else "finished")
    assert [record.message for record in caplog.records] == [
        "Kept takes no more: the server is gone; training goes on, and its history has every row"
    ]


def test_an_error_is_not_hidden_by_one_of_closing(caplog):
    with pytest.raises(ValueError, match="mine"), Kept(fails=("close",)):
        raise ValueError("mine")
    assert "Kept takes no more" in caplog.text


def test_a_logger_is_for_one_training():
    log = Kept()
    with pytest.raises(UsageError, match="a row given to a Kept that is not open, expected it within: with Kept"):
        log(ROW)
    with log:
        log(ROW)
    with pytest.raises(UsageError, match="not open"):
        log(ROW)
    with pytest.raises(UsageError, match="used before given, expected a new one"), log:
        pass


def test_several_write_together_and_end_together():
    logs = [Kept(), Kept(fails=(20,))]
    with pytest.raises(RuntimeError), Together(logs) as log:
        log(ROW)
        raise RuntimeError
    assert [len(each.written) for each in logs] == [1, 0]
    assert logs[0].outcome == "failed"


def test_those_that_have_begun_are_closed_where_another_cannot_begin():
    logs = [Kept(), Kept(fails=("open",)), Kept()]
    with pytest.raises(UsageError, match="no room"), Together(logs):
        pass
    assert [each.opened for each in logs] == [1, 0, 0] and logs[0].outcome == "failed"


def test_replicates_have_loggers_of_their_own():
    torch.manual_seed(0)
    models, x = [ve.vae1(3, 2, (4,)) for _ in range(2)], torch.randn(40, 3)
    logs = [Kept(name=f"seed-{seed}") for seed in range(2)]
    with PerModel(logs) as log:
        histories = ve.fit_replicates(models, x, epochs=2, progress=False, on_epoch=log)
        log.summary(histories)
        with pytest.raises(UsageError, match="1 histories given to 2 loggers"):
            log.summary(histories[:1])
        with pytest.raises(UsageError, match="2 loggers given for more models"):
            log(2, ROW)
    for each, history in zip(logs, histories, strict=True):
        assert [values["running/elbo"] for _, values in each.written[:-1]] == history["running_elbo"]
        assert each.outcome == "finished"
    assert logs[0].written[0] != logs[1].written[0]
