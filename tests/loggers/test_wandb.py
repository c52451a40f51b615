"""Runs of Weights & Biases, read back from the files that `wandb sync` would send."""

import json
import math

import pytest

from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.loggers import Together, WandB, metrics

from .wandb_files import of, read, rows, values


@pytest.fixture(scope="module")
def run(tmp_path_factory, history):
    folder = tmp_path_factory.mktemp("wandb")
    settings = {"model": "vae1", "hidden": [8, 8], "seed": None}
    with WandB(folder, name="mine", settings=settings) as log:
        for row in history.rows:
            log({**row, "running_gap": math.nan} if row["epoch"] == 1 else row)
        log.summary(history)
    (records,) = read(folder)
    return log, records


def test_every_number_of_every_row_is_there(run, history):
    found = rows(run[1])
    assert list(found) == [row["step"] for row in history.rows]
    assert math.isnan(found[2].pop("running/gap"))
    for row in history.rows:
        expected = metrics(row)
        if row["epoch"] == 1:
            del expected["running/gap"]
        assert {name: found[row["step"]][name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_the_summary_has_the_final_terms(run, history):
    summary = {}
    for record in of(run[1], "summary"):
        summary |= values(record.update)
    assert summary["train/kl"] == pytest.approx(history.train.kl, rel=1e-12)
    assert summary["held_out/elbo"] == pytest.approx(history.held_out.elbo, rel=1e-12)


def test_the_run_has_its_name_settings_and_end(run):
    log, records = run
    (about,) = of(records, "run")
    assert (about.run_id, about.display_name, about.project) == (log.run_id, "mine", "vaentropy")
    config = {item.key: json.loads(item.value_json) for item in about.config.update if not item.key.startswith("_")}
    assert config == {"model": "vae1", "hidden": [8, 8], "seed": None}
    assert [end.exit_code for end in of(records, "exit")] == [0]


def test_a_run_goes_on_without_rows_that_it_has_and_a_failure_is_one(tmp_path, history):
    with pytest.raises(RuntimeError), WandB(tmp_path, run_id="abc123", after=6) as log:
        for row in history.rows[1:]:
            log(row)
        raise RuntimeError
    (records,) = read(tmp_path)
    assert list(rows(records)) == [8, 10] and of(records, "run")[0].run_id == "abc123"
    assert [end.exit_code for end in of(records, "exit")] == [1]


def test_two_runs_at_once_are_two_and_the_environment_says_where(tmp_path, history, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "other")
    with Together([WandB(tmp_path / "ours", name=name) for name in ("a", "b")]) as log:
        log(history.rows[0])
    assert not (tmp_path / "ours").exists()
    found = {of(records, "run")[0].display_name: list(rows(records)) for records in read(tmp_path / "theirs")}
    assert found == {"a": [2], "b": [2]}
    assert {of(records, "run")[0].project for records in read(tmp_path / "theirs")} == {"other"}


@pytest.mark.parametrize("options", [{"run_id": "../up"}, {"run_id": ""}, {"after": -1}])
def test_wrong_runs_are_refused(tmp_path, options):
    with pytest.raises(UsageError, match=next(iter(options))):
        WandB(tmp_path, **options)


def test_what_wandb_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.raises(UsageError, match=r"Weights & Biases cannot begin: .*sideways") as error, WandB(tmp_path):
        pass
    assert str(error.value).isprintable()


def test_without_the_library_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"wandb is not installed; run: pip install 'vaentropy\[logging\]'"):
        WandB(tmp_path)
