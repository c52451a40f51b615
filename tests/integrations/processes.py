"""A validation and a training in one or several processes; each writes what it finds to a file of its own.

python processes.py DEVICES FOLDER
"""

import importlib.util
import json
import sys
from pathlib import Path

from vaentropy.expectation import Frozen, GaussHermite, MonteCarlo
from vaentropy.integrations.lightning import EntropyCallback

LIGHTNING = "lightning.pytorch"
EXPECTATIONS = {"frozen": Frozen(), "gauss-hermite": GaussHermite(3), "monte-carlo": MonteCarlo(16)}


def sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(devices: int, folder: Path) -> None:
    vaes = sibling("vaes")
    lit = vaes.module(LIGHTNING)
    callbacks = {
        name: EntropyCallback(vaes.bind, expectation=expectation, prefix=f"{name}/")
        for name, expectation in EXPECTATIONS.items()
    }
    strategy = {"strategy": "ddp"} if devices > 1 else {}
    trainer = vaes.trainer(LIGHTNING, *callbacks.values(), folder=folder, devices=devices, **strategy)
    trainer.validate(lit, vaes.loader(vaes.data(23)), verbose=False)
    found = {name: callback.evaluation.to_dict() for name, callback in callbacks.items()}
    trainer.fit(lit, vaes.loader(vaes.data(30)), vaes.loader(vaes.data(23)))
    found["history"] = callbacks["frozen"].history
    (folder / f"{devices}-{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
