"""All cases."""

from .case import Case
from .data_cases import DATA
from .estimator_cases import ESTIMATORS
from .option_cases import OPTIONS
from .picture_cases import PICTURES
from .python_cases import PYTHON
from .run_cases import RUNS

__all__ = ["CASES"]

CASES: list[Case] = [*DATA, *OPTIONS, *RUNS, *PYTHON, *ESTIMATORS, *PICTURES]
