"""Which defaults of `fit` serve several data sets at once: one setting changed at a time, and schedule × learning rate.

The outcome of a run is its final ELBO on training and held-out data. A setting is judged by its *regret*: the nats by
which it stays below the best setting of that problem and budget, in percent of what the best one of any budget gains
over a normal distribution without latents, so that problems of different dimension can be compared. The result is no
time: the study may run on a busy machine.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.nn import functional

from benchmarks.results import Result
from vaentropy.data import load
from vaentropy.errors import VaentropyError
from vaentropy.expectation import Antithetic, Expectation, MonteCarlo
from vaentropy.families import FAMILIES
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.seeding import seeded
from vaentropy.training import fit
from vaentropy.vae import VAE

__all__ = [
    "FACTORS",
    "Problem",
    "Regret",
    "Run",
    "Setting",
    "problems",
    "regrets",
    "report",
    "run",
    "runs",
    "settings",
    "without_latents",
]

# The defaults that the study began with: what every other setting differs from in one thing.
BASE: Mapping[str, Any] = {
    "schedule": "one_cycle",
    "learning_rate": 5e-3,
    "variances": "analytic",
    "variance_momentum": 0.9,
    "expectation": MonteCarlo(1),
    "batch_size": 200,
}
SCHEDULES = ("constant", "cosine", "one_cycle")
LEARNING_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
FACTORS: Mapping[str, Sequence[Any]] = {
    "variances": ("learned",),
    "variance_momentum": (0.0, 0.5, 0.99),
    "expectation": (MonteCarlo(2), MonteCarlo(4), MonteCarlo(8), Antithetic(2), Antithetic(4), Antithetic(8)),
    "batch_size": (50, 100, 500, 1000),
}
# Steps of BASE: a look at the data, and about what 100 epochs of a few thousand points are.
BUDGETS = {"short": 300, "long": 1500}
# What a short training shows well enough.
SHORT_ONLY = (
    *(f"{schedule}, 0.001" for schedule in SCHEDULES),
    *(f"expectation={kind}(8), equal work" for kind in ("MonteCarlo", "Antithetic")),
    *(f"expectation={kind}({k}), equal steps" for kind in ("MonteCarlo", "Antithetic") for k in (2, 4, 8)),
    *(f"batch_size={size}, equal steps" for size in (50, 100, 500, 1000)),
    "constant, 0.02",
    "variance_momentum=0.5",
)
SEEDS = (0, 1, 2)
EVALUATION = MonteCarlo(8)
# Of MNIST and Fashion-MNIST, and of the synthetic sets: enough to generalise from, few enough for the time there is.
MAX_TRAIN, MAX_HELD_OUT = 3000, 1000


@dataclass(frozen=True)
class Setting:
    """Arguments of `fit` that differ from BASE.

    Attributes:
        name: in tables.
        changed: these arguments.
        equal: what a run has in common with one of BASE: its "steps", or its "work", the rows that go through a network
            (a step with K draws takes (1 + K)/2 times as many as one with a single draw, and one of twice the batch
            twice as many). For most settings that is the same.
    """

    name: str
    changed: Mapping[str, Any] = field(default_factory=dict)
    equal: str = "steps"

    def arguments(self) -> dict[str, Any]:
        """Of `fit`."""
        return {**BASE, **self.changed}

    def epochs(self, steps: int, num_points: int) -> int:
        """Epochs that cost as much as `steps` of BASE, in the sense of `equal`; at least 1."""
        batch_size = min(self.arguments()["batch_size"], num_points)
        if self.equal == "work":
            base = min(BASE["batch_size"], num_points)
            draws = getattr(self.arguments()["expectation"], "num_samples", 1)
            steps = round(steps * base / batch_size * 2 / (1 + draws))
        return max(1, round(steps / math.ceil(num_points / batch_size)))


@dataclass(frozen=True, eq=False)
class Problem:
    """Data, and the model that is trained on them.

    Attributes:
        name: in tables.
        family: of `vaentropy.families.FAMILIES`.
        latent_dim: H.
        train, held_out: (N, *data_shape), (M, *data_shape).
        hidden: widths of an MLP.
        convolutional: whether the networks are convolutions in place of an MLP.
    """

    name: str
    family: str
    latent_dim: int
    train: torch.Tensor
    held_out: torch.Tensor
    hidden: tuple[int, ...] = (50, 50)
    convolutional: bool = False

    def model(self, seed: int) -> VAE:
        """The untrained model."""
        shape = tuple(self.train.shape[1:])
        with seeded(seed, torch.device("cpu")):
            networks = (ConvEncoder(shape), ConvDecoder(shape)) if self.convolutional else None
            return FAMILIES[self.family](shape, self.latent_dim, self.hidden, networks=networks)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        problem, budget, setting, seed: what it was.
        train, held_out: final ELBO, nats per data point; NaN where training failed.
        rollbacks: how often it diverged.
        seconds: that `fit` took, evaluations included; a hint only, since nothing keeps the machine quiet.
    """

    problem: str
    budget: str
    setting: str
    seed: int
    train: float
    held_out: float
    rollbacks: int
    seconds: float


