"""What is said of errors that torch and Python raise."""

import numpy as np
import pytest
import torch

from vaentropy.errors import TrainingError, gpu_failure, out_of_memory

# As torch 2.13 says it.
OF_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError(OF_CPU), torch.OutOfMemoryError("CUDA out of memory. Tried to")],
)
def test_too_little_memory_is_told_and_is_no_failure_of_the_gpu(error):
    said = out_of_memory(error)
    assert said is not None and said.startswith("memory is not enough (") and "lower batch_size" in said
    assert gpu_failure(error) is None


def test_what_torch_and_numpy_raise_is_known():
    for make in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            make()
        assert out_of_memory(raised.value) is not None


@pytest.mark.parametrize("error", [RuntimeError(ILLEGAL), torch.AcceleratorError(ILLEGAL)])
def test_an_illegal_access_is_not_too_little_memory_but_a_failure_of_the_gpu(error):
    assert out_of_memory(error) is None
    assert gpu_failure(error) == "CUDA error: an illegal memory access was encountered"


def test_a_failure_of_the_gpu_is_found_behind_other_errors():
    for how in ("from", "while"):
        try:
            try:
                raise RuntimeError(ILLEGAL)
            except RuntimeError as error:
                if how == "from":
                    raise TrainingError("training cannot go on") from error
                raise ValueError("in the midst of it")  # noqa: B904  # as a bug would
        except (TrainingError, ValueError) as error:
            assert gpu_failure(error) == "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize("error", [RuntimeError("memory of shapes"), ValueError("CUDA error"), OSError("memory")])
def test_other_errors_are_neither(error):
    assert out_of_memory(error) is None and gpu_failure(error) is None
