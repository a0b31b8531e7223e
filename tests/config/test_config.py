"""Mistakes in the settings are found before anything is loaded, all at once, each with a hint."""

import itertools
import subprocess
import sys

import pytest
from mistakes import command_line_problems

from blocksparse_rnn.cli import verify as verify_command
from blocksparse_rnn.config.compose import CONF, compose_settings
from blocksparse_rnn.errors import UserError

SRC = CONF.parent / "src"
OPTIONS = {
    group.name: sorted(file.stem for file in group.glob("*.yaml"))
    for group in CONF.iterdir()
    if group.is_dir()
}
MANIFEST = ["data.train=a", "data.dev=b", "data.test=c"]


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in OPTIONS.items() for o in options])
def test_every_option_composes(group, option):
    extra = MANIFEST if option in ("manifest", "shards") else []
    compose_settings([f"{group}={option}", *extra])


@pytest.mark.parametrize(("model", "scale"), [*itertools.product(OPTIONS["model"], OPTIONS["scale"])])
def test_models_and_scales_go_together(model, scale):
    settings = compose_settings([f"model={model}", f"scale={scale}", "width=64"])
    assert settings.model.hidden_size == 64
    assert settings.scale.name == scale


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        ("widht=3", "widht: unknown; did you mean width?"),
        ("model=grru", "model=grru: unknown; did you mean gru?"),
        ("+lr=3", "lr: unknown; did you mean optimizer.lr?"),
        ("data.huors=3", "data.huors: unknown; did you mean data.hours?"),
        ("width=0", "width=0: must be greater than 0"),
        ("batch=-1", "batch=-1: must be greater than 0"),
        ("data.hours=much", "data.hours=much: must be a valid number"),
        ("features.kind=mfcc", "features.kind=mfcc: must be 'linear' or 'logmel'"),
        (
            "optimizer._target_=os.system",
            "optimizer._target_: comes with the option of its group; write another option into conf/",
        ),
        ("width", "width: not of the form name=value"),
        (
            "outputs=/tmp/größe",
            "outputs=/tmp/größe: Hydra reads such a value only in quotes of its own: \"outputs='/tmp/größe'\"",
        ),
        (
            "width=interval(1,10)",
            "width=interval(1,10): a sweep takes lists (1,2), choice() and range() only",
        ),
        ("model=glob(*)", "model=glob(*): a sweep takes lists (1,2), choice() and range() only"),
        ("sparsifier=null", "sparsifier=null: unknown; choose one of bp, gl, glp, none"),
        ("optimizer.lr=0", "optimizer.lr=0: must be greater than 0"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: must be greater than 0"),
        (
            "trainer.precision=bf16-true",
            "trainer.precision=bf16-true: must be 'auto', '32-true', 'bf16-mixed', '16-mixed' or '64-true'",
        ),
        ("seed=5000000000", "seed=5000000000: must be less than 4294967296"),
        (
            "trainer.max_steps=0",
            "trainer.max_steps=0: must be at least 1, or -1 for as many as the epochs take",
        ),
        (
            "trainer.max_time=5m",
            "trainer.max_time=5m: must be days:hours:minutes:seconds, such as 00:07:30:00",
        ),
        ("features.window=-1", "features.window=-1: must be greater than 0"),
        (
            "features.specaugment={n_time_masks:-1}",
            "features.specaugment.n_time_masks=-1: must be greater than or equal to 0",
        ),
        ("features.specaugment={masks:1}", "features.specaugment.masks: unknown"),
        ("model.convolutions=[{channels:4,kernel:[11,11]}]", "model.convolutions.0.stride: is missing"),
        (
            "model.convolutions=[{channels:0,kernel:[3,3],stride:[2,2]}]",
            "model.convolutions.0.channels=0: must be greater than 0",
        ),
    ],
)
def test_a_mistake_is_one_line_with_a_hint(mistake, line):
    problems = command_line_problems([mistake])
    assert line in problems


def test_all_mistakes_are_named_at_once_over_all_points_of_a_sweep():
    problems = command_line_problems(
        ["modle=gru", "scale=mni", "width=64,0,x", "trainer.clip=high", "alphabet=aa"]
    )
    for start in ("modle: ", "scale=mni: ", "width=0: ", "width=x: ", "trainer.clip=high: "):
        assert [p for p in problems if p.startswith(start)], start


def test_ranges_that_only_constructors_know_are_checked_too():
    with pytest.raises(UserError, match=r"(?s)data\.hours.*features\.n_fft=64"):
        compose_settings(["features.n_fft=64", "data.hours=-1"])


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train.py", ["widht=3", "modle=x"], "did you mean width?"),
        ("train.py", ["width=3,4"], "several values need -m"),
        ("train.py", ["launcher=slurm"], "launcher=slurm: submits the runs of a sweep; add -m"),
        ("summary.py", ["width=0"], "width=0: must be greater than 0"),
        ("transcribe.py", ["nowhere", "a.wav"], "nowhere: neither a run folder nor an exported file"),
        ("transcribe.py", ["nowhere"], "nothing to transcribe"),
        ("verify.py", ["nowhere"], "nowhere: no run folder"),
        ("prepare.py", ["nowhere", "out.jsonl"], "nowhere: no such file or folder"),
        ("report.py", ["nowhere"], "nowhere: there is no such folder"),
        ("report.py", ["."], "no finished run in it"),
    ],
)
def test_programs_answer_mistakes_without_a_traceback(program, arguments, message, tmp_path):
    command = [sys.executable, str(SRC / program), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("runs", "code"), [(["bad"], 2), (["bad", "good"], 1), (["false", "good"], 1), (["good"], 0)]
)
def test_verify_goes_on_where_a_run_cannot_be_checked(runs, code, monkeypatch, capsys):
    def verify(run, test):
        yield "settings", run != "false", run
        if run == "bad":
            raise UserError("bad: is not finished")

    monkeypatch.setattr(verify_command, "verify", verify)
    monkeypatch.setattr(sys, "argv", ["verify.py", *runs])
    if code:
        with pytest.raises(SystemExit) as ended:
            verify_command.main()
        assert ended.value.code == code
    else:
        verify_command.main()
    printed = capsys.readouterr()
    assert printed.out.count("settings: ") == len(runs)
    assert printed.err == "  error: bad: is not finished\n" * ("bad" in runs)


def test_a_mistake_found_while_training_is_one_line_and_nothing_else(tmp_path):
    data = [f"data.{split}={tmp_path / 'missing.jsonl'}" for split in ("train", "dev", "test")]
    command = [sys.executable, str(SRC / "train.py"), "scale=mini", "data=manifest", "logger=csv", *data]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
