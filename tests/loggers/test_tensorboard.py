"""Event files, read back by TensorBoard's own reader."""

import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.loggers import TensorBoard, metrics


def read(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def curve(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def hyperparameters(events, tag):
    return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


def written(folder, history, **options):
    with TensorBoard(folder, **options) as log:
        for row in history.rows:
            log(row)
        log.summary(history)
    return log


def test_every_number_of_every_row_is_a_scalar(tmp_path, history):
    written(tmp_path, history, name="one")
    events = read(tmp_path / "one")
    expected = {}
    for row in history.rows:
        for name, value in metrics(row).items():
            expected.setdefault(name, []).append((row["step"], pytest.approx(value, rel=1e-6)))  # float32
    assert {name: curve(events, name) for name in expected} == expected
    assert curve(events, "train/kl") == [(10, pytest.approx(history.train.kl, rel=1e-6))]
    assert {name.partition("/")[0] for name in events.Tags()["scalars"]} == {
        "epoch",
        "progress",
        "running",
        "running_kl_per_latent",
        "running_encoder_entropy_per_latent",
        "held_out",
        "train",
    }


def test_settings_are_hyperparameters_and_the_end_has_a_status(tmp_path, history):
    settings = {"model": "vae1", "epochs": 5, "learning_rate": 0.5, "stream": False, "hidden": (8, 8), "seed": None}
    written(tmp_path, history, settings=settings)
    events = read(tmp_path)
    start = hyperparameters(events, metadata.SESSION_START_INFO_TAG).session_start_info.hparams
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()}
    assert values == {**settings, "hidden": "(8, 8)", "seed": "None"}
    end = hyperparameters(events, metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS
    # One run: hyperparameters of a folder of their own would be another.
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]


def test_a_failure_is_one(tmp_path, history):
    with pytest.raises(RuntimeError), TensorBoard(tmp_path) as log:
        log(history.rows[0])
        raise RuntimeError
    end = hyperparameters(read(tmp_path), metadata.SESSION_END_INFO_TAG).session_end_info
    assert end.status == api_pb2.STATUS_FAILURE


def test_a_training_that_goes_on_takes_the_place_of_what_came_after(tmp_path, history):
    # As after a kill: two epochs had been written that no checkpoint holds, and are trained once more.
    with TensorBoard(tmp_path) as log:
        for row in history.rows[:4]:
            log({**row, "running_elbo": -99.0})
    with TensorBoard(tmp_path) as log:
        for row in history.rows[2:]:
            log(row)
    elbos = history["running_elbo"]
    assert curve(read(tmp_path), "running/elbo") == [
        (2, -99.0),
        (4, -99.0),
        *((step, pytest.approx(elbo, rel=1e-6)) for step, elbo in zip((6, 8, 10), elbos[2:], strict=True)),
    ]


def test_rows_can_be_seen_as_they_are_written(tmp_path, history):
    with TensorBoard(tmp_path) as log:
        for number, row in enumerate(history.rows, 1):
            log(row)
            assert len(curve(read(tmp_path), "epoch")) == number


def test_numbers_that_are_not_finite_are_kept(tmp_path, history):
    with TensorBoard(tmp_path) as log:
        log({**history.rows[0], "running_elbo": math.nan, "running_gap": -math.inf})
    events = read(tmp_path)
    assert math.isnan(curve(events, "running/elbo")[0][1]) and curve(events, "running/gap") == [(2, -math.inf)]


def test_a_training_without_rows_leaves_no_file(tmp_path):
    with TensorBoard(tmp_path / "logs"):
        pass
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "logs").write_text("mine")
    with pytest.raises(UsageError, match="logs' cannot be made"), TensorBoard(tmp_path / "logs"):
        pass
    assert (tmp_path / "logs").read_text() == "mine"


def test_without_the_library_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(
        MissingExtraError, match=r"tensorboard is not installed; run: pip install 'vaentropy\[logging\]'"
    ):
        TensorBoard(tmp_path)
