"""A sweep's runs are those of `train`, its table is that of their folders, and nothing is done or counted twice."""

import csv
import errno
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from vaentropy.config import RunConfig
from vaentropy.engines import Here, Processes, Ray
from vaentropy.errors import DataError, UsageError
from vaentropy.runs import RunFolder, build, describe_run, evaluate_run, sweep, train
from vaentropy.runs.outcomes import Sweep
from vaentropy.training import Interrupted

MODULE = sys.modules["vaentropy.runs.sweep"]  # whose name the function has taken
SETTINGS = {"epochs": 3, "hidden": (4,), "batch_size": 50, "evaluation_samples": 2}
VARY = {"latent_dim": [1, 2], "scale": ["none", "standard"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npy"
    np.save(path, np.random.default_rng(0).normal(size=(100, 3)) * [1, 2, 3])
    return RunConfig(data=str(path), **SETTINGS)


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """A sweep of four settings, which is not changed."""
    return sweep(config, VARY, out=tmp_path_factory.mktemp("sweep") / "all")


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def without_seconds(folder: Path):
    return {name: {**row, "seconds": ""} for name, row in table(folder).items()}


def written(folder: Path):
    """When each file of a run was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def same_run(run: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, other))
    rows = [RunFolder(folder).history() for folder in (run, other)]
    history = [[{k: v for k, v in row.items() if k != "seconds"} for row in each] for each in rows]
    return all((ours[name] == theirs[name]).all() for name in theirs) and history[0] == history[1]


def test_each_run_is_the_one_that_train_leaves(config, done, tmp_path):
    name = "latent_dim=2,scale=standard,seed=0"
    alone = train(replace(config, latent_dim=2, scale="standard"), out=tmp_path / "alone")
    assert same_run(done.folder / name, alone.folder)
    assert describe_run(done.folder / name)["status"] == "finished"
    row, held_out = table(done.folder)[name], alone.history.held_out
    assert held_out is not None and alone.history.train is not None
    assert float(row["held_out_elbo"]) == held_out.elbo and float(row["held_out_stderr"]) == held_out.stderr.elbo
    assert float(row["elbo"]) == alone.history.train.elbo and float(row["gap"]) == alone.history.train.gap
    assert float(row["entropy_sum"]) == alone.history.train.entropy_sum
    assert float(row["bits_per_dim"]) == held_out.bits_per_dim and row["epochs"] == "3"
    assert evaluate_run(done.folder / name)["held_out"].elbo == pytest.approx(held_out.elbo, rel=1e-9)


def test_the_table_has_every_run_once_and_the_best_first(done):
    rows = table(done.folder)
    assert list(rows) == [f"latent_dim={h},scale={s},seed=0" for h in (1, 2) for s in ("none", "standard")]
    assert {row["status"] for row in rows.values()} == {"finished"}
    # The two scales have ELBOs of other units: those of the data as stored compare.
    assert done.score == "held_out_data_elbo"
    best = sorted(rows.values(), key=lambda row: -float(row["held_out_data_elbo"]))
    assert [row["run"] for row in done.rows] == [path.name for path in done.best] == [row["run"] for row in best]
    assert [row["held_out_data_elbo"] for row in done.rows] == [float(row["held_out_data_elbo"]) for row in best]
    assert "held-out ELBO in the units of the data as stored" in str(done)
    assert done.failed == {} and done.kept == ()


def test_the_same_again_trains_nothing(config, done):
    before = written(done.folder)
    again = sweep(config, VARY, out=done.folder)
    assert set(again.kept) == {row["run"] for row in done.rows} and again.rows == done.rows
    after = written(done.folder)
    assert {path.name for path in before if before[path] != after[path]} == {"sweep.json", "sweep.csv"}


def test_another_sweep_in_its_folder_is_refused(config, done):
    for other, vary, says in [
        (replace(config, epochs=4), VARY, "holds a sweep with epochs=3, not 4"),
        (replace(config, threads=1), VARY, "holds a sweep with threads=null, not 1"),
        (config, {"latent_dim": [1, 2]}, "holds a sweep that varies latent_dim, scale, not latent_dim;"),
        (config, {}, "not the seed alone"),
    ]:
        with pytest.raises(UsageError, match=says):
            sweep(other, vary, out=done.folder)


def copied(done, tmp_path) -> Path:
    return Path(shutil.copytree(done.folder, tmp_path / "all"))


def trained_alone(monkeypatch) -> list[str]:
    """Names of the runs that are trained from now on; nothing else is left of them."""
    tried: list[str] = []
    monkeypatch.setattr("vaentropy.engines.shared.SECONDS_TO_APPEAR", 0.0)
    monkeypatch.setattr(MODULE, "train", lambda config, out, **how: tried.append(out.name))
    return tried


def test_a_sweep_takes_more_values_seeds_and_another_order(config, done, tmp_path, monkeypatch):
    out, tried = copied(done, tmp_path), trained_alone(monkeypatch)
    found = sweep(config, {"scale": ["standard"], "latent_dim": [3, 2]}, num_seeds=2, out=out)
    assert found.kept == ("latent_dim=2,scale=standard,seed=0",)
    new = {"latent_dim=3,scale=standard,seed=0", *(f"latent_dim={h},scale=standard,seed=1" for h in (2, 3))}
    assert set(tried) == new and set(table(out)) == {*new, *found.kept}
    assert set(found.others) == {row["run"] for row in done.rows} - {*found.kept}
    # What there is of those is still known when it is asked for.
    tried.clear()
    again = sweep(config, VARY, out=out)
    assert tried == [] and set(again.kept) == {row["run"] for row in done.rows} and again.others == ()


@pytest.mark.parametrize("missing", [(), ("latent_dim=1,scale=none,seed=0",)])
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_data_that_have_changed_since_are_refused_before_anything_is_trained(
    config, tmp_path, monkeypatch, missing, num_seeds, done
):
    out, path = copied(done, tmp_path), Path(config.data)
    for name in missing:
        shutil.rmtree(out / name)
    whole, before, tried = path.read_bytes(), written(out), trained_alone(monkeypatch)
    np.save(path, np.load(path)[:50])
    try:
        with pytest.raises(
            DataError, match=r"the data have changed since .*all/latent_dim=.* was trained on them; put"
        ):
            sweep(config, VARY, num_seeds=num_seeds, out=out)
        assert tried == [] and written(out) == before
        sweep(config, VARY, out=out, overwrite=True)
        assert len(tried) == 4
    finally:
        path.write_bytes(whole)


def test_overwriting_leaves_runs_of_another_kind_and_folders_that_say_nothing(config, done, tmp_path, monkeypatch):
    out, tried = copied(done, tmp_path), trained_alone(monkeypatch)
    shutil.copytree(out / "latent_dim=1,scale=none,seed=0", out / "seed=7")
    (out / "mine.txt").write_text("mine")
    stored = (out / "sweep.json").read_text()
    (out / "sweep.json").unlink()
    before = written(out)
    with pytest.raises(UsageError, match="is not an empty folder"):
        sweep(config, VARY, out=out, overwrite=True)
    (out / "mine.txt").rename(tmp_path / "mine.txt")
    (out / "sweep.csv").rename(tmp_path / "sweep.csv")
    with pytest.raises(UsageError, match="is not an empty folder"):
        sweep(config, VARY, out=out, overwrite=True)
    (tmp_path / "mine.txt").rename(out / "mine.txt")
    (tmp_path / "sweep.csv").rename(out / "sweep.csv")
    assert written(out) == before
    (out / "sweep.json").write_text(stored)
    sweep(config, {"beta": [0.5]}, out=out, overwrite=True)
    assert {path.name for path in out.iterdir()} >= {"seed=7", "mine.txt"}
    assert (out / "seed=7" / "model.safetensors").exists() and tried == ["beta=0.5,seed=0"]
    assert not list(out.glob("latent_dim=*"))


def test_a_data_file_that_is_gone_is_what_is_told(config, done, tmp_path, monkeypatch):
    out, path = copied(done, tmp_path), Path(config.data)
    monkeypatch.chdir(path.parent)
    path.rename(path.with_suffix(".aside"))
    try:
        with pytest.raises((DataError, UsageError), match=r"data\.npy") as raised:
            sweep(replace(config, data="data.npy"), VARY, out=out)
        assert "holds a" not in str(raised.value)
    finally:
        path.with_suffix(".aside").rename(path)


def test_an_engine_that_is_not_there_leaves_no_folder(config, tmp_path):
    class Nowhere(Here):
        def run(self, call, tasks, **how):
            raise UsageError("no cluster")
            yield

    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(UsageError, match="no cluster"):
            sweep(config, {"latent_dim": [1]}, out=out, engine=Nowhere())
        assert not (out / "sweep.json").exists() and not (out / "sweep.csv").exists()
    assert not (tmp_path / "new").exists() and (tmp_path / "empty").is_dir()


def test_a_full_disk_is_told_as_elsewhere(config, tmp_path, monkeypatch):
    def full(config, **how):
        raise OSError(errno.EFBIG, "File too large", "there/history.jsonl")

    monkeypatch.setattr(MODULE, "train", full)
    found = sweep(config, {}, out=tmp_path)
    assert found.failed == {"seed=0": "there/history.jsonl cannot be written or read: File too large"}


@pytest.mark.slow
def test_replicates_are_one_setting_with_median_and_range(config, tmp_path):
    found = sweep(replace(config, seed=5), {}, num_seeds=3, out=tmp_path)
    (setting,) = found.settings
    values = [row["held_out_elbo"] for row in found.rows]
    assert sorted(row["seed"] for row in found.rows) == [5, 6, 7] and (setting["runs"], setting["finished"]) == (3, 3)
    assert (setting["median"], setting["lowest"]) == (statistics.median(values), min(values))
    assert setting["highest"] == max(values) == values[0]
    assert "median and range of the seeds" in str(found)


def test_a_run_that_fails_stops_no_other_and_is_tried_again(config, tmp_path, monkeypatch):
    vary = {"learning_rate": [1e20, 1e-3], "max_rollbacks": [0]}
    found = sweep(config, vary, out=tmp_path)
    bad, good = "learning_rate=1e+20,max_rollbacks=0,seed=0", "learning_rate=0.001,max_rollbacks=0,seed=0"
    assert list(found.failed) == [bad] and "lower the learning rate" in found.failed[bad]
    assert {name: row["status"] for name, row in table(tmp_path).items()} == {bad: "failed", good: "finished"}
    assert table(tmp_path)[bad]["failure"] == found.failed[bad]
    assert [row["run"] for row in found.rows] == [good, bad]
    tried = []
    monkeypatch.setattr("vaentropy.engines.shared.SECONDS_TO_APPEAR", 0.0)
    monkeypatch.setattr(MODULE, "train", lambda config, **how: tried.append(config.learning_rate))
    sweep(config, vary, out=tmp_path)
    assert tried == [1e20]


def test_an_error_that_nobody_expected_fails_its_run_alone_and_the_same_call_tries_it_again(
    config, tmp_path, monkeypatch, caplog
):
    vary, tried = {"latent_dim": [1, 2]}, []

    def broken(config, **how):
        tried.append(config.latent_dim)
        if config.latent_dim == 1:
            raise AssertionError("this cannot be\nand more of it")
        return train(config, **how)

    monkeypatch.setattr(MODULE, "train", broken)
    for times in (1, 2):
        found = sweep(config, vary, out=tmp_path)
        assert found.failed == {"latent_dim=1,seed=0": "AssertionError: this cannot be"}
        assert [row["run"] for row in found.rows if row["status"] == "finished"] == ["latent_dim=2,seed=0"]
        assert tried == [1, 2] + [1] * (times - 1)
    assert "latent_dim=1,seed=0 failed" in caplog.text and "in broken" in caplog.text


def test_the_column_that_orders_runs_is_found_once_however_many_there_are(done, monkeypatch):
    asked, score = [], Sweep.score.fget
    monkeypatch.setattr(Sweep, "score", property(lambda s: asked.append(s) or score(s)))
    few, many = (Sweep(done.folder, done.vary, done.rows * times) for times in (1, 20))
    counts = []
    for each in (few, many):
        asked.clear()
        str(Sweep(each.folder, each.vary, each.rows))
        counts.append(len(asked))
    assert counts[0] == counts[1]


def test_a_failed_run_that_was_killed_when_it_was_tried_again_begins_anew(config, tmp_path):
    run = sweep(config, {}, out=tmp_path).best[0]
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "failed: so it was"}))
    # All of it set aside, nothing written in its place.
    (run / ".replaced").mkdir()
    for path in list(run.iterdir()):
        if not path.name.startswith("."):
            path.replace(run / ".replaced" / path.name)
    again = sweep(config, {}, out=tmp_path)
    assert again.failed == {} and again.kept == () and not (run / ".replaced").exists()
    assert again.rows[0]["elbo"] is not None


@pytest.mark.slow
def test_data_are_read_once_for_the_runs_that_share_them(config, tmp_path, monkeypatch):
    read, load = [], build.load_data
    monkeypatch.setattr(build, "load_data", lambda data, **how: read.append(how["seed"]) or load(data, **how))
    sweep(config, {"latent_dim": [1, 2]}, num_seeds=2, out=tmp_path)
    assert read == [0, 1]


def test_mistakes_leave_nothing(config, tmp_path):
    out = tmp_path / "new"
    for wrong, vary, says in [
        (replace(config, data="nowhere.npy"), {}, "nowhere.npy"),
        (config, {"network": ["mlp", "conv"]}, "network=conv,seed=0: data_shape=.3,. given"),
        (config, {"device": ["cpu", "abacus"]}, "device='abacus'"),
    ]:
        with pytest.raises((UsageError, DataError), match=says):
            sweep(wrong, vary, out=out)
        assert not out.exists()
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not an empty folder"):
        sweep(config, {}, out=tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="is not a folder"):
        sweep(config, {}, out=tmp_path / "mine.txt")


def test_a_folder_of_others_where_a_run_would_be_is_not_touched(config, done, tmp_path):
    (tmp_path / "sweep.json").write_text((done.folder / "sweep.json").read_text())
    mine = tmp_path / "latent_dim=1,scale=none,seed=0" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UsageError, match="is not an empty folder"):
        sweep(config, VARY, out=tmp_path)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"schema_version": "x", "config": 1}', "null"])
def test_a_damaged_request_is_told_and_what_is_told_helps(config, done, tmp_path, monkeypatch, text):
    out, tried = copied(done, tmp_path), trained_alone(monkeypatch)
    stored = (out / "sweep.json").read_text()
    (out / "sweep.json").write_text(text)
    with pytest.raises(DataError, match=r"sweep\.json does not say what sweep this is .* put it back, remove it"):
        sweep(config, VARY, out=out)
    (out / "sweep.json").unlink()
    for other, vary in [(replace(config, epochs=4), {**VARY, "latent_dim": [3]}), (config, {"latent_dim": [1]})]:
        with pytest.raises(UsageError, match="holds a sweep "):
            sweep(other, vary, out=out)
    assert len(sweep(config, VARY, out=out).kept) == 4 and (out / "sweep.json").read_text() == stored and tried == []
    (out / "sweep.json").write_text(text)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"mine\.txt beside it is of no sweep"):
        sweep(config, VARY, out=out, overwrite=True)
    (out / "mine.txt").unlink()
    sweep(config, {"beta": [0.5]}, out=out, overwrite=True)
    assert tried == ["beta=0.5,seed=0"] and {path.name for path in out.iterdir()} == {
        "sweep.json",
        "sweep.csv",
        ".lock",
    }


@pytest.mark.slow
def test_overwriting_removes_the_runs_of_the_other_and_nothing_else(config, tmp_path):
    sweep(config, {"latent_dim": [1, 2]}, out=tmp_path)
    mine = tmp_path / "latent_dim=1,seed=0" / "mine.txt"
    mine.write_text("mine")
    found = sweep(config, {"latent_dim": [3]}, out=tmp_path, overwrite=True)
    assert [row["run"] for row in found.rows] == ["latent_dim=3,seed=0"]
    assert not (tmp_path / "latent_dim=2,seed=0").exists()
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"] and mine.read_text() == "mine"


def test_a_run_that_is_nowhere_after_its_training_is_told(config, tmp_path, monkeypatch):
    # As on a machine that sees another folder.
    monkeypatch.setattr(MODULE, "train", lambda config, **how: None)
    monkeypatch.setattr("vaentropy.engines.shared.SECONDS_TO_APPEAR", 0.0)
    found = sweep(config, {}, out=tmp_path)
    assert "has to be one that all machines share" in found.failed["seed=0"]


@pytest.mark.slow
def test_an_interruption_says_how_to_go_on_and_the_same_call_does(config, done, tmp_path):
    out = tmp_path / "all"

    def stop(row):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"1 of 4 runs are finished in .*; go on with the same command") as raised:
        sweep(config, VARY, out=out, on_run=stop)
    assert raised.value.signal == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sorted(row["status"] for row in table(out).values()) == ["finished", "waiting", "waiting", "waiting"]
    assert len(sweep(config, VARY, out=out).kept) == 1
    assert without_seconds(out) == without_seconds(done.folder)


# --- In other processes ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_and_ray_end_with_the_same_runs(config, done, tmp_path):
    for engine in (Processes(2), Ray(workers=2)):
        out = tmp_path / type(engine).__name__
        found = sweep(config, VARY, out=out, engine=engine)
        assert without_seconds(out) == without_seconds(done.folder)
        assert all(same_run(run, done.folder / run.name) for run in found.best)


LONG = [
    *("--epochs", "150", "--hidden", "4", "--batch-size", "10", "--checkpoint-every", "20"),
    "--vary",
    "latent_dim=1,2,3",
]


def start(config, out, *options):
    command = [sys.executable, "-m", "vaentropy", "sweep", config.data, *LONG, "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def left_alone(config, tmp_path_factory):
    """A longer sweep that was not disturbed."""
    out = tmp_path_factory.mktemp("long") / "all"
    with start(config, out, "--workers", "1") as process:
        assert process.wait(timeout=300) == 0
    return out


def wait_for_checkpoints(out: Path, number: int) -> list[Path]:
    """Runs under way that have a checkpoint after a step."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = {path.parents[1] for path in out.glob("*/checkpoints/step-*[1-9]*.safetensors")}
        under_way = [run for run in found if not (run / "model.safetensors").exists()]
        if len(under_way) >= number:
            return under_way
        time.sleep(0.01)
    raise AssertionError("no checkpoint")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_worker_goes_on_from_its_checkpoint(config, left_alone, tmp_path):
    out = tmp_path / "all"
    with start(config, out, "--workers", "2") as process:
        wait_for_checkpoints(out, 1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        for pid in workers:
            os.kill(int(pid), signal.SIGKILL)
        resumed = {path: path.read_bytes() for path in out.glob("*/config.yaml")}
        assert process.wait(timeout=300) == 0, process.stderr
    assert without_seconds(out) == without_seconds(left_alone)
    assert all(same_run(out / name, left_alone / name) for name in table(out))
    assert all(path.read_bytes() == content for path, content in resumed.items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--workers", "2"], ["--engine", "ray", "--workers", "2"]])
def test_sigterm_leaves_checkpoints_and_the_same_command_goes_on(config, left_alone, tmp_path, options):
    out = tmp_path / "all"
    with start(config, out, *options) as process:
        wait_for_checkpoints(out, 1)
        process.send_signal(signal.SIGTERM)
        printed, told = process.communicate(timeout=120)
    assert process.returncode == 143 and printed == ""
    assert told.strip().splitlines()[-1].startswith("vaentropy: interrupted, ")
    assert f"runs are finished in {out}; go on with the same command" in told
    states = {name: row["status"] for name, row in table(out).items()}
    assert "interrupted" in states.values() and set(states.values()) <= {"interrupted", "finished", "waiting"}
    for name, state in states.items():
        if state == "interrupted":
            assert json.loads((out / name / "manifest.json").read_text())["status"] == "interrupted"
    kept = {path: time for path, time in written(out).items() if states.get(path.parent.name) == "finished"}
    with start(config, out, "--workers", "2") as process:
        assert process.wait(timeout=300) == 0
    assert without_seconds(out) == without_seconds(left_alone)
    assert all(same_run(out / name, left_alone / name) for name in states)
    assert {path: time for path, time in written(out).items() if path in kept} == kept


@pytest.mark.slow
def test_two_sweeps_do_not_share_a_folder(config, tmp_path):
    with start(config, tmp_path / "all", "--workers", "1") as first:
        wait_for_checkpoints(tmp_path / "all", 1)
        with start(config, tmp_path / "all") as second:
            _, told = second.communicate(timeout=120)
        first.kill()
    assert second.returncode == 2 and "is in use by another process" in told
