"""Runs that a Hydra sweeper chooses: each returns the dev CER of its result, and none is trained twice."""

import json
import subprocess
import sys
from unittest.mock import patch

import pytest
import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra

from blocksparse_rnn.config.compose import CONF, _hydra
from blocksparse_rnn.errors import PartlyFailed, UserError
from blocksparse_rnn.sweep.hydra_jobs import dev_cers

# A stand-in for a training: its dev CER tells its seed; with seed 9 it ends without a result.
CHILD = """
import json, pathlib, sys, yaml
run = pathlib.Path(sys.argv[1])
seed = yaml.safe_load((run / "config.yaml").read_text())["seed"]
(run / "attempts").open("a").write("again ")
if seed != 9:
    (run / "result.json").write_text(json.dumps({"cer": 0.5, "dev_cer": seed / 10, "epochs": 1}))
"""


@pytest.fixture
def cers_of(tones, tmp_path):
    """The dev CERs that the launcher returns for overrides of several runs."""
    base = [f"data.{split}={path}" for split, path in tones.items()]
    base += ["scale=mini", "width=16", "data=manifest", "logger=csv", f"outputs={tmp_path / 'outputs'}"]

    def cers(*overrides: list[str]) -> list[float]:
        with (
            _hydra(),
            patch(
                "blocksparse_rnn.sweep.slots.job_command", lambda run: [sys.executable, "-c", CHILD, str(run)]
            ),
        ):
            loader = GlobalHydra.instance().config_loader()
            config = compose("config", base, return_hydra_config=True)
            return dev_cers(loader, config, [[*base, *each] for each in overrides])

    return cers


def test_each_run_returns_its_dev_cer_and_a_repeated_one_is_not_trained_again(cers_of, tmp_path):
    assert cers_of(["seed=1"], ["seed=2"], ["seed=1"]) == [0.1, 0.2, 0.1]
    assert cers_of(["seed=2"], ["seed=3"]) == [0.2, 0.3]
    attempts = [path.read_text() for path in (tmp_path / "outputs").glob("*/attempts")]
    assert attempts == ["again "] * 3


def test_a_run_without_a_result_is_no_number(cers_of):
    with pytest.raises(PartlyFailed, match=r"-s9-.*: has no result"):
        cers_of(["seed=1"], ["seed=9"])


def test_every_mistake_of_every_run_is_named(cers_of):
    with pytest.raises(UserError, match=r"(?s)batch=0: .*optimizer\.lr=-1"):
        cers_of(["batch=0"], ["optimizer.lr=-1"])


@pytest.mark.slow
def test_optuna_tunes_the_strength_of_a_lasso(tones, tmp_path):
    pytest.importorskip("optuna")
    outputs = tmp_path / "outputs"
    command = [sys.executable, str(CONF.parent / "src/train.py"), "-m", "hydra/sweeper=optuna"]
    command += ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]
    command += ["sparsifier=gl", "sparsifier.group_lasso.lambda_g=choice(0.1,20)", "trainer.max_epochs=2"]
    command += ["scale=mini", "model=gru", "width=16", "data=manifest", "logger=csv", f"outputs={outputs}"]
    command += [f"data.{split}={path}" for split, path in tones.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in outputs.glob("*/result.json")]
    assert len(results) <= 2  # four trials of two values
    found = yaml.safe_load((outputs / "optimization_results.yaml").read_text())
    assert found["best_value"] == min(result["dev_cer"] for result in results)


def test_values_that_only_a_sweeper_knows_are_left_to_it_and_the_others_checked():
    from blocksparse_rnn.config.compose import read_command

    given = ["-m", "hydra/sweeper=optuna", "scale=mini", "optimizer.lr=interval(0.1,1)"]
    pytest.importorskip("optuna")
    assert read_command(given).hydra
    with pytest.raises(UserError, match=r"^widht: unknown; did you mean width"):
        read_command([*given, "widht=3"])
    with pytest.raises(UserError, match="dry_run=true: this sweeper"):
        read_command([*given, "dry_run=true"])
