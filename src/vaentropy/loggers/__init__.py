"""Live logging: the rows of a training, as they are made, to a table on stderr, TensorBoard, Weights & Biases, MLflow.

    with TensorBoard("logs") as log:
        log.summary(fit(model, x, on_epoch=log))

The libraries come with the extra `logging`; none of them is imported before its logger is made.
"""

from vaentropy.loggers.console import Console as Console
from vaentropy.loggers.logger import Logger as Logger
from vaentropy.loggers.logger import metrics as metrics
from vaentropy.loggers.mlflow import MLflow as MLflow
from vaentropy.loggers.several import PerModel as PerModel
from vaentropy.loggers.several import Together as Together
from vaentropy.loggers.tensorboard import TensorBoard as TensorBoard
from vaentropy.loggers.wandb import WandB as WandB
