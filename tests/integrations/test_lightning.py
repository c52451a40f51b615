"""The Lightning callback in real Trainers of both packages."""

import copy
import csv
import json
import logging
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

import vaentropy as ve
from vaentropy.diagnosis.latents import latents_of
from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.expectation import Frozen, GaussHermite, MonteCarlo, Sobol
from vaentropy.gathered import merged, of_rank, packed, unpacked
from vaentropy.integrations._trainers import padding_of
from vaentropy.integrations.lightning import EntropyCallback

from .vaes import bind, data, loader, model_of, module, trainer

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
LIGHTNING = PACKAGES[0]
METRICS = (
    "elbo",
    "reconstruction",
    "kl",
    "encoder_entropy",
    "prior_entropy",
    "decoder_entropy",
    "entropy_sum",
    "gap",
    "prior_gap",
    "decoder_gap",
    "relative_gap",
    "active_latents",
)

pytestmark = [
    # Lightning's own: of its use of torch, and advice to users with more cores and larger data.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]


@pytest.fixture(scope="module", params=PACKAGES)
def package(request):
    """Each of the two; the other may have been imported before."""
    import_module(request.param)
    return request.param


def numbers(evaluation, model):
    """What the callback should log, by the names of the evaluation's own fields."""
    e = evaluation
    named = {name: getattr(e, name) for name in METRICS if hasattr(e, name)}
    named |= {f"{name}_entropy": getattr(e.entropies, name) for name in ("encoder", "prior", "decoder")}
    collapsed = latents_of(model, e).which("collapsed")
    return {**named, "active_latents": len(e.kl_per_latent) - len(collapsed)}


def snapshots(package):
    """A callback that keeps a copy of the module after each epoch of training, before validation changes anything."""
    kept = []

    class Snapshots(import_module(package).Callback):
        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                kept.append(copy.deepcopy(pl_module.state_dict()))

    return Snapshots(), kept


def test_two_epochs_log_what_evaluate_finds(package, tmp_path):
    x, held_out = data(40), data(23, seed=1)
    callback = EntropyCallback(bind)
    keeping, kept = snapshots(package)
    logger = import_module(f"{package}.loggers").CSVLogger(tmp_path)
    lit = module(package)
    trainer(package, callback, keeping, folder=tmp_path, logger=logger).fit(lit, loader(x), loader(held_out))
    logger.finalize("success")
    assert isinstance(callback, import_module(package).Callback)
    assert [row["epoch"] for row in callback.history] == [0, 1] and [row["step"] for row in callback.history] == [8, 16]
    for row, weights in zip(callback.history, kept, strict=True):
        lit.load_state_dict(weights)
        expected = numbers(ve.evaluate(model_of(lit), held_out, batch_size=5), model_of(lit))
        assert {name.removeprefix("val/") for name in row} == {"epoch", "step", *METRICS}
        for name in METRICS:
            assert row[f"val/{name}"] == pytest.approx(expected[name], rel=1e-12, abs=1e-12), name
    assert callback.history[0]["val/elbo"] != callback.history[1]["val/elbo"]
    assert callback.evaluation.num_points == 23 and callback.evaluation.elbo == callback.history[1]["val/elbo"]
    with open(Path(logger.log_dir) / "metrics.csv") as lines:
        logged = [row for row in csv.DictReader(lines) if row["val/elbo"]]
    for row, written in zip(callback.history, logged, strict=True):
        # Lightning logs in single precision.
        assert {name: float(written[name]) for name in row if name.startswith("val/")} == pytest.approx(
            {name: value for name, value in row.items() if name.startswith("val/")}, rel=1e-6
        )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_training_is_the_same_with_and_without(mode, tmp_path):
    """Dropout draws from the global generator, and BatchNorm keeps statistics: both show in the weights."""
    ends = []
    for callbacks in ((), (EntropyCallback(bind, mode=mode),)):
        lit = module(LIGHTNING)
        torch.manual_seed(1)
        trainer(LIGHTNING, *callbacks, folder=tmp_path).fit(lit, loader(data(40)), loader(data(23, seed=1)))
        ends.append((lit.state_dict(), torch.get_rng_state(), lit.training))
    for name, weight in ends[0][0].items():
        assert torch.equal(weight, ends[1][0][name]), name
    assert torch.equal(ends[0][1], ends[1][1]) and ends[0][2] == ends[1][2]


def test_modes_are_two_objectives(tmp_path):
    lit, x = module(LIGHTNING), data()
    elbos = {}
    for mode in ("eval", "train"):
        callback = EntropyCallback(bind, mode=mode)
        trainer(LIGHTNING, callback, folder=tmp_path).validate(lit, loader(x), verbose=False)
        elbos[mode] = callback.evaluation.elbo
        # Not of the loader: to begin with, it draws from the generator that dropout draws from.
        expected = ve.evaluate(model_of(lit), x, batch_size=5, mode=mode)
        assert elbos[mode] == pytest.approx(expected.elbo, rel=1e-12)
    assert elbos["eval"] != elbos["train"]


def test_the_sanity_check_is_left_out(tmp_path):
    calls = []

    def counting(lit, batch):
        calls.append(lit.trainer.sanity_checking)
        return bind(lit, batch)

    callback = EntropyCallback(counting)
    fitting = trainer(LIGHTNING, callback, folder=tmp_path, num_sanity_val_steps=2)
    fitting.fit(module(LIGHTNING), loader(data(10)), loader(data(10)))
    assert len(callback.history) == 2 and calls == [False] * 4


def test_the_history_goes_on_with_the_trainers_checkpoint(tmp_path):
    x, held_out = data(40), data(23, seed=1)
    before, after = EntropyCallback(bind), EntropyCallback(bind)
    first = trainer(LIGHTNING, before, folder=tmp_path, max_epochs=1)
    first.fit(module(LIGHTNING), loader(x), loader(held_out))
    first.save_checkpoint(tmp_path / "first.ckpt")
    # Nothing but plain values: it is read without running code.
    read = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert read["callbacks"][before.state_key] == {"history": before.history}
    second = trainer(LIGHTNING, after, folder=tmp_path, max_epochs=2)
    second.fit(module(LIGHTNING, seed=5), loader(x), loader(held_out), ckpt_path=tmp_path / "first.ckpt")
    assert [row["epoch"] for row in after.history] == [0, 1] and after.history[1]["step"] == 16
    assert after.history[0] == before.history[0] and len(before.history) == 1


def test_checkpoints_can_be_chosen_by_the_elbo(tmp_path):
    callback = EntropyCallback(bind)
    best = import_module(f"{LIGHTNING}.callbacks").ModelCheckpoint(tmp_path, monitor="val/elbo", mode="max")
    stopping = import_module(f"{LIGHTNING}.callbacks").EarlyStopping("val/gap", patience=5)
    trainer(LIGHTNING, callback, best, stopping, folder=tmp_path, enable_checkpointing=True).fit(
        module(LIGHTNING), loader(data(40)), loader(data(23))
    )
    assert float(best.best_model_score) == pytest.approx(max(row["val/elbo"] for row in callback.history), rel=1e-6)


LOADERS = {
    "list": (lambda a, b: [a, b], ("0", "1")),
    "dict": (lambda a, b: {"seen": a, "new": b}, ("seen", "new")),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("wanted", [None, "first", "second by index"])
def test_several_dataloaders(kind, wanted, tmp_path):
    make, names = LOADERS[kind]
    parts = (data(12, seed=2), data(9, seed=3))
    callback = EntropyCallback(bind, dataloaders={None: None, "first": [names[0]], "second by index": [1]}[wanted])
    lit = module(LIGHTNING)
    (logged, *_) = trainer(LIGHTNING, callback, folder=tmp_path).validate(lit, make(*map(loader, parts)), verbose=False)
    expected = {f"val/{n}": ve.evaluate(model_of(lit), p, batch_size=5).elbo for n, p in zip(names, parts, strict=True)}
    left_out = {None: None, "first": f"val/{names[1]}", "second by index": f"val/{names[0]}"}[wanted]
    expected.pop(left_out, None)
    assert {name: e.elbo for name, e in callback.evaluations.items()} == pytest.approx(expected, rel=1e-12)
    assert callback.evaluation is callback.evaluations[next(iter(expected))]
    assert f"{next(iter(expected))}/elbo" in logged


def test_validate_and_test_outside_of_training(tmp_path):
    lit, callback = module(LIGHTNING), EntropyCallback(bind, prefix="ours/")
    fitting = trainer(LIGHTNING, callback, folder=tmp_path, max_epochs=1)
    fitting.fit(lit, loader(data(10)), loader(data(10)))
    # Of other dataloaders than those of fit.
    fitting.validate(lit, [loader(data(6)), loader(data(7))], verbose=False)
    assert [e.num_points for e in callback.evaluations.values()] == [6, 7]
    (logged,) = fitting.test(lit, loader(x := data(8, seed=4)), verbose=False)
    assert set(callback.evaluations) == {"ours/test"}
    assert callback.evaluation.gap == pytest.approx(ve.evaluate(model_of(lit), x, batch_size=5).gap, rel=1e-12)
    assert {f"ours/test/{name}" for name in METRICS} == set(logged)
    assert len(callback.history) == 1 and "ours/val/elbo" in callback.history[0]


def test_missing_values_and_units(tmp_path):
    x = data()
    x[3, 1] = torch.nan
    lit = module(LIGHTNING, validation_step=lambda self, batch, batch_idx: None)
    callback = EntropyCallback(bind, missing="ignore", log_jacobian=-1.5)
    (logged,) = trainer(LIGHTNING, callback, folder=tmp_path).validate(lit, loader(x), verbose=False)
    expected = ve.evaluate(model_of(lit), x, batch_size=5, missing="ignore", log_jacobian=-1.5)
    assert callback.evaluation.data_elbo == pytest.approx(expected.data_elbo, rel=1e-12)
    assert logged["val/bits_per_dim"] == pytest.approx(expected.bits_per_dim, rel=1e-6)


# --- Several processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 7, 23])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_point_counts_once(world, n, shuffle):
    counted = []
    for rank in range(world):
        sampler = DistributedSampler(range(n), world, rank, shuffle=shuffle)
        for batch_idx, batch in enumerate(given := DataLoader(range(n), batch_size=3, sampler=sampler)):
            padding, rows = padding_of(given, batch_idx)
            assert rows in (0, len(batch))
            counted += batch[: len(batch) - padding].tolist()
    assert sorted(counted) == list(range(n))


def test_other_samplers_repeat_nothing():
    assert padding_of(DataLoader(range(5), batch_size=2), 2) == (0, 0)
    assert padding_of(DataLoader(range(5), batch_size=None), 2) == (0, 0)
    assert padding_of([1, 2], 0) == (0, 0)
    batches = BatchSampler(SequentialSampler(range(5)), 2, drop_last=False)
    assert padding_of(DataLoader(range(5), batch_sampler=batches), 2) == (0, 0)
    dropping = DistributedSampler(range(5), 2, 1, drop_last=True)
    assert padding_of(DataLoader(range(5), batch_size=2, sampler=dropping), 0) == (0, 0)


def same(actual, expected):
    """Equal evaluations, up to rounding: all numbers, vectors among them."""
    a, b = actual.to_dict(), expected.to_dict()
    a.pop("mc_stderr"), b.pop("mc_stderr")
    assert flat(a) == pytest.approx(flat(b), rel=1e-9, abs=1e-12, nan_ok=True)
    assert (actual.num_points, actual.sampled) == (expected.num_points, expected.sampled)


def flat(x, name=""):
    if isinstance(x, dict | list):
        items = x.items() if isinstance(x, dict) else enumerate(x)
        return {k: v for key, y in items for k, v in flat(y, f"{name}.{key}").items()}
    return {name: x} if isinstance(x, int | float) else {}


@pytest.mark.parametrize("expectation", [MonteCarlo(3, seed=4), Sobol(8), GaussHermite(3), MonteCarlo(1)])
def test_sums_travel_as_bytes(expectation):
    e = ve.evaluate(model_of(module(LIGHTNING)), data(), expectation=expectation)
    there = unpacked(packed(e), expectation.with_seed(0) if expectation.independent else expectation)
    assert flat(there.to_dict()) == pytest.approx(flat(e.to_dict()), rel=0, abs=0, nan_ok=True)
    assert there.expectation == expectation and there.latent_moments.num_points == 23
    assert torch.equal(there.latent_moments.covariance, e.latent_moments.covariance)
    assert unpacked(packed(None), expectation) is None


@pytest.mark.parametrize("sizes", [(12, 11), (0, 23), (5, 0, 18), (23,)])
def test_merged_parts_are_the_whole(sizes):
    x, model, expectation = data(), model_of(module(LIGHTNING)), Frozen(num_samples=5)
    parts = [ve.evaluate(model, part, expectation=expectation) if len(part) else None for part in x.split(sizes)]
    contents = [packed(part) for part in parts]
    longest = max(map(len, contents))
    filled = [torch.cat([c, torch.zeros(longest - len(c), dtype=torch.uint8)]) for c in contents]

    def gather(tensor):
        """What all processes have, told by the dtype: lengths, or contents."""
        return torch.stack(filled) if tensor.dtype == torch.uint8 else torch.tensor([[len(c)] for c in contents])

    for part in parts:
        same(merged(part, expectation, gather, torch.device("cpu")), ve.evaluate(model, x, expectation=expectation))


def test_no_process_has_data():
    assert merged(None, Frozen(), lambda tensor: torch.zeros(2, 1, dtype=torch.int64), torch.device("cpu")) is None


def test_each_process_has_draws_of_its_own():
    seeds = [of_rank(MonteCarlo(2, seed=7), rank).seed for rank in range(4)]
    assert seeds[0] == 7 and len(set(seeds)) == 4
    assert of_rank(Sobol(8), 3) == Sobol(8)


def test_rows_that_bind_leaves_out_are_said(tmp_path, caplog):
    """With fewer rows than the batch has, it is not known which of them repeat others."""
    sampler = DistributedSampler(data(5), 2, 1, shuffle=False)
    given = DataLoader(data(5), batch_size=4, sampler=sampler)
    lit = module(LIGHTNING, validation_step=lambda self, batch, batch_idx: None)
    for rows, expected in ((3, 2), (2, 2)):
        callback = EntropyCallback(lambda lit, x, rows=rows: (model_of(lit), x[:rows]))
        with caplog.at_level(logging.WARNING):
            trainer(LIGHTNING, callback, folder=tmp_path).validate(lit, given, verbose=False)
        assert callback.evaluation.num_points == expected
    (said,) = [r.message for r in caplog.records if "cannot be told" in r.message]
    assert said.startswith("bind made 2 rows of a batch of 3: which of them a DistributedSampler repeats")


def run_in_processes(devices, folder):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    script = Path(__file__).parent / "processes.py"
    subprocess.run([sys.executable, script, str(devices), folder], env=environment, check=True, timeout=300)
    return [json.loads((Path(folder) / f"{devices}-{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    (one,), two = run_in_processes(1, tmp_path), run_in_processes(2, tmp_path)
    assert two[0] == two[1]
    lit, x = module(LIGHTNING), data(23)
    for name, expectation in (("frozen", Frozen()), ("gauss-hermite", GaussHermite(3))):
        expected = ve.evaluate(model_of(lit), x, batch_size=5, expectation=expectation)
        for result in (one, two[0]):
            assert result[name]["num_points"] == 23
            found = flat({k: v for k, v in result[name].items() if k != "mc_stderr"})
            theirs = expected.to_dict()
            theirs.pop("mc_stderr")
            assert found == pytest.approx(flat(theirs), rel=1e-9, abs=1e-12)
    first, second = one["monte-carlo"], two[0]["monte-carlo"]
    error = (first["mc_stderr"]["elbo"] ** 2 + second["mc_stderr"]["elbo"] ** 2) ** 0.5
    assert first["elbo"] != second["elbo"] and abs(first["elbo"] - second["elbo"]) < 5 * error
    assert second["stderr"]["elbo"] == pytest.approx(first["stderr"]["elbo"], rel=0.2)
    assert len(two[0]["history"]) == 2 and two[0]["history"][1]["step"] == 6


# --- Packages, pickles and mistakes -----------------------------------------------------------------------------------


def test_one_callback_serves_the_packages_that_are_imported(monkeypatch):
    callbacks = [import_module(name).Callback for name in PACKAGES]
    both = EntropyCallback(bind)
    assert all(isinstance(both, each) for each in callbacks) and isinstance(both, EntropyCallback)
    assert type(both) is type(EntropyCallback(bind))
    for name, other in (PACKAGES, PACKAGES[::-1]):
        with monkeypatch.context() as without:
            without.delitem(sys.modules, other)
            one = EntropyCallback(bind)
        assert [isinstance(one, each) for each in callbacks] == [name == each for each in PACKAGES]


def test_neither_package_is_one_line(monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingExtraError, match=r"lightning is not installed; run: pip install 'vaentropy\[lightning\]'"
    ):
        EntropyCallback(bind)


@pytest.mark.slow
def test_the_module_is_imported_without_lightning():
    code = (
        "import sys, vaentropy.integrations.lightning; assert not {'lightning', 'pytorch_lightning'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Own(EntropyCallback):
    pass


@pytest.mark.parametrize("kind", [EntropyCallback, Own])
def test_a_callback_can_be_sent_to_another_process(kind):
    callback = kind(bind, prefix="a/")
    callback.load_state_dict({"history": [{"epoch": 0, "a/val/elbo": -1.5}]})
    for there in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
        assert type(there) is type(callback) and there.bind is bind and there.history == callback.history
        assert there.state_key == callback.state_key


WRONG = {
    "mode": ({"mode": "other"}, "mode='other' given, expected 'eval' or 'train'"),
    "missing": ({"missing": "drop"}, "missing='drop' given"),
    "no dataloaders": ({"dataloaders": []}, r"dataloaders=\[\] given, expected indices or keys"),
    "log_jacobian": ({"log_jacobian": float("nan")}, "log_jacobian holds a non-finite number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_one_line(case):
    options, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        EntropyCallback(bind, **options)


RETURNED = {
    "no pair": (lambda lit, batch: batch[0], "bind returned Tensor, expected the pair"),
    "no tensor": (
        lambda lit, batch: (model_of(lit), batch),
        r"bind returned \(_FunctionModel, list\), expected",
    ),
    "no model": (
        lambda lit, batch: (lit, batch[0]),
        "a model of type LitVAE given, expected one with posterior",
    ),
}


@pytest.mark.parametrize("case", RETURNED)
def test_what_bind_returns_is_checked(case, tmp_path):
    wrong, message = RETURNED[case]
    with pytest.raises(UsageError, match=message):
        trainer(LIGHTNING, EntropyCallback(wrong), folder=tmp_path).validate(
            module(LIGHTNING), loader(data()), verbose=False
        )


def test_dataloaders_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"dataloaders=\[3\] given, expected some of 0, by index or name"):
        trainer(LIGHTNING, EntropyCallback(bind, dataloaders=[3]), folder=tmp_path).validate(
            module(LIGHTNING), loader(data()), verbose=False
        )
