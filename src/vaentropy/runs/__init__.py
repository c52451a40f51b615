"""Training runs and the folders they leave; every verb of the command is one function here."""

from vaentropy.config import RunConfig as RunConfig
from vaentropy.runs.diagnose import diagnose_run as diagnose_run
from vaentropy.runs.folder import RunFolder as RunFolder
from vaentropy.runs.outcomes import Sweep as Sweep
from vaentropy.runs.remedies import calibrate_run as calibrate_run
from vaentropy.runs.remedies import prune_run as prune_run
from vaentropy.runs.report import report_run as report_run
from vaentropy.runs.rows import encode_run as encode_run
from vaentropy.runs.rows import reconstruct_run as reconstruct_run
from vaentropy.runs.rows import sample_run as sample_run
from vaentropy.runs.select import select as select
from vaentropy.runs.sweep import sweep as sweep
from vaentropy.runs.train import Run as Run
from vaentropy.runs.train import continue_run as continue_run
from vaentropy.runs.train import resume as resume
from vaentropy.runs.train import train as train
from vaentropy.runs.use import describe_run as describe_run
from vaentropy.runs.use import evaluate_run as evaluate_run
from vaentropy.runs.use import load as load
from vaentropy.runs.use import log_likelihood_run as log_likelihood_run
