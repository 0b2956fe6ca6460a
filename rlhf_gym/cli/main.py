"""`rlhf-gym`: runs a command, and turns whatever goes wrong into one message and an exit code.

====  =========================================================================================================
0     done
1     `check-reward --strict` found something to look at; `plan --memory`: nothing makes the run fit
2     something that the user can correct: a setting, a file, a reward, a full disk; what was done before is kept
130   interrupted (Ctrl-C, or nobody reads the output of `run` any more); 143: terminated
====  =========================================================================================================

Nothing heavy is imported before a command is known, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from rlhf_gym.cli.parser import make_parser
from rlhf_gym.errors import RewardError, RlhfGymError, first_line

if TYPE_CHECKING:
    from rlhf_gym.agents.common.ranks import Ranks

USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: ends the process like Ctrl-C, with everything closed in order."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the arguments after the program's name; by default those of the process.

    Returns:
        The exit code.
    """
    options = make_parser().parse_args(arguments)
    try:
        from rlhf_gym.cli.commands import COMMANDS

        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            code = COMMANDS[options.command](options)
            sys.stdout.flush()
        finally:
            signal.signal(signal.SIGTERM, before)
        return code or 0
    except RlhfGymError as error:
        return _fail(_full_disk(error, options) or _reward_failed(error, options) or str(error))
    except BrokenPipeError:  # whoever read our output went away (`| head`)
        _write_nowhere(sys.stdout)
        return _interrupted("nobody reads the output any more", options) if options.command == "run" else 0
    except TerminatedError:
        _interrupted(_terminated(), options)
        return TERMINATED
    except KeyboardInterrupt:
        return _interrupted("interrupted", options)
    except Exception as error:  # safetensors, SQLAlchemy and Torch each have their own name for a full disk
        message = _full_disk(error, options) or _file_refused(error, options) or _out_of_memory(error)
        if message is None:
            raise
        return _fail(message)


def _terminated() -> str:
    if (ranks := _ranks()) is None:
        return "terminated"
    return f"rank {ranks.rank} of {ranks.size}: terminated; its launcher does that when another process has ended"


def _ranks() -> Ranks | None:
    """The processes of a run that has several, as this one sees them; None for a process by itself."""
    module = sys.modules.get("rlhf_gym.agents.common.launch")  # not imported for this: it is heavy
    ranks: Ranks | None = None if module is None else module.joined_ranks()
    return ranks if ranks is not None and ranks.size > 1 else None


def _interrupted(why: str, options: argparse.Namespace) -> int:
    try:
        print(f"\n{why}.{_hint(options)}", file=sys.stderr, flush=True)
    except BrokenPipeError:  # messages may go to the same pipe as the output: `2>&1 | head`
        _write_nowhere(sys.stderr)
    return INTERRUPTED


def _write_nowhere(stream: TextIO) -> None:
    """Lead a stream whose reader went away to nowhere: Python writes what it still holds when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _hint(options: argparse.Namespace) -> str:
    from rlhf_gym.cli.commands import resume_hint

    return resume_hint(options)


def _fail(message: str) -> int:
    ranks = _ranks()
    if ranks is not None and not ranks.is_main:
        if ranks.told:  # rank 0 prints it
            ranks.outlive_main()
            return USER_ERROR
        place = f"rank {ranks.rank} of {ranks.size}"
        message = message if message.startswith(place) else f"{place}: {message}"
    print(f"rlhf-gym: {message}", file=sys.stderr, flush=True)
    return USER_ERROR


def _full_disk(error: BaseException | None, options: argparse.Namespace) -> str | None:
    """The message for a full disk, if an error or one of its causes is that."""
    full = (errno.ENOSPC, errno.EDQUOT)
    while error is not None:
        texts = ("No space left on device", "disk is full", "(or quota) is full", "Disk quota exceeded")
        if (isinstance(error, OSError) and error.errno in full) or any(text in str(error) for text in texts):
            return (
                f"the disk is full ({first_line(error)}). Everything finished before is kept: stored judgements, written "
                f"metrics, the latest checkpoint. Free some space.{_hint(options)}"
            )
        error = error.__cause__ or error.__context__
    return None


def _reward_failed(error: RlhfGymError, options: argparse.Namespace) -> str | None:
    """The message for a reward that failed in the middle of a run, which goes on once the reward is mended."""
    hint = _hint(options) if isinstance(error, RewardError) else ""
    return f"{str(error).rstrip('.')}.{hint}" if hint else None


def _file_refused(error: Exception, options: argparse.Namespace) -> str | None:
    """The message for a file or folder that the system does not let us write or read."""
    if isinstance(error, OSError) and error.filename is not None:
        why = error.strerror or error
        return f"{error.filename}: {why}. Give another place, or mend its permissions.{_hint(options)}"
    return None


def _out_of_memory(error: Exception) -> str | None:
    """The message for a machine or a GPU without enough memory."""
    texts = ("out of memory", "can't allocate memory")  # of CUDA and other devices; of PyTorch on the CPU
    if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
        return None
    return (
        f"out of memory ({first_line(error) or type(error).__name__}). Begin anew with fewer responses at once (agent.n_envs, "
        "sampling.batch_size), fewer tokens at once (agent.tokens_per_batch, reward_model.tokens_per_batch), a shorter limit "
        "(task.max_new_tokens), a smaller model, or model.dtype bfloat16"
    )


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise TerminatedError
