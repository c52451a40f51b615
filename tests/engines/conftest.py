import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="package")
def jobs_are_found():
    """Other processes import the jobs by their name."""
    patch, here = pytest.MonkeyPatch(), str(Path(__file__).parent)
    patch.syspath_prepend(here)
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))
    yield
    patch.undo()
