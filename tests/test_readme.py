"""The README's Python runs, in its order, and its commands exist."""

import importlib.util
import re
import warnings

import pandas as pd
import pytest
import torch

from vaentropy.cli import main
from vaentropy.config import RunConfig
from vaentropy.files import read_yaml

from .pages import ROOT, blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
DIAGNOSIS = (ROOT / "docs" / "diagnosis.md").read_text(encoding="utf-8")


RULES = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src/vaentropy/diagnosis/rules").glob("*.py"))


BLOCKS = blocks(README)
# Of one block; large, and not always there.
SOMETIMES = ("scvi", "pyro")


class Pair(torch.nn.Module):
    """Stands for VanillaVAE and for a sigma-vae."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decode = torch.nn.Linear(64, 4), torch.nn.Linear(2, 64)
        self.log_sigma = torch.nn.Parameter(torch.zeros(()))

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def model(self, x):
        import pyro
        from pyro.distributions import Normal

        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        import pyro
        from pyro.distributions import Normal

        mean, log_variance = self.encode(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(mean, torch.exp(0.5 * log_variance)).to_event(1))


def scvi_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anndata import AnnData
        from scvi.model import SCVI
    adata = AnnData(torch.arange(1.0, 61.0).reshape(20, 3).numpy())
    adata.obs_names = [str(cell) for cell in range(20)]
    SCVI.setup_anndata(adata)
    return SCVI(adata, n_hidden=4, n_latent=2)


@pytest.fixture
def names():
    """What the README takes for granted: data, and models of other libraries."""
    from diffusers import AutoencoderKL
    from pythae.models import VAE, VAEConfig

    generator = torch.Generator().manual_seed(0)
    pair, there = Pair(), all(map(importlib.util.find_spec, SOMETIMES))
    return {
        "vanilla_vae": pair,
        "sigma_vae": Pair(),
        "vae": pair,
        "scvi_model": scvi_model() if there else None,
        "x_train": torch.rand(50, 64, generator=generator),
        "x_held_out": torch.rand(20, 64, generator=generator),
        "table": pd.DataFrame({"a": range(20), "b": [0.5, 1.5] * 10, "label": ["x", "y"] * 10}),
        "images": torch.rand(4, 3, 8, 8, generator=generator),
        "pythae_vae": VAE(VAEConfig(input_dim=(64,), latent_dim=2)),
        "autoencoder_kl": AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2),
    }


# Lightning's own: of its use of torch, and advice for larger data and more cores.
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
def test_the_code_runs(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vaentropy.studies.experiments.linear_pca.EPOCHS", 50)
    assert len(BLOCKS) == 21
    left_out = [] if names["scvi_model"] else ["from_scvi"]
    assert [printed for printed, _ in run(ROOT / "README.md", names, left_out=left_out)]
    assert names["new"].shape == (16, 64)
    assert names["diagnosis"].findings[0].kind == "fixed_variance" and names["smaller"].latent_shape == (1,)
    assert names["threes"].shape == (16, 64) and names["z"].shape == (1438, 2)
    assert [row["step"] for row in names["callback"].history] == [2, 4]
    assert names["callback"].evaluation.num_points == 20
    assert names["selection"].supported == 2 and len(names["histories"]) == 8
    assert names["history"].train.num_points == 16 and names["x_hat"].shape == (4, 2)
    assert (tmp_path / "reproduced" / "mine" / "index.html").is_file()


def test_every_finding_has_its_row():
    kinds = set(re.findall(r"kind=\"(\w+)\"|e,\s+\"(\w+)\",", RULES))
    assert len(kinds) > 10
    for kind in {one or other for one, other in kinds}:
        assert f"`{kind}`" in DIAGNOSIS, kind


def test_the_settings_are_settings(tmp_path):
    (settings,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "settings.yaml").write_text(settings)
    config = RunConfig.from_dict(read_yaml(tmp_path / "settings.yaml"))
    assert config.hidden == (100, 50) and config.exclude == ("label",)


@pytest.mark.parametrize("line", re.findall(r"^    vaentropy (.+)$", README, re.MULTILINE))
def test_the_commands_take_their_options(line, capfd):
    verb, *words = line.split("#")[0].split()
    options = [word for word in words if word.startswith("--")]
    assert main([verb, "--help"]) == 0
    shown = capfd.readouterr().out
    for option in options:
        assert option in shown


def test_the_ledgers_add_up():
    ledgers = [text for text in re.findall(r"```text\n(.*?)```", README, re.DOTALL) if "= ELBO" in text]
    assert len(ledgers) == 2
    for ledger in ledgers:
        number = {
            name: round(float(re.search(rf"^{re.escape(name)} +(-?[\d.]+)", ledger, re.MULTILINE)[1]) * 1e4)
            for name in LINES
        }
        encoder, prior, decoder, entropy_sum, prior_gap, decoder_gap, elbo = (number[name] for name in LINES)
        assert encoder - prior - decoder == entropy_sum
        assert entropy_sum + prior_gap + decoder_gap == elbo


LINES = (
    "  encoder entropy",
    "- prior entropy",
    "- decoder entropy",
    "= entropy sum",
    "+ prior residuals",
    "+ decoder residuals",
    "= ELBO",
)
