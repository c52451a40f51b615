import gzip
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaentropy.data import read_idx
from vaentropy.errors import DataError

HEADER = bytes.fromhex("00000803 00000002 00000002 00000003")
IMAGES = HEADER + bytes(range(12))
TYPES = [
    (0x08, "B", torch.uint8, [0, 7, 255]),
    (0x09, "b", torch.int8, [-128, 0, 127]),
    (0x0B, "h", torch.int16, [-300, 1, 300]),
    (0x0C, "i", torch.int32, [-70_000, 1, 70_000]),
    (0x0D, "f", torch.float32, [-1.5, 0.25, 3e30]),
    (0x0E, "d", torch.float64, [-1.5, 0.1, 3e300]),
]


@pytest.fixture
def write(tmp_path):
    def write(content: bytes):
        path = tmp_path / "some-file"  # no suffix: content decides
        path.write_bytes(content)
        return path

    return write


def refused(path, words):
    with pytest.raises(DataError, match=words) as caught:
        read_idx(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
def test_bytes_written_by_hand(write, pack):
    images = read_idx(write(pack(IMAGES)))
    assert images.dtype == torch.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    images += 1  # writable, and of its own


@pytest.mark.parametrize(("code", "letter", "dtype", "values"), TYPES)
def test_element_types_are_big_endian(write, code, letter, dtype, values):
    read = read_idx(write(bytes([0, 0, code, 1]) + struct.pack(f">I3{letter}", 3, *values)))
    assert read.dtype == dtype
    assert torch.equal(read, torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize("name", ["data.gz", "data"])
def test_the_name_does_not_decide(tmp_path, name):
    for content in (IMAGES, gzip.compress(IMAGES)):
        (tmp_path / name).write_bytes(content)
        assert read_idx(str(tmp_path / name)).shape == (2, 2, 3)


@pytest.mark.parametrize(
    "magic",
    ["", "00", "000008", "01000803", "00010803", "00000703", "00000a03", "00000800", "000008ff", "89504e47"],
)
def test_wrong_magic_bytes(write, magic):
    found = bytes.fromhex(magic).hex(" ")
    refused(write(bytes.fromhex(magic)), f"magic bytes are '{found}', expected 00 00, a type of 08, 09, 0b")
    if len(magic) == 8:
        refused(write(bytes.fromhex(magic) + IMAGES[4:]), f"magic bytes are '{found}'")
    refused(write(gzip.compress(bytes.fromhex(magic))), f"magic bytes are '{found}'")


def test_a_file_that_ends_in_its_header(write):
    refused(write(HEADER[:-1]), "ends inside its header")


def test_too_few_and_too_many_bytes(write):
    declared = r"the header declares \(2, 2, 3\) of uint8, 12 bytes"
    refused(write(IMAGES[:-1]), f"{declared}, more than a file of this length can hold|{declared}, but 11 follow")
    refused(write(IMAGES + b"\n"), f"{declared}, but more follow")
    refused(write(gzip.compress(IMAGES[:-1])), f"{declared}, but 11 follow")
    refused(write(gzip.compress(IMAGES + b"\n")), f"{declared}, but more follow")
    refused(write(gzip.compress(IMAGES) + gzip.compress(b"x")), f"{declared}, but more follow")


def test_a_damaged_gzip_file(write):
    whole = gzip.compress(IMAGES)
    for length in range(2, len(whole)):
        refused(write(whole[:length]), "not readable|get a whole copy|magic bytes|ends inside")
    refused(write(whole + b"garbage"), "not readable.*get a whole copy")
    checksum = bytearray(whole)
    checksum[-8] ^= 1
    refused(write(bytes(checksum)), "not readable.*CRC")


def test_no_elements(write):
    refused(write(bytes.fromhex("00000802 00000000 00000003")), "expected at least one element")


def test_no_file(tmp_path):
    refused(tmp_path / "absent", "not readable.*No such file")
    refused(tmp_path, "not readable.*Is a directory")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["raw", "gzip"])
@pytest.mark.parametrize("size", ["00100000", "ffffffff"])
def test_a_lying_header_allocates_nothing(write, pack, size):
    path = write(pack(bytes.fromhex("00000e03") + bytes.fromhex(size) * 3 + bytes(100)))
    assert peak_of(path, "more than a file of this length can hold") < 1e6


def test_a_header_that_declares_more_than_a_gzip_file_yields(write):
    # 64 MB of header against 1 MB of incompressible content: possible by the file's length, so it must be read.
    noise = torch.randint(0, 256, (2**20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = write(gzip.compress(bytes.fromhex("00000801 04000000") + noise.numpy().tobytes()))
    assert peak_of(path, "67108864 bytes, but 1048576 follow") < 8e6


def test_a_bomb_is_not_expanded(write):
    path = write(gzip.compress(HEADER + bytes(2**26)))
    assert path.stat().st_size < 1e5
    assert peak_of(path, "12 bytes, but more follow") < 2e6


def test_the_highest_compression_there_is_passes(write):
    path = write(gzip.compress(bytes.fromhex("00000801 01000000") + bytes(2**24)))
    assert 2**24 / path.stat().st_size > 1000
    assert read_idx(path).shape == (2**24,)
    content = gzip.compress(bytes.fromhex("00000801") + struct.pack(">I", 1032 * 100))
    assert len(content) < 100
    refused(write(content), "103200 bytes, more than a file of this length can hold")


def peak_of(path, words):
    tracemalloc.start()
    try:
        refused(path, words)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(
    content=st.binary(max_size=40), start=st.sampled_from([b"", HEADER[:4], HEADER, b"\x1f\x8b", b"\x1f\x8b\x08\x00"])
)
def test_any_bytes_give_a_tensor_or_a_data_error(tmp_path_factory, content, start):
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(start + content)
    try:
        assert read_idx(path).numel() > 0
    except DataError as error:
        assert "\n" not in str(error)
