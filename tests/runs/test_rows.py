"""Rows that a run makes: in the order of the data, whole or not at all, whoever makes them and is killed meanwhile."""

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from vaentropy.cli import main
from vaentropy.data import load as load_data
from vaentropy.errors import DataError, UsageError
from vaentropy.expectation import MonteCarlo
from vaentropy.files import ASIDE
from vaentropy.runs import (
    RunConfig,
    RunFolder,
    encode_run,
    evaluate_run,
    load,
    log_likelihood_run,
    reconstruct_run,
    rows,
    train,
)
from vaentropy.runs.output import GROUP_VALUES, Parts, parquet_file

from ..pages import ROOT
from ..workers import FatalParts, Sent, two_workers

X = np.random.default_rng(0).normal(3.0, 2.0, size=(230, 4)).astype(np.float32)


def table(folder, x=X):
    path = folder / "x.parquet"
    parquet.write_table(pa.table({name: x[:, i] for i, name in enumerate("abcd")}), path, row_group_size=45)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    settings = RunConfig(
        data=str(table(folder)), held_out=0.2, scale="standard", latent_dim=2, hidden=(4,), epochs=1, stream=True
    )
    return train(settings, out=folder / "run").folder


@pytest.fixture
def small(monkeypatch):
    """Results and parts of a few rows."""
    monkeypatch.setattr(rows, "VALUES_PER_RESULT", 100)
    monkeypatch.setattr(rows, "VALUES_PER_PART", 200)


def latents(run):
    """By another route: all rows at once, scaled by hand."""
    model = load(run)
    return model, model.encode(RunFolder(run).scaling().apply(torch.from_numpy(X)).float())


def read(folder):
    paths = sorted(folder.iterdir())
    tables = [parquet.read_table(path) for path in paths]
    return paths, torch.from_numpy(np.concatenate([np.stack([c.to_numpy() for c in t.columns], 1) for t in tables]))


@pytest.mark.parametrize("name", ["z.npy", "z.csv", "z.parquet"])
def test_a_file_holds_the_rows_in_order_whoever_makes_them(run, small, tmp_path, name):
    paths = [tmp_path / f"{who}-{name}" for who in ("here", "sent")]
    for path, engine in zip(paths, (None, Sent(times=2)), strict=True):
        seen = []
        assert encode_run(run, path, variance=True, engine=engine, on_batch=seen.append) == len(X)
        assert sum(seen) == len(X) * (1 if engine is None else 2)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if name == "z.npy":
        torch.testing.assert_close(torch.from_numpy(np.load(paths[0]))[:, :2], latents(run)[1])


@pytest.mark.parametrize("engine", [None, Sent()])
def test_a_folder_holds_the_rows_in_the_order_of_its_files(run, small, tmp_path, engine):
    model, z = latents(run)
    assert encode_run(run, f"{tmp_path}/z/", engine=engine) == len(X)
    paths, found = read(tmp_path / "z")
    assert [path.name for path in paths] == [f"part-{number:05d}.parquet" for number in range(len(paths))]
    assert len(paths) == 3 and not (tmp_path / f"z{ASIDE}").exists()
    torch.testing.assert_close(found, z)
    assert reconstruct_run(run, f"{tmp_path}/x/", engine=engine) == len(X)
    # As data of the command once more, in the same order.
    again = load_data(tmp_path / "x", held_out=0.0)
    scaling = RunFolder(run).scaling()
    stored = scaling.shift + scaling.scale * model.likelihood(z).mean.detach()
    torch.testing.assert_close(again.train, stored.float(), rtol=1e-5, atol=1e-5)


def test_evaluations_of_a_run_are_those_of_one_process(run):
    few = MonteCarlo(2)
    for found, expected in (
        (evaluate_run(run, expectation=few, engine=Sent()), evaluate_run(run, expectation=few)),
        (log_likelihood_run(run, num_samples=2, engine=Sent()), log_likelihood_run(run, num_samples=2)),
    ):
        assert found.keys() == expected.keys() == {"train", "held_out"}
        for name, part in expected.items():
            assert found[name].elbo == pytest.approx(part.elbo, rel=1e-12) and found[name].num_points == part.num_points


