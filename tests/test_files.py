"""Files written aside, and read with errors that a user understands."""

import torch
from safetensors.torch import load_file

from vaentropy.files import read_tensors, write_tensors


def test_equal_tensors_are_equal_files(tmp_path):
    tensors = {"b": torch.arange(3.0), "ä": torch.ones(2, 2, dtype=torch.int64), "a": torch.zeros(())}
    contents = set()
    for _ in range(40):
        write_tensors(tmp_path / "x.safetensors", tensors, {"seconds": 1.5})
        contents.add((tmp_path / "x.safetensors").read_bytes())
    assert len(contents) == 1
    for read in (read_tensors(tmp_path / "x.safetensors")[0], load_file(tmp_path / "x.safetensors")):
        assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)
