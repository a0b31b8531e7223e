"""What all commands share: a user's mistake is a line, not a traceback, and each kind of end has its exit code."""

import errno
import io
import os
import sys
from collections.abc import Callable

from blocksparse_rnn.errors import PartlyFailed, UserError
from blocksparse_rnn.signals import Stopped

BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def run(program: Callable[[], object]) -> None:
    """Run a command and exit: 0, the code of what ended it with a line, or a traceback for a bug of ours."""
    # Hydra would print a traceback of its own and exit; this lets exceptions come through.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # A file's name that is no UTF-8 is printed as the bytes that it is; standard error can print anything as it is.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        program()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except PartlyFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read the output has seen enough, such as `head`; nothing is left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; free space or choose another folder", file=sys.stderr)
        sys.exit(UserError.exit_code)
    except Stopped as stopped:
        print(f"{stopped}: rerun the command to resume from the last checkpoint", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
