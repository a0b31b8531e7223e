"""How every command ends: its exit code, and one line instead of a traceback for a user's mistake."""

import errno
import io
import os
import sys
from collections.abc import Callable

from blocksparse_rnn.errors import PartlyFailed, UserError
from blocksparse_rnn.signals import Stopped

BROKEN_PIPE = 141
"""Exit code when the reader of the output has closed it, as `head` does."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
TORCHAUDIO = (
    "torchaudio's compiled libraries need a CUDA build of torch, and this is a CPU build; remove them, nothing "
    "here uses them"
)


def run(program: Callable[[], object]) -> None:
    """Run a command, and exit with the code of the exception that ends it; a bug keeps its traceback."""
    # Else Hydra prints a shortened traceback and exits by itself.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # A file name that is not UTF-8 is printed as its bytes; standard error does so by itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        program()
    except (UserError, PartlyFailed) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Else Python fails again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        if "torchaudio/lib/" in str(error):
            folder = str(error).partition(": ")[2].rpartition("/")[0]
            print(f"error: {TORCHAUDIO}: rm {folder}/*.so", file=sys.stderr)
            sys.exit(UserError.exit_code)
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
