"""Loads a user's own code by its place: ``path/to/file.py:name`` or ``module:name``.

Tasks, rewards, raters, agents and simulated users are named so, on the command line as in Python.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_gym.errors import ConfigError, RlhfGymError
from rlhf_gym.text import nearest

# Code that a user does not write: all files in these folders (in a checkout, agents and envs lie beside this one), and Python's
# own import machinery.
_HERE = Path(__file__).parent
_FOLDERS = {
    _HERE, _HERE.parent / "agents", _HERE.parent / "envs",
    *(Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")),
}  # fmt: skip
_USER = "rlhf_gym_user_"  # the names of modules that were loaded from files begin so
_NOT_USERS = (*(f"{folder}{os.sep}" for folder in _FOLDERS), "<frozen")


def load_object(place: str, *, kind: str = "object", error: type[RlhfGymError] = ConfigError, call: bool = True) -> Any:
    """Import an object that a user names; importing runs the user's code.

    A file is loaded once, under a module name of its own, so that two files of one name stay apart; it may import the files
    beside it. A module is looked for in the current folder, too.

    Args:
        place: ``path/to/file.py:name`` (relative to the current folder, absolute, or from ``~``) or ``module:name``; the name
            may have dots (``Class.method``).
        kind: the word for it in messages: task, reward, rater, agent, user.
        error: the class of the errors that are raised.
        call: refuse an object that cannot be called.

    Raises:
        RlhfGymError: of the class ``error``: the place is not of this form, there is no such file, module or name, the user's
            code fails when it is imported, or what is there cannot be called.
    """
    source, colon, name = place.rpartition(":")
    what = f"{kind} {place!r}"
    if place.endswith(".py"):
        raise error(f"{what} names a file but no {kind} in it; write {place}:NAME")
    if not (colon and source and all(part.isidentifier() for part in name.split("."))):
        raise error(f"{what}: expected path/to/file.py:name or module:name")
    try:
        module = _from_file(source, what, error) if source.endswith(".py") else _from_module(source, what, error)
    except _FailedError as failed:
        cause = failed.cause
        raise error(
            f"{what} cannot be imported: {type(cause).__name__}: {_message(cause)}{place_in_code(cause)}"
        ) from cause
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            known = [known for known in dir(found) if not known.startswith("_")]
            raise error(f"{what}: there is no {part!r} in {source}{nearest(part, known)}") from None
    if call and not callable(found):
        raise error(f"{what} is of type {type(found).__name__}, expected a function, a class or a callable object")
    return found


def is_place(name: str) -> bool:
    """True for what :func:`load_object` takes: anything with a colon, and a file whose object is not named yet."""
    return ":" in name or name.endswith(".py")


def import_path() -> list[str]:
    """The folders that this process imports from: a worker finds the same package, and a user's own modules."""
    return [entry or os.getcwd() for entry in sys.path if not entry or Path(entry).is_dir()]


def modules_of_files() -> list[ModuleType]:
    """The modules that :func:`load_object` has loaded from files, which other processes cannot import by name."""
    return [module for name, module in sys.modules.items() if name.startswith(_USER)]


def place_in_code(error: BaseException) -> str:
    """Where in the user's own code an error comes from, such as `` [mine.py, line 3]``; empty where that is not known."""
    # Code with a syntax error never ran: no frame holds it.
    if isinstance(error, SyntaxError) and error.filename and error.filename.endswith(".py"):
        return f" [{Path(error.filename).name}, line {error.lineno}]"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_USERS)]
    return f" [{Path(own[-1].filename).name}, line {own[-1].lineno}]" if own else ""


class _FailedError(Exception):
    """The user's code failed while it was imported."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause


def _from_file(source: str, what: str, error: type[RlhfGymError]) -> ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        others = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        folder = f" (in {path.parent})" if path.parent.is_dir() else f" (nor a folder {path.parent})"
        raise error(f"{what}: there is no file {source!r}{folder}{nearest(path.name, others)}")
    name = f"{_USER}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up there
    try:
        with _importing_from(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_module(source: str, what: str, error: type[RlhfGymError]) -> ModuleType:
    if not all(part.isidentifier() for part in source.split(".")):
        raise error(f"{what}: {source!r} is not the name of a module; of a file, write its .py, too")
    folder = Path.cwd()
    try:
        with _importing_from(folder):
            return importlib.import_module(source)
    except _FailedError as failed:
        missing = failed.cause.name if isinstance(failed.cause, ModuleNotFoundError) else None
        if missing is None or not f"{source}.".startswith(f"{missing}."):
            raise
        hint = nearest(source, sorted(other.stem for other in folder.glob("*.py")))
        raise error(f"{what}: there is no module {source!r} installed or in {folder}{hint}") from None


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Put a folder first on the path, as a script's own is; afterwards last, for what the user's functions import later."""
    place = str(folder)
    importlib.invalidate_caches()  # the file may be younger than the last look into its folder
    sys.path.insert(0, place)
    try:
        yield
    except (Exception, SystemExit) as cause:
        raise _FailedError(cause) from cause
    finally:
        sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)


def _message(cause: BaseException) -> str:
    return (cause.msg if isinstance(cause, SyntaxError) else str(cause)) or "it gave no message"
