"""The command `blocksparse-rnn`: it finds its commands by name, and exits as they do."""

import subprocess
import sys

import pytest

import blocksparse_rnn
from blocksparse_rnn.cli import program
from blocksparse_rnn.cli.main import COMMANDS, main
from blocksparse_rnn.files import SOURCE


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command; returns its exit code, 0 where it just ends, and both outputs."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/blocksparse-rnn", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_has_a_line_for_each_command(command, arguments):
    code, out, _ = command(*arguments)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == [*COMMANDS]


def test_each_command_is_a_script_of_a_checkout_too():
    assert {path.stem for path in SOURCE.glob("*.py")} == {*COMMANDS}


def test_the_version_is_that_of_the_package(command):
    assert command("--version")[1] == f"blocksparse-rnn {blocksparse_rnn.__version__}\n"


def test_an_unknown_command_is_one_line_with_the_nearest_name(command):
    assert command("trian") == (2, "", "error: trian: unknown command; did you mean train?\n")
    assert command("zzz")[2].endswith(f"choose one of {', '.join(COMMANDS)}\n")


def test_help_of_a_command_names_it_as_it_was_called(command):
    code, out, _ = command("summary", "--help")
    assert code == 0
    assert out.startswith("usage: blocksparse-rnn summary ")
    assert "\nblocksparse-rnn summary model=rnn width=1760\n" in out
    assert "src/" not in out


def test_arguments_and_mistakes_are_those_of_the_command(command):
    code, out, err = command("summary", "widht=3")
    assert (code, out, err) == (2, "", "error: widht: unknown; did you mean width?\n")


def test_nothing_is_loaded_before_it_is_asked_for():
    script = """
import sys
import blocksparse_rnn
from blocksparse_rnn.cli.main import main
sys.argv = ["blocksparse-rnn", "--help"]
main()
print([name for name in sys.modules if name in ("torch", "hydra", "blocksparse_rnn.cli.train")])
from blocksparse_rnn import BlockSparse, Transcriber
print(BlockSparse.__name__, Transcriber.__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "BlockSparse Transcriber"]


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Transcribe'"):
        blocksparse_rnn.Transcribe  # noqa: B018


def test_torchaudio_beside_a_cpu_build_of_torch_is_one_line(capsys):
    def load():
        raise OSError("Could not load this library: /site/torchaudio/lib/_torchaudio.so")

    with pytest.raises(SystemExit, match="2"):
        program.run(load)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("rm /site/torchaudio/lib/*.so\n")
