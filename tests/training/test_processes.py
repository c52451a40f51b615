"""Training in two processes: weights, history and evaluations are those of one."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from vaentropy.errors import DataError, TrainingError
from vaentropy.training import Checkpoints
from vaentropy.world import ALONE, Packet, World, found, from_bytes, to_bytes, whole_largest, whole_mean

from .together import OPTIONS, STEPS, TRAININGS, in_processes, kept, train

# Of numbers that are sums of the same numbers in another order, after hundreds of steps.
CLOSE = {"rel": 1e-8, "abs": 1e-9}
CLOSE_IN_FLOAT32 = {"rel": 1e-5, "abs": 1e-6}


def flat(x, name=""):
    if isinstance(x, dict | list):
        items = x.items() if isinstance(x, dict) else enumerate(x)
        return {k: v for key, y in items for k, v in flat(y, f"{name}.{key}").items()}
    return {name: x}


def numbers(x):
    """What is a number, and what is not."""
    every = flat(json.loads(json.dumps(x)))
    is_number = {n: isinstance(v, int | float) and not isinstance(v, bool) for n, v in every.items()}
    return {n: v for n, v in every.items() if is_number[n]}, {n: v for n, v in every.items() if not is_number[n]}


def alike(found, expected, **close):
    (ours, other), (theirs, others) = numbers(found), numbers(expected)
    assert other == others
    assert ours == pytest.approx(theirs, nan_ok=True, **close)


def same_as_one(name, processes):
    """Both processes end where one does, and bit for bit alike."""
    model, history = train(name)
    one, weights = kept(model, history), model.state_dict()
    (first, first_weights), (second, second_weights) = (process[name] for process in processes)
    # As text, in which NaN is like NaN.
    assert json.dumps(first) == json.dumps(second)
    close = CLOSE_IN_FLOAT32 if name == "float32" else CLOSE
    for key, value in weights.items():
        assert torch.equal(first_weights[key], second_weights[key])
        assert first_weights[key].numpy() == pytest.approx(value.numpy(), **close), key
    alike(first, one, **close)


# --- Weights, history, evaluations ------------------------------------------------------------------------------------


def test_two_processes_train_what_one_does(tmp_path):
    same_as_one("vae3", in_processes(2, tmp_path, "vae3"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Two processes, with all trainings."""
    return in_processes(2, tmp_path_factory.mktemp("two"), *TRAININGS)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_are_as_one(processes, name):
    same_as_one(name, processes)


@pytest.mark.slow
def test_the_trainings_are_what_they_are_called(processes):
    rows = {name: processes[0][name][0]["rows"] for name in TRAININGS}
    assert rows["vae1"][-1]["step"] == STEPS >= 200
    assert processes[0]["stops early"][0]["stopped"].startswith("no better held-out ELBO")
    assert rows["stops early"][-1]["restored_epoch"] < len(rows["stops early"]) < 150
    assert processes[0]["a plateau"][0]["stopped"].startswith("the entropy sum rose")
    assert rows["diverges"][-1]["rollbacks"] > 0


