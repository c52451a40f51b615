"""What is fuzzed: for each kind of file, how one is made wrong and how vaentropy is made to read it."""

import gzip
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import vaentropy as ve
from vaentropy.config import RunConfig
from vaentropy.data import load, read_idx
from vaentropy.files import read_tensors, read_yaml, write_tensors
from vaentropy.runs import RunFolder, describe_run, evaluate_run, train
from vaentropy.runs.build import load_own
from vaentropy.training import Checkpoints

from .mutations import any_bytes, any_text, any_value, bytes_of, json_text, png_checksums, text_of, value_of

__all__ = ["TARGETS", "prepare"]

X = np.random.default_rng(0).normal(size=(12, 3))
PARQUET = {}, {"compression": "none", "use_dictionary": False}, {"compression": "gzip", "row_group_size": 2}
IMAGES = ("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB"), ("BMP", "L"), ("WEBP", "RGB"), ("GIF", "P")
SETTINGS: dict[str, Any] = {"held_out": 0.2, "epochs": 2, "hidden": (4,), "batch_size": 5, "evaluation_samples": 2}
VALID: dict[str, list[bytes]] = {}
# A target writes a wrong file with the generator, in the working directory, and reads it.
Target = Callable[[random.Random], Any]


def bytes_from(write: Callable[[Any], Any]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def prepare() -> None:
    """The valid files, and a finished run in valid/."""
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    arrays = [X, X.astype(">f4"), np.asfortranarray(X), np.arange(8, dtype=np.uint8), X.reshape(3, 2, 2, 3)]
    VALID["npy"] = [bytes_from(lambda out, x=x: np.save(out, x)) for x in arrays]
    VALID["npz"] = [bytes_from(lambda out: np.savez(out, a=X)), bytes_from(lambda out: np.savez_compressed(out, X))]
    rows = "\n".join(",".join(map(str, row)) for row in X)
    quoted = '"a","b c",d\r\n"1",,3\r\n4,"5",NA\r\n'
    VALID["csv"] = [text.encode() for text in (f"a,b,c\n{rows}\n", rows, quoted, "\ufeffx\n1\n\n2\n3", "a,b\n1,2")]
    VALID["csv.gz"] = [gzip.compress(content) for content in VALID["csv"]]
    tables = [
        pa.table({"a": X[:, 0], "b": X[:, 1].astype("f4")}),
        pa.table({"a": pa.array([1, None, 3]), "b": pa.array([True, False, None])}),
        pa.table({"a": pa.array(["x", "y"]), "b": pa.array([[1], [2, 3]])}),
    ]
    for table in tables:
        for options in PARQUET:
            content = bytes_from(lambda out, t=table, o=options: parquet.write_table(t, out, **o))
            VALID.setdefault("parquet", []).append(content)
    sizes = np.array([3, 2, 2], dtype=">u4").tobytes()
    VALID["idx"] = [b"\0\0\x08\x03" + sizes + bytes(range(12)), b"\0\0\x0e\x01\0\0\0\x02" + bytes(16)]
    VALID["idx.gz"] = [gzip.compress(content) for content in VALID["idx"]]
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    VALID["image"] = [bytes_from(lambda out, k=kind, m=mode: image.convert(m).save(out, k)) for kind, mode in IMAGES]
    Path("valid").mkdir()
    np.save("valid/x.npy", X)
    x = str(Path("valid/x.npy").resolve())
    config = RunConfig(data=x, scale="standard", checkpoint_every=1, **SETTINGS)
    train(config, out="valid/run", progress=False)
    shutil.copytree("valid/run", "run")
    VALID["safetensors"] = [path.read_bytes() for path in sorted(Path("run").rglob("*.safetensors"))]


def wrong(rng: random.Random, kind: str) -> bytes:
    """A wrong file of a kind, sometimes one of another kind."""
    contents = VALID[kind] if rng.random() < 0.97 else rng.choice([*VALID.values()])
    if rng.random() < 0.04:
        return any_bytes(rng) if rng.random() < 0.5 else any_text(rng).encode("utf-8", "surrogatepass")
    return bytes_of(rng, rng.choice(contents), rng.choice(contents))


def read_data(name: str, content: bytes) -> Any:
    Path(name).write_bytes(content)
    return load(name, held_out=0, missing="ignore")


def npz(rng: random.Random) -> Any:
    """Half of them a good archive of a bad array."""
    if rng.random() < 0.5:
        return read_data("x.npz", wrong(rng, "npz"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))) as archive:
        for name in rng.sample(("a.npy", "b", "../c.npy", "\x1b[31m.npy", ""), rng.choice((1, 1, 1, 2))):
            archive.writestr(name or "d.npy", wrong(rng, "npy"))
    return read_data("x.npz", out.getvalue())


