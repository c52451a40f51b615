"""An evaluation as a ledger whose lines add up, to the printed digit."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vaentropy import markup
from vaentropy._typing import Tensor

if TYPE_CHECKING:
    from vaentropy.results import Evaluation, Terms

__all__ = ["add_up", "error", "lines", "number", "remarks", "render", "render_html", "size", "table"]

DIGITS = 4
# Rounding leaves errors of about 1e-17 on terms that are the same for all points.
NEGLIGIBLE = 1e-12

# Sign and name, value, Monte Carlo error, standard error; an error of None is unknown.
Line = tuple[str, float, float | None, float | None]


def add_up(total: float, parts: Sequence[float], digits: int = DIGITS) -> list[float]:
    """The parts, rounded to `digits` so that they sum to the rounded total.

    Where plain rounding would leave the sum a digit off, the parts with the largest rounding errors give way, each by
    less than a unit of the last digit.
    """
    unit = 10.0**digits
    if not all(math.isfinite(x) for x in (total, *parts)):
        return list(parts)
    scaled = [part * unit for part in parts]
    rounded = [round(x) for x in scaled]
    missing = round(total * unit) - sum(rounded)
    step = 1 if missing > 0 else -1
    neediest = sorted(range(len(parts)), key=lambda i: step * (scaled[i] - rounded[i]), reverse=True)
    for i in range(abs(missing)):
        rounded[neediest[i % len(parts)]] += step
    return [x / unit for x in rounded]


def number(x: float) -> str:
    """A number as every line prints it."""
    # Rounding leaves negative zeros.
    return f"{x + 0.0:.{DIGITS}f}"


def error(x: float | None) -> str:
    """An error as every line prints it; "-" where it is unknown."""
    if x is None or math.isnan(x):
        return "-"
    return "0" if x < NEGLIGIBLE else f"{x:.{DIGITS}f}" if x >= 0.5 * 10.0**-DIGITS else f"{x:.0e}"


HEAD = ("", "value", "MC error", "std. error")


def table(lines: Sequence[Line]) -> list[str]:
    """Lines of text in columns, under a header; above a sum, whose name begins with "=", there is a rule."""
    text = ["{:<26}{:>14}{:>12}{:>12}".format(*HEAD)]
    for name, value, mc, stderr in lines:
        if name.startswith("="):
            text.append("-" * 64)
        text.append(f"{name:<26} {number(value):>13} {error(mc):>11} {error(stderr):>11}")
    return text


def lines(e: "Evaluation") -> list[Line]:
    """The lines of the ledger; the values add up to the printed digit."""
    h = e.entropies
    signed = add_up(e.elbo, [h.encoder, -h.prior, -h.decoder, e.log_base, e.prior_gap, e.decoder_gap])
    encoder, prior, decoder, log_base, prior_gap, decoder_gap = signed
    entropy_sum = encoder + prior + decoder + log_base
    pseudo = "pseudo entropy" if "log_base" in e.moments else "entropy"

    def line(name: str, value: float, get) -> Line:
        mc: Terms | None = e.mc_stderr
        return name, value, None if mc is None else get(mc), get(e.stderr)

    entropies = [
        line("  encoder entropy", encoder, lambda t: t.entropies.encoder),
        line("- prior entropy", -prior, lambda t: t.entropies.prior),
        line(f"- decoder {pseudo}", -decoder, lambda t: t.entropies.decoder),
    ]
    if "log_base" in e.moments:
        entropies.append(line("+ log base measure", log_base, lambda t: t.log_base))
    return [
        *entropies,
        line("= entropy sum", entropy_sum, lambda t: t.entropy_sum),
        line("+ prior residuals", prior_gap, lambda t: t.prior_gap),
        line("+ decoder residuals", decoder_gap, lambda t: t.decoder_gap),
        line("= ELBO", entropy_sum + prior_gap + decoder_gap, lambda t: t.elbo),
    ]


def _missing(fraction: Tensor) -> str:
    overall, most, never = 1 - float(fraction.mean()), 1 - float(fraction.min()), int((fraction == 0).sum())
    remark = f"{overall:.2%} of the values are missing, at most {most:.2%} of one feature"
    return f"{remark}; never observed: {never} of {fraction.numel()} features" if never else remark


def remarks(e: "Evaluation") -> list[str]:
    """What there is to say below the ledger, a line each."""
    reconstruction, minus_kl = add_up(e.elbo, [e.reconstruction, -e.kl])
    said = [f"ELBO = reconstruction {number(reconstruction)} - KL {number(-minus_kl)}"]
    gap_error = "" if e.mc_stderr is None else f" ± {error(e.mc_stderr.gap)} (Monte Carlo)"
    values = {name: value for name, value, _, _ in lines(e)}
    gap = values["+ prior residuals"] + values["+ decoder residuals"]
    said.append(f"gap = ELBO - entropy sum = {number(gap)}{gap_error}, {e.relative_gap:.1e} of |ELBO|")
    g = e.gains
    if e.optimal_variance is not None and e.variance_ratio is not None and g.variance is not None:
        what = (
            f"set σ² to {e.optimal_variance:.4g} (times {e.variance_ratio:.4g})"
            if e.variance_kind == "shared"
            else f"multiply all σ² by {e.variance_ratio:.4g}"
        )
        said.append(f"{what}: gains {number(g.variance)} nats")
    if g.feature_variance is not None and g.feature_variance.numel() > 1:
        total = float(g.feature_variance.sum())
        gains = (
            f"gains {number(total)} nats"
            if math.isfinite(total)
            else "no upper bound: some feature is reproduced exactly"
        )
        said.append(f"rescale σ² of each feature: {gains}")
    if g.prior_variance is not None:
        said.append(f"rescale the prior to the posteriors: gains {number(float(g.prior_variance.sum()))} nats")
    if e.observed_fraction is not None:
        said.append(_missing(e.observed_fraction))
    if e.log_jacobian:
        said.append(f"in the units of the data as stored: ELBO {number(e.data_elbo)} nats")
    if e.elbo == -math.inf:
        said.append("the ELBO is -inf: the model gives some data probability 0")
    if e.sampled:
        said.append(f"Monte Carlo estimate, for want of a closed form: entropy of {', '.join(e.sampled)}")
    if e.mc_stderr is None:
        said.append("no Monte Carlo error: noise is shared between data points, or there is one draw of it")
    return said


def size(shape: tuple[int, ...]) -> str:
    """A shape as its numbers with × between them."""
    return "×".join(str(n) for n in shape) or "1"


def _heading(e: "Evaluation") -> list[str]:
    sizes = f"{e.num_points:,} data points of {size(e.data_shape)} features, {size(e.latent_shape)} latents"
    return [f"{sizes}; nats per data point", f"{e.expectation}, networks in {e.mode} mode"]


def render(e: "Evaluation") -> str:
    """Several lines of text: the ledger, then what it says. An error of "-" is unknown."""
    return "\n".join([*_heading(e), "", *table(lines(e)), "", *remarks(e)])


def render_html(e: "Evaluation") -> str:
    """The same for notebooks."""
    rows = [(name.strip(), number(value), error(mc), error(stderr)) for name, value, mc, stderr in lines(e)]
    sums = [row for row, (name, *_) in enumerate(rows) if name.startswith("=")]
    caption, settings = _heading(e)
    ledger = markup.table(HEAD, rows, caption=caption, texts=[0], sums=sums)
    return f"{ledger}{markup.listed(remarks(e))}{markup.paragraph(settings)}"