def problems(*, quick: bool = False) -> Iterator[Problem]:
    """Six on five data sets (digits and pca-ring where `quick`); those whose files are missing are left out."""
    # Pixels are dequantised, else the density of a constant one has no bound in VAE-3.
    choices = [
        ("digits", "vae1", 5, {"dequantise": True}),
        ("pca-ring", "vae1", 2, {}),
        ("digits", "vae3", 5, {"dequantise": True}),
        ("swiss-roll", "vae3", 2, {"scale": "standard"}),
        ("mnist", "vae1", 8, {"dequantise": True}),
        ("fashion-mnist", "vae3", 8, {"dequantise": True}),
    ]
    for name, family, latent_dim, how in choices[: 2 if quick else None]:
        try:
            data = load(name, stream=False, **how)
        except VaentropyError:
            continue
        train, held_out = torch.as_tensor(data.train), torch.as_tensor(data.held_out)  # type: ignore[arg-type]
        train, held_out = _features(train[:MAX_TRAIN]), _features(held_out[:MAX_HELD_OUT])
        if quick:
            train, held_out = train[:300], held_out[:100]
        yield Problem(f"{name}/{family}", family, latent_dim, train, held_out)


def _features(x: torch.Tensor) -> torch.Tensor:
    """(N, D) float; of images of 28 × 28 the means of 2 × 2 pixels, which quarters the time that the study takes."""
    x = x.float().flatten(1)
    return functional.avg_pool2d(x.unflatten(1, (28, 28)), 2).flatten(1) if x.shape[1] == 28**2 else x


def settings() -> list[Setting]:
    """BASE first, then schedules × learning rates, then FACTORS, where it matters at equal work and at equal steps."""
    chosen = [Setting("base")]
    for schedule in SCHEDULES:
        for rate in LEARNING_RATES:
            if (schedule, rate) != (BASE["schedule"], BASE["learning_rate"]):
                chosen.append(Setting(f"{schedule}, {rate:g}", {"schedule": schedule, "learning_rate": rate}))
    for name, values in FACTORS.items():
        costs_more = name in ("expectation", "batch_size")
        for value in values:
            for equal in ("work", "steps") if costs_more else ("steps",):
                text = f"{name}={_short(value)}" + (f", equal {equal}" if costs_more else "")
                chosen.append(Setting(text, {name: value}, equal))
    return chosen


def _short(value: Any) -> str:
    return f"{type(value).__name__}({value.num_samples})" if isinstance(value, Expectation) else str(value)  # type: ignore[attr-defined]


