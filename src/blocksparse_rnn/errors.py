"""The exception that stands for a user's mistake, and those that end a program in another way."""

import errno


class UserError(ValueError):
    """Something the user can mend. The message is one line: what, where, what is allowed, what to do.

    Commands print it without a traceback and exit with its code. Every other exception is a
    bug of ours and keeps its traceback.
    """

    exit_code = 2


class RunLocked(UserError):
    """Another process is working on the run: the same command may do it later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class PartlyFailed(Exception):
    """All was done that could be done, and something couldn't, such as a corrupt file; the message is one line."""

    exit_code = 1


def cannot_write(path: object, error: OSError) -> UserError:
    """Turn an `OSError` met while writing `path` into one line that says what to do."""
    advice = "choose another folder or change its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space or choose a folder on another disk"
    return UserError(f"cannot write {path}: {error.strerror or error}; {advice}")
