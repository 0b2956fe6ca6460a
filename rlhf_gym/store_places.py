"""Where stores lie: in a run's directory, or in a folder that an import filled before. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path

from rlhf_gym.errors import ConfigError

STORE_FILE = "feedback.sqlite"
"""The store's name in a run's directory; files whose names begin so belong to it."""


def store_of(path: str) -> tuple[str, Path | None]:
    """The store that a folder, a file or a database's URL means, and the run's directory if it is one.

    Raises:
        ConfigError: there is neither a run nor a store.
    """
    if "://" in path:
        return path, None
    folder = Path(path)
    if folder.is_dir():
        run = folder if (folder / "config.yaml").exists() else None
        if run is None and not (folder / STORE_FILE).exists():
            raise ConfigError(
                f"{path} is a folder without a run in it, and without a store; give a run's directory or a store's file"
            )
        return str(folder / STORE_FILE), run
    if not folder.exists():
        raise ConfigError(f"there is no run and no feedback store at {path}")
    return path, None
