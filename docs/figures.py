"""Draws docs/images/training.svg from a run: python docs/figures.py runs/digits-vae1 (needs matplotlib)."""

import json
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "vaentropy"  # the same run gives the same file


def main(run: Path) -> None:
    """Draw the figure from the history of a run."""
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    epochs = [row["epoch"] for row in rows]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 4.2), height_ratios=[2, 1])
    above.plot(epochs, [row["running_elbo"] for row in rows], color="#0072b2", label="ELBO")
    above.plot(epochs, [row["running_entropy_sum"] for row in rows], "--", color="#d55e00", label="entropy sum")
    title = "VAE-1 on digits: the ELBO becomes a sum of three entropies"
    above.set(ylabel="nats per data point", ylim=(-15, None), title=title)
    above.legend(frameon=False, loc="lower right")
    below.semilogy(epochs, [abs(row["running_gap"] / row["running_elbo"]) for row in rows], color="#444444")
    below.set(xlabel="epoch", ylabel="relative gap")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "images" / "training.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
