"""Python that a model wrote, run in a sandbox: a process of its own without a network, with limits on everything.

Bubblewrap (``bwrap``, Debian's package ``bubblewrap``) gives the process namespaces of its own: no network, no other processes,
and a file system that holds Python's own files, read-only, and an empty folder in memory. Inside, limits of memory, processes,
files and CPU time are set before the model's code is read; outside, a clock and a limit of what is printed.
"""

from __future__ import annotations

import math
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from rlhf_gym.envs.tools.tool import Tool
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.text import visible

LONGEST_CODE = 20_000
"""Most characters of code; they fit a pipe."""

# Runs first in the sandbox. The limits are hard ones: what comes after cannot raise them. Started by root, the process takes a
# user id that nobody else has, since a limit of processes does not hold for root. Like a notebook, it prints the value of a
# last line that is an expression.
_INSIDE = """
import ast, os, resource, sys
uid, memory, processes, file, files, seconds = map(int, sys.argv[1:7])
for kind, most in (("AS", memory), ("NPROC", processes), ("FSIZE", file), ("NOFILE", files), ("CPU", seconds), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + kind), (most, most))
if uid:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
sys.argv = ["code"]
code = sys.stdin.buffer.read().decode("utf-8", "replace")
def run(code, names={"__name__": "__main__"}):
    import traceback
    try:
        tree = ast.parse(code, "code")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "code", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "code", "eval"), names)
            if value is not None:
                print(repr(value))
    except Exception as error:
        sys.stdout.flush()
        shown = traceback.TracebackException.from_exception(error)
        shown.stack = traceback.StackSummary.from_list([f for f in shown.stack if f.filename == "code"])
        print("".join(shown.format()), end="", file=sys.stderr)
        sys.exit(1)
run(code)
"""