def csv(rng: random.Random) -> Any:
    if rng.random() < 0.5:
        return read_data("x.csv", wrong(rng, "csv"))
    return read_data("x.csv", text_of(rng, rng.choice(VALID["csv"]).decode()).encode("utf-8", "surrogatepass"))


def csv_gz(rng: random.Random) -> Any:
    return read_data("x.csv.gz", wrong(rng, "csv.gz") if rng.random() < 0.6 else gzip.compress(wrong(rng, "csv"), 1))


def idx(rng: random.Random) -> Any:
    compressed = rng.random()
    content = wrong(rng, "idx") if compressed < 0.4 else wrong(rng, "idx.gz")
    Path("x.idx").write_bytes(gzip.compress(wrong(rng, "idx"), 1) if compressed > 0.7 else content)
    return read_idx("x.idx")


def image(rng: random.Random) -> Any:
    content = wrong(rng, "image")
    if content.startswith(b"\x89PNG") and rng.random() < 0.7:
        content = png_checksums(content)
    Path("images").mkdir(exist_ok=True)
    Path("images/a.png").write_bytes(content)
    return load("images", held_out=0, image_size=rng.choice((None, None, 4)))


def safetensors(rng: random.Random) -> Any:
    Path("x.safetensors").write_bytes(wrong(rng, "safetensors"))
    return read_tensors(Path("x.safetensors"))


def tensors_of(rng: random.Random, name: str) -> None:
    """A file of the run with other tensors or numbers in it, its checksum made anew."""
    tensors, numbers = read_tensors(Path("valid/run", name))
    if tensors and rng.random() < 0.6:
        which, how = rng.choice([*tensors]), rng.random()
        if how < 0.2:
            del tensors[which]
        elif how < 0.3:
            tensors[any_text(rng)[:8].encode("utf-8", "replace").decode()] = torch.zeros(2)
        elif how < 0.5:
            kind = rng.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8, torch.bfloat16))
            tensors[which] = tensors[which].to(kind)
        elif how < 0.7:
            tensors[which] = torch.full_like(tensors[which], rng.choice((0, 1, 255)))
        elif how < 0.8 and tensors[which].is_floating_point():
            tensors[which] = torch.full_like(tensors[which], rng.choice((torch.nan, torch.inf, 1e38, -1.0)))
        else:
            tensors[which] = torch.zeros(rng.choice(((), (0,), (1,), (5,), (2, 3), (1, 1, 1, 4))))
    else:
        changed = value_of(rng, numbers)
        numbers = changed if isinstance(changed, dict) else {"numbers": changed}
    write_tensors(Path("run", name), tensors, numbers)


def restored(*names: str) -> None:
    for name in names:
        shutil.copyfile(Path("valid/run", name), Path("run", name))


LAST = "checkpoints/step-000000004.safetensors"


