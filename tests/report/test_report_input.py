"""Runs that a report can't count: a line each with the reason, and no figure of theirs."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml
from report_runs import write_run

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF
from blocksparse_rnn.report.results import read_runs, rows_of

FOREIGN = "is of another program, or of another version of this one"
NAN = float("nan")


def change(file: Path, **changes) -> None:
    """Change keys of a result or of settings."""
    write = yaml.safe_dump if file.suffix == ".yaml" else json.dumps
    file.write_text(write(yaml.safe_load(file.read_text()) | changes))


def test_runs_that_are_not_finished_are_named_with_where_they_stand(tmp_path):
    write_run(tmp_path, 0.04)
    failed = write_run(tmp_path, None, sparsifier="bp")
    fresh = write_run(tmp_path, None, sparsifier="gl")
    (fresh / "status.json").unlink()
    odd = write_run(tmp_path, None, sparsifier="glp")
    (odd / "status.json").write_text("[1]")
    own = tmp_path / "440-none-4-0-1.5-0.9/wandb/offline-run-1/files"
    own.mkdir(parents=True)
    (own / "config.yaml").write_text("")
    runs, others = read_runs([tmp_path])
    assert len(runs) == 1
    lines = {f"{failed}: failed", f"{fresh}: not started", f"{odd}: status.json is damaged"}
    assert set(others) == lines
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished run"):
        read_runs([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", '{"cer": 0.', "result.json is damaged"),
        ("result.json", "[" * 100_000, "result.json is damaged"),
        ("result.json", "\xff", "result.json is damaged"),
        ("result.json", "[1]", f"result.json {FOREIGN}: lacks name, identity, cer,"),
        ("result.json", '{"accuracy": 0.9}', f"result.json {FOREIGN}: lacks name, identity, cer,"),
        ("config.yaml", "a: [1", "config.yaml is damaged"),
        ("config.yaml", "", f"config.yaml {FOREIGN}: lacks model, width"),
    ],
)
def test_a_file_that_is_damaged_or_of_another_program_is_told(tmp_path, file, content, message):
    write_run(tmp_path, 0.04)
    odd = write_run(tmp_path, 0.05, seed=1)
    (odd / file).write_bytes(content.encode("latin-1"))
    runs, [line] = read_runs([tmp_path])
    assert [run.settings["seed"] for run in runs] == [0]
    assert line.startswith(f"{odd}: {message}")
    assert "\n" not in line
    assert "delete" not in line
    assert ("move the run away and train again" in line) == ("is damaged" in message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cer": NAN}, "cer=nan must be a finite number"),
        ({"wer": float("inf")}, "wer=inf must be a finite number"),
        ({"dev_cer": NAN}, "dev_cer=nan must be a finite number"),
        ({"cer": -3}, "cer=-3 must be greater than or equal to 0"),
        ({"cer": None}, "cer=None must be a valid number"),
        ({"cer": "0.04"}, "cer='0.04' must be a valid number"),
        ({"cer": 10**400}, "cer=1000"),
        ({"identity": [1]}, "identity=[1] must be a valid string"),
        ({"sparsity/total": 1.5}, "sparsity/total=1.5 must be less than or equal to 1"),
        ({"sparsity/matrices": "x"}, "sparsity/matrices='x' must be a valid dictionary"),
        ({"sparsity/matrices": {"fc.weight": "x"}}, "sparsity/matrices.fc.weight='x' must be a valid number"),
        ({"parameters": {"nonzero": "x"}}, "parameters.nonzero='x' must be a valid number"),
        (
            {"threads": "?", "wall_seconds": -1},
            "threads='?' must be a valid integer; wall_seconds=-1 must be",
        ),
    ],
)
def test_a_figure_that_cannot_be_is_told_and_its_run_not_counted(tmp_path, changes, message):
    write_run(tmp_path, 0.04)
    odd = write_run(tmp_path, 0.05, seed=1, result=changes)
    runs, [line] = read_runs([tmp_path])
    [row] = rows_of(runs)
    assert (row.seeds, row.cer, row.cer_deviation) == ((0,), 0.04, None)
    assert line.startswith(f"{odd}: result.json: {message}")
    assert len(line) < len(str(odd)) + 200


def test_a_cer_above_one_is_a_result(tmp_path):
    write_run(tmp_path, 1.2)
    runs, others = read_runs([tmp_path])
    assert [run.result["cer"] for run in runs] == [1.2]
    assert not others


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "x"}, "config.yaml: seed='x' must be a valid integer"),
        ({"width": "440"}, "config.yaml: width='440' must be a valid integer"),
        ({"model": "gru"}, "config.yaml: model='gru' must be a valid dictionary"),
        ({"trainer": {"max_epochs": 12, "max_steps": -1}}, f"config.yaml {FOREIGN}: KeyError: 'max_time'"),
        ({"sparsifier": {"name": "none", "since": date(2026, 1, 1)}}, f"config.yaml {FOREIGN}: TypeError: "),
    ],
)
def test_settings_that_cannot_be_are_told(tmp_path, changes, message):
    write_run(tmp_path, 0.04)
    odd = write_run(tmp_path, 0.05, seed=1)
    change(odd / "config.yaml", **changes)
    runs, others = read_runs([tmp_path])
    assert len(runs) == 1
    [line] = others
    assert line.startswith(f"{odd}: {message}")


def test_a_result_without_its_settings_is_told(tmp_path):
    write_run(tmp_path, 0.04)
    odd = write_run(tmp_path, 0.05, seed=1)
    (odd / "config.yaml").unlink()
    _, others = read_runs([tmp_path])
    assert others == [f"{odd}: result.json has no config.yaml beside it; copy the run's settings there"]


def test_where_no_run_is_left_the_program_says_why(tmp_path):
    for seed, text in enumerate(('{"cer": 0.', "{}")):
        (write_run(tmp_path, 0.05, seed=seed) / "result.json").write_text(text)
    command = [sys.executable, str(CONF.parent / "src/report.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    first, *reasons = done.stderr.splitlines()
    assert first == f"error: {tmp_path}: no finished run in it; train one with src/train.py"
    assert [line.split(": ")[:2] for line in reasons] == [["error", "left out"]] * 2
    assert "440-none-4-0-1.5-0.9: result.json is damaged" in reasons[0]
    assert f"440-none-4-1-1.5-0.9: result.json {FOREIGN}" in reasons[1]


@pytest.mark.parametrize(
    ("identity", "same"),
    [
        ("one", "the same run as"),
        ("of an older version", "the same settings and seed as"),
    ],
)
def test_a_seed_of_a_row_counts_once_and_other_figures_are_told(tmp_path, identity, same):
    counted = write_run(tmp_path / "a", 0.04, result={"identity": "one"})
    write_run(tmp_path / "a", 0.06, seed=1)
    repeated = write_run(tmp_path / "b", 0.04, result={"identity": identity})
    runs, others = read_runs([tmp_path])
    [row] = rows_of(runs)
    assert (row.seeds, row.cer) == ((0, 1), pytest.approx(0.05))
    assert others == [f"{repeated}: {same} {counted}, counted once"]
    change(repeated / "result.json", cer=0.08, wer=0.1)
    runs, others = read_runs([tmp_path])
    [row] = rows_of(runs)
    assert (row.seeds, row.cer) == ((0, 1), pytest.approx(0.05))
    assert others == [
        f"{repeated}: {same} {counted}, counted once: that one counts, with CER 4.00 %, WER 12.00 %, "
        "this one has CER 8.00 %, WER 10.00 %; move away the one not to count"
    ]
