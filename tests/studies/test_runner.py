import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vaentropy import __version__
from vaentropy.cli import main
from vaentropy.cli.studies import STUDIES as NAMES
from vaentropy.engines import Done, Here
from vaentropy.errors import DataError, MissingExtraError, TrainingError, UsageError
from vaentropy.figures.style import new_figure
from vaentropy.studies import Outcome, Plan, Study, runner
from vaentropy.studies.experiments import STUDIES
from vaentropy.studies.index import INDEX
from vaentropy.studies.record import FIGURE, RECORD, TABLE
from vaentropy.studies.runner import reproduce


def outcome(plan: Plan) -> Outcome:
    rows = [{"training": "<a>, 1", "elbo": -1.5}, {"training": "b", "gap": float("nan"), "elbo": plan.seed}]
    return Outcome(rows, new_figure(2.0, 2.0), f"seed {plan.seed} & <b>", ["a note"], {"more": [1, 2]})


def failing(plan: Plan) -> Outcome:
    raise DataError("there is no data, expected some; put them there")


@pytest.fixture
def studies(monkeypatch):
    """Three studies in place of the real ones; names of those that were run."""
    ran = []

    def counted(name, run):
        def study(plan):
            ran.append(name)
            return run(plan)

        return study

    some = {
        name: Study(name, f"title of {name}", "about", counted(name, run), takes_data=name == "c", cost=cost)
        for name, run, cost in (("a", outcome, 1.0), ("b", failing, 2.0), ("c", outcome, 3.0))
    }
    monkeypatch.setattr(runner, "STUDIES", some)
    return ran


def test_a_study_leaves_its_table_its_numbers_and_its_figure(studies, tmp_path):
    done = reproduce(["a"], Plan(seed=7), out=tmp_path)
    assert (done.folder, list(done.records), list(done.kept), dict(done.failed)) == (tmp_path, ["a"], [], {})
    with (tmp_path / "a" / TABLE).open(newline="") as file:
        assert list(csv.reader(file)) == [["training", "elbo", "gap"], ["<a>, 1", "-1.5", ""], ["b", "7", "nan"]]
    stored = json.loads((tmp_path / "a" / RECORD).read_text())
    assert stored["rows"] == [{"training": "<a>, 1", "elbo": -1.5}, {"training": "b", "gap": None, "elbo": 7}]
    assert (stored["finding"], stored["details"], stored["version"]) == ("seed 7 & <b>", {"more": [1, 2]}, __version__)
    assert stored["plan"]["seed"] == 7
    assert "<svg" in (tmp_path / "a" / FIGURE).read_text()
    assert done.records["a"].finding == stored["finding"]


def test_the_index_shows_every_study_of_the_folder_as_text(studies, tmp_path):
    reproduce(["a"], out=tmp_path)
    reproduce(["c"], out=tmp_path)
    page = (tmp_path / INDEX).read_text()
    assert "title of a" in page
    assert "title of c" in page
    assert "seed 0 &amp; &lt;b&gt;" in page
    assert "<b>" not in page
    assert 'src="a/figure.svg"' in page


def test_the_longest_study_begins_and_results_come_in_the_order_of_the_catalogue(studies, tmp_path):
    done = reproduce(["c", "a"], out=tmp_path)
    assert studies == ["c", "a"]
    assert list(done.records) == ["a", "c"]


def test_what_is_there_is_kept_and_what_failed_is_tried_again(studies, tmp_path):
    seen = []
    first = reproduce(out=tmp_path, on_study=lambda record: seen.append(record.name))
    assert dict(first.failed) == {"b": "there is no data, expected some; put them there"}
    second = reproduce(out=tmp_path, on_study=lambda record: seen.append(record.name))
    assert studies == ["c", "b", "a", "b"]
    assert seen == ["c", "a", "a", "c"]
    assert list(second.kept) == ["a", "c"]


class Far(Here):
    """As machines that have other devices, and whose files are seen late or never."""

    elsewhere = other_machines = True

    def __init__(self, folder, seconds):
        self.folder, self.seconds, self.closed = folder, seconds, False

    def run(self, call, tasks, *, report=None, ahead=None):
        try:
            for number, name in enumerate(tasks):
                call(name, report)
                place, hidden = self.folder / name, self.folder / f"{name}-on-its-way"
                place.rename(hidden)
                if self.seconds is not None:
                    threading.Timer(self.seconds, hidden.rename, [place]).start()
                yield Done(number)
        finally:
            self.closed = True


def test_what_other_machines_write_may_come_late(studies, tmp_path, monkeypatch):
    monkeypatch.setattr("vaentropy.engines.shared.SECONDS_TO_APPEAR", 2.0)
    engine = Far(tmp_path, 0.1)
    assert list(reproduce(["a"], out=tmp_path, engine=engine).records) == ["a"] and engine.closed