def checkpoint(rng: random.Random) -> Any:
    """Read, and training resumed from it."""
    shutil.rmtree("run/checkpoints")
    shutil.copytree("valid/run/checkpoints", "run/checkpoints")
    restored("history.jsonl")
    best = Checkpoints("run").best_path()
    assert best is not None
    name = rng.choice(("step-000000003.safetensors", best.name))
    Path("run", LAST).unlink()
    tensors_of(rng, f"checkpoints/{name}")
    model, data = ve.load("valid/run"), load_own(RunFolder("valid/run").config())
    options = {**RESUMED, "held_out": data.held_out, "checkpoints": Checkpoints("run", every=1), "resume": True}
    return ve.fit(model, data.train, **options)


RESUMED: dict[str, Any] = {**RunConfig(**SETTINGS).settings(), "progress": False}


def run_file(name: str) -> Target:
    def target(rng: random.Random) -> Any:
        tensors_of(rng, name)
        try:
            # An evaluation takes ten times as long.
            return evaluate_run("run") if rng.random() < 0.2 else (ve.load("run"), RunFolder("run").scaling())
        finally:
            restored(name)

    return target


def manifest(rng: random.Random) -> Any:
    text = Path("valid/run/manifest.json").read_text()
    how = rng.random()
    if how < 0.6:
        content = json_text(value_of(rng, json.loads(text))).encode()
    else:
        content = bytes_of(rng, text.encode(), any_text(rng).encode("utf-8", "replace"))
    Path("run/manifest.json").write_bytes(content)
    try:
        describe_run("run")
        return ve.load("run")
    finally:
        restored("manifest.json")


def history(rng: random.Random) -> Any:
    lines = Path("valid/run/history.jsonl").read_text().splitlines()
    if rng.random() < 0.6:
        lines[rng.randrange(2)] = json_text(value_of(rng, json.loads(lines[0])))
        content = "\n".join([*lines, ""]).encode()
    else:
        content = bytes_of(rng, "\n".join([*lines, ""]).encode(), any_text(rng).encode("utf-8", "replace"))
    Path("run/history.jsonl").write_bytes(content)
    try:
        describe_run("run")
        return Checkpoints("run").rows(2)
    finally:
        restored("history.jsonl")


def config(rng: random.Random) -> Any:
    """Settings as a YAML text."""
    settings = Path("valid/run/config.yaml").read_text()
    how = rng.random()
    if how < 0.3:
        text = any_text(rng)
    elif how < 0.6:
        text = text_of(rng, settings)
    elif how < 0.8:
        text = yaml.safe_dump(value_of(rng, yaml.safe_load(settings)))
    else:
        text = ""
    content = text.encode("utf-8", "surrogatepass") or bytes_of(rng, settings.encode(), any_bytes(rng))
    Path("mine.yaml").write_bytes(content)
    return RunConfig.from_dict(read_yaml(Path("mine.yaml")), "mine.yaml")


def settings(rng: random.Random) -> Any:
    """Settings as a dict."""
    names = [*RunConfig().to_dict()]
    values = {}
    for _ in range(rng.randrange(4)):
        values[rng.choice(names) if rng.random() < 0.95 else any_text(rng)] = any_value(rng)
    return RunConfig.from_dict(values)


def name(rng: random.Random) -> Any:
    """The name of a run or of data."""
    return ve.load(any_text(rng)) if rng.random() < 0.5 else load(any_text(rng))


TARGETS: dict[str, Target] = {
    "npy": lambda rng: read_data("x.npy", wrong(rng, "npy")),
    "npz": npz,
    "csv": csv,
    "csv.gz": csv_gz,
    "parquet": lambda rng: read_data("x.parquet", wrong(rng, "parquet")),
    "idx": idx,
    "image": image,
    "safetensors": safetensors,
    "checkpoint": checkpoint,
    "model": run_file("model.safetensors"),
    "scaling": run_file("scaling.safetensors"),
    "manifest": manifest,
    "history": history,
    "config": config,
    "settings": settings,
    "name": name,
}