def test_what_a_folder_may_replace(run, tmp_path):
    out = tmp_path / "z"
    out.mkdir()
    encode_run(run, out)  # an empty one that exists
    first = read(out)[1]
    with pytest.raises(UsageError, match=r"holds part-00000.parquet; name another folder with --out, or replace"):
        encode_run(run, out)
    encode_run(run, out, variance=True, overwrite=True)
    assert read(out)[1][:, :2].equal(first)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds mine.txt, expected part-00000.parquet and its like alone"):
        encode_run(run, out, overwrite=True)
    with pytest.raises(UsageError, match="there is no folder"):
        encode_run(run, f"{tmp_path}/a/b/")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="a file of that name"):
        encode_run(run, f"{tmp_path}/file/")
    (tmp_path / f"left{ASIDE}").mkdir()
    with pytest.raises(UsageError, match="an interrupted command may have left; remove it"):
        encode_run(run, f"{tmp_path}/left/")
    assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("out", ["x.parquet", ".", "x.parquet/../x.parquet", "link.parquet"])
@pytest.mark.parametrize("named", [True, False])
def test_the_data_are_not_written_over(run, tmp_path, out, named):
    path = table(tmp_path)
    (tmp_path / "link.parquet").symlink_to(path)
    own = train(RunConfig(data=str(path), hidden=(4,), epochs=1), out=tmp_path / "run").folder
    before = path.read_bytes()
    for verb in (encode_run, reconstruct_run):
        with pytest.raises(UsageError, match=r"given to write to, but .*x\.parquet is read; name another place"):
            verb(own, f"{tmp_path}/{out}", data=str(path) if named else None, overwrite=True)
    assert path.read_bytes() == before


def test_nothing_is_written_among_the_data(run, tmp_path):
    (tmp_path / "all").mkdir()
    table(tmp_path / "all")
    for out in (tmp_path / "all" / "z.parquet", tmp_path / "all"):
        with pytest.raises(UsageError, match=r"but .*all is read"):
            encode_run(run, out, data=str(tmp_path / "all"), overwrite=True)
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["x.parquet"]


def test_files_that_others_call_parts_stay(run, tmp_path):
    theirs = tmp_path / "theirs" / "part-00000-a1b2.c000.snappy.parquet"
    theirs.parent.mkdir()
    theirs.write_bytes(b"")
    with pytest.raises(UsageError, match=f"holds {theirs.name}, expected part-00000.parquet and its like alone"):
        encode_run(run, theirs.parent, overwrite=True)
    assert theirs.exists()


def test_sigterm_leaves_nothing_half_written(run, tmp_path, monkeypatch, capfd):
    def ended(self, model, batch):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rows._Encoded, "__call__", ended)
    for out in (tmp_path / "z.csv", f"{tmp_path}/z/"):
        assert main(["encode", str(run), "--out", str(out)]) == 128 + signal.SIGTERM
        assert capfd.readouterr().err.splitlines()[-1] == "vaentropy: ended by SIGTERM"
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_torchrun_is_not_for(run, tmp_path, monkeypatch, capfd):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for verb in (
        ["encode", str(run), "--out", str(tmp_path / "z.csv")],
        ["sweep", "digits", "--vary", "latent_dim=1,2"],
    ):
        assert main(verb) == 2
        assert "started 2 times by torchrun, which is for train and continue" in capfd.readouterr().err


def filled(folder, value, *, overwrite=False):
    """A folder of one part, not in its place yet."""
    parts = Parts(folder, (1,), None, overwrite=overwrite)
    with parts.opened():
        with parts.part(0) as write:
            write(torch.full((3, 1), value))
        yield parts


def values(folder):
    return read(folder)[1].flatten().tolist()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_has_come_into_a_folder_meanwhile_stays(tmp_path, overwrite):
    folder = tmp_path / "z"
    if overwrite:
        list(filled(folder, 1.0))
    with pytest.raises(OSError, match=f"holds mine.txt meanwhile; all rows are in .*z{ASIDE}, rename it"):
        for _ in filled(folder, 2.0, overwrite=overwrite):
            folder.mkdir(exist_ok=True)
            (folder / "mine.txt").write_text("mine")
    # Neither that, nor what was made, nor what was there before is lost.
    assert (folder / "mine.txt").read_text() == "mine" and values(tmp_path / f"z{ASIDE}") == [2.0] * 3
    assert not overwrite or parquet.read_table(folder / "part-00000.parquet").num_rows == 3