def test_what_other_machines_write_elsewhere_is_told(studies, tmp_path, monkeypatch):
    monkeypatch.setattr("vaentropy.engines.shared.SECONDS_TO_APPEAR", 0.0)
    engine = Far(tmp_path, None)
    with pytest.raises(TrainingError, match="has to be one that all machines share"):
        reproduce(["a"], out=tmp_path, engine=engine)
    assert engine.closed


def test_devices_of_other_machines_are_not_asked_for_here(studies, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "torch_device", lambda device: asked.append(device) or "there")
    reproduce(["a"], out=tmp_path, engine=Far(tmp_path, 0.0))
    assert len(asked) == 1  # by the study itself
    reproduce(["c"], out=tmp_path)
    assert len(asked) == 3


def test_a_single_study_that_fails_raises_and_leaves_nothing(studies, tmp_path):
    with pytest.raises(DataError, match="there is no data"):
        reproduce(["b"], out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(seed=1), "made with seed=0, not 1"),
        (Plan(scale="paper"), "made with scale='quick', not 'paper'"),
        (Plan(replicates=3), "made with replicates=None, not 3"),
    ],
)
def test_results_of_another_plan_are_not_mixed_in_nor_lost(studies, tmp_path, plan, says):
    reproduce(["a"], out=tmp_path)
    before = (tmp_path / "a" / RECORD).read_bytes()
    with pytest.raises(UsageError, match=says):
        reproduce(["c", "a"], plan, out=tmp_path)
    assert studies == ["a"]
    assert (tmp_path / "a" / RECORD).read_bytes() == before
    reproduce(["a"], plan, out=tmp_path, overwrite=True)
    assert json.loads((tmp_path / "a" / RECORD).read_text())["plan"]["seed"] == plan.seed


def test_results_of_another_version_are_not_mixed_in(studies, tmp_path):
    reproduce(["a"], out=tmp_path)
    path = tmp_path / "a" / RECORD
    path.write_text(path.read_text().replace(f'"version": "{__version__}"', '"version": "0.0"'))
    with pytest.raises(UsageError, match=r"made by vaentropy 0\.0"):
        reproduce(["a"], out=tmp_path)


def test_files_of_others_are_not_replaced(studies, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / TABLE).write_text("mine")
    with pytest.raises(UsageError, match=r"is in the way: it holds no results\.json"):
        reproduce(["a"], out=tmp_path)
    (tmp_path / "c").write_text("mine too")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is no folder"):
            reproduce(["c"], out=tmp_path, overwrite=overwrite)
    assert studies == []
    assert [(tmp_path / "a" / TABLE).read_text(), (tmp_path / "c").read_text()] == ["mine", "mine too"]


def test_an_index_of_others_is_not_replaced_and_found_before_the_work(studies, tmp_path):
    (tmp_path / INDEX).write_text("<p>my own page")
    with pytest.raises(UsageError, match="page of another kind"):
        reproduce(["a"], out=tmp_path)
    assert studies == []
    assert (tmp_path / INDEX).read_text() == "<p>my own page"


def test_a_damaged_record_is_told(studies, tmp_path):
    reproduce(["a"], out=tmp_path)
    (tmp_path / "a" / RECORD).write_text('{"name": "a"}')
    for name in ("a", "c"):
        # One that is not asked for would be missing from the index.
        with pytest.raises(DataError, match=r"a/results\.json is damaged"):
            reproduce([name], out=tmp_path)
    assert studies == ["a"]
    assert list(reproduce(["a"], out=tmp_path, overwrite=True).records) == ["a"]


