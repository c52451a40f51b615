"""Files written aside, and read with errors that a user understands."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from vaentropy.errors import UsageError
from vaentropy.files import read_tensors, write_tensors, write_text
from vaentropy.runs.output import Output


def test_equal_tensors_are_equal_files(tmp_path):
    tensors = {"b": torch.arange(3.0), "ä": torch.ones(2, 2, dtype=torch.int64), "a": torch.zeros(())}
    contents = set()
    for _ in range(40):
        write_tensors(tmp_path / "x.safetensors", tensors, {"seconds": 1.5})
        contents.add((tmp_path / "x.safetensors").read_bytes())
    assert len(contents) == 1
    for read in (read_tensors(tmp_path / "x.safetensors")[0], load_file(tmp_path / "x.safetensors")):
        assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_file_takes_the_place_of_no_pipe_device_or_folder(tmp_path):
    # By root's hand /dev/null would become a file.
    pipe, folder = tmp_path / "pipe.csv", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(UsageError, match="is no file, expected one to replace or nothing"):
            write_text(path, "text")
    with pytest.raises(UsageError, match=r"pipe\.csv is no file"):
        Output(pipe, (2,), None, overwrite=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [folder, pipe]
