"""Shards shared out: the numbers of one process whoever does them, from every kind of source, after kills too."""

import copy
import math
import pickle
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vaentropy as ve
from vaentropy.data import Rows, load
from vaentropy.data.files import Options, source_of_file
from vaentropy.data.formats.images import ImageFolder
from vaentropy.data.formats.torch_dataset import TorchItems
from vaentropy.data.source import Part
from vaentropy.engines import Here, Processes
from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import Accumulator, evaluate
from vaentropy.expectation import GaussHermite, MonteCarlo
from vaentropy.importance import log_likelihood
from vaentropy.seeding import generator_of
from vaentropy.sharded import MOST_STRETCHES, Stretch, in_order, stretches

from .models import Toy
from .pages import ROOT
from .workers import Fatal, Sent, two_workers

X = torch.randn(230, 4, generator=torch.Generator().manual_seed(0))
WITH_NAN = torch.where(torch.rand(X.shape, generator=torch.Generator().manual_seed(1)) < 0.3, torch.nan, X)
WEIGHTS = torch.rand(len(X), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
CLOSE = 1e-12


def made(**more):
    torch.manual_seed(0)
    return ve.vae2(4, 2, (6,), **more)  # which torch does not pickle unasked


def numbers(x, name=""):
    """Every number of a result, by its name."""
    if isinstance(x, dict | list):
        items = x.items() if isinstance(x, dict) else enumerate(x)
        return {k: v for key, y in items for k, v in numbers(y, f"{name}.{key}").items()}
    return {name: x}


def same(found, expected):
    """Equal to 1e-12 of the largest term: small ones are differences of large ones."""
    ours, theirs = numbers(found.to_dict()), numbers(expected.to_dict())
    assert ours.keys() == theirs.keys()
    scale = max(abs(v) for v in theirs.values() if isinstance(v, float) and math.isfinite(v) and v != found.num_points)
    for name, value in theirs.items():
        if isinstance(value, float):
            assert ours[name] == pytest.approx(value, rel=CLOSE, abs=CLOSE * scale, nan_ok=True), name
        else:
            assert ours[name] == value, name
    for name, values in (expected.pointwise or {}).items():
        assert found.pointwise[name].equal(values), name


def by_hand(x, size, expectation):
    """Each shard as data of its own with a seed of its own, merged."""
    parts = []
    for number, shard in enumerate(x.split(size)):
        seed = generator_of(expectation.seed, "shard", number).initial_seed() if number else expectation.seed
        parts.append(evaluate(made(), shard, expectation=expectation.with_seed(seed)))
    return ve.Evaluation.merge(parts)


def test_each_shard_has_draws_of_its_own():
    how = MonteCarlo(4, seed=3)
    found = evaluate(made(), Rows(X, shard_size=100), expectation=how)
    same(found, by_hand(X, 100, how))
    assert found.expectation == how and found.mc_stderr is not None


def test_one_shard_is_the_tensor_to_the_bit():
    whole, tensor = (evaluate(made(), x, pointwise=True) for x in (Rows(X), X))
    assert whole.to_dict() == tensor.to_dict() and whole.pointwise["elbo"].equal(tensor.pointwise["elbo"])


def test_empty_shards_count_as_numbers():
    class Gaps(Rows):
        def __init__(self):
            super().__init__(X, shard_size=100)
            self._shards = (self._shards[0], X[:0], *self._shards[1:])
            self.shard_sizes = [len(shard) for shard in self._shards]

    full, gaps = evaluate(made(), Rows(X, shard_size=100), pointwise=True), evaluate(made(), Gaps(), pointwise=True)
    assert full.pointwise["elbo"][:100].equal(gaps.pointwise["elbo"][:100])
    assert not full.pointwise["elbo"][100:].equal(gaps.pointwise["elbo"][100:])


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (Rows(X, shard_size=70), {"sample_weight": WEIGHTS, "log_jacobian": torch.arange(4.0)}),
        (Rows(X, shard_size=70), {"sample_weight": torch.cat([torch.zeros(75), WEIGHTS[75:]]), "pointwise": True}),
        (Rows(WITH_NAN, shard_size=70), {"missing": "ignore", "sample_weight": WEIGHTS, "log_jacobian": 0.5}),
        (Rows(torch.cat([WITH_NAN[:80] * torch.nan, WITH_NAN[80:]]), shard_size=80), {"missing": "ignore"}),
        (Rows(X, shard_size=100), {"batch_size": 33, "pointwise": True, "expectation": GaussHermite(3)}),
        (Rows(X, shard_size=1000), {}),
    ],
    ids=["weights", "weights of 0", "missing", "a part is missing", "small batches", "one shard"],
)
def test_an_evaluation_is_that_of_one_process(data, how):
    seen = []
    how = {"expectation": MonteCarlo(2), **how}
    found = evaluate(made(), data, engine=Sent(times=2), on_batch=seen.append, **how)
    same(found, evaluate(made(), data, **how))
    assert sum(seen) == 2 * len(data)


