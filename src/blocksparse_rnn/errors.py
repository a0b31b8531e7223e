"""Exceptions that end a command with one line and an exit code: a mistake of the user, a locked run, a partial failure."""

import errno


class UserError(ValueError):
    """A mistake that the user can correct. Each line of the message is one mistake: the setting or file, its value,
    what is allowed, what to do.

    Commands print it without a traceback and exit with its code. An exception that is not expected keeps its
    traceback, since it is a bug.
    """

    exit_code = 2


class RunLocked(UserError):
    """Another process is working on the run; rerun the command later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class PartlyFailed(Exception):
    """Some parts failed, such as a corrupt file, and all others are done; the message is one line."""

    exit_code = 1


def cannot_write(path: object, error: OSError) -> UserError:
    """Turn an `OSError` met while writing `path` into one line with what to do."""
    advice = "choose another folder or change its permissions"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space or choose a folder on another disk"
    return UserError(f"cannot write {path}: {error.strerror or error}; {advice}")
