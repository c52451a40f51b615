"""The command: what goes to stdout and stderr, exit statuses, and what is imported when."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vaentropy.cli import main

QUICK = ["--epochs", "2", "--hidden", "8", "--no-report"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_prints_one_json_object(capfd):
    assert main(["train", "digits", *QUICK, "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert {"run", "elbo", "entropy_sum", "gap", "mc_stderr", "seconds"} <= set(result)
    assert result["elbo"] - result["entropy_sum"] == pytest.approx(result["gap"], abs=1e-9)
    assert result["mc_stderr"]["gap"] > 0
    assert result["run"] == "runs/digits-vae1" and Path(result["run"], "model.safetensors").exists()
    assert err == ""


def test_train_prints_the_ledger_and_evaluate_the_same(capfd):
    assert main(["train", "digits", *QUICK, "--out", "one"]) == 0
    out, err = capfd.readouterr()
    assert "= entropy sum" in out and "= ELBO" in out and "held out: ELBO" in out
    assert "Run in one" in err
    assert main(["evaluate", "one"]) == 0
    again, _ = capfd.readouterr()
    ledger = [line for line in out.splitlines() if line.startswith(("= ", "+ ", "- "))]
    assert len(ledger) == 6 and [line for line in again.splitlines() if line in ledger][:6] == ledger
    assert main(["evaluate", "one", "--json"]) == 0
    parts = json.loads(capfd.readouterr().out)
    assert set(parts) == {"run", "train", "held_out"} and len(parts["train"]["decoder_residuals"]) == 64


def test_evaluate_bounds_the_log_likelihood(capfd):
    np.save("mine.npy", np.random.default_rng(0).normal(size=(100, 3)))
    assert main(["train", "mine.npy", *QUICK, "--held-out", "0.2", "--out", "one"]) == 0
    capfd.readouterr()
    assert main(["evaluate", "one", "--log-likelihood", "9"]) == 0
    out, err = capfd.readouterr()
    names = ["[train]", "= ELBO", "= log-likelihood, at least", "[held_out]", "= ELBO", "= log-likelihood, at least"]
    lines = iter(out.splitlines())
    # Each under its own ledger.
    assert all(any(line.startswith(name) for line in lines) for name in names), out
    assert err == "" and out.count("9 draws of z each") == 2
    assert main(["evaluate", "one", "--log-likelihood", "9", "--json"]) == 0
    parts = json.loads(capfd.readouterr().out)
    for name in ("train", "held_out"):
        bound = parts[name]["log_likelihood"]
        assert (bound["num_samples"], bound["num_points"]) == (9, parts[name]["num_points"])
        assert bound["value"] == pytest.approx(bound["elbo"] + bound["tightness"]) and not bound["exact"]
    assert main(["evaluate", "one", "--json"]) == 0
    assert "log_likelihood" not in json.loads(capfd.readouterr().out)["train"]


def test_a_users_own_file(capfd):
    np.save("mine.npy", np.random.default_rng(0).normal(size=(100, 3)))
    assert main(["train", "mine.npy", *QUICK, "--batch-size", "16"]) == 0
    assert Path("runs/mine-vae1").is_dir()


def test_select_prints_table_and_verdict_and_leaves_nothing(capfd):
    assert main(["select", "pca", "--model", "linear", "--latent-dims", "0,1,2,3"]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].startswith("linear on pca (x = W z + b") and err == ""
    assert out.splitlines()[-1].startswith("2 latents are supported: 1 would cost 4.9")
    assert list(Path().iterdir()) == []


def test_select_trains_with_the_settings_of_train(capfd):
    np.save("mine.npy", np.random.default_rng(0).normal(size=(100, 3)))
    Path("mine.yaml").write_text("data: mine.npy\nhidden: [8]\nepochs: 1\nmodel: vae2\nseed: 3\nlatent_dim: 7\n")
    options = ["--latent-dims", "1,2", "--num-seeds", "1", "--config", "mine.yaml", "--json", "--workers", "1"]
    assert main(["select", *options]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out)
    assert err == "" and result["model"] == "vae2" and result["supported"] in (1, 2)
    assert [c["seed"] for c in result["candidates"]] == [3, 3]
    assert main(["select", *options, "--model", "vae1", "--num-errors", "5"]) == 0
    other = json.loads(capfd.readouterr().out)
    assert other["model"] == "vae1" and other["num_errors"] == 5
    assert main(["select", *options, "--model", "linear", "--num-seeds", "2"]) == 2
    assert "num_seeds given with model" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit"], "did you mean"),
        (["train", "pca", "--model", "vae9"], "expected one of vae0, vae1, vae2, vae3"),
        (["train", "pca", "--latent-dim", "0"], "latent_dim"),
        (["train", "pca", "--hidden", "a,b"], "expected whole numbers with commas"),
        (["train", "pca", "--hidden", "0"], "hidden=(0,)"),
        (["train", "pca", "--hidden", ""], "expected whole numbers with commas"),
        (["train", "pca", "--columns", 'a,"b'], "close the quotes"),
        (["train", "pca", "--epochs", "-1"], "epochs=-1"),
        (["train", "pca", "--variances", "free"], "variances='free'"),
        (["train", "pca", "--schedule", "linear"], "schedule='linear'"),
        (["train", "pca", "--device", "abacus"], "device='abacus'"),
        (["train", "pca", "--held-out", "1.5"], "held_out"),
        (["train", "missing.npy"], "missing.npy"),
        (["train", "mnist", "--data-folder", "nowhere"], "nowhere"),
        (["train", "--epoch", "3"], "--epochs"),
        (["train", "--epochs", "three"], "--epochs"),
        (["evaluate", "nowhere"], "is no run: it has no config.yaml"),
        (["evaluate"], "RUN"),
        (["evaluate", "nowhere", "--num-samples", "0"], "num_samples=0"),
        (["select", "pca", "--latent-dims", "3"], "latent_dims=(3,)"),
        (["select", "pca", "--latent-dims", "1,b"], "expected whole numbers with commas"),
        (["select", "pca", "--latent-dim", "3"], "--latent-dims"),
        (["select", "pca", "--model", "vae9"], "vae0, vae1, vae2, vae3"),
        (["select", "digit"], "did you mean"),
        (["select", "pca", "--workers", "0"], "workers=0 given"),
        (
            ["select", "pca", "--engine", "prozesses"],
            "did you mean 'processes'? expected processes, ray, or the address",
        ),
        (["sweep", "pca"], "nothing to vary given, expected --vary NAME=VALUE,VALUE, --seeds N, or both"),
        (["sweep", "pca", "--vary", "latent-dim"], "expected NAME=VALUE,VALUE,... such as latent_dim=2,5"),
        (["sweep", "pca", "--vary", "latent-dimm=2"], "did you mean 'latent_dim'?"),
        (["sweep", "pca", "--vary", "latent-dim=2,0"], "latent_dim=0,seed=0: latent_dim=0 given"),
        (["sweep", "pca", "--vary", "beta=1", "--vary", "beta=2"], "beta given to vary twice"),
        (["sweep", "pca", "--beta", "1", "--vary", "beta=2"], "beta given and varied"),
        (["sweep", "pca", "--vary", "hidden=[50"], "--vary hidden=[50 is not valid YAML"),
        (["sweep", "pca", "--seeds", "0"], "num_seeds=0"),
        (["evaluate", "nowhere", "--log-likelihood", "0"], "log_likelihood=0"),
        (["evaluate", "nowhere", "--log-likelihood", "many"], "--log-likelihood"),
        (["tarin"], "tarin"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(arguments, message, capfd):
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("vaentropy: ") and message in err
    assert not Path("runs").exists() and not Path("sweeps").exists()


def test_sweep_leaves_runs_and_says_what_to_look_at(capfd):
    np.save("mine.npy", np.random.default_rng(0).normal(size=(100, 3)))
    options = ["mine.npy", "--vary", "hidden=[4],[4,3]", "--vary", "learning_rate=1e-3,1e20"]
    options += ["--epochs", "1", "--max-rollbacks", "0"]
    assert main(["sweep", *options, "--workers", "1"]) == 1
    out, err = capfd.readouterr()
    folder = Path("sweeps/mine-vae1")
    assert out.splitlines()[0].startswith("4 runs; held-out ELBO, nats per data point") and "4-3" in out
    assert "hidden=4,learning_rate=1e+20,seed=0 failed: " in err
    assert f"4 runs in {folder}, table in {folder}/sweep.csv" in err
    assert f"vaentropy report {folder}/hidden=4" in err
    assert main(["sweep", *options, "--workers", "1", "--json"]) == 1
    result = json.loads(capfd.readouterr().out)
    assert len(result["runs"]) == 4 and len(result["kept"]) == len(result["settings"]) - len(result["failed"]) == 2
    assert main(["evaluate", str(folder / result["runs"][0]["run"]), "--json"]) == 0


def test_a_second_run_into_the_same_folder_is_refused(capfd):
    assert main(["train", "digits", *QUICK, "--out", "one"]) == 0
    weights = Path("one/model.safetensors").read_bytes()
    assert main(["train", "digits", *QUICK, "--out", "one", "--seed", "5"]) == 2
    assert Path("one/model.safetensors").read_bytes() == weights


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\n"
        "from vaentropy.cli import main\n"
        "assert main(['--help']) == 0\n"
        "for verb in 'train evaluate prune continue select sweep verify reproduce'.split():\n"
        "    assert main([verb, '--help']) == 0\n"
        "assert main(['--version']) == 0\n"
        "heavy = {'torch', 'numpy', 'yaml', 'rich', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_help_of_continue_names_what_can_be_changed(capfd):
    assert main(["continue", "--help"]) == 0
    out = capfd.readouterr().out
    assert all(option in out for option in ("--epochs", "--model", "--variances", "--data-folder"))
    # Fixed settings are refused with a reason, and defaults are those of the run.
    assert not any(text in out for text in ("--hidden", "--latent-dim", "--seed", "[default"))


def test_the_module_runs_too():
    done = subprocess.run([sys.executable, "-m", "vaentropy", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_an_interrupt_is_130(monkeypatch, capfd):
    import vaentropy.runs

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(vaentropy.runs, "train", interrupted)
    assert main(["train", "pca"]) == 130
    assert capfd.readouterr().err.strip() == "vaentropy: interrupted"


@pytest.mark.slow
def test_verify(capfd):
    assert main(["verify", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["holds"]
    fields = {"model", "elbo", "entropy_sum", "relative_gap", "gradient_norm", "hessian_min", "active_latents"}
    assert all(fields <= set(case) for case in result["cases"])


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("vaentropy enc", {"plain,encode"}),
        ("vaentropy train --model va", {f"plain,vae{number}" for number in range(4)}),
        ("vaentropy select --model li", {"plain,linear"}),
        ("vaentropy info ru", {"file,ru"}),
        ("vaentropy train --conf", {"plain,--config"}),
    ],
)
def test_a_shell_completes_verbs_options_choices_and_files(words, completions):
    environment = {**os.environ, "_VAENTROPY_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split()) - 1)
    code = "from vaentropy.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert set(done.stdout.split("\n")) - {""} == completions
    assert main(["completion", "bash"]) == 0
