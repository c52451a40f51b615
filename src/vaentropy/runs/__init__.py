"""Training runs and the folders they leave.

RUN/config.yaml          everything needed to repeat it, seeds included
RUN/manifest.json        versions, device, data fingerprint, times, command line
RUN/history.jsonl        one row per epoch
RUN/evaluation.json      the evaluations after the last epoch
RUN/model.safetensors    weights only
"""

from vaentropy.runs.config import RunConfig as RunConfig
from vaentropy.runs.files import to_json as to_json
from vaentropy.runs.run import Run as Run
from vaentropy.runs.run import evaluate_run as evaluate_run
from vaentropy.runs.run import load as load
from vaentropy.runs.run import read_config as read_config
from vaentropy.runs.run import train as train