def test_a_replaced_folder_that_cannot_be_deleted_spoils_nothing(tmp_path, monkeypatch):
    folder, unlink = tmp_path / "z", Path.unlink
    list(filled(folder, 1.0))

    def stuck(path, *given):
        # As on a network disk, where a file that is open elsewhere stays under another name.
        if path.suffix == ".parquet":
            path.with_name(".nfs0001").touch()
        unlink(path, *given)

    monkeypatch.setattr(Path, "unlink", stuck)
    list(filled(folder, 2.0, overwrite=True))
    assert values(folder) == [2.0] * 3 and not (tmp_path / f"z{ASIDE}").exists()
    with pytest.raises(UsageError, match=r"z.replaced exists, which an interrupted command may have left; remove it"):
        Parts(folder, (1,), None, overwrite=True)


def test_a_new_folder_that_cannot_get_its_name_leaves_the_old_one_there(tmp_path, monkeypatch):
    folder, replace = tmp_path / "z", Path.replace
    list(filled(folder, 1.0))

    def fails(path, target):
        if path.name == f"z{ASIDE}":
            raise OSError(5, "Input/output error", str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match=f"Input/output error; all rows are in .*z{ASIDE}, rename it"):
        list(filled(folder, 2.0, overwrite=True))
    assert values(folder) == [1.0] * 3 and values(tmp_path / f"z{ASIDE}") == [2.0] * 3


def test_a_command_killed_as_it_replaces_a_folder_says_what_to_rename(tmp_path):
    (tmp_path / f"z{ASIDE}").mkdir()
    (tmp_path / "z.replaced").mkdir()
    with pytest.raises(
        UsageError, match=rf"z.replaced exists.*in place of .*z; rename it, or .*z{ASIDE}, which is whole, to that"
    ):
        Parts(tmp_path / "z", (1,), None)


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "z").symlink_to(tmp_path / "far")
    for value in (1.0, 2.0):
        list(filled(tmp_path / "z", value, overwrite=True))
        assert (tmp_path / "z").is_symlink() and values(tmp_path / "far") == [value] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "z"]


def test_nothing_is_left_of_a_folder_that_fails(run, small, tmp_path):
    spoiled = X.copy()
    spoiled[137, 1] = np.inf
    data = str(table(tmp_path, spoiled))
    for out in (f"{tmp_path}/z/", tmp_path / "z.npy"):
        with pytest.raises(DataError, match=r"row 137 .* is inf"):
            encode_run(run, out, data=data)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_row_groups_are_long(tmp_path):
    with parquet_file(tmp_path / "z.parquet", ["a", "b"]) as write:
        for _ in range(300):
            write(torch.zeros(2**12, 2))
    groups = parquet.ParquetFile(tmp_path / "z.parquet").metadata
    assert groups.num_rows == 300 * 2**12 and groups.num_row_groups == 300 * 2**13 // GROUP_VALUES + 1


def test_the_command_makes_folders(run, tmp_path, capsys):
    assert main(["encode", str(run), "--out", f"{tmp_path}/z/", "--workers", "1"]) == 0
    assert "230 rows in" in capsys.readouterr().err and read(tmp_path / "z")[1].shape == (230, 2)
    assert main(["evaluate", str(run), "--engine", "procesess"]) == 2
    assert "did you mean 'processes'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_no_row_is_lost_or_doubled_when_workers_are_killed(run, small, tmp_path, monkeypatch, kind):
    monkeypatch.syspath_prepend(ROOT)
    encode_run(run, f"{tmp_path}/quiet/")
    monkeypatch.setattr(rows, "Parts", FatalParts)
    seen = []
    encode_run(run, f"{tmp_path}/killed/", engine=two_workers(kind), on_batch=seen.append)
    assert {path.name for path in tmp_path.iterdir()} == {"quiet", "killed", "midst", "whole"}
    assert sum(seen) == len(X)
    for one, other in zip(*(sorted((tmp_path / name).iterdir()) for name in ("quiet", "killed")), strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()
