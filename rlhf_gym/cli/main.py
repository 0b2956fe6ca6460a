"""`rlhf-gym`: finds the command, and turns whatever goes wrong into one message and an exit code.

====  =========================================================================================================
0     done
1     `check-reward --strict` found something to look at
2     something that the user can mend: a setting, a file, a reward, a full disk; what was done before is kept
130   interrupted (Ctrl-C); 143: terminated
====  =========================================================================================================

Nothing heavy is imported before a command is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from rlhf_gym.cli.parser import make_parser
from rlhf_gym.errors import RlhfGymError

USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: ends like Ctrl-C, with everything closed in order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; default those of the process.

    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    hint = ""
    try:
        from rlhf_gym.cli import commands

        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            hint = commands.resume_hint(options)
            code: int | None = getattr(commands, options.command.replace("-", "_"))(options)
            sys.stdout.flush()
        finally:
            signal.signal(signal.SIGTERM, before)
        return code or 0
    except RlhfGymError as error:
        return _fail(_full_disk(error, hint) or f"{error}")
    except BrokenPipeError:
        # Whoever read our output went away (`| head`): nothing is wrong, and nothing more is to be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        terminated = isinstance(error, TerminatedError)
        print(f"\n{'terminated' if terminated else 'interrupted'}.{hint}", file=sys.stderr)
        return TERMINATED if terminated else INTERRUPTED
    except Exception as error:  # safetensors, SQLAlchemy and Torch each have their own name for a full disk
        message = _full_disk(error, hint) or _file_refused(error, hint)
        if message is None:
            raise
        return _fail(message)


def _fail(message: str) -> int:
    print(f"rlhf-gym: {message}", file=sys.stderr)
    return USER_ERROR


def _full_disk(error: BaseException | None, hint: str) -> str | None:
    """The message for a full disk, if that is at the bottom of an error."""
    full = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        texts = ("No space left on device", "disk is full", "(or quota) is full", "Disk quota exceeded")
        if (isinstance(error, OSError) and error.errno in full) or any(text in str(error) for text in texts):
            return (
                f"the disk is full ({str(error).splitlines()[0]}). Everything finished before is kept: stored judgements, "
                f"written metrics, the latest checkpoint. Free some space.{hint}"
            )
        error = error.__cause__ or error.__context__
    return None


def _file_refused(error: BaseException, hint: str) -> str | None:
    """The message for a file or folder that the system does not let us write or read."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror or error}. Give another place, or mend its permissions.{hint}"
    return None


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise TerminatedError
