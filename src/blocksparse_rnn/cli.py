"""What all command-line programs share: a user's mistake is a line, not a traceback.

Programs import this module first: garbage is not collected until they run, since whatever is imported
stays, and looking for garbage in it takes a sixth of a program's start.
"""

import errno
import gc
import io
import os
import sys
from collections.abc import Callable

from blocksparse_rnn.errors import PartlyFailed, RunLocked, UserError
from blocksparse_rnn.stop import Stopped

gc.disable()

PARTLY = 1
"""Exit code where the rest was done, such as all files but a corrupt one."""
MISTAKE = 2
"""Exit code for a user's mistake."""
BUSY = 75
"""Exit code where another process works on the run (EX_TEMPFAIL of sysexits.h: try again later)."""
BROKEN_PIPE = 141
"""Exit code when nobody reads the output any more."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def run(program: Callable[[], object]) -> None:
    """Run a program and exit: 0, one of the codes above with a line each, a traceback for a bug of ours."""
    gc.freeze()
    gc.enable()
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
        sys.exit(BUSY if isinstance(error, RunLocked) else MISTAKE)
    except PartlyFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(PARTLY)
    except BrokenPipeError:
        # Whoever read the output has seen enough, such as `head`; nothing is left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; free space or choose another folder", file=sys.stderr)
        sys.exit(MISTAKE)
    except Stopped as stopped:
        print(f"{stopped}: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
