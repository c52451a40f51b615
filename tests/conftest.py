"""What all tests share: checked annotations, a fixed number of threads, hypothesis without a clock, the data folder."""

import inspect
import os
import signal
from pathlib import Path

import hypothesis
import pytest

# `device="auto"` takes a GPU, on which numbers differ: the tests are of the CPU, but for those of a GPU
# (`make test-gpu`). Before CUDA is asked for anything, and for the processes that tests start.
if "VAENTROPY_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

made_before: set[str] = set()  # functions inside functions that have been checked

# Set VAENTROPY_TYPECHECK=0 to run without the checks, for instance to step through code in a debugger.
if os.environ.get("VAENTROPY_TYPECHECK", "1") != "0":
    import beartype
    import jaxtyping

    # Before any test imports vaentropy: each of its functions and dataclasses then checks annotations, shapes included.
    # Of a long container beartype checks one item, drawn with Python's global `random`: a test that a function leaves
    # the global generators alone can compare torch's and numpy's states, but not that one.
    with_shapes = jaxtyping.jaxtyped

    def checked(*, typechecker):
        """What the hook decorates everything with, at half the cost.

        A function inside another is made anew at each call of that one, and its checks would be compiled anew, which
        takes longer than a training step: only the first that each file of tests makes is checked. And where there is
        no shape in the annotations, beartype alone does the same without the account of shapes.
        """

        def decorate(target):
            name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
            if "<locals>" in name:
                if name in made_before:
                    return target
                made_before.add(name)
            hints = getattr(target, "__annotations__", {}).values()
            if inspect.isfunction(target) and not any(isinstance(h, str) or "jaxtyping" in repr(h) for h in hints):
                return beartype.beartype(target)
            return with_shapes(target, typechecker=typechecker)

        return decorate

    jaxtyping.jaxtyped = checked
    jaxtyping.install_import_hook("vaentropy", "beartype.beartype")

NUM_THREADS = 1
# For the processes that tests start, so that they do not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a background job; tests of Ctrl-C, and the processes that they start, are about a terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the first call of a torch function takes long. The same examples on every run in CI, so that a failure
# there belongs to the change; new ones on a developer's machine, so that they find something.
hypothesis.settings.register_profile("default", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def fixed_number_of_threads():
    """The same number of threads everywhere: it changes the order of sums, and threads slow small tensors down."""
    before = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def checked_anew():
    """Functions inside functions are checked once in each file of tests."""
    made_before.clear()


@pytest.fixture(autouse=True)
def default_dtype_unchanged():
    """A test that leaves another default dtype behind would change the precision of all tests after it."""
    before = torch.get_default_dtype()
    yield
    after = torch.get_default_dtype()
    torch.set_default_dtype(before)
    assert after == before, f"the test changed torch's default dtype from {before} to {after}"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets."""
    if "VAENTROPY_DATA" not in os.environ:
        pytest.skip("set VAENTROPY_DATA to the folder that holds the data sets")
    return Path(os.environ["VAENTROPY_DATA"])
