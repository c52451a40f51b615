"""Trainings for one process or several; each writes what it comes to, to files of its own.

python together.py FOLDER NAME ..., in each of the processes, with the variables that torchrun sets.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vaentropy import VAE, Gaussian, MonteCarlo, given, vae0, vae1, vae2, vae3
from vaentropy.data import Rows, batches, pca
from vaentropy.errors import VaentropyError
from vaentropy.expectation import Frozen, GaussHermite
from vaentropy.likelihoods import Bernoulli
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.priors import LearnedNormal
from vaentropy.training import Checkpoints, fit, warmup

DEVICE = os.environ.get("VAENTROPY_TEST_DEVICE", "cpu")
X = pca(203, 5, 2, seed=3)[0]
HELD_OUT = pca(31, 5, 2, seed=4)[0]
STEPS = 209
OPTIONS = {"epochs": 19, "batch_size": 20, "progress": False}


def with_holes(x):
    """Values missing here and there, and two rows without any."""
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    gone[10:12] = True
    return x.masked_fill(gone, torch.nan)


def made(family=vae1, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return family(5, 2, (8, 8), **options).to(DEVICE, dtype)


def built(likelihood=None, columns="free", encoder=()):
    torch.manual_seed(0)
    encoder = nn.Sequential(MLPEncoder(5, (8, 8)), *encoder)
    how = {"likelihood": likelihood, "prior": LearnedNormal(), "columns": columns}
    return VAE(encoder, MLPDecoder((8, 8)), data_shape=5, latent_dim=2, **how).double()


def convolutional():
    torch.manual_seed(0)
    networks = ConvEncoder((1, 8, 8), (4, 4)), ConvDecoder((1, 8, 8), (4, 4))
    return vae3((1, 8, 8), 2, networks=networks).double()


def of_few_rows():
    """Batches of one row or two: a process often has none."""
    return {"data": X[:13], "held_out": X[:1], "epochs": 25, "batch_size": 2}


IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

# What makes the model, and arguments of `fit` beside OPTIONS.
TRAININGS = {
    "vae0": (lambda: made(vae0), {}),
    "vae1": (made, {}),
    "vae2": (lambda: made(vae2), {}),
    "vae3": (lambda: made(vae3), {}),
    "float32": (lambda: made(dtype=torch.float32), {}),
    "learned prior, a variance for each feature": (lambda: built(Gaussian(variance="per_feature")), {}),
    "learned variances": (lambda: made(vae3), {"variances": "learned", "variance_learning_rate": 1e-2}),
    "columns of norm 1 by a penalty": (lambda: built(columns="penalty"), {}),
    "Bernoulli": (lambda: built(Bernoulli()), {"data": (X > 0).double(), "held_out": None}),
    "missing values": (made, {"data": with_holes(X), "missing": "ignore"}),
    "missing values, a variance for each feature": (
        lambda: built(Gaussian(variance="per_feature")),
        {"data": with_holes(X), "missing": "ignore"},
    ),
    "missing values, vae3": (lambda: made(vae3), {"data": with_holes(X), "missing": "ignore"}),
    "clipped": (made, {"clip_norm": 0.5}),
    "many draws": (made, {"expectation": MonteCarlo(50)}),
    "many draws, a variance for each feature": (
        lambda: built(Gaussian(variance="per_feature")),
        {"expectation": MonteCarlo(50)},
    ),
    "draws of unequal weight": (lambda: made(vae3), {"expectation": GaussHermite(3)}),
    "draws that all share": (made, {"expectation": Frozen(num_samples=4), "evaluation_expectation": Frozen()}),
    "few rows": (made, of_few_rows()),
    "few rows, vae3": (lambda: made(vae3), of_few_rows()),
    "convolutions": (convolutional, {"data": IMAGES, "held_out": None, "batch_size": 9, "epochs": 8}),
    "a source": (made, {"data": Rows(X, shard_size=17), "held_out": Rows(HELD_OUT, shard_size=7)}),
    "a source of many windows": (made, {"data": Rows(X, shard_size=17), "held_out": None}),
    "a source of windows smaller than batches": (
        lambda: made(vae3),
        {"data": Rows(X, shard_size=3), "held_out": None, "epochs": 60, "batch_size": 50},
    ),
    "conditions": (
        lambda: made(vae3, condition=2),
        {"data": given(X, X[:, :2].square()), "held_out": given(HELD_OUT, HELD_OUT[:, :2].square())},
    ),
    "parts of batches": (made, {"micro_batch_size": 3}),
    "parts of batches, learned variances": (
        lambda: built(columns="penalty"),
        {"micro_batch_size": 7, "variances": "learned", "clip_norm": 0.5},
    ),
    "parts of batches, missing values, vae3": (
        lambda: made(vae3),
        {"data": with_holes(X), "missing": "ignore", "micro_batch_size": 4},
    ),
    "parts of few rows, vae3": (lambda: made(vae3), {**of_few_rows(), "batch_size": 4, "micro_batch_size": 1}),
    "beta that moves": (made, {"beta": warmup(0.5), "schedule": "constant"}),
    "stops early": (
        made,
        {"data": X[:30], "epochs": 150, "batch_size": 10, "patience": 3, "evaluate_every": 5, "learning_rate": 2e-2},
    ),
    "a plateau": (lambda: made(vae0), {"epochs": 60, "batch_size": 50, "plateau": 0.5}),
    "diverges": (lambda: made(vae3), {"learning_rate": 3.0, "schedule": "constant", "epochs": 6}),
}


def train(name, folder=None, **others):
    """The model and the history of a training."""
    make, options = TRAININGS[name]
    model = make()
    options = {**OPTIONS, "data": X, "held_out": HELD_OUT, **options, **others}
    data = options.pop("data")
    with small_windows() if "windows" in name else nullcontext():
        return model, fit(model, data, **options)


@contextmanager
def small_windows(rows=30):
    """What is shuffled together is so many rows of the data here, at the most."""
    before, batches.BUFFER_BYTES = batches.BUFFER_BYTES, rows * X[0].numel() * X.itemsize
    try:
        yield
    finally:
        batches.BUFFER_BYTES = before


def kept(model, history):
    """What is compared: numbers by name."""
    return {
        "rows": [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows],
        "evaluations": {n: e for n, e in history.to_dict().items() if n != "rows"},
        "stopped": history.stopped,
        "points": history.train.num_points,
    }


# --- What else processes do -------------------------------------------------------------------------------------------


def shares(folder):
    """How many rows the encoder sees in each training step."""
    model, seen = made(), []
    model.encoder.register_forward_hook(lambda module, rows, features: seen.append((module.training, len(rows[0]))))
    fit(model, X, **OPTIONS)
    return {"rows": [count for training, count in seen if training]}


class Counted(Rows):
    """Rows, and the shards that were read."""

    def __init__(self, x, **options):
        super().__init__(x, **options)
        self.was_read = []

    def read(self, shard):
        self.was_read.append(shard)
        return super().read(shard)


def reads(folder):
    """Which shards a process reads in each epoch of a training, and how many there are."""
    from vaentropy.training import loop

    source, of_epochs, real = Counted(X, shard_size=17), [], loop.Loop._epoch

    def epoch(self):
        source.was_read.clear()
        real(self)

    def end_epoch(self, means, end=loop.Loop._end_epoch):
        of_epochs.append(list(source.was_read))  # before evaluations
        end(self, means)

    loop.Loop._epoch, end_before, loop.Loop._end_epoch = epoch, loop.Loop._end_epoch, end_epoch
    try:
        with small_windows():
            fit(made(), source, **{**OPTIONS, "epochs": 3})
    finally:
        loop.Loop._epoch, loop.Loop._end_epoch = real, end_before
    return {"epochs": of_epochs, "shards": len(source.shard_sizes)}


def unreadable(folder):
    """A row that cannot be used, which one process reads, and what both say."""
    x = X.clone()
    x[150, 2] = torch.nan
    try:
        with small_windows():
            fit(made(), Rows(x, shard_size=17), **OPTIONS)
    except VaentropyError as error:
        return {"said": f"{type(error).__name__}: {error}"}


def callbacks(folder):
    """How often on_epoch is called."""
    called = []
    fit(made(), X, on_epoch=called.append, **OPTIONS)
    return {"called": len(called)}


class Cut(Exception):
    """Stands for a crash."""


def cut(folder):
    """A training with checkpoints that ends in the midst of an epoch, in all processes."""
    from vaentropy.training import loop

    real, done = loop.training_step, []

    def step(*args, **options):
        if len(done) == 60:
            raise Cut
        done.append(1)
        return real(*args, **options)

    loop.training_step = step
    try:
        train("vae3", checkpoints=Checkpoints(folder / "run", every=7))
    except Cut:
        return {"steps": len(done)}
    finally:
        loop.training_step = real


def resumed(folder):
    """It goes on."""
    model, history = train("vae3", checkpoints=Checkpoints(folder / "run", every=7), resume=True)
    save_file(model.state_dict(), folder / f"resumed-{rank()}.safetensors")
    return kept(model, history)


def interrupted(folder):
    """A signal that one process gets during a step."""
    from vaentropy.training import Interrupted, loop

    real, done = loop.training_step, []

    def step(*args, **options):
        done.append(1)
        if len(done) == 30 and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **options)

    loop.training_step = step
    try:
        train("vae3", checkpoints=Checkpoints(folder / "run", every=1000))
    except Interrupted as error:
        return {"steps": len(done), "signal": error.signal, "text": str(error)}
    finally:
        loop.training_step = real


def interrupted_evaluation(folder):
    """A signal that one process gets while the held-out data are evaluated."""
    from vaentropy.evaluation import Accumulator
    from vaentropy.training import Interrupted

    real, done = Accumulator.measure, []

    def measure(self, batch):
        done.append(1)
        if len(done) == 2 and rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch)

    Accumulator.measure = measure
    try:
        train("vae3", evaluate_every=2, checkpoints=Checkpoints(folder / "run", every=1000))
    except Interrupted as error:
        return {"signal": error.signal, "text": str(error)}
    finally:
        Accumulator.measure = real


def refused(folder):
    """What several processes cannot train as one."""
    loader = DataLoader(TensorDataset(X), 20)
    attempts = {
        "BatchNorm": lambda: fit(built(encoder=[nn.BatchNorm1d(8)]), X, **OPTIONS),
        "dropout": lambda: fit(built(encoder=[nn.Dropout(0.2)]), X, **OPTIONS),
        "loader": lambda: fit(made(), loader, **OPTIONS),
        "held-out loader": lambda: fit(made(), X, held_out=loader, **OPTIONS),
        "weights": lambda: fit(made(vae1 if rank() else vae0), X, **OPTIONS),
        "data": lambda: fit(made(), X[rank() :], **OPTIONS),
        "shards": lambda: fit(made(), Rows(X, shard_size=17 + rank()), **OPTIONS),
        "seed": lambda: fit(made(), X, seed=rank(), **OPTIONS),
        "folder": lambda: fit(made(), X, checkpoints=folder / "taken", **OPTIONS),
        "no folder to resume": lambda: fit(made(), X, checkpoints=folder / "broken", resume=True, **OPTIONS),
        "held-out data": lambda: fit(made(), X, held_out=Rows(spoiled(), shard_size=7), **OPTIONS),
    }
    if rank() == 0:
        (folder / "taken").mkdir()
        (folder / "taken" / "history.jsonl").write_text("{}\n")
        (folder / "broken" / "checkpoints").mkdir(parents=True)
        (folder / "broken" / "checkpoints" / "step-000000007.safetensors").write_bytes(b"nothing")
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except VaentropyError as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def spoiled():
    """Held-out rows of which the last one, the second process's, holds a number that is none."""
    x = HELD_OUT.clone()
    x[-1, 2] = torch.inf
    return x


