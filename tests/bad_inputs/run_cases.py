"""Runs that are damaged, malicious, or cannot be written to; outputs that are in the way."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from .case import Case, array, command, cut, numbers, parquet, several, text, with_value
from .data_cases import malicious_pickle

__all__ = ["RUNS"]


def run() -> None:
    """A copy of a finished run of two steps, in run/, and its data."""
    source = Path(os.environ["BAD_INPUTS"])
    shutil.copytree(source / "run", "run")
    shutil.copy(source / "x.npy", "x.npy")
    # A run knows where its data are; here it is to be the copy.
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace(str(source.absolute() / "x.npy"), str(Path("x.npy").absolute())))


def unfinished() -> None:
    """The same before its last step."""
    run()
    for name in ("model.safetensors", "evaluation.json", "checkpoints/step-000000002.safetensors"):
        Path("run", name).unlink()


def spoiled(name: str, content: str | bytes) -> Callable[[], None]:
    return several(run, text(content, f"run/{name}"))


def manifest(**values: Any) -> Callable[[], None]:
    def make() -> None:
        path = Path("run/manifest.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return several(run, make)


def data_of_manifest(**values: Any) -> Callable[[], None]:
    def make() -> None:
        path = Path("run/manifest.json")
        about = json.loads(path.read_text())
        about["data"].update(values)
        path.write_text(json.dumps(about))

    return several(run, make)


def settings(base: Callable[[], None] = run, **values: Any) -> Callable[[], None]:
    def make() -> None:
        path = Path("run/config.yaml")
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))

    return several(base, make)


def tensors(
    name: str, change: Callable[[dict[str, Any], dict[str, Any]], Any], base: Callable[[], None] = run
) -> Callable[[], None]:
    """A file of tensors changed, its checksum made anew: what an attacker can do."""

    def make() -> None:
        from vaentropy.files import read_tensors, write_tensors

        held, numbers_beside = read_tensors(Path("run", name))
        change(held, numbers_beside)
        write_tensors(Path("run", name), held, numbers_beside)

    return several(base, make)


def continued() -> None:
    """An unfinished run that a kill left before its first checkpoint, with weights to begin with."""
    unfinished()
    shutil.rmtree("run/checkpoints")
    Path("run/history.jsonl").unlink()
    shutil.copy(Path(os.environ["BAD_INPUTS"]) / "run/model.safetensors", "run/initial.safetensors")
    path = Path("run/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "continued_from": "other"}))


def initial(name: str, change: Callable[[], Any], *says: str) -> Case:
    """The weights that a run is to begin with spoiled."""
    return command(name, "train --resume run", several(continued, change), "run", "initial.safetensors", *says)


def state(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Callable[[], None]:
    """The only checkpoint of an unfinished run changed."""
    return tensors("checkpoints/step-000000001.safetensors", change, unfinished)


def link(name: str, base: Callable[[], None] = run) -> Callable[[], None]:
    """A file of the run moved out of it, and a link in its place; of what is not there, to a file that is."""

    def make() -> None:
        path, outside = Path("run", name), Path("outside")
        if path.exists():
            path.rename(outside)
        else:
            outside.write_text("mine")
        path.symlink_to(outside.resolve())

    return several(base, make)


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(start: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def weights(name: str, content: bytes, *says: str) -> Case:
    return command(name, "evaluate run", spoiled("model.safetensors", content), "run/model.safetensors", *says)


def history(name: str, content: str | bytes, *says: str) -> list[Case]:
    """A damaged history, as `info` and as `train --resume` find it."""
    make = several(unfinished, text(content, "run/history.jsonl"))
    return [
        command(f"history-{name}-info", "info run", make, "run/history.jsonl", "line 1", *says),
        command(f"history-{name}-resume", "train --resume run", make, "run/history.jsonl", "line 1", *says),
    ]


def logs(name: str, content: str, *says: str) -> Case:
    """What a folder says of its runs in Weights & Biases and MLflow damaged."""
    make = several(unfinished, text(content, "run/logs/runs.json"))
    return command(f"logs-{name}", "train --resume run --log wandb", make, "run/logs/runs.json", *says)


def no_space(name: str, arguments: str, file: str, make: Callable[[], None] = run, **more: Any) -> Case:
    more = {"confined": "tiny files", **more}
    return command(f"full-disk-{name}", arguments, make, file, "File too large", "make room", **more)


def wide(x: dict[str, Any], _: Any) -> None:
    for name in x:
        x[name] = torch.zeros(7)


def not_finite(x: dict[str, Any], _: Any) -> None:
    for each in x.values():
        each.fill_(torch.nan)


WEIGHTS = [
    command("model-cut", "evaluate run", several(run, cut("run/model.safetensors")), "model.safetensors"),
    command("model-empty", "encode run --out z.npy", several(run, cut("run/model.safetensors", 1.0)), "model.safet"),
    weights("model-pickle", malicious_pickle(), "safetensors file"),
    weights("model-torch-pickle", b"PK\x03\x04" + malicious_pickle(), "safetensors file"),
    weights("model-huge-header", safetensors_bytes(b"{}", length=2**63 - 1), "safetensors file"),
    weights("model-header-beyond-the-file", safetensors_bytes(b"{}", length=90_000_000), "safetensors file"),
    weights("model-pickle-as-header", safetensors_bytes(malicious_pickle()), "safetensors file"),
    weights("model-overlap", safetensors_bytes({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "safetensors"),
    weights("model-hole", safetensors_bytes({"a": entry(8, 16)}, bytes(16)), "safetensors"),
    weights("model-beyond-the-end", safetensors_bytes({"a": entry(0, 8000)}, bytes(8)), "safetensors"),
    weights("model-huge-shape", safetensors_bytes({"a": entry(0, 8, (2**40, 2**40))}, bytes(8)), "safetensors"),
    weights("model-unknown-dtype", safetensors_bytes({"a": entry(0, 8, dtype="X9")}, bytes(8)), "safetensors"),
    weights(
        "model-twice",
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2 + b'"b":1}', bytes(8)),
        "safetensors",
    ),
    weights(
        "model-metadata",
        safetensors_bytes(
            {"__metadata__": {"vaentropy": json.dumps({"numbers": "{", "sha256": "0"})}, "a": entry(0, 8)}, bytes(8)
        ),
        "checksum",
    ),
    command("model-shapes", "evaluate run", tensors("model.safetensors", wide), "model.safetensors", "size mismatch"),
    command("model-nan", "evaluate run", tensors("model.safetensors", not_finite), "model.safetensors", "finite"),
    command(
        "model-names",
        "sample run --out s.npy",
        tensors("model.safetensors", lambda x, n: x.pop("head.log_variance")),
        "model.safetensors",
        "head.log_variance",
    ),
    command(
        "model-folder",
        "evaluate run",
        several(run, lambda: (Path("run/model.safetensors").unlink(), Path("run/model.safetensors").mkdir())),
        "model.safetensors",
    ),
    command(
        "model-fifo",
        "evaluate run",
        several(run, lambda: (Path("run/model.safetensors").unlink(), os.mkfifo("run/model.safetensors"))),
        "model.safetensors",
        "regular file",
    ),
    command(
        "scaling-zero",
        "reconstruct run --out z.npy",
        tensors("scaling.safetensors", lambda x, n: x["scale"].zero_()),
        "scaling.safetensors",
        "positive",
    ),
    command(
        "scaling-nan",
        "evaluate run",
        tensors("scaling.safetensors", lambda x, n: x["shift"].fill_(torch.nan)),
        "scaling.safetensors",
        "finite",
    ),
    command(
        "scaling-shape", "sample run --out z.npy", tensors("scaling.safetensors", wide), "scaling.safetensors", "(7,)"
    ),
    command(
        "scaling-without-shift",
        "evaluate run",
        tensors("scaling.safetensors", lambda x, n: x.pop("shift")),
        "scaling.safetensors",
        "shift",
    ),
    command("scaling-cut", "evaluate run", several(run, cut("run/scaling.safetensors")), "scaling.safetensors"),
]

MANIFESTS = [
    command("manifest-cut", "info run", several(run, cut("run/manifest.json")), "manifest.json"),
    command("manifest-list", "info run", spoiled("manifest.json", "[]"), "manifest.json"),
    command("manifest-not-utf8", "info run", spoiled("manifest.json", b'{"schema_version": 1, "a": "\xff"}'), "UTF-8"),
    command("manifest-deep", "info run", spoiled("manifest.json", "[" * 100_000), "manifest.json"),
    command("manifest-newer", "info run", manifest(schema_version=99), "schema 99", "update it"),
    command("manifest-newer-resume", "train --resume run", manifest(schema_version=99), "schema 99", "update it"),
    command("manifest-version-text", "info run", manifest(schema_version="1"), "manifest.json", "schema_version"),
    command("manifest-data-list", "info run", manifest(data=[1]), "manifest.json", "data"),
    command("manifest-data-list-evaluate", "evaluate run", manifest(data=[1]), "manifest.json", "data"),
    command("manifest-no-data-resume", "train --resume run", manifest(data=None), "manifest.json", "data"),
    command("manifest-counts-text", "info run", data_of_manifest(num_train="many"), "manifest.json", "num_train"),
    command("manifest-shape-text", "evaluate run", data_of_manifest(data_shape="abc"), "manifest.json", "data_shape"),
    command("manifest-shape-0", "evaluate run", data_of_manifest(data_shape=[0]), "manifest.json", "data_shape"),
    command("manifest-shape-huge", "evaluate run", data_of_manifest(data_shape=[2**30, 2**30]), "memory"),
    command("manifest-shape-other", "evaluate run", data_of_manifest(data_shape=[4]), "model.safetensors"),
    command("manifest-other-data", "evaluate run", data_of_manifest(sha256_train="0"), "the data have changed"),
    command("manifest-escapes", "info run", manifest(schema_version=99, status="\x1b[31m\n"), "schema 99"),
    command("manifest-escapes-shown", "info run", manifest(status="\x1b[31m"), works=True),
    command("data-changed", "evaluate run", several(run, array(numbers() + 1)), "the data have changed", "--data"),
    command(
        "data-changed-resume", "train --resume run", several(unfinished, array(numbers() + 1)), "the data have changed"
    ),
    command("data-changed-calibrate", "calibrate run", several(run, array(numbers() + 1)), "the data have changed"),
    command("data-changed-diagnose", "diagnose run", several(run, array(numbers() + 1)), "the data have changed"),
    command("data-changed-prune", "prune run", several(run, array(numbers() + 1)), "the data have changed"),
    command("data-changed-continue", "continue run", several(run, array(numbers() + 1)), "the data have changed"),
    command(
        "data-gone-diagnose", "diagnose run", several(run, lambda: Path("x.npy").unlink()), "x.npy", "no such file"
    ),
    command("diagnose-missing", "diagnose run", None, "run", "is no run"),
    command("diagnose-unfinished", "diagnose run", unfinished, "run", "model.safetensors"),
    command("diagnose-other-shape", "diagnose run --data digits", run, "(64,)", "(3,)"),
    command("prune-unfinished", "prune run", unfinished, "run", "model.safetensors"),
    command("continue-unfinished", "continue run", unfinished, "run", "model.safetensors"),
    command("continue-config-other", "continue run", settings(latent_dim=5), "model.safetensors", "size mismatch"),
    command("data-gone", "evaluate run", several(run, lambda: Path("x.npy").unlink()), "x.npy", "no such file"),
    command("data-other-shape", "encode run digits --out z.npy", run, "(64,)", "(3,)"),
    command("config-other", "evaluate run", settings(latent_dim=5), "model.safetensors", "size mismatch"),
    command("config-other-resume", "train --resume run", settings(unfinished, learning_rate=0.5), "learning_rate=0.5"),
    command("config-more-epochs", "train --resume run", settings(unfinished, epochs=9), "epochs=9", "epochs=2"),
    command("config-path", "evaluate run", settings(model="../vae1"), "config.yaml", "model='../vae1'"),
    command("config-data-outside", "evaluate run", settings(data="../../../etc/hostname"), "../../../etc/hostname"),
    command("config-huge-model", "evaluate run", settings(hidden=[2_000_000, 2_000_000]), "memory"),
    command("config-python-in-a-run", "evaluate run", spoiled("config.yaml", "a: !!python/name:os.system"), "config.y"),
    command("config-not-utf8-in-a-run", "info run", spoiled("config.yaml", b"\xff\xfe\xff"), "config.yaml", "UTF-8"),
    command(
        "config-is-a-fifo",
        "info run",
        several(run, lambda: (Path("run/config.yaml").unlink(), os.mkfifo("run/config.yaml"))),
        "config.yaml",
        "regular file",
    ),
    command("run-is-a-file", "evaluate run", text("", "run"), "run", "folder"),
    command("run-is-a-file-info", "info run", text("", "run"), "run", "folder"),
    command("run-is-missing", "sample run --out s.npy", None, "run", "is no run"),
    command("run-is-empty", "encode run --out s.npy", lambda: Path("run").mkdir(), "run", "is no run"),
    command("run-is-not-finished", "reconstruct run --out s.npy", unfinished, "run", "model.safetensors"),
]

STATES = [
    command(
        "state-cut",
        "train --resume run",
        several(unfinished, cut("run/checkpoints/step-000000001.safetensors")),
        "step-000000001",
        "start anew",
    ),
    command(
        "state-text",
        "train --resume run",
        several(unfinished, text("no", "run/checkpoints/step-000000001.safetensors")),
        "step-000000001",
        "start anew",
    ),
    command(
        "state-pickle",
        "train --resume run",
        several(unfinished, text(malicious_pickle(), "run/checkpoints/step-000000001.safetensors")),
        "step-000000001",
    ),
    command(
        "state-nothing-in-it",
        "train --resume run",
        state(lambda x, n: (x.clear(), n.clear())),
        "step-000000001",
        "settings",
    ),
    command(
        "state-settings-list",
        "train --resume run",
        state(lambda x, n: n.update(settings=[1])),
        "step-000000001",
        "settings",
    ),
    command("state-step-text", "train --resume run", state(lambda x, n: n.update(step="one")), "checkpoint", "step"),
    command("state-step-negative", "train --resume run", state(lambda x, n: n.update(step=-5)), "checkpoint", "step"),
    command(
        "state-rows-huge", "train --resume run", state(lambda x, n: n.update(rows=10**9)), "history.jsonl", "1000000000"
    ),
    command(
        "state-factor-nan",
        "train --resume run",
        state(lambda x, n: n.update(learning_rate_factor=None)),
        "learning_rate_factor",
    ),
    command(
        "state-weights",
        "train --resume run",
        state(lambda x, n: x.update({"model.latent_mean.weight": torch.zeros(9)})),
        "checkpoint",
        "size mismatch",
    ),
    command(
        "state-optimiser-name",
        "train --resume run",
        state(lambda x, n: x.update({"optimizer.one.step": torch.zeros(())})),
        "checkpoint",
        "optimi",
    ),
    command(
        "state-optimiser-number",
        "train --resume run",
        state(lambda x, n: x.update({"optimizer.-1.step": torch.zeros(())})),
        "checkpoint",
        "optimi",
    ),
    command(
        "state-optimiser-part",
        "train --resume run",
        state(lambda x, n: x.pop("optimizer.0.exp_avg")),
        "checkpoint",
        "optimi",
    ),
    command(
        "state-optimiser-shape",
        "train --resume run",
        state(lambda x, n: x.update({"optimizer.0.exp_avg": torch.zeros(())})),
        "checkpoint",
        "optimi",
    ),
    command(
        "state-generator",
        "train --resume run",
        state(lambda x, n: x.update({"generator.noise": torch.zeros(3)})),
        "checkpoint",
    ),
    command(
        "state-generator-missing",
        "train --resume run",
        state(lambda x, n: x.pop("generator.cpu")),
        "checkpoint",
        "no 'cpu'",
    ),
    command(
        "state-sums", "train --resume run", state(lambda x, n: x.update(terms=torch.zeros(2, 2))), "checkpoint", "terms"
    ),
    *history("cut", '{"epoch": 1, "step": 1, "run\n'),
    *history("list", "[1, 2]\n"),
    *history("text", "nonsense\n"),
    *history("not-a-number", '{"epoch": 1, "step": "one", "running_elbo": [], "seconds": 1}\n'),
    *history(
        "not-a-list",
        '{"epoch": 1, "step": 1, "running_elbo": 1, "running_entropy_sum": 1, "seconds": 1, '
        '"running_kl_per_latent": [1, "a"]}\n',
        "a list of numbers",
    ),
    *history("without-elbo", '{"epoch": 1, "step": 1}\n', "running_elbo"),
    *history("deep", "[" * 100_000 + "\n"),
    command(
        "history-not-utf8", "info run", several(run, text(b"\xff\n", "run/history.jsonl")), "history.jsonl", "UTF-8"
    ),
    command(
        "history-gone",
        "train --resume run",
        several(unfinished, lambda: Path("run/history.jsonl").unlink()),
        "history.jsonl",
        "0 rows",
    ),
    command(
        "history-short",
        "train --resume run",
        several(unfinished, cut("run/history.jsonl", 1.0)),
        "history.jsonl",
        "0 rows",
    ),
]

INITIAL = [
    command("initial-works", "train --resume run", continued, works=True, changes=["run/"]),
    initial("initial-gone", lambda: Path("run/initial.safetensors").unlink(), "put the file of the run back"),
    initial("initial-cut", cut("run/initial.safetensors"), "safetensors file"),
    initial("initial-pickle", text(malicious_pickle(), "run/initial.safetensors"), "safetensors file"),
    initial("initial-of-another-model", tensors("initial.safetensors", wide, lambda: None), "size mismatch"),
    initial("initial-nan", tensors("initial.safetensors", not_finite, lambda: None), "finite"),
]

LINKS = [
    *(
        command(f"link-{name}", "train --resume run", link(name, unfinished), f"run/{name}", "leads out")
        for name in (
            "config.yaml",
            "manifest.json",
            "history.jsonl",
            "scaling.safetensors",
            "checkpoints",
            "evaluation.json",
            "model.safetensors",
            "initial.safetensors",
            ".lock",
            "checkpoints/step-000000001.safetensors",
        )
    ),
    *(
        command(
            f"link-partial-{name}",
            "train --resume run --no-report",
            link(f"{name}.partial", unfinished),
            works=True,
            changes=["run/"],
        )
        for name in ("manifest.json", "scaling.safetensors", "checkpoints/step-000000002.safetensors")
    ),
    command("link-model-evaluate", "evaluate run", link("model.safetensors"), "run/model.safetensors", "leads out"),
    command(
        "link-to-itself",
        "evaluate run",
        several(run, lambda: (Path("run/config.yaml").unlink(), Path("run/config.yaml").symlink_to("config.yaml"))),
        "config.yaml",
    ),
    command(
        "link-out-partial",
        "encode run --out z.npy",
        several(run, text("mine", "victim"), lambda: Path("z.npy.partial").symlink_to("victim")),
        "z.npy.partial",
        "exists",
    ),
    command(
        "link-calibrate",
        "calibrate run --out copy",
        several(
            run,
            lambda: (
                Path("copy").mkdir(),
                Path("outside").write_text("x"),
                Path("copy/config.yaml.partial").symlink_to("../outside"),
            ),
        ),
        works=True,
        changes=["copy/"],
    ),
]

LOGS = [
    logs("cut", "{", "is damaged", "remove it"),
    logs("list", "[]", "is damaged", "remove it"),
    logs("number", '{"wandb": 3}', "is damaged", "remove it"),
    logs("deep", "[" * 100_000, "is damaged", "remove it"),
    command(
        "logs-id-is-a-path",
        "train --resume run --log wandb",
        several(unfinished, text('{"wandb": "../../up"}', "run/logs/runs.json")),
        "run_id='../../up'",
    ),
    command(
        "logs-in-the-way",
        "train --resume run --log tensorboard",
        several(unfinished, text("mine", "run/logs")),
        "run/logs",
        "cannot be made",
    ),
    command("logs-link", "train --resume run", link("logs", unfinished), "run/logs", "leads out"),
    command(
        "logs-link-inside",
        "train --resume run --log tensorboard",
        link("logs/tensorboard", several(unfinished, lambda: Path("run/logs").mkdir())),
        "run/logs/tensorboard",
        "leads out",
    ),
]

OUTPUTS = [
    command("out-exists", "encode run --out z.npy", several(run, text("", "z.npy")), "z.npy exists", "--overwrite"),
    command("out-is-own-data", "encode run --out x.npy --overwrite", run, "x.npy given to write to, but", "is read"),
    command("out-ending", "encode run --out z.txt", run, "z.txt", ".parquet"),
    command("out-no-ending", "sample run --out z", run, "z", ".parquet"),
    command("out-no-folder", "encode run --out there/z.npy", run, "there/z.npy", "no folder there"),
    command("out-below-file", "reconstruct run --out x.npy/z.npy", run, "x.npy/z.npy", "no folder"),
    command("out-is-folder", "sample run --out run.npy", several(run, lambda: Path("run.npy").mkdir()), "run.npy"),
    command("out-parts-in-use", "encode run --out full", several(run, text("mine", "full/a.txt")), "full", "a.txt"),
    command("out-parts-of-run", "encode run --out run/ --overwrite", run, "run/ holds", "part-00000.parquet"),
    command("out-parts-file", "encode run --out z/", several(run, text("", "z")), "z/", "file of that name"),
    command("out-parts-no-folder", "reconstruct run --out there/z/", run, "there/z/", "no folder there"),
    command("out-parts-partial", "encode run --out z/", several(run, lambda: Path("z.partial").mkdir()), "z.partial"),
    command("out-parts-of-sample", "sample run --out z/", run, "z/", ".parquet"),
    command(
        "out-parts-are-data", "encode run z --out z/", several(run, parquet({"a": [1]}, "z/a.parquet")), "z/ given"
    ),
    command("encode-engine", "encode run --out z.npy --engine procesess", run, "procesess", "did you mean 'processes'"),
    command("encode-workers-0", "encode run --out z.npy --workers 0", run, "workers=0", "at least 1"),
    command("evaluate-workers-0", "evaluate run --workers 0", run, "workers=0", "at least 1"),
    command("evaluate-workers-text", "evaluate run --workers many", run, "--workers", "many"),
    command("evaluate-workers-nan", "evaluate run --workers 1", several(run, array(with_value(np.nan))), "row 7"),
    command("out-is-data", "encode run x.npy --out x.npy", run, "x.npy given to write to, but"),
    command(
        "out-partial-exists",
        "sample run --out z.csv",
        several(run, text("mine", "z.csv.partial")),
        "z.csv.partial",
        "exists",
    ),
    command("out-calibrate-exists", "calibrate run --out run", run, "another one"),
    command("out-calibrate-itself", "calibrate run --out run --overwrite", run, "another one"),
    command("out-prune-itself", "prune run --out run --overwrite", run, "another one"),
    command("out-continue-itself", "continue run --out run --overwrite", run, "another one"),
    command("out-continue-exists", "continue run --out x.npy", run, "x.npy", "not a folder"),
    command("calibrate-fixed-variance", "calibrate run", settings(model="vae0"), "run", "continue run --model vae1"),
    command("prune-run-missing", "prune run", None, "run", "is no run"),
    command("prune-all-latents", "prune run --latents 0,1", run, "all 2 latents", "at least one"),
    command("prune-negative-latent", "prune run --latents=-1", run, "(-1,)", "from 0 to 1"),
    command("prune-samples", "prune run --num-samples 0", run, "num_samples=0"),
    command("continue-missing", "continue run", None, "run", "is no run"),
    command("continue-out-exists", "continue run --out other", several(run, text("mine", "other/a")), "other", "empty"),
    command("continue-latent-dim", "continue run --latent-dim 5", run, "latent_dim=5", "networks"),
    command("continue-seed", "continue run --seed 5", run, "seed=5", "data"),
    command("continue-variances", "continue run --variances free", run, "variances='free'"),
    command("prune-latents", "prune run --latents 9", run, "(9,)", "from 0 to 1"),
    command("prune-latents-text", "prune run --latents one", run, "one", "whole numbers"),
    command("prune-latents-repeated", "prune run --latents 0,0", run, "(0, 0)", "different"),
    command("prune-collapse", "prune run --collapse some", run, "collapse='some'", "paper"),
    command("diagnose-collapse", "diagnose run --collapse -1", run, "collapse=-1"),
    command("diagnose-tolerance", "diagnose run --tolerance -1", run, "tolerance=-1"),
    command("diagnose-seed", "diagnose run --seed -1", run, "seed=-1"),
    command("continue-hidden", "continue run --hidden 7", run, "hidden=(7,)", "networks"),
    command("continue-data", "continue run --scale standard", run, "scale='standard'", "data"),
    command("continue-model", "continue run --model vae3", run, "model='vae3'"),
    command("continue-epochs", "continue run --epochs 0", run, "epochs=0"),
    command("samples-0", "sample run --out s.npy --num-samples 0", run, "num_samples=0", "at least 1"),
    command("samples-huge", "sample run --out s.npy --num-samples 2000000000", run, "memory"),
    command("samples-beyond-int64", "sample run --out s.npy --num-samples 99999999999999999999", run, "num_samples"),
    command("sample-seed", "sample run --out s.npy --seed -1", run, "seed=-1"),
    command("sample-seed-huge", "sample run --out s.npy --seed 99999999999999999999", run, "seed="),
    command("evaluate-seed", "evaluate run --seed -1", run, "seed=-1"),
    command("evaluate-samples", "evaluate run --num-samples 0", run, "num_samples=0"),
    command("evaluate-device", "evaluate run --device meta", run, "device='meta'"),
    command("evaluate-unknown-data", "evaluate run --data nowhere.csv", run, "nowhere.csv", "no such file"),
    command("encode-pickle", "encode run x.pt --out z.npy", several(run, text(malicious_pickle(), "x.pt")), "x.pt"),
    command(
        "encode-nan",
        "encode run y.npy --out z.npy",
        several(run, lambda: np.save("y.npy", np.full((4, 3), np.nan))),
        "y.npy",
        "row 0",
        "column 0",
    ),
]

CONFINED = [
    no_space("train", "train x.npy --epochs 1 --hidden 4 --out new", "new/"),
    no_space("checkpoint", "train x.npy --epochs 1 --hidden 4 --out new", "new/checkpoints/", confined="small files"),
    no_space("resume", "train --resume run", "run/", unfinished),
    no_space(
        "resume-checkpoint",
        "train --resume run",
        "run/checkpoints/",
        unfinished,
        confined="small files",
        changes=["run/history.jsonl"],
    ),
    no_space("npy", "sample run --out z.npy --num-samples 1000", "z.npy"),
    no_space("csv", "sample run --out z.csv --num-samples 1000", "z.csv"),
    no_space("parquet", "sample run --out z.parquet --num-samples 1000", "z.parquet"),
    no_space("encode", "encode run --out z.csv", "z.csv"),
    no_space("parts", "encode run --out z/", "z"),
    no_space("calibrate", "calibrate run --out copy", "copy/"),
    no_space("prune", "prune run --latents 0 --out copy", "copy/"),
    no_space("continue", "continue run --epochs 1 --out copy", "copy/"),
    command("full-stdout-encode", "encode run --out -", run, "output", "No space left", confined="full stdout"),
    command("full-stdout-info", "info run --json", run, "output", "No space left", confined="full stdout"),
    command("read-only-out", "encode run --out z.npy", run, "z.npy", "Permission denied", confined="nobody"),
    command("read-only-csv", "encode run --out z.csv", run, "z.csv", "Permission denied", confined="nobody"),
    command(
        "read-only-parquet", "encode run --out z.parquet", run, "z.parquet", "Permission denied", confined="nobody"
    ),
    command("read-only-train", "train pca --epochs 1 --out new", None, "new", "Permission denied", confined="nobody"),
    command("read-only-default", "train pca --epochs 1", None, "runs", "Permission denied", confined="nobody"),
    command("read-only-resume", "train --resume run", unfinished, "run", "Permission denied", confined="nobody"),
    command("read-only-calibrate", "calibrate run", run, "runs", "Permission denied", confined="nobody"),
    command("read-only-prune", "prune run --latents 0", run, "runs", "Permission denied", confined="nobody"),
    command("read-only-continue", "continue run --epochs 1", run, "runs", "Permission denied", confined="nobody"),
    command("read-only-diagnose-works", "diagnose run", run, works=True, confined="nobody"),
    command("read-only-works", "evaluate run", run, works=True, confined="nobody"),
    command(
        "unreadable-data",
        "train x.npy --out new",
        several(run, lambda: os.chmod("x.npy", 0)),
        "x.npy",
        "ermission",
        confined="nobody",
    ),
    command(
        "unreadable-config",
        "info run",
        several(run, lambda: os.chmod("run/config.yaml", 0)),
        "config.yaml",
        "ermission",
        confined="nobody",
    ),
    command(
        "unreadable-run", "info run", several(run, lambda: os.chmod("run", 0)), "run", "ermission", confined="nobody"
    ),
    command(
        "unreadable-settings",
        "train --config a.yaml",
        several(text("epochs: 1", "a.yaml"), lambda: os.chmod("a.yaml", 0)),
        "a.yaml",
        "ermission",
        confined="nobody",
    ),
    command(
        "unreadable-images",
        "train images",
        several(text("", "images/below/a.png"), lambda: os.chmod("images/below", 0)),
        "images",
        "ermission",
        confined="nobody",
    ),
]

RUNS = [*WEIGHTS, *MANIFESTS, *STATES, *INITIAL, *LINKS, *LOGS, *OUTPUTS, *CONFINED]
