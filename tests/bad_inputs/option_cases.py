"""Wrong settings, wrong options and wrong settings files."""

from pathlib import Path

from .case import array, command, csv_text, numbers, several, text, training, with_value

__all__ = ["OPTIONS"]

BOMB = "".join(f"a{n}: &a{n} [{', '.join(['*a' + str(n - 1)] * 9) if n else '1, 1'}]\n" for n in range(12))
MERGES = "".join(f"a{n}: &a{n} {{<<: [{', '.join(['*a' + str(n - 1)] * 9)}]}}\n" for n in range(1, 12))


def with_options(name: str, options: str, *says: str, **more):
    return training(name, "x.npy", array(numbers()), *says, options=options, **more)


def with_config(name: str, content: str | bytes, *says: str, **more):
    """A settings file named mine.yaml, which the message names."""
    return command(name, "train --config mine.yaml", text(content, "mine.yaml"), "mine.yaml", *says, **more)


OPTIONS = [
    with_options("latent-dim-0", "--latent-dim 0", "latent_dim=0", "at least 1"),
    with_options("latent-dim-negative", "--latent-dim -3", "latent_dim=-3"),
    with_options("latent-dim-half", "--latent-dim 2.5", "--latent-dim", "2.5"),
    with_options("latent-dim-huge", "--latent-dim 4000000000", "latent_dim=4000000000"),
    with_options("latent-dim-too-much-memory", "--latent-dim 2000000000", "memory", "latent_dim"),
    with_options("hidden-too-much-memory", "--hidden 2000000,2000000", "memory", "hidden"),
    with_options("hidden-beyond-int64", "--hidden 99999999999999999999", "hidden"),
    with_options("hidden-empty", "--hidden ,", "--hidden", "50,50"),
    with_options("samples-too-much-memory", "--num-samples 2000000000", "memory"),
    with_options("learning-rate-nan", "--learning-rate nan", "learning_rate=nan", "positive"),
    with_options("learning-rate-inf", "--learning-rate inf", "learning_rate=inf", "positive"),
    with_options("learning-rate-negative", "--learning-rate=-1", "learning_rate=-1", "positive"),
    with_options("beta-negative", "--beta=-1", "beta=-1"),
    with_options("beta-nan", "--beta nan", "beta=nan"),
    with_options("held-out-nan", "--held-out nan", "held_out", "nan"),
    with_options("held-out-1", "--held-out 1", "held_out", "[0, 1)"),
    with_options("seed-negative", "--seed -1", "seed=-1"),
    with_options("seed-huge", "--seed 99999999999999999999", "seed=99999999999999999999"),
    with_options("threads-huge", "--threads 1000000", "threads=1000000"),
    with_options("batch-size-0", "--batch-size 0", "batch_size=0"),
    with_options("clip-norm-0", "--clip-norm 0", "clip_norm=0"),
    with_options("patience-without-held-out", "--patience 2 --held-out 0", "patience=2", "held"),
    with_options("precision", "--precision fp16", "precision='fp16'", "bf16"),
    with_options("dtype-half", "--dtype float16", "dtype='float16'", "float64"),
    with_options("device-meta", "--device meta", "device='meta'", "cuda"),
    with_options("device-hpu", "--device hpu", "device='hpu'", "cuda"),
    with_options("device-cuda-99", "--device cuda:99", "device='cuda:99'"),
    with_options("scale-unknown", "--scale minmax", "scale='minmax'", "min_max"),
    with_options("missing-unknown", "--missing drop", "missing='drop'", "ignore"),
    with_options("network-of-a-table", "--network conv", "(3,)", "(channels, height, width)"),
    with_options("key-of-npy", "--key a", "key", ".npz"),
    with_options("columns-of-npy", "--columns a", "columns", "leave it out"),
    with_options("crop-of-npy", "--crop 3", "crop", "folder of images"),
    with_options("dequantise-of-fractions", "--dequantise", "x.npy", "row 0", "whole numbers"),
    with_options("unknown-option", "--epoch 3", "--epoch", "--epochs"),
    with_options("log-unknown", "--log console,tensorbord", "log 'tensorbord'", "did you mean 'tensorboard'"),
    with_options("log-nothing", "--log ,", "log ''", "tensorboard, wandb, mlflow"),
    with_options("two-data-sets", "--seed 1 digits", "digits"),
    training("control-characters-in-a-setting", "x.npy", array(numbers()), "\\x1b[31m", options="--model \x1b[31mvae"),
    with_config("config-python", "!!python/object/apply:os.mkdir ['marker']", "not valid YAML"),
    with_config("config-python-in-a-value", "epochs: !!python/object/new:os.system ['touch marker']", "not valid YAML"),
    with_config("config-unknown-tag", "epochs: !mine 3", "not valid YAML"),
    with_config("config-bomb", BOMB + "epochs: *a11", "aliases"),
    with_config("config-merge-bomb", "a0: &a0 {epochs: 1}\n" + MERGES, "aliases"),
    with_config("config-unknown", "epoch: 3", "'epoch'", "did you mean 'epochs'"),
    with_config("config-number-as-name", "3: 4", "unknown setting 3"),
    with_config("config-escapes", '"\\e[31m\\n": 4', "unknown setting", "\\x1b[31m"),
    with_config("config-type", "epochs: many", "epochs", "'many'", "a whole number"),
    with_config("config-fraction", "epochs: 3.5", "epochs", "3.5", "a whole number"),
    with_config("config-bool", "epochs: true", "epochs", "True", "a whole number"),
    with_config("config-null", "epochs:", "epochs", "None", "a whole number"),
    with_config("config-list", "epochs: [1]", "epochs", "a whole number"),
    with_config("config-nan", "learning_rate: .nan", "learning_rate=nan", "positive"),
    with_config("config-nul-in-a-path", 'data: "a\\0.npy"', "\\x00"),
    with_config("config-long-value", "epochs: [" + "1, " * 20_000 + "1]", "epochs", "a whole number"),
    with_config("config-deep", "epochs: " + "[" * 2000 + "]" * 2000, "not valid YAML"),
    with_config("config-long-number", "epochs: " + "9" * 5000, "not valid YAML"),
    with_config("config-not-utf8", b"epochs: \xff", "UTF-8"),
    with_config("config-binary", bytes(range(256)), "mine.yaml"),
    with_config("config-control-characters", "epochs: \x1b[31m", "not valid YAML"),
    with_config("config-syntax", "epochs: [", "not valid YAML"),
    with_config("config-no-names", "- 1", "list", "settings with names"),
    with_config("config-empty", "", "NoneType", "settings with names"),
    with_config("config-large", "# " + "a" * 2**21 + "\nepochs: 3", "1048576"),
    command("config-missing", "train --config mine.yaml", None, "mine.yaml", "no such file"),
    command("config-folder", "train --config mine.yaml", lambda: Path("mine.yaml").mkdir(), "mine.yaml", "directory"),
    command("config-endless", "train --config /dev/zero", None, "/dev/zero", "1048576"),
    command("resume-of-nothing", "train --resume nowhere", None, "nowhere", "is no run", "config.yaml"),
    command("resume-of-a-file", "train --resume x.csv", text(csv_text(), "x.csv"), "x.csv", "folder"),
    command("resume-of-an-empty-folder", "train --resume empty", lambda: Path("empty").mkdir(), "empty", "config.yaml"),
    command("resume-with-settings", "train --resume run --epochs 3", None, "--resume run", "epochs"),
    command("resume-with-data", "train x.npy --resume run", None, "--resume run", "data"),
    command("out-is-a-file", "train --out x.csv", text(csv_text(), "x.csv"), "x.csv", "--out"),
    command("out-is-below-a-file", "train --out x.csv/a", text(csv_text(), "x.csv"), "x.csv/a", "--out"),
    command("out-is-in-use", "train --out full", text("mine", "full/notes.txt"), "full", "not an empty folder"),
    command("out-overwrites-no-run", "train --out a --overwrite", text("mine", "a/manifest.json"), "not an empty"),
    command(
        "select-patience-in-config",
        "select x.npy --config mine.yaml",
        several(array(numbers()), text("patience: 3", "mine.yaml")),
        "patience given",
        "plateau",
    ),
    command("select-missing-file", "select nowhere.npy", None, "nowhere.npy"),
    command("select-latent-dims", "select x.npy --latent-dims 0,1", array(numbers()), "latent_dims=0", "at least 1"),
    command("select-too-much-memory", "select x.npy --latent-dims 1,2000000000", array(numbers()), "memory"),
    command("select-nan", "select x.npy --model linear", array(with_value(float("nan"))), "row 7", "nan"),
    command("select-num-errors", "select x.npy --num-errors 0", array(numbers()), "num_errors=0"),
    training("condition-unknown", "x.csv", text(csv_text(), "x.csv"), "'d'", "'a'", options="--condition d"),
    training("condition-all", "x.csv", text(csv_text(), "x.csv"), "none is left", options="--condition a,b,c"),
    training("condition-of-array", "x.npy", array(numbers()), "for a table", options="--condition a"),
    training("condition-of-digits", "digits", None, "'labels'", options="--condition colour"),
    command("unknown-verb", "tarin", None, "tarin"),
    command("no-run", "evaluate", None, "RUN"),
    command("log-likelihood-0", "evaluate run --log-likelihood 0", None, "log_likelihood=0", "at least 1"),
    command("log-likelihood-negative", "evaluate run --log-likelihood -5", None, "log_likelihood=-5"),
    command("log-likelihood-half", "evaluate run --log-likelihood 2.5", None, "--log-likelihood", "2.5"),
    command("log-likelihood-text", "evaluate run --log-likelihood many", None, "--log-likelihood", "many"),
    command("log-likelihood-of-no-run", "evaluate nowhere --log-likelihood 5", None, "nowhere", "is no run"),
    command("unknown-shell", "completion tcsh", None, "tcsh", "bash"),
]
