"""The command `blocksparse-rnn`: runs one of the commands with the other arguments.

blocksparse-rnn --help
blocksparse-rnn train scale=mini model=rnn width=176
"""

import ast
import difflib
import sys
from importlib import import_module
from pathlib import Path

import blocksparse_rnn
from blocksparse_rnn.cli.program import run
from blocksparse_rnn.errors import UserError

COMMANDS = ("train", "report", "export", "transcribe", "prepare", "verify", "summary", "bench")
NAME = "blocksparse-rnn"


def main() -> None:
    """Run the command that is named first, and exit with its code."""
    run(_dispatch)


def _dispatch() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"usage: {NAME} COMMAND ...\n")
        print("\n".join(f"  {command:<12}{_summary(command)}" for command in COMMANDS))
        print(f"\n{NAME} COMMAND --help shows the arguments of a command.")
    elif name == "--version":
        print(f"{NAME} {blocksparse_rnn.__version__}")
    elif name in COMMANDS:
        command = import_module(f"blocksparse_rnn.cli.{name}")
        sys.argv = [f"{NAME} {name}", *sys.argv[2:]]
        # --help prints the docstring, whose examples are those of a checkout.
        command.__doc__ = (command.__doc__ or "").replace("python src/", f"{NAME} ").replace(".py", "")
        command.main()
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        raise UserError(f"{name}: unknown command; {advice}")


def _summary(command: str) -> str:
    """The first line of a command's docstring, read without importing it, which takes seconds."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


if __name__ == "__main__":
    main()
