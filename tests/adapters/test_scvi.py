import contextlib
import logging
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from vaentropy.adapters import from_scvi
from vaentropy.adapters.scvi import EVALUABLE, REFUSED
from vaentropy.calibration import calibrate
from vaentropy.diagnosis import diagnose
from vaentropy.errors import ModelError, UnsupportedError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen, MonteCarlo
from vaentropy.importance import log_likelihood

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scvi = pytest.importorskip("scvi")
    anndata = pytest.importorskip("anndata")
    from scvi.model import SCVI, LinearSCVI

CELLS, GENES, LATENT_DIM = 40, 6, 2
FROZEN = Frozen(0, 4)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("scvi").setLevel(logging.ERROR)


def cells(n=CELLS):
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(4.0, (n, GENES)).astype(np.float32) + 1)
    adata.obs_names = [str(cell) for cell in range(n)]
    adata.obs["batch"] = ["a", "b"] * (n // 2)
    adata.obs["label"] = ["x", "y", "y", "z"] * (n // 4)
    adata.obs["kind"] = ["u", "u", "u", "v"] * (n // 4)
    adata.obs["age"] = rng.normal(size=n)
    adata.obs["size"] = rng.uniform(0.5, 2, n)
    return adata


def build(cls=SCVI, *, double=True, setup=None, **options):
    torch.manual_seed(1)
    adata = cells()
    setup = {"batch_key": "batch"} if setup is None else setup
    cls.setup_anndata(adata, **setup)
    model = cls(adata, **{"n_hidden": 8, "n_latent": LATENT_DIM, **options})
    # statistics of BatchNorm other than 0 and 1
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    if double:
        model.module.double()
    return model


def by_scvi(model):
    """Reconstruction loss and KL per cell of scvi-tools' own loss, averaged over the frozen noise."""
    module, (tensors,) = model.module.eval(), model._make_data_loader(model.adata, batch_size=CELLS)
    if next(module.parameters()).dtype == torch.float64:
        tensors["X"] = tensors["X"].double()
    with torch.no_grad():
        inferred = module.inference(**module._get_inference_input(tensors))
        q, of_library = inferred["qz"], inferred["ql"]
        latent_dim = LATENT_DIM + (of_library is not None)
        noise = FROZEN.nodes(CELLS, (latent_dim,), generator=torch.Generator(), dtype=q.loc.dtype).noise
        outputs = []
        for eps in noise:
            drawn = {**inferred, "z": module.z_encoder.z_transformation(q.loc + q.scale * eps[:, :LATENT_DIM])}
            if of_library is not None:
                drawn["library"] = of_library.loc + of_library.scale * eps[:, LATENT_DIM:]
            generated = module.generative(**module._get_generative_input(tensors, drawn))
            outputs.append(module.loss(tensors, drawn, generated, kl_weight=1.0))
    reconstruction = torch.stack([out.reconstruction_loss["reconstruction_loss"] for out in outputs]).mean(0)
    kl = sum(outputs[0].kl_local.values())
    assert torch.stack([out.loss for out in outputs]).mean().item() == pytest.approx(
        (reconstruction + kl).mean().item()
    )
    return reconstruction.double(), kl.double()


def check(model, rel=1e-9):
    e = evaluate(**from_scvi(model, batch_size=15), expectation=FROZEN, pointwise=True)
    reconstruction, kl = by_scvi(model)
    torch.testing.assert_close(e.pointwise["kl"], kl, rtol=rel, atol=0)
    torch.testing.assert_close(e.pointwise["reconstruction"], -reconstruction, rtol=rel, atol=0)
    assert e.elbo == pytest.approx(-(reconstruction + kl).mean().item(), rel=rel)
    assert e.num_points == CELLS and e.data_shape == (GENES,)
    assert e.elbo - e.entropy_sum == pytest.approx(e.prior_gap + e.decoder_gap, abs=1e-6)
    return e


@pytest.mark.parametrize("likelihood", ["normal", "poisson", "nb", "zinb"])
def test_elbo_is_minus_the_loss_of_scvi_tools(likelihood):
    e = check(build(gene_likelihood=likelihood))
    assert e.latent_shape == (LATENT_DIM,)
    assert ("decoder" in e.sampled) == (likelihood in ("nb", "zinb"))
    assert (e.optimal_variance is not None) == (likelihood == "normal")


EVERYTHING = {
    "batch_key": "batch",
    "labels_key": "label",
    "categorical_covariate_keys": ["kind"],
    "continuous_covariate_keys": ["age"],
}


@pytest.mark.parametrize(
    "double,setup,options",
    [
        (False, {}, {"gene_likelihood": "nb"}),
        (True, None, {"dispersion": "gene-cell"}),
        # scvi-tools picks the row of a batch in single precision, whatever the module's
        (False, None, {"dispersion": "gene-batch", "gene_likelihood": "normal"}),
        (False, EVERYTHING, {"dispersion": "gene-label", "gene_likelihood": "nb"}),
        (True, EVERYTHING, {"encode_covariates": True, "n_layers": 2}),
        (True, EVERYTHING, {"batch_representation": "embedding", "encode_covariates": True}),
        (True, {"batch_key": "batch", "size_factor_key": "size"}, {"gene_likelihood": "poisson"}),
        (True, None, {"latent_distribution": "ln"}),
        (True, None, {"var_activation": nn.functional.softplus, "log_variational": False}),
        (True, None, {"use_layer_norm": "both", "use_batch_norm": "none"}),
    ],
    ids=lambda given: None if isinstance(given, bool) else ",".join(given or ["-"]),
)
def test_whatever_the_options(double, setup, options):
    check(build(double=double, setup=setup, **options), rel=1e-9 if double else 1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "normal"])
def test_a_library_size_that_is_a_latent(likelihood):
    model = build(double=False, use_observed_lib_size=False, gene_likelihood=likelihood)
    e = check(model, rel=1e-5)
    assert e.latent_shape == (LATENT_DIM + 1,)
    # its prior is that of its batch, from the counts
    log_sizes = np.log(model.adata.X.sum(1))
    entropy = [0.5 * math.log(2 * math.pi * math.e * log_sizes[b::2].var()) for b in (0, 1)]
    standard = LATENT_DIM * 0.5 * math.log(2 * math.pi * math.e)
    assert e.entropies.prior == pytest.approx(standard + np.mean(entropy), abs=1e-5)


def test_linear_scvi():
    model = build(LinearSCVI, double=False)
    assert check(model, rel=1e-5).latent_shape == (LATENT_DIM + 1,)


def test_posterior_variances_have_their_minimum():
    model = build()
    nn.init.constant_(model.module.z_encoder.var_encoder.bias, -100.0)
    nn.init.zeros_(model.module.z_encoder.var_encoder.weight)
    e = evaluate(**from_scvi(model), expectation=FROZEN)
    assert e.entropies.encoder == pytest.approx(LATENT_DIM * 0.5 * math.log(2 * math.pi * math.e * 1e-4), rel=1e-9)


def test_get_elbo_agrees_within_the_noise():
    model = build(double=False)
    e = evaluate(**from_scvi(model), expectation=MonteCarlo(200))
    model.module.eval()  # as scvi-tools leaves it after training
    draws = [model.get_elbo().item() for _ in range(200)]
    error = math.hypot(np.std(draws) / math.sqrt(len(draws)), e.mc_stderr.elbo)
    assert e.elbo == pytest.approx(np.mean(draws), abs=4 * error)


def test_entropy_by_monte_carlo_is_that_of_the_counts():
    model = build(gene_likelihood="nb")
    e = evaluate(**from_scvi(model), expectation=MonteCarlo(64))
    bound, x = from_scvi(model)["bind"](next(iter(from_scvi(model, batch_size=CELLS)["data"])))
    model.module.eval()
    support = torch.arange(2000.0, dtype=torch.float64)[:, None, None].expand(-1, *x.shape)
    entropies = []
    with torch.no_grad():
        q = bound.posterior(x.double())
        for _ in range(8):
            log_p = bound.likelihood(q.sample()).log_prob(support)
            torch.testing.assert_close(log_p.exp().sum(0), torch.ones(x.shape, dtype=torch.float64), rtol=0, atol=1e-6)
            entropies.append(-(log_p.exp() * log_p).sum(0).sum(1).mean().item())
    assert e.entropies.decoder == pytest.approx(np.mean(entropies), abs=0.1)


def test_cells_by_their_indices_and_new_cells():
    model, chosen = build(), [3, 5, 30]
    some = evaluate(**from_scvi(model, indices=chosen), expectation=FROZEN)
    everything = evaluate(**from_scvi(model), expectation=FROZEN, pointwise=True)
    assert some.num_points == 3
    by_bools = evaluate(**from_scvi(model, indices=np.isin(np.arange(CELLS), chosen)), expectation=FROZEN)
    assert by_bools.elbo == some.elbo
    assert some.elbo == pytest.approx(everything.pointwise["elbo"][chosen].mean().item(), rel=1e-12)
    new = cells()[10:30].copy()
    given = evaluate(**from_scvi(model, new, batch_size=7), expectation=FROZEN)
    assert given.elbo == pytest.approx(everything.pointwise["elbo"][10:30].mean().item(), rel=1e-9)


def test_modes_statistics_and_generators_are_left_alone():
    model = build(dropout_rate=0.5)
    model.module.train()
    model.module.decoder.eval()
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    before = torch.get_rng_state()
    given = from_scvi(model)
    in_eval, in_train = (evaluate(**given, expectation=FROZEN, mode=mode) for mode in ("eval", "train"))
    assert in_eval.elbo != in_train.elbo and evaluate(**given, expectation=FROZEN).elbo == in_eval.elbo
    assert model.module.training and model.module.z_encoder.training and not model.module.decoder.training
    assert all(torch.equal(value, state[name]) for name, value in model.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("likelihood", ["normal", "zinb"])
def test_bound_and_diagnosis(likelihood):
    given = from_scvi(build(gene_likelihood=likelihood))
    bound = log_likelihood(**given, num_samples=20)
    assert bound.value > bound.elbo
    assert "moves and steps" in str(diagnose(**given).untested)
    with pytest.raises(UsageError, match="bind given"):
        calibrate(**given)


def test_after_training_by_scvi_tools():
    model = build(double=False, gene_likelihood="nb")
    with warnings.catch_warnings(), contextlib.suppress(StopIteration):
        warnings.simplefilter("ignore")
        model.train(max_epochs=30, accelerator="cpu", enable_progress_bar=False, logger=False)
    check(model, rel=1e-5)
    e = evaluate(**from_scvi(model, indices=model.validation_indices))
    assert e.num_points == len(model.validation_indices)


def test_without_its_minibatches():
    model = build(double=False)
    given = from_scvi(model)
    for call in (lambda: evaluate(given["model"], torch.zeros(3, GENES)), given["model"].prior):
        with pytest.raises(UsageError, match=r"given without its minibatches.*evaluate\(\*\*from_scvi\(model\)\)"):
            call()


def test_every_other_model_is_refused_with_a_reason():
    torch_models = {name for name in scvi.model.__all__ if hasattr(getattr(scvi.model, name, None), "train")}
    assert torch_models >= EVALUABLE
    for name in sorted(torch_models - EVALUABLE):
        derived = type(
            f"My{name}", (getattr(scvi.model, name),), {"__init__": lambda self: None, "__repr__": object.__repr__}
        )
        reason = REFUSED.get(name, "what its latents and its likelihood are is not known here")
        with pytest.raises(UnsupportedError, match=re.escape(f"My{name} of scvi-tools given: {reason}")) as caught:
            from_scvi(derived())
        assert "\n" not in str(caught.value)


def test_a_module_with_a_loss_of_its_own():
    model = build(double=False)

    class Weighted(type(model.module)):
        def loss(self, *arguments, **options):
            return super().loss(*arguments, **options)

    class Renamed(type(model.module)):
        pass

    model.module.__class__ = Renamed
    from_scvi(model)
    model.module.__class__ = Weighted
    with pytest.raises(UnsupportedError, match=r"SCVI of scvi-tools given: Weighted\.loss may be another model"):
        from_scvi(model)


def test_what_is_no_model_of_scvi_tools():
    model = build(double=False)
    for wrong, name in [(nn.Linear(1, 1), "Linear"), (3, "int"), (model.module, "VAE")]:
        with pytest.raises(
            ModelError, match=rf"^{name} given, expected SCVI or LinearSCVI of scvi\.model, not its module"
        ):
            from_scvi(wrong)
    with pytest.raises(
        ModelError, match=r"^the class SCVI given, expected SCVI or LinearSCVI of scvi\.model made with"
    ):
        from_scvi(SCVI)
    for options, says in [
        ({"adata": 3}, "adata=3 given, expected AnnData"),
        ({"indices": np.array([0.5])}, "expected whole numbers of cells"),
        ({"indices": np.zeros((2, 2), int)}, "expected whole numbers of cells"),
        ({"indices": []}, "expected whole numbers of cells"),
        ({"indices": [0, CELLS]}, "given for 40 cells, expected numbers from 0 to 39"),
        ({"indices": np.ones(CELLS - 1, bool)}, "39 of them, expected one bool for each of 40 cells"),
        ({"batch_size": 0}, "batch_size=0 given"),
    ]:
        with pytest.raises(UsageError, match=re.escape(says)):
            from_scvi(model, **options)


def minified(**options):
    model = build(double=False)
    model.adata.obsm["m"], model.adata.obsm["v"] = (np.ones((CELLS, LATENT_DIM), np.float32) for _ in range(2))
    model.minify_adata(use_latent_qzm_key="m", use_latent_qzv_key="v", **options)
    return model


def test_minified_data():
    with pytest.raises(UnsupportedError, match=r"SCVI given whose data are minified: without counts"):
        from_scvi(minified())
    # with their counts, whatever else was kept of them
    kept = minified(minified_data_type="latent_posterior_parameters_with_counts")
    whole, given = (evaluate(**from_scvi(m), expectation=FROZEN).elbo for m in (build(double=False), kept))
    assert given == pytest.approx(whole, rel=1e-6)