@pytest.mark.parametrize(
    ("names", "how", "says"),
    [
        (["d"], {}, "unknown study 'd'; .*expected all or some of a, b, c"),
        ([], {}, "no study named"),
        ("a", {}, "names='a' given, expected a list"),
        (["a"], {"plan": Plan(data="x.csv")}, "given for a, which has data of its own; name one of c"),
        (["c"], {"plan": Plan(data="not there.csv")}, "no such file or folder"),
        (["a"], {"plan": Plan(device="abacus")}, "device='abacus'"),
    ],
)
def test_mistakes_are_found_before_the_work(studies, tmp_path, names, how, says):
    with pytest.raises(UsageError, match=says):
        reproduce(names, out=tmp_path, **how)
    assert studies == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": "huge"}, "scale='huge' given, expected quick or paper"),
        ({"exact_settings": True}, "expected scale='paper'"),
        ({"replicates": 0}, "replicates=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_a_plan_checks_itself(options, says):
    with pytest.raises(UsageError, match=says):
        Plan(**options)


def test_the_command_knows_the_studies():
    assert list(NAMES) == list(STUDIES)
    assert main(["reproduce", "--help"]) == 0


def test_the_command_prints_findings_and_tells_failures(studies, tmp_path, capfd):
    out = str(tmp_path / "there")
    assert main(["reproduce", "all", "--seed", "2", "--workers", "1", "--out", out]) == 1
    printed = capfd.readouterr()
    assert sorted(printed.out.splitlines()) == ["a: seed 2 & <b>", "c: seed 2 & <b>"]
    assert "vaentropy: b failed: there is no data" in printed.err
    assert f"2 studies in {out}; open {out}/index.html" in printed.err
    assert main(["reproduce", "a", "c", "--seed", "2", "--out", out, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["kept"], found["failed"], list(found["studies"])) == (["a", "c"], {}, ["a", "c"])
    assert found["studies"]["a"]["rows"][0] == {"training": "<a>, 1", "elbo": -1.5}


@pytest.mark.parametrize("arguments", [["b"], ["all", "--scale", "vast"], ["nothing"]])
def test_the_command_ends_with_2_after_a_mistake(studies, tmp_path, capfd, arguments):
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "there")]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_studies_in_processes_end_with_those_of_one(tmp_path):
    plan = ["--scale", "quick", "--replicates", "1", "--json"]
    program = [sys.executable, "-m", "vaentropy", "reproduce", "linear-pca", "estimate-noise", *plan]
    apart, here = (
        json.loads(subprocess.run([*program, "--out", tmp_path / n, "--workers", n], capture_output=True).stdout)
        for n in ("2", "1")
    )
    for name, study in here["studies"].items():
        for row, other in zip(study["rows"], apart["studies"][name]["rows"], strict=True):
            assert row.keys() == other.keys()
            for column in row.keys() - {"seconds"}:
                expected = row[column] if isinstance(row[column], str) else pytest.approx(row[column], rel=1e-4)
                assert other[column] == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_study_whose_process_is_killed_is_done_again(tmp_path):
    names = ["linear-pca", "constraint"]
    command = [sys.executable, "-m", "vaentropy", "reproduce", *names, "--replicates", "1", "--workers", "2"]
    with subprocess.Popen([*command, "--out", tmp_path], stdout=subprocess.PIPE, text=True) as process:
        children, end = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic() + 60
        workers: list[str] = []
        while len(workers) < 2 and time.monotonic() < end:
            time.sleep(0.1)
            each = children.read_text().split()
            workers = [pid for pid in each if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        time.sleep(4)  # in the middle of a study, or before its beginning
        os.kill(int(workers[0]), signal.SIGKILL)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and {line.split(":")[0] for line in out.splitlines()} == set(names)
    assert all((tmp_path / name / file).is_file() for name in names for file in (RECORD, TABLE, FIGURE))


def test_errors_of_processes_are_those_of_this_one():
    from multiprocessing.reduction import ForkingPickler
    from pickle import loads

    for error in (UsageError("one"), DataError("two"), TrainingError("three"), MissingExtraError("four", "data")):
        copy = loads(ForkingPickler.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


def test_a_record_of_another_study_is_damage(studies, tmp_path):
    reproduce(["a"], out=tmp_path)
    (tmp_path / "a").rename(tmp_path / "c")
    with pytest.raises(DataError, match="expected the results of c"):
        reproduce(["a"], out=tmp_path)


@pytest.mark.parametrize("missing", [TABLE, FIGURE])
def test_a_study_without_its_table_or_figure_is_made_again(studies, tmp_path, missing):
    reproduce(["a"], out=tmp_path)
    (tmp_path / "a" / missing).unlink()
    assert list(reproduce(["a"], out=tmp_path).kept) == []
    assert (tmp_path / "a" / missing).is_file()


@pytest.mark.parametrize("written", [RECORD, TABLE])
def test_a_study_that_was_interrupted_while_it_was_saved_is_made_again(studies, tmp_path, monkeypatch, written):
    whole = runner.write_text

    def interrupted(path, text):
        whole(path, text)
        if path.name == written:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["c"], out=tmp_path)
    monkeypatch.setattr(runner, "write_text", whole)
    assert list(reproduce(["c"], out=tmp_path).kept) == []
    assert studies == ["c", "c"]
    assert list(reproduce(["c"], out=tmp_path).kept) == ["c"]


def test_an_interrupted_overwrite_leaves_no_numbers_of_two_plans(studies, tmp_path, monkeypatch):
    reproduce(["c"], out=tmp_path)

    def interrupted(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["c"], Plan(seed=1), out=tmp_path, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [RECORD]


def test_the_index_is_there_after_each_study(studies, tmp_path, monkeypatch):
    def interrupted(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(["a", "c"], out=tmp_path, on_study=interrupted)
    assert "title of c" in (tmp_path / INDEX).read_text()


def test_a_place_that_cannot_be_written_to_is_found_before_the_work(studies, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(UsageError, match="is no folder"):
            reproduce(["a"], out=out)
    assert studies == []


def test_other_data_of_the_same_name_are_another_plan(studies, tmp_path):
    data = tmp_path / "mine.csv"
    data.write_text("1")
    reproduce(["c"], Plan(data=str(data)), out=tmp_path / "out")
    assert list(reproduce(["c"], Plan(data=str(data)), out=tmp_path / "out").kept) == ["c"]
    data.write_text("22")
    with pytest.raises(UsageError, match="made with data_size=1, not 2"):
        reproduce(["c"], Plan(data=str(data)), out=tmp_path / "out")