@pytest.mark.slow
def test_three_processes_with_batches_of_two_rows(tmp_path):
    three = in_processes(3, tmp_path, "few rows, vae3", "vae1", "a source of many windows")
    for name in three[0]:
        same_as_one(name, three[:2])
        same_as_one(name, three[1:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or not run by make test-gpu")
def test_two_processes_on_one_gpu_train_what_one_does(tmp_path):
    """Messages go by gloo: NCCL wants a GPU for each process."""
    first, second = (process["vae3"][0] for process in in_processes(2, tmp_path, "vae3", device="cuda"))
    (one,) = in_processes(1, tmp_path, "vae3", device="cuda")
    assert json.dumps(first) == json.dumps(second)
    alike(first, one["vae3"][0], **CLOSE)


# --- Who does what ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_row_is_seen_by_one_process(tmp_path):
    first, second = in_processes(2, tmp_path, "shares", "callbacks")
    together = [a + b for a, b in zip(first["shares"]["rows"], second["shares"]["rows"], strict=True)]
    assert len(together) == STEPS and sum(together) == 203 * OPTIONS["epochs"]
    assert max(first["shares"]["rows"]) <= 10
    assert (first["callbacks"]["called"], second["callbacks"]["called"]) == (OPTIONS["epochs"], 0)


@pytest.mark.slow
def test_each_shard_is_read_by_one_process(tmp_path):
    first, second = in_processes(2, tmp_path, "reads")
    shards = list(range(first["reads"]["shards"]))
    for one, two in zip(first["reads"]["epochs"], second["reads"]["epochs"], strict=True):
        assert sorted(one + two) == shards and abs(len(one) - len(two)) <= 2


@pytest.mark.slow
def test_what_one_process_cannot_read_is_said_by_all(tmp_path):
    said = sorted(process["unreadable"]["said"] for process in in_processes(2, tmp_path, "unreadable"))
    assert said[0].startswith("DataError: shuffled rows of data: row ") and "column 2" in said[0]
    assert said[1] == "FailedElsewhere: reading failed in another one of 2 processes; see what that one says"


# --- Checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("numbers_of_processes", [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_processes_goes_on(tmp_path, numbers_of_processes):
    before, after = numbers_of_processes
    assert in_processes(before, tmp_path, "cut")[0]["cut"] == {"steps": 60}
    assert Checkpoints(tmp_path / "run").steps() == [56, 49]
    *_, last = in_processes(after, tmp_path, "resumed")
    model, history = train("vae3")
    alike(last["resumed"], kept(model, history), **CLOSE)
    weights = load_file(tmp_path / f"resumed-{after - 1}.safetensors")
    assert all(weights[k].numpy() == pytest.approx(v.numpy(), **CLOSE) for k, v in model.state_dict().items())
    written = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in written] == list(range(1, 20))


@pytest.mark.slow
def test_checkpoints_change_nothing(tmp_path):
    """Not a bit, wherever they are made and training goes on from them."""
    whole = in_processes(2, tmp_path, "vae3")[0]["vae3"][0]
    in_processes(2, tmp_path, "cut")
    assert numbers(in_processes(2, tmp_path, "resumed")[0]["resumed"]) == numbers(whole)


@pytest.mark.slow
def test_a_signal_stops_all_after_the_same_step(tmp_path):
    for result in in_processes(2, tmp_path, "interrupted"):
        assert result["interrupted"] == {"steps": 31, "signal": 15, "text": "interrupted after step 31"}
    assert Checkpoints(tmp_path / "run").steps() == [31, 0]
    same = in_processes(2, tmp_path, "resumed")[1]["resumed"]
    alike(same, kept(*train("vae3")), **CLOSE)


@pytest.mark.slow
def test_a_signal_stops_all_within_an_evaluation(tmp_path):
    for result in in_processes(2, tmp_path, "interrupted_evaluation"):
        assert result["interrupted_evaluation"]["signal"] == 2
    assert len(Checkpoints(tmp_path / "run").steps()) == 2


# --- Mistakes and misfortunes -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused_by_all(tmp_path):
    first, second = (process["refused"] for process in in_processes(2, tmp_path, "refused"))
    expected = {
        "BatchNorm": "UsageError: encoder.1 is BatchNorm1d, whose statistics would be those of a part of the batch",
        "dropout": "UsageError: encoder.1 is Dropout, which would draw the same for the rows of each process",
        "loader": "UsageError: data is a DataLoader, expected a tensor, array or Source in 2 processes",
        "held-out loader": "UsageError: held_out is a DataLoader",
        "weights": "UsageError: the model is not the same in 2 processes",
        "data": "UsageError: data is not the same in 2 processes",
        "shards": "UsageError: data is not the same in 2 processes",
        "seed": "UsageError: seed is not the same in 2 processes",
        "folder": "UsageError: ",
        "no folder to resume": "DataError: none of the checkpoints in ",
    }
    for name, text in expected.items():
        assert first[name].startswith(text) and first[name] == second[name], name
    assert "history.jsonl that no checkpoint goes with" in first["folder"]
    assert first["held-out data"].startswith("FailedElsewhere: an evaluation failed in another one of 2 processes")
    assert second["held-out data"].startswith("DataError: the data: row 30, column 2")


@pytest.mark.slow
def test_a_process_that_is_lost_is_an_error_in_the_others(tmp_path):
    first, second = in_processes(2, tmp_path, "lost")
    assert first["lost"]["said"].startswith("TrainingError: process 0 of 2 has lost another one, which failed or was")
    assert second["lost"] is None


# --- Worlds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 7, 100])
def test_parts_are_all_of_it_in_order_and_nearly_equal(size, count):
    parts = [range(count)[World(rank, size).part(count)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_alone():
    assert found() is ALONE and ALONE.alone and ALONE.first
    x = torch.tensor([1.0, math.nan])
    assert ALONE.sum(x) is x and ALONE.largest(x) is x and whole_mean(x) is x and whole_largest(x) is x
    assert ALONE.any(True) and not ALONE.any(False)
    with pytest.raises(DataError, match="nothing there"):
        ALONE.from_first(lambda: raised(DataError("nothing there")))


def raised(error):
    raise error


def test_packets_travel_as_bytes():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7, dtype=torch.uint8)}
    there = from_bytes(to_bytes(Packet(tensors, {"x": [1, None, "ä"], "nan": math.nan})))
    assert all(torch.equal(there.tensors[name], tensors[name]) for name in tensors) and len(there.tensors) == 2
    assert there.values["x"] == [1, None, "ä"] and math.isnan(there.values["nan"])


def test_a_lost_group_is_a_training_error():
    with pytest.raises(TrainingError, match="process 1 of 2 has lost another one"), World(1, 2)._talking():
        raise RuntimeError("Connection closed by peer")
