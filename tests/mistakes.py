"""The mistakes for which a command line is refused."""

from blocksparse_rnn.config.compose import read_command
from blocksparse_rnn.errors import UserError


def command_line_problems(overrides: list[str]) -> list[str]:
    """Every mistake in some overrides and in each of the runs that they compose to."""
    try:
        read_command(["-m", *overrides])
    except UserError as error:
        return str(error).splitlines()
    return []
