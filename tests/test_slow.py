"""Promises that take minutes: error rates on synthetic speech, the paper's scale on a CPU, the paper's table."""

import json
import subprocess
import sys

import pytest

from blocksparse_rnn.config.compose import CONF

ROOT = CONF.parent


@pytest.mark.slow
@pytest.mark.parametrize(("model", "width", "limit"), [("rnn", 176, 0.04), ("gru", 192, 0.05)])
def test_error_rates_on_unseen_voices(model, width, limit, tmp_path):
    # Half of the experiment's epochs are enough.
    options = [
        "experiment=almost_clean",
        f"model={model}",
        f"width={width}",
        "trainer.max_epochs=6",
        "logger=csv",
    ]
    folders = [f"outputs={tmp_path / 'outputs'}", f"corpora={tmp_path / 'corpora'}"]
    subprocess.run([sys.executable, str(ROOT / "src/train.py"), *options, *folders], check=True)
    [result] = (tmp_path / "outputs").glob("*/result.json")
    assert json.loads(result.read_text())["cer"] <= limit


@pytest.mark.slow
def test_a_run_of_the_sweep_at_paper_scale_on_a_cpu(tmp_path):
    options = ["-m", "model=gru", "width=2560", "sparsifier=glp", "block=4", "logger=csv", "data.hours=0.02"]
    short = ["trainer.max_steps=2", "trainer.accelerator=cpu", "launcher.slots=1"]
    folders = [f"outputs={tmp_path / 'outputs'}", f"corpora={tmp_path / 'corpora'}"]
    subprocess.run([sys.executable, str(ROOT / "src/train.py"), *options, *short, *folders], check=True)
    [path] = (tmp_path / "outputs").glob("*/result.json")
    result = json.loads(path.read_text())
    assert result["parameters"]["total"] == 115_310_333
    assert result["steps"] == 2
    assert result["pruning"].startswith("nothing pruned")


@pytest.mark.slow
def test_the_papers_table_from_one_command(tmp_path):
    outputs = tmp_path / "outputs"
    short = "data.hours=0.05 epochs_per_pass=null data.vocabulary=100 batch=8 trainer.max_epochs=3 schedule.freq=1 logger=csv"
    command = ["make", "reproduce-table", f"OUTPUTS={outputs}", f"ARGS={short} corpora={tmp_path} workers=0"]
    subprocess.run(command, cwd=ROOT, check=True)
    page = (outputs / "report/report.md").read_text()
    assert page.count("| RNN ") == 5
    assert page.count("| GRU ") == 4
    results = [json.loads(path.read_text()) for path in outputs.glob("*/result.json")]
    assert len(results) == 9
    targets = {
        "rnn-440-bp": 0.896,
        "rnn-640-glp": 0.910,
        "rnn-768-bp": 0.875,
        "gru-640-glp": 0.909,
        "gru-896-bp": 0.886,
    }
    for result in results:
        target = targets.get("-".join(result["name"].split("-")[:3]), 0)
        assert result["sparsity/prunable"] == pytest.approx(target, abs=0.005), result["name"]