def lost(folder):
    """A process that ends, and what the other one says."""
    from vaentropy.training import loop

    real, done = loop.training_step, []

    def step(*args, **options):
        done.append(1)
        if len(done) == 30 and rank() == 1:
            os._exit(0)
        return real(*args, **options)

    loop.training_step = step
    try:
        train("vae1")
    except VaentropyError as error:
        return {"said": f"{type(error).__name__}: {error}"}


DEEDS = {
    deed.__name__: deed
    for deed in (shares, reads, unreadable, callbacks, cut, resumed, interrupted, interrupted_evaluation, refused, lost)
}


# --- Processes --------------------------------------------------------------------------------------------------------


def rank():
    return int(os.environ.get("RANK", "0"))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environments(number):
    """As torchrun sets them, one for each process."""
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    return [{**os.environ, **there, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def in_processes(number, folder, *names, device="cpu"):
    """What each of so many processes comes to: values and weights by name, a list with an entry for each process."""
    command = [sys.executable, __file__, str(folder), *names]
    there = {"VAENTROPY_TEST_DEVICE": device}
    started = [subprocess.Popen(command, env={**environment, **there}) for environment in environments(number)]
    try:
        assert [process.wait(timeout=300) for process in started] == [0] * number
    finally:
        for process in started:
            process.kill()
    return [{name: read(folder, name, rank) for name in names} for rank in range(number)]


def path(folder, name, rank):
    return Path(folder) / f"{[*TRAININGS, *DEEDS].index(name)}-{rank}"


def read(folder, name, rank):
    values, weights = path(folder, name, rank).with_suffix(".json"), path(folder, name, rank).with_suffix(".weights")
    found = json.loads(values.read_text()) if values.exists() else None
    return (found, load_file(weights)) if weights.exists() else found


def main(folder, names):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in names:
        where = path(folder, name, rank())
        if name in DEEDS:
            values = DEEDS[name](Path(folder))
        else:
            model, history = train(name)
            save_file({key: value.cpu() for key, value in model.state_dict().items()}, where.with_suffix(".weights"))
            values = kept(model, history)
        where.with_suffix(".json").write_text(json.dumps(values))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
