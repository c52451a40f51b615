"""Training of VAEs: `fit` and what it is made of."""

from vaentropy.training.checkpoint import Checkpoints as Checkpoints
from vaentropy.training.fit import fit as fit
from vaentropy.training.history import History as History
from vaentropy.training.interruption import Interrupted as Interrupted
from vaentropy.training.replicates import fit_replicates as fit_replicates
from vaentropy.training.schedules import cyclical as cyclical
from vaentropy.training.schedules import warmup as warmup
