"""What `diagnose` finds first, over many seeds: python tests/diagnosis/campaign.py --seeds 10

Prints one line per recipe: how many seeds had the right finding first, and which others there were.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from recipes import RECIPES, prepared

import vaentropy as ve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    print(f"{'recipe':<16}{'first':>8}{'nats of it':>22}{'seconds':>9}  other problems")
    for name, recipe in RECIPES.items():
        right, nats, others, seconds = 0, [], Counter(), 0.0
        for seed in range(seeds):
            model, train, held_out = prepared(name, seed)
            start = time.perf_counter()
            diagnosis = ve.diagnose(model, train, held_out=held_out, progress=False)
            seconds += time.perf_counter() - start
            first = diagnosis.findings[0] if diagnosis.findings else None
            hit = diagnosis.clean if recipe.first is None else first is not None and first.kind == recipe.first
            right += hit
            if hit and recipe.first and first is not None:
                nats.append(first.nats)
            others.update(finding.kind for finding in diagnosis.problems if finding is not first)
        span = f"{min(nats):.3g} to {max(nats):.3g}" if nats else "-"
        named = ", ".join(f"{kind} {count}" for kind, count in others.most_common()) or "none"
        print(f"{name:<16}{right:>4}/{seeds:<3}{span:>22}{seconds / seeds:>9.2f}  {named}", flush=True)


if __name__ == "__main__":
    main()