def test_global_draws_are_those_of_the_shard():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh())
    model = ve.VAE(encoder, decoder, data_shape=(4,), latent_dim=2, decoder_features=2)
    data = Rows(X, shard_size=90)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    expected = evaluate(model, data, mode="train")
    same(evaluate(model, data, mode="train", engine=Sent()), expected)
    assert torch.get_rng_state().equal(state)
    # Posteriors that are drawn from as they are.
    toy = Toy(0, posterior="laplace")
    x = torch.randn(90, *toy.data_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, expected = (evaluate(toy, Rows(x, shard_size=20), engine=engine) for engine in (Here(), None))
    same(found, expected)
    assert found.elbo != evaluate(toy, Rows(x, shard_size=20), expectation=MonteCarlo(16, seed=1)).elbo


def test_conditions_are_sent_with_their_rows():
    c = torch.arange(len(X)).float()[:, None] / len(X)
    data = ve.given(Rows(X, shard_size=90), c)
    engine = Sent()
    expected = evaluate(made(condition=1), data)
    same(evaluate(made(condition=1), data, engine=engine), expected)
    same(evaluate(made(condition=1), ve.given(X, c), engine=engine), evaluate(made(condition=1), ve.given(X, c)))
    assert evaluate(made(condition=1), ve.given(Rows(X, shard_size=90), c.flip(0))).elbo != expected.elbo


def bound(batch):
    return made(), batch * 2


def test_bind_is_sent():
    data = Rows(X, shard_size=50)
    expected = evaluate(made(), Rows(X * 2, shard_size=50))
    same(evaluate(made(), data, bind=bound, engine=Sent()), expected)
    with pytest.raises(UsageError, match=r"cannot be sent to another process \(.*lambda.*or use one worker"):
        evaluate(made(), data, bind=lambda batch: (made(), batch), engine=Processes(2))


@pytest.mark.parametrize("how", [{"sample_weight": WEIGHTS, "pointwise": True}, {"seed": 4, "mode": "train"}])
def test_log_likelihoods_are_those_of_one_process(how):
    data = Rows(X, shard_size=90)
    found, expected = (log_likelihood(made(), data, num_samples=6, engine=e, **how) for e in (Sent(), None))
    same(found, expected)
    assert found.effective_sample_size == expected.effective_sample_size


def test_a_model_that_knows_its_log_likelihood_is_asked_by_the_workers():
    model = ve.LinearVAE.optimum(X.double(), latent_dim=2)
    found = log_likelihood(model, Rows(X.double(), shard_size=90), num_samples=3, engine=Sent())
    assert found.exact and found.value == pytest.approx(model.log_likelihood(X.double()).mean().item(), rel=CLOSE)


def files(folder):
    """One table in every kind of file, of several shards each, and what else is a source."""
    x = X.numpy()
    table = pa.table({name: x[:, i] for i, name in enumerate("abcd")})
    parquet.write_table(table, folder / "x.parquet", row_group_size=70)
    (folder / "parts").mkdir()
    for number in range(3):
        parquet.write_table(table.slice(80 * number, 80), folder / "parts" / f"{number}.parquet")
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", x=x)
    np.savetxt(folder / "x.csv", x, delimiter=",", header="a,b,c,d", comments="", fmt="%.9g")
    np.savetxt(folder / "x.csv.gz", x, delimiter=",", header="a,b,c,d", comments="", fmt="%.9g")
    return [folder / name for name in ("x.parquet", "parts", "x.npy", "x.npz", "x.csv", "x.csv.gz")]


@pytest.fixture
def short_shards(monkeypatch):
    """Shards of 80 rows wherever a source may cut where it likes."""
    for module in ("arrays", "csv_file", "torch_dataset"):
        monkeypatch.setattr(f"vaentropy.data.formats.{module}.rows_per_shard", lambda shape: 80)


@pytest.mark.slow
def test_every_source_can_be_sent(tmp_path, short_shards):
    model, few, seen = made(), MonteCarlo(4), {}
    for path in files(tmp_path):
        source = source_of_file(path, Options())
        next(iter(source))  # as where a file was being read
        assert len(source.shard_sizes) > 2
        expected = evaluate(model, source, expectation=few)
        same(evaluate(model, source, expectation=few, engine=Sent()), expected)
        seen[path.name] = expected.elbo
    assert max(seen.values()) - min(seen.values()) < 0.2  # the same rows with other draws
    same(evaluate(model, TensorDataset(X), engine=Sent()), evaluate(model, TensorDataset(X)))


def test_loaded_data_can_be_sent(tmp_path, short_shards):
    np.save(tmp_path / "x.npy", (X * 10).round().numpy())
    data = load(tmp_path / "x.npy", held_out=0.3, stream=True, dequantise=True, scale="standard")
    for part in (data.train, data.held_out):
        same(evaluate(made(), part, engine=Sent()), evaluate(made(), part))


def images(folder, number):
    folder.mkdir()
    for each in range(number):
        Image.new("L", (1, 1), each % 256).save(folder / f"{each:04d}.png")
    return folder


def test_no_more_than_its_own_rows_are_sent_with_a_task(tmp_path):
    x = torch.zeros(20_000, 4)
    sources = Rows(x, shard_size=5000), ve.given(Rows(x, shard_size=5000), x[:, :2])
    whole = x.numel() * x.element_size()
    for source, model in zip(sources, (made(), made(condition=2)), strict=True):
        engine = Sent()
        evaluate(model, source, engine=engine, sample_weight=torch.ones(len(x)), expectation=MonteCarlo(1))
        assert len(engine.sizes) == 4 and max(engine.sizes) < whole / 1.9
    # Nor the places of others in files.
    pictures = ImageFolder(images(tmp_path / "images", 260))
    parquet.write_table(pa.table({"a": np.zeros(300)}), tmp_path / "x.parquet", row_group_size=2)
    table = source_of_file(tmp_path / "x.parquet", Options())
    for source, shard in ((pictures, 1), (table, 100)):
        part = pickle.loads(pickle.dumps(task := Stretch(source, range(shard, shard + 1), 0, 1)))
        assert len(pickle.dumps(task)) < len(pickle.dumps(source)) / 2
        assert part.source.read(shard).equal(source.read(shard)) and part.source.place(shard) == source.place(shard)
    # What comes back is sums, with nothing of the data.
    sizes = []
    for rows in (x, x.repeat(2, 1)):
        accumulator = Accumulator(made(), expectation=MonteCarlo(1))
        accumulator.through(rows, batch_size=None, on_batch=None)
        sizes.append(len(pickle.dumps(accumulator.counted())))
    assert sizes[1] < 1.1 * sizes[0]


def of_many(folder, kind, rows):
    """A source of shards of two rows each, of a kind."""
    x = torch.arange(4.0 * rows).reshape(rows, 4)
    if kind == "rows":
        return Rows(x, shard_size=2)
    if kind == "torch dataset":
        return TorchItems(TensorDataset(x))
    path = folder / f"{rows}.{kind}"
    if kind == "npy":
        np.save(path, x.numpy())
    elif kind == "parquet":
        parquet.write_table(pa.table({name: x[:, i].numpy() for i, name in enumerate("abcd")}), path, row_group_size=2)
    else:
        np.savetxt(path, x.numpy(), delimiter=",")
    return source_of_file(path, Options())


@pytest.mark.parametrize("kind", ["rows", "torch dataset", "npy", "parquet", "csv", "csv.gz"])
def test_a_task_does_not_grow_with_the_shards_of_others(tmp_path, monkeypatch, kind):
    for module in ("arrays", "csv_file", "torch_dataset"):
        monkeypatch.setattr(f"vaentropy.data.formats.{module}.rows_per_shard", lambda shape: 2)
    sizes = []
    for rows in (400, 800):
        whole = of_many(tmp_path, kind, rows)
        sources = [whole, Part(whole, 0.5, seed=3, held_out=False), ve.given(whole, torch.arange(rows)[:, None])]
        assert all(len(source.shard_sizes) == rows // 2 for source in sources)
        task = [Stretch(source, range(90, 93), 180, 6) for source in sources]
        sizes.append([len(pickle.dumps(each)) for each in task])
        for source, part in zip(sources, pickle.loads(pickle.dumps(task)), strict=True):
            for shard in part.shards:
                assert part.source.read(shard).equal(source.read(shard))
                assert part.source.shard_sizes[shard] == source.shard_sizes[shard]
                assert part.source.place(shard) == source.place(shard)
            assert len(part.source.shard_sizes) == len(source.shard_sizes)
    # Lengths of a path, and numbers of more bytes.
    assert all(one - 20 < two < one + 20 for one, two in zip(*sizes, strict=True))


def test_stretches_are_consecutive_and_of_about_equal_rows():
    class Sizes(Rows):
        def __init__(self, sizes):
            super().__init__(torch.zeros(1, 1))
            self.shard_sizes = sizes

    sizes = torch.randint(0, 50, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    parts = stretches(Sizes(sizes), 100)
    assert [shard for part in parts for shard in part.shards] == list(range(parts[-1].shards.stop))
    assert sum(sizes[parts[-1].shards.stop :]) == 0
    assert [part.first_row for part in parts] == [sum(sizes[: part.shards.start]) for part in parts]
    assert all(100 <= part.num_rows == sum(sizes[n] for n in part.shards) < 150 for part in parts[:-1])
    assert [part.num_rows for part in stretches(Sizes([0, 3, 0, 0]), 2)] == [3]
    assert [part.num_rows for part in stretches(Sizes([5, 1, 0, 0]), 2)] == [5, 1]
    assert [part.num_rows for part in stretches(Sizes([1] * 10), most=4)] == [3, 3, 3, 1]
    assert len(stretches(Sizes([1] * 2000), most=None)) == 2000 > MOST_STRETCHES >= len(stretches(Sizes([1] * 2000)))


def test_rows_in_errors_are_counted_over_all_shards():
    spoiled = X.clone()
    spoiled[137, 2] = math.inf
    for engine in (None, Here()):
        with pytest.raises(DataError, match=r"row 137, column 2 .* is inf"):
            evaluate(made(), Rows(spoiled, shard_size=20), engine=engine)


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(UsageError, match="DataLoader given as data with an engine, expected rows"):
        evaluate(made(), DataLoader(TensorDataset(X), 10), engine=Sent())
    with pytest.raises(UsageError, match="sample_weight holds 229 numbers for 230 data points"):
        evaluate(made(), Rows(X, shard_size=20), sample_weight=torch.ones(229), engine=Sent())
    with pytest.raises(DataError, match="every value is missing"):
        evaluate(made(), Rows(X * torch.nan, shard_size=20), missing="ignore", engine=Sent())
    with pytest.raises(DataError, match="no data points given"):
        evaluate(made(), X[:0], engine=Sent())


def late(task, report):
    """Begin and end of a task, of which the first takes long."""
    begin = time.monotonic()
    time.sleep(1.5 if task == 0 else 0.01)
    return begin, time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_results_do_not_pile_up_behind_a_slow_task(kind, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    times = list(in_order(two_workers(kind), late, range(12), lambda note="", advance=1: None, ahead=2))
    assert all(begin < times[0][1] for begin, _ in times[:3])
    assert all(begin > times[0][1] for begin, _ in times[4:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_rows_of_killed_workers_count_once(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    source = Rows(X, shard_size=10)
    expected, seen = evaluate(made(), source, pointwise=True), []
    deadly = Fatal(source, (0, 11, 22), tmp_path)
    same(evaluate(made(), deadly, pointwise=True, engine=two_workers(kind), on_batch=seen.append), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["read-0", "read-11", "read-22"]
    assert sum(seen) == len(X)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_an_evaluation_under_way_is_copied_whole(again):
    expected = evaluate(made(), X, batch_size=80, sample_weight=WEIGHTS, pointwise=True)
    accumulator = Accumulator(made(), sample_weight=WEIGHTS, pointwise=True)
    for number, batch in enumerate(X.split(80)):
        with accumulator.running():
            accumulator.take(batch)
        if number == 0:
            accumulator = again(accumulator)
    same(accumulator.evaluation(), expected)