def runs(
    chosen: Iterable[Setting],
    on: Sequence[Problem],
    budget: str,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    on_run: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Train each setting on each problem, with each seed.

    Args:
        chosen: settings.
        on: problems.
        budget: its name.
        seeds: of weights, batches and noise, the same for all settings.
        steps: of BASE; None takes those of the budget.
        on_run: called with each run as it is done.
    """
    done = []
    for setting in chosen:
        for problem in on:
            for seed in seeds:
                done.append(_run(problem, budget, steps or BUDGETS[budget], setting, seed))
                if on_run:
                    on_run(done[-1])
    return done


def _run(problem: Problem, budget: str, steps: int, setting: Setting, seed: int) -> Run:
    model = problem.model(seed)
    epochs = setting.epochs(steps, len(problem.train))
    start = time.perf_counter()
    train = held_out = math.nan
    rollbacks = 0
    try:
        history = fit(
            model,
            problem.train,
            held_out=problem.held_out,
            epochs=epochs,
            evaluate_every=epochs,
            evaluation_expectation=EVALUATION,
            compile=False,
            progress=False,
            seed=seed,
            **setting.arguments(),
        )
        assert history.train and history.held_out
        train, held_out, rollbacks = history.train.elbo, history.held_out.elbo, int(history.rows[-1]["rollbacks"])
    except VaentropyError:  # it diverged for good: the worst outcome there is
        pass
    seconds = time.perf_counter() - start
    return Run(problem.name, budget, setting.name, seed, train, held_out, rollbacks, seconds)


def without_latents(problem: Problem, part: str) -> float:
    """ELBO of the problem's likelihood with constant mean and σ², fitted to the training data, on a part; nats.

    Args:
        problem: VAE-3 takes a variance per feature, the others one.
        part: "train" or "held_out".
    """
    train, x = problem.train.double().flatten(1), getattr(problem, part).double().flatten(1)
    mean, variance = train.mean(0), train.var(0, correction=0).clamp(min=1e-6)
    if problem.family != "vae3":
        variance = variance.mean().expand_as(variance)
    return float(torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).sum(1).mean())


@dataclass(frozen=True)
class Regret:
    """Of a setting, in one problem and with one budget.

    Attributes:
        nats: ELBO below that of the best setting, means over seeds.
        percent: of what the best one of any budget gains over no latents; infinite where a training failed.
        spread: standard error of `nats`, from the paired differences between seeds.
    """

    nats: float
    percent: float
    spread: float


def regrets(
    done: Sequence[Run], part: str, floors: Mapping[str, float], eligible: Callable[[str], bool] = lambda name: True
) -> dict[tuple[str, str, str], Regret]:
    """Regrets by (problem, budget, setting).

    Args:
        done: runs.
        part: "train" or "held_out".
        floors: ELBO without latents, by problem.
        eligible: which settings can be the best one; all that were run are given a regret.
    """
    elbos: dict[tuple[str, str, str], list[float]] = {}
    for each in sorted(done, key=lambda each: each.seed):
        elbos.setdefault((each.problem, each.budget, each.setting), []).append(getattr(each, part))

    def best(of: Callable[[str, str], bool]) -> list[float]:
        rivals = [v for (p, b, s), v in elbos.items() if of(p, b) and eligible(s) and all(map(math.isfinite, v))]
        return max(rivals, key=statistics.fmean)

    found = {}
    for (problem, budget, setting), values in elbos.items():
        here = best(lambda p, b, at=(problem, budget): (p, b) == at)
        gain = statistics.fmean(best(lambda p, b, at=problem: p == at)) - floors[problem]
        differences = [a - b for a, b in zip(here, values, strict=True)]
        nats = statistics.fmean(differences)
        failed = not math.isfinite(nats)
        spread = math.nan
        if len(differences) > 1 and not failed:
            spread = statistics.stdev(differences) / math.sqrt(len(differences))
        nats = math.inf if failed else nats
        found[problem, budget, setting] = Regret(nats, 100 * nats / gain, spread)
    return found


def _table(done: Sequence[Run], chosen: Sequence[Setting], floors: Mapping[str, Mapping[str, float]]) -> list[dict]:
    # Runs that are given more work than BASE are measured by the same best, but cannot be it.
    fair = {s.name for s in chosen if s.equal == "work" or not {"expectation", "batch_size"} & set(s.changed)}
    by_part = {part: regrets(done, part, floors[part], fair.__contains__) for part in ("train", "held_out")}
    rows = []
    for setting in chosen:
        row: dict[str, Any] = {"setting": setting.name}
        for budget in dict.fromkeys(each.budget for each in done):
            for part, found in by_part.items():
                here = {p: r for (p, b, s), r in found.items() if (b, s) == (budget, setting.name)}
                if here:
                    percents = {p: r.percent for p, r in here.items()}
                    worst = max(percents, key=percents.__getitem__)
                    label = f"{budget}, {part.replace('_', '-')}"
                    row[f"{label}: median %"] = round(statistics.median(percents.values()), 2)
                    row[f"{label}: worst %"] = f"{percents[worst]:.2f} ({worst})"
        row["rollbacks"] = sum(each.rollbacks for each in done if each.setting == setting.name)
        rows.append(row)
    return rows


def run(quick: bool, on_run: Callable[[Run], None] | None = None) -> Result:
    """Regret of every setting, over problems; `data` holds all runs and the ELBOs without latents."""
    chosen = settings()
    on = list(problems(quick=quick))
    if quick:
        few = ("base", "cosine, 0.005", "expectation=MonteCarlo(2), equal work")
        done = runs([s for s in chosen if s.name in few], on, "short", SEEDS[:2], steps=20, on_run=on_run)
    else:
        done = runs(chosen, on, "short", SEEDS, on_run=on_run)
        done += runs([s for s in chosen if s.name not in SHORT_ONLY], on, "long", SEEDS, on_run=on_run)
    return report(done, on)


def report(done: Sequence[Run], on: Sequence[Problem]) -> Result:
    """Runs on problems as a table of regrets."""
    names = {each.setting for each in done}
    floors = {part: {p.name: without_latents(p, part) for p in on} for part in ("train", "held_out")}
    base = ", ".join(f"{name}={_short(value)}" for name, value in BASE.items())
    budgets = ", ".join(f"{name} {steps:,}" for name, steps in BUDGETS.items())
    notes = [
        "Regret: nats below the best setting of that problem and budget (among those of equal work), in percent of "
        "what the best one of any budget gains over a normal distribution without latents; mean of "
        f"{len({each.seed for each in done})} seeds; then median and worst of {', '.join(p.name for p in on)}.",
        f"Steps of base: {budgets}. Equal work: as many rows through encoder and decoder as base. base: {base}.",
    ]
    data = {"runs": [asdict(each) for each in done], "without_latents": floors}
    rows = _table(done, [s for s in settings() if s.name in names], floors)
    return Result("Defaults of fit", rows, notes, data=data)
