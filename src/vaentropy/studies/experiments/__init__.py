"""The experiments of the paper (arXiv:2010.14860) and some beyond it, one description each; `STUDIES` by name."""

from collections.abc import Mapping

from vaentropy.studies.experiments import (
    beyond,
    collapse,
    collapse_rgb,
    constraint,
    estimate_noise,
    linear_pca,
    manifolds,
    streaming,
    susy,
    vae1_mnist,
    vae3_ring,
    variables,
)
from vaentropy.studies.study import Study

__all__ = ["STUDIES"]

# In the order in which they are shown: the theorem first, then what it is good for.
MODULES = (
    linear_pca,
    vae1_mnist,
    vae3_ring,
    manifolds,
    constraint,
    variables,
    estimate_noise,
    collapse,
    collapse_rgb,
    susy,
    streaming,
    beyond,
)
STUDIES: Mapping[str, Study] = {module.STUDY.name: module.STUDY for module in MODULES}