@dataclass(frozen=True)
class PythonSandbox:
    """Runs Python code with nothing but the standard library.

    Attributes:
        seconds: wall-clock time of one run; its CPU time may be a second more.
        memory_mb: memory of each process, in MiB.
        processes: processes and threads at once, the interpreter's included.
        file_mb: size of each file, and of all files together, in MiB.
        output_characters: what is printed beyond is cut, and ends the run.
        unsafe_without_sandbox: run the code as this user, with its files and its network, where there is no Bubblewrap. The
            limits of time and memory hold even so. Only for code that you would run yourself.

    Raises:
        ConfigError: a limit out of its range.
        TaskError: there is no Bubblewrap here, or it may not make a sandbox, and ``unsafe_without_sandbox`` is False.
    """

    seconds: float = 5.0
    memory_mb: int = 512
    processes: int = 8
    file_mb: int = 8
    output_characters: int = 4000
    unsafe_without_sandbox: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ConfigError(f"a sandbox's seconds must be a number above 0, got {self.seconds!r}")
        for name, low in (("memory_mb", 64), ("processes", 2), ("file_mb", 1), ("output_characters", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"a sandbox's {name} must be a whole number of at least {low}, got {value!r}")
        if not self.unsafe_without_sandbox and (why := no_sandbox()):
            raise TaskError(
                f"code of a model is not run here: {why}; install Bubblewrap (apt install bubblewrap), or give "
                "unsafe_without_sandbox=True for code that you would run as yourself"
            )

    def run(self, code: str) -> str:
        """What the code prints, errors included; a last line that is an expression prints its value.

        Args:
            code: Python, up to 20,000 characters.
        """
        if len(code) > LONGEST_CODE:
            return f"The code has {len(code)} characters; at most {LONGEST_CODE} are allowed."
        # A second more of CPU time: of the two, the clock comes first, and its message says what happened.
        limits = (self.memory_mb << 20, self.processes, self.file_mb << 20, 64, math.ceil(self.seconds) + 1)
        # Not from `unsafe_without_sandbox`: where there is a sandbox, it is used.
        sandboxed = not no_sandbox()
        command = [*(_sandbox(self.file_mb << 20) if sandboxed else []), *_python()]
        uid = _free_uid() if sandboxed and os.geteuid() == 0 else 0
        if not sandboxed:  # this user's other processes would count
            limits = (limits[0], 4096, *limits[2:])
        command += ["-c", _INSIDE, str(uid), *map(str, limits)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", env={},
            start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        ended = "time"
        try:
            _feed(process.stdin, code)
            output, ended = _read(process.stdout, self.output_characters, time.monotonic() + self.seconds)
        finally:
            # The first process of its namespace: with it, every process that the code has started ends.
            process.stdout.close()
            _end(process, at_once=bool(ended))
        text = output.decode("utf-8", "replace")
        if ended == "time":
            return f"{text}\n[stopped after {self.seconds:g} seconds]".lstrip("\n")
        if ended == "output":
            return f"{text[: self.output_characters]}\n[stopped: more than {self.output_characters} characters were printed]"
        if process.returncode and not text.strip():
            return f"[the code ended with status {process.returncode} and printed nothing]"
        return text.rstrip("\n") or "[nothing was printed]"


def _feed(pipe: IO[bytes], code: str) -> None:
    with suppress(BrokenPipeError), pipe:  # it may end before it reads
        pipe.write(code.encode("utf-8", "replace"))


def _read(pipe: IO[bytes], characters: int, deadline: float) -> tuple[bytes, str]:
    """What comes out of a pipe until it is closed, the clock runs out (``"time"``) or it is too much (``"output"``)."""
    parts: list[bytes] = []
    descriptor, size = pipe.fileno(), 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return b"".join(parts), "time"
        part = os.read(descriptor, 65_536)
        if not part:
            return b"".join(parts), ""
        parts.append(part)
        size += len(part)
        if size > 4 * characters:  # bytes of UTF-8
            break
        if size > characters and len(b"".join(parts).decode("utf-8", "replace")) > characters:
            break
    return b"".join(parts), "output"


def _end(process: subprocess.Popen[bytes], *, at_once: bool) -> None:
    """Wait a moment for a process that has closed its output, if it has, and then kill it."""
    if not at_once:
        try:
            process.wait(0.2)
            return
        except subprocess.TimeoutExpired:
            pass
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _python() -> list[str]:
    """The interpreter, alone: no user's settings, no site-packages."""
    return [os.path.realpath(sys.executable), "-I", "-S"]


def _sandbox(size: int) -> list[str]:
    """Bubblewrap's command line; root needs no user namespace, and gives its rights up inside."""
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    root = os.geteuid() == 0
    command = [bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if root:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for folder in ("/usr", "/lib", "/lib64"):
        command += ["--ro-bind-try", folder, folder]
    prefix = Path(sys.base_prefix).resolve()
    if not prefix.is_relative_to("/usr"):
        for parent in [*reversed(prefix.parents)][1:]:  # Bubblewrap makes them for its own user alone
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", str(prefix), str(prefix)]
    for device in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    # All that can be written lies in memory, and no more of it than the limit.
    command += ["--perms", "1777", "--size", str(size), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return command


def _free_uid() -> int:
    """A user id that no account has: two sandboxes at once do not share their limits."""
    return 0x4000_0000 + secrets.randbelow(0x2000_0000)


@lru_cache(maxsize=1)
def no_sandbox() -> str:
    """Why no sandbox can be made here, in a few words; empty where one can. Tried once."""
    if shutil.which("bwrap") is None:
        return "there is no Bubblewrap (the command bwrap)"
    if Path(sys.base_prefix).resolve() == Path("/"):
        return "Python lies in /, so a sandbox would show all files"
    limits = ["0", str(1 << 29), "8", str(1 << 20), "64", "10"]
    try:
        done = subprocess.run(
            [*_sandbox(1 << 20), *_python(), "-c", _INSIDE, *limits], input=b"print('ready')", capture_output=True, timeout=30,
            env={}, cwd="/", check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Bubblewrap cannot be run ({error})"
    if done.stdout.strip() != b"ready":
        said = done.stderr.decode("utf-8", "replace").strip() or f"status {done.returncode}"
        return f"Bubblewrap cannot make a sandbox ({visible(said.splitlines()[-1], 120)})"
    return ""


def python_tool(
    *,
    name: str = "python",
    seconds: float = 5.0,
    memory_mb: int = 512,
    processes: int = 8,
    file_mb: int = 8,
    output_characters: int = 4000,
    unsafe_without_sandbox: bool = False,
) -> Tool:
    """Python in a sandbox, as a tool.

    Args:
        name: the name that the policy calls it by.
        seconds: see :class:`PythonSandbox`, as all that follow.
        memory_mb: memory of each process, in MiB.
        processes: processes and threads at once.
        file_mb: size of all files, in MiB.
        output_characters: the most that is printed.
        unsafe_without_sandbox: run the code as this user where there is no sandbox.
    """
    sandbox = PythonSandbox(seconds, memory_mb, processes, file_mb, output_characters, unsafe_without_sandbox)
    return Tool(
        name,
        "what Python code prints (standard library only, no network, no files kept)",
        sandbox.run,
        {"code": str},
        frozenset({"code"}),
        argument_pattern=r"[a-zA-Z0-9_ .,:()+*/=\-\n]+",
        example="print(2 ** 10)",
        slow=True,
    )
