"""Numerical studies of the theorem: `verify`, and the experiments of the paper and beyond, which `reproduce` runs."""

from vaentropy.studies.study import Outcome as Outcome
from vaentropy.studies.study import Plan as Plan
from vaentropy.studies.study import Study as Study
from vaentropy.studies.verify import Case as Case
from vaentropy.studies.verify import verify as verify
