"""Engines give the same answers wherever tasks are done, whatever becomes of their workers."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from vaentropy.engines import Done, Engine, GpuFailed, Here, Lost, Processes, Ray, engine_or_here
from vaentropy.engines import ray as of_ray
from vaentropy.errors import DataError, MissingExtraError, UsageError
from vaentropy.progress import no_progress


@pytest.fixture(scope="module")
def jobs():
    return importlib.import_module("engine_jobs")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this machine that all tests share."""
    ray = pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(params=[pytest.param("processes", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)])
def apart(request):
    """An engine with two workers in other processes."""
    if request.param == "ray":
        request.getfixturevalue("cluster")
        return Ray(workers=2)
    return Processes(2)


class Progress:
    def __init__(self):
        self.units, self.notes = 0, []

    def __call__(self, note="", /, advance=1):
        self.units += advance
        self.notes.append(note)


def answers(engine: Engine, call, tasks, report=no_progress) -> dict[int, Done]:
    done = list(engine.run(call, tasks, report=report))
    numbered = {each.number: each for each in done}
    assert len(numbered) == len(done), "a task was answered twice"
    return numbered


def gone(pid: int) -> bool:
    """Whether a process has ended, within seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rsplit(")")[1].split()[0] == "Z":
                return True
        time.sleep(0.05)
    return False


def test_here_each_task_is_done_in_its_order_when_it_is_asked_for(jobs):
    progress = Progress()
    doing = Here().run(jobs.double, [3, 1], report=progress)
    assert next(doing) == Done(0, 6) and progress.units == 3
    assert list(doing) == [Done(1, 2)] and progress.notes == ["task 3"] * 3 + ["task 1"]


def test_a_failure_that_a_user_can_mend_is_an_answer_and_a_bug_is_raised(jobs):
    done = answers(Here(), jobs.odd, ["user", 1, "system"])
    assert isinstance(done[0].failure, DataError) and isinstance(done[2].failure, FileNotFoundError)
    assert done[1] == Done(1, 1)
    with pytest.raises(ZeroDivisionError):
        answers(Here(), jobs.odd, ["bug"])


def test_one_process_of_its_own(jobs):
    progress = Progress()
    done = answers(Processes(1), jobs.double, [2, 0, 5], progress)
    assert [done[n].result for n in range(3)] == [4, 0, 10]
    assert progress.units == 7 and progress.notes[-1] == "task 5"


@pytest.mark.parametrize("options", [{"workers": 0}, {"threads": 0}, {"workers": True}])
def test_numbers_of_processes_are_checked(options):
    with pytest.raises(UsageError, match="expected a whole number of at least 1"):
        Processes(**options)


def test_what_cannot_be_sent_is_refused_before_a_process_is_started(monkeypatch):
    monkeypatch.setattr("vaentropy.engines.processes.get_context", None)
    with pytest.raises(UsageError, match=r"cannot be sent to .*; define functions and classes in a module"):
        answers(Processes(2), lambda task, report: task, [1])


def test_without_ray_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vaentropy\[ray\]'"):
        Ray()


@pytest.mark.parametrize("options", [{"workers": 0}, {"num_cpus": 0}, {"num_gpus": -1}])
def test_numbers_of_ray_are_checked(options):
    with pytest.raises(UsageError):
        Ray(**options)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port", "[::1]:1", "a b:1"])
def test_an_address_without_a_cluster_is_told_at_once(address, monkeypatch):
    monkeypatch.setattr("vaentropy.engines.ray._ray", lambda: None)
    with pytest.raises(UsageError, match=r"no Ray cluster at .*ray start --head"):
        Ray(address).require_there()


def test_no_task_is_no_work(jobs):
    for engine in (Here(), Processes(2)):
        assert answers(engine, jobs.double, []) == {}


def test_none_is_here_and_engines_say_where_they_are(monkeypatch):
    monkeypatch.setattr(of_ray, "_ray", lambda: None)
    given = Processes(2)
    assert engine_or_here(given) is given and isinstance(engine_or_here(None), Here)
    with pytest.raises(UsageError, match="engine"):
        engine_or_here("processes")
    places = {type(each): (each.elsewhere, each.other_machines) for each in (Here(), given, Ray())}
    assert places == {Here: (False, False), Processes: (True, False), Ray: (True, True)}


def test_a_gpu_that_fails_here_stops_all_since_no_other_task_could_use_it(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_without_gpu", False)
    doing = Here().run(jobs.OnGpu(tmp_path, (1,), 1), range(3))
    assert next(doing) == Done(0, 0)
    with pytest.raises(GpuFailed, match=r"\(CUDA error: an illegal memory access was encountered\); begin it again"):
        next(doing)


@pytest.mark.parametrize(("options", "cores"), [({}, 4), ({"num_cpus": 8}, 8), ({"workers": 3, "num_cpus": 2}, 6)])
def test_a_cluster_of_this_machine_has_the_cores_that_are_asked_for_or_that_there_are(monkeypatch, options, cores):
    asked = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(of_ray, "available_cores", lambda: 4)
    monkeypatch.setattr(of_ray, "_ray", lambda: SimpleNamespace(init=lambda address, **how: asked.append(how)))
    engine = Ray(**options)
    assert engine.workers == options.get("workers") and asked == []
    engine._start()
    assert [how["num_cpus"] for how in asked] == [cores]


# --- In other processes ---------------------------------------------------------------------------------------------


def test_answers_and_units_are_those_of_here(jobs, apart):
    progress = Progress()
    tasks = [4, 1, 0, 7, 2, 3]
    assert answers(apart, jobs.double, tasks, progress) == answers(Here(), jobs.double, tasks)
    assert progress.units == sum(tasks) and "task 7" in progress.notes


def test_two_work_at_a_time(jobs, apart):
    pids = {each.result for each in answers(apart, jobs.process, range(6)).values()}
    assert len(pids) == 2 and os.getpid() not in pids


def test_failures_travel_and_the_others_go_on(jobs, apart):
    done = answers(apart, jobs.odd, ["user", 1, "system", 2])
    assert type(done[0].failure) is DataError and str(done[0].failure) == "there is no data"
    assert type(done[2].failure) is FileNotFoundError and done[2].failure.filename == "there"
    assert (done[1].result, done[3].result) == (1, 2)


def test_units_of_a_task_that_fails_stay_as_here(jobs, apart):
    progress, here = Progress(), Progress()
    answers(apart, jobs.half, [0, 1], progress)
    answers(Here(), jobs.half, [0, 1], here)
    assert progress.units == here.units == 4


def test_a_task_that_cannot_be_sent_is_told(jobs, apart):
    with pytest.raises(UsageError, match=r"a task cannot be sent to another process \(.*\); define functions"):
        answers(apart, jobs.double, [1, threading.Lock()])


def test_stdout_has_what_the_caller_prints_and_not_what_ray_does(jobs, apart, capsys):
    before = sys.stdout
    for done in apart.run(jobs.double, [1, 2]):
        print(done.number)
        thread = threading.Thread(target=print, args=["lost"], name="ray_listen_error_messages")
        thread.start()
        thread.join()
    assert sys.stdout is before
    said = capsys.readouterr()
    assert sorted(set(said.out.split()) - {"lost"}) == ["0", "1"]
    assert isinstance(apart, Processes) or ("lost" not in said.out and "lost" in said.err)


def test_a_worker_whose_gpu_fails_is_replaced_and_its_task_done_again(jobs, apart, tmp_path):
    progress = Progress()
    done = answers(apart, jobs.OnGpu(tmp_path, (1, 3), 1), range(6), progress)
    assert done == {n: Done(n, n) for n in range(6)}
    assert {n: len(list(tmp_path.glob(f"{n}-*"))) for n in range(6)} == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1, 5: 1}
    assert progress.units == 6


@pytest.mark.slow
def test_what_the_gpu_said_is_told_of_a_task_that_is_given_up(jobs, tmp_path):
    done = answers(Processes(1), jobs.OnGpu(tmp_path, (0,), 99), range(2))
    assert done[1] == Done(1, 1) and isinstance(done[0].failure, Lost)
    assert "GPU any more, 3 times (CUDA error: an illegal memory access was encountered)" in str(done[0].failure)


@pytest.mark.slow
def test_ray_goes_on_without_the_actor_that_tells_of_progress(jobs, cluster, monkeypatch):
    ray, read, killed = importlib.import_module("ray"), of_ray._told, []

    def told(news):
        if not killed:
            killed.append(news)
            ray.kill(news, no_restart=False)
        return read(news)

    monkeypatch.setattr(of_ray, "_told", told)
    assert len(answers(Ray(workers=2), jobs.process, range(6))) == 6 and killed


def test_a_bug_stops_all_and_comes_with_the_traceback_of_its_process(jobs, apart):
    with pytest.raises(ZeroDivisionError, match="a bug") as raised:
        answers(apart, jobs.odd, [1, "bug"])
    told = "\n".join([*getattr(raised.value, "__notes__", []), str(raised.value.__cause__)])
    assert "engine_jobs.py" in told and "in odd" in told


@pytest.mark.slow
def test_a_bug_that_cannot_travel_is_told_in_words(jobs):
    with pytest.raises(RuntimeError, match="Unpicklable: this and that"):
        answers(Processes(1), jobs.odd, ["strange bug"])


def test_a_killed_worker_costs_no_task_and_counts_none_twice(jobs, apart, tmp_path):
    progress = Progress()
    done = answers(apart, jobs.Killed(tmp_path, (1, 3), 1), range(5), progress)
    assert done == {n: Done(n, n) for n in range(5)}
    assert {n: len(list(tmp_path.glob(f"{n}-*"))) for n in range(5)} == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1}
    assert progress.units == 15


def test_a_task_that_always_loses_its_worker_is_given_up_and_the_others_go_on(jobs, apart, tmp_path):
    progress = Progress()
    done = answers(apart, jobs.Killed(tmp_path, (1,), 99), range(4), progress)
    assert isinstance(done[1].failure, Lost) and "3 times" in str(done[1].failure)
    assert len(str(done[1].failure).splitlines()) == 1
    assert [done[n] for n in (0, 2, 3)] == [Done(n, n) for n in (0, 2, 3)]
    assert len(list(tmp_path.glob("1-*"))) == 3 and progress.units == 9


@pytest.mark.slow
def test_all_workers_killed_at_once(jobs, tmp_path):
    done = answers(Processes(2), jobs.Killed(tmp_path, (0, 1), 1), range(3))
    assert done == {n: Done(n, n) for n in range(3)}


def test_closing_it_stops_what_is_under_way(jobs, apart, tmp_path):
    with closing(apart.run(jobs.Endless(tmp_path), [0, 1, 2])) as doing:
        assert next(doing) == Done(0, 0)
        pids = [int(path.name.split("-")[1]) for path in tmp_path.glob("began-*")]
    assert pids
    if isinstance(apart, Processes):  # those of Ray's that are stopped wait for other tasks
        assert all(gone(pid) for pid in pids)
    else:
        assert {path.name for path in tmp_path.glob("stopped-*")} >= {f"stopped-{pid}" for pid in pids}


def test_what_is_stopped_can_write_a_checkpoint(jobs, apart, tmp_path):
    doing = apart.run(jobs.Trained(tmp_path), [0, 1], report=_closing_after(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        list(doing)
    began = {path.name.split("-")[1] for path in tmp_path.glob("began-*")}
    assert {path.name.split("-")[1] for path in tmp_path.glob("checkpoint-*")} == began == {"0", "1"}


def _closing_after(folder):
    """A report by which Ctrl-C comes once both tasks are under way."""

    def report(note="", /, advance=1):
        if len(list(folder.glob("began-*"))) == 2:
            raise KeyboardInterrupt

    return report


SCRIPT = """
import os, sys
from pathlib import Path
sys.path.insert(0, {jobs!r})
import engine_jobs
from vaentropy.engines import Processes
{guard}
    for done in Processes(2).run(engine_jobs.{call}, [0, 1, 2]):
        print(done.result, flush=True)
"""


def script(tmp_path, jobs, call, guard='if __name__ == "__main__":'):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(jobs=os.path.dirname(jobs.__file__), guard=guard, call=call))
    return [sys.executable, str(path)]


@pytest.mark.slow
def test_a_script_without_the_usual_guard_is_told_so(jobs, tmp_path):
    command = script(tmp_path, jobs, "double", guard="if True:")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert (
        "UsageError: a process could not start (status 1, see above); a script that uses several needs" in done.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_die_with_their_parent(jobs, tmp_path):
    command = script(tmp_path, jobs, f"Endless(Path({str(tmp_path)!r}))")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "0\n"
        pids = [int(path.name.split("-")[1]) for path in tmp_path.glob("began-*")]
        parent.kill()
    assert pids and all(gone(pid) for pid in pids)


@pytest.mark.slow
def test_what_another_process_does_not_know_is_told(jobs, monkeypatch):
    module = type(sys)("of_this_process_alone")
    exec("def call(task, report): pass", module.__dict__)
    module.call.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(UsageError, match=r"not known to another process .*of_this_process_alone"):
        answers(Processes(1), module.call, [1])
