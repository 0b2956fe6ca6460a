"""Files and folders that are replaced as a whole: whoever reads them, also after a kill, finds the old one or the new one."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Replace a text file.

    Args:
        path: the file, in a folder that exists.
        text: its new content, stored as UTF-8.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; NaN and infinite numbers become null.

    Args:
        path: the file, in a folder that exists.
        value: anything that ``json`` can write.
    """
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if there is no such file.

    Raises:
        ConfigError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(
            f"{path} is not the JSON file that the run wrote ({error}); restore it from a copy, or delete it"
        ) from error


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into, and put it in the place of ``path`` once the block ends without an error."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
