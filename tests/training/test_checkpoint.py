"""Checkpoints: training that is cut off anywhere goes on to the same end, bit for bit."""

import json
import os
import re
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vaentropy.data import pca
from vaentropy.errors import DataError, UsageError
from vaentropy.families import vae1, vae2
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.training import Checkpoints, Interrupted, fit
from vaentropy.training.interruption import interruption
from vaentropy.vae import VAE

OPTIONS = {"epochs": 6, "batch_size": 40, "seed": 5, "evaluate_every": 2}
STEPS_PER_EPOCH, STEPS = 3, 18


@pytest.fixture(scope="module")
def x():
    return pca(150, 5, 2, seed=3)[0].float()


def make(family=vae1):
    torch.manual_seed(0)
    return family(5, 2, (6, 6))


def with_dropout():
    torch.manual_seed(0)
    encoder = nn.Sequential(MLPEncoder(5, (6,)), nn.BatchNorm1d(6), nn.Dropout(0.3))
    return VAE(encoder, MLPDecoder((6,)), data_shape=5, latent_dim=2)


class Cut(Exception):
    """Stands for a crash."""


def cut_after(monkeypatch, steps):
    """Make the next `fit` crash right after so many steps."""
    from vaentropy.training import loop

    real, done = loop.training_step, 0

    def step(*args, **options):
        nonlocal done
        if done == steps:
            raise Cut
        done += 1
        return real(*args, **options)

    monkeypatch.setattr(loop, "training_step", step)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_clock(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def on_disk(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("every", "variances"), [pytest.param(1, "analytic", marks=pytest.mark.slow), (2, "learned"), (7, "analytic")]
)
def test_resuming_after_any_step_gives_the_same_weights_and_rows(x, tmp_path, monkeypatch, every, variances):
    options = {**OPTIONS, "variances": variances, "held_out": x[110:]}
    whole = make(vae2)
    history = fit(whole, x[:110], **options)
    for steps in range(1, STEPS, 1 if every == 1 else 5):
        folder = tmp_path / f"{steps}"
        with monkeypatch.context() as patch:
            cut_after(patch, steps)
            with pytest.raises(Cut):
                fit(make(vae2), x[:110], **options, checkpoints=Checkpoints(folder, every=every))
        model = make(vae2)
        again = fit(model, x[:110], **options, checkpoints=Checkpoints(folder, every=every), resume=True)
        assert same(whole, model)
        assert without_clock(again.rows) == without_clock(history.rows) == without_clock(on_disk(folder))
        assert again.train.elbo == history.train.elbo and again.held_out.elbo == history.held_out.elbo


def test_dropout_and_batch_norm_go_on_too(x, tmp_path, monkeypatch):
    whole = with_dropout()
    fit(whole, x, **OPTIONS)
    with monkeypatch.context() as patch:
        cut_after(patch, 10)
        with pytest.raises(Cut):
            fit(with_dropout(), x, **OPTIONS, checkpoints=Checkpoints(tmp_path, every=4))
    model = with_dropout()
    torch.manual_seed(99)  # the global generator of the second process is somewhere else
    fit(model, x, **OPTIONS, checkpoints=Checkpoints(tmp_path, every=4), resume=True)
    assert same(whole, model)


def test_checkpoints_do_not_change_training(x, tmp_path):
    with_them, without = make(), make()
    fit(with_them, x, **OPTIONS, checkpoints=Checkpoints(tmp_path, every=1))
    fit(without, x, **OPTIONS)
    assert same(with_them, without)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step_and_writes_a_checkpoint(x, tmp_path, number):
    whole = make()
    fit(whole, x, **OPTIONS)
    before = signal.getsignal(number)

    def send(row):
        if row["epoch"] == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as interrupted:
        fit(make(), x, **OPTIONS, checkpoints=tmp_path, on_epoch=send)
    assert interrupted.value.signal == number
    assert signal.getsignal(number) == before
    assert len(Checkpoints(tmp_path).steps()) == 2 and Checkpoints(tmp_path).steps()[0] > 0
    model = make()
    fit(model, x, **OPTIONS, checkpoints=tmp_path, resume=True)
    assert same(whole, model)


def test_a_signal_during_the_last_evaluations_is_no_loss(x, tmp_path, monkeypatch):
    from vaentropy.training import course

    whole = make(vae2)
    history = fit(whole, x[:110], held_out=x[110:], **OPTIONS)
    real = course.evaluate
    for call in range(5):
        folder, calls = tmp_path / f"{call}", 0

        def evaluate(*args, call=call, **options):
            nonlocal calls
            if calls == call:
                os.kill(os.getpid(), signal.SIGTERM)
            calls += 1
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(course, "evaluate", evaluate)
            with pytest.raises(Interrupted):
                fit(make(vae2), x[:110], held_out=x[110:], **OPTIONS, checkpoints=folder)
        model = make(vae2)
        again = fit(model, x[:110], held_out=x[110:], **OPTIONS, checkpoints=folder, resume=True)
        assert same(whole, model)
        assert without_clock(again.rows) == without_clock(history.rows)
        assert again.train.elbo == history.train.elbo


def test_the_newest_are_kept_and_the_best_beside_them(x, tmp_path):
    fit(make(), x[:110], held_out=x[110:], **OPTIONS, checkpoints=Checkpoints(tmp_path, every=1, keep=3))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    expected = [f"step-{step:09d}.safetensors" for step in (16, 17, 18)]
    assert names[1:] == expected and re.fullmatch(r"best-0000000(06|12)\.safetensors", names[0])


def test_a_finished_training_is_resumed_to_the_same_result(x, tmp_path):
    model = make()
    history = fit(model, x[:110], held_out=x[110:], **OPTIONS, checkpoints=tmp_path)
    other = make()
    again = fit(other, x[:110], held_out=x[110:], **OPTIONS, checkpoints=tmp_path, resume=True)
    assert same(model, other)
    assert without_clock(again.rows) == without_clock(history.rows) == without_clock(on_disk(tmp_path))
    assert again.train.elbo == history.train.elbo and again.held_out.elbo == history.held_out.elbo


def test_a_folder_with_a_training_is_not_overwritten(x, tmp_path):
    fit(make(), x, **OPTIONS, checkpoints=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds a training already; pass resume=True"):
        fit(make(), x, **OPTIONS, checkpoints=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_resuming_without_a_checkpoint_begins(x, tmp_path):
    whole, model = make(), make()
    fit(whole, x, **OPTIONS)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-000000000.safetensors.partial").write_text("killed while this was writ")
    fit(model, x, **OPTIONS, checkpoints=tmp_path, resume=True)
    assert same(whole, model)
    assert len(on_disk(tmp_path)) == 6
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("resume", [True, False])
def test_a_history_that_is_not_ours_is_left_alone(x, tmp_path, resume):
    (tmp_path / "history.jsonl").write_text("mine\n")
    with pytest.raises(UsageError, match=r"holds a history\.jsonl that no checkpoint goes with"):
        fit(make(), x, **OPTIONS, checkpoints=tmp_path, resume=resume)
    assert (tmp_path / "history.jsonl").read_text() == "mine\n"


def test_other_data_are_refused(x, tmp_path):
    fit(make(), x, **OPTIONS, checkpoints=tmp_path)
    for other in (x + 5, x[:60]):
        with pytest.raises(UsageError, match=r"data=.* given, but training began with data="):
            fit(make(), other, **OPTIONS, checkpoints=tmp_path, resume=True)
    with pytest.raises(UsageError, match=r"data=.*torch\.float64.* given, but training began with .*torch\.float32"):
        fit(make().double(), x, **OPTIONS, checkpoints=tmp_path, resume=True)


@pytest.mark.parametrize("own_generator", [True, False])
def test_a_data_loader_is_resumed_from_the_beginning_of_its_epoch(x, tmp_path, monkeypatch, own_generator):
    def loader():
        generator = torch.Generator().manual_seed(8) if own_generator else None
        return DataLoader(TensorDataset(x), batch_size=50, shuffle=True, generator=generator)

    whole, history = make(), None
    history = fit(whole, loader(), **OPTIONS)
    for steps in (4, 6, 17):
        folder, model = tmp_path / f"{steps}", make()
        with monkeypatch.context() as patch:
            cut_after(patch, steps)
            with pytest.raises(Cut):
                fit(make(), loader(), **OPTIONS, checkpoints=Checkpoints(folder, every=1))
        again = fit(model, loader(), **OPTIONS, checkpoints=Checkpoints(folder, every=1), resume=True)
        assert same(whole, model) and without_clock(again.rows) == without_clock(history.rows)


def test_training_advances_after_a_rollback_however_often_it_is_interrupted(x, tmp_path, monkeypatch):
    """Checkpoints of the course that was left must not stand before those of the new one."""
    from vaentropy.training import loop

    real, calls = loop.training_step, 0

    def step(model, *args, **options):
        nonlocal calls
        terms = real(model, *args, **options)
        calls += 1
        if calls == 6:
            with torch.no_grad():
                model.latent_mean.weight.fill_(float("nan"))
        if calls == 9:  # the first step after the rollback to step 4
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    checkpoints = Checkpoints(tmp_path, every=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", step)
        with pytest.raises(Interrupted, match="after step 5"):
            fit(make(), x, **OPTIONS, checkpoints=checkpoints)
    assert checkpoints.steps() == [5, 4]
    again = fit(make(), x, **OPTIONS, checkpoints=checkpoints, resume=True)
    assert again["rollbacks"] == [0, 1, 1, 1, 1, 1]


def test_a_signal_that_comes_too_late_is_not_swallowed(x):
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with interruption() as taken:
            os.kill(os.getpid(), signal.SIGTERM)
            assert taken.signal == signal.SIGTERM and not got
        assert got == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with interruption() as taken:
            os.kill(os.getpid(), signal.SIGTERM)
            assert taken.signal is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_settings_are_refused(x, tmp_path):
    fit(make(), x, **OPTIONS, checkpoints=tmp_path)
    for name, value in {"learning_rate": 0.1, "batch_size": 10, "seed": 1, "epochs": 7}.items():
        with pytest.raises(UsageError, match=f"{name}={value} given, but training began with {name}="):
            fit(make(), x, **{**OPTIONS, name: value}, checkpoints=tmp_path, resume=True)


def test_another_model_is_refused(x, tmp_path):
    fit(make(), x, **OPTIONS, checkpoints=tmp_path)
    with pytest.raises(DataError, match="does not fit this model"):
        fit(make(vae2), x, **OPTIONS, checkpoints=tmp_path, resume=True)


def damage(path):
    """Turn over one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_taken(x, tmp_path, caplog):
    whole, model = make(), make()
    fit(whole, x, **OPTIONS, checkpoints=Checkpoints(tmp_path, every=4))
    checkpoints = Checkpoints(tmp_path, every=4)
    newest, older = checkpoints.steps()
    damage(checkpoints.path(newest))
    fit(model, x, **OPTIONS, checkpoints=checkpoints, resume=True)
    assert same(whole, model)
    assert "is damaged" in caplog.text or "cannot be loaded" in caplog.text
    for step in (newest, older):
        checkpoints.path(step).write_bytes(checkpoints.path(step).read_bytes()[:-7])
    with pytest.raises(DataError, match=r"none of the checkpoints in .* can be read"):
        fit(make(), x, **OPTIONS, checkpoints=checkpoints, resume=True)


def test_a_history_that_is_shorter_than_the_checkpoint_says_is_refused(x, tmp_path):
    fit(make(), x, **OPTIONS, checkpoints=tmp_path)
    lines = (tmp_path / "history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "history.jsonl").write_text("".join(lines[:-2]))
    with pytest.raises(DataError, match="holds 4 rows, expected at least 6"):
        fit(make(), x, **OPTIONS, checkpoints=tmp_path, resume=True)
    (tmp_path / "history.jsonl").write_text("nonsense\n" * 6)
    with pytest.raises(DataError, match=r"history\.jsonl is damaged"):
        fit(make(), x, **OPTIONS, checkpoints=tmp_path, resume=True)


@pytest.mark.parametrize("options", [{"every": 0}, {"keep": 0}, {"keep": True}])
def test_impossible_counts_are_refused(tmp_path, options):
    with pytest.raises(UsageError, match="expected a whole number of at least 1"):
        Checkpoints(tmp_path, **options)


def test_resume_needs_a_folder(x):
    with pytest.raises(UsageError, match="resume=True given without checkpoints"):
        fit(make(), x, **OPTIONS, resume=True)
