"""`python -m benchmarks [NAME ...]`: run benchmarks, print their tables, and leave JSON and Markdown."""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.peers import PeerMissing
from vaentropy.errors import VaentropyError

# Module of each, whose `run(quick)` returns a Result; in the order in which they run.
NAMES = (
    "time_to_elbo",
    "step",
    "replicates",
    "processes",
    "scoring",
    "scale",
    "ideas",
    "compiling",
    "gpu",
    "large",
    "growth",
    "defaults",
    "learning_rate",
    "minibatch_bias",
)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run; default: all of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; the figures mean little")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder (default: %(default)s)")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in NAMES]:
        parser.error(f"benchmark {unknown[0]!r} given, expected one of {', '.join(NAMES)}")
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"folder {chosen.out} given, which cannot be made ({error.strerror}); name another one")
    failed = 0
    for name in chosen.names or NAMES:
        print(f"{name} ...", file=sys.stderr)
        start = time.perf_counter()
        try:
            result = import_module(f"benchmarks.{name}").run(quick=chosen.quick)
        except (VaentropyError, PeerMissing) as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed += 1
            continue
        # Saved first: what comes after hours of work is not to be lost to what prints it.
        result.save(chosen.out, name)
        print(result.markdown(), flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
