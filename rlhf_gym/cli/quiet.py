"""Keeps other libraries' notices out of what the commands print."""

from __future__ import annotations

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Turn off other libraries' progress bars and notices, unless the user has set their variables or ``-W``."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        # That a library will change some day is news for us, not for whoever runs a command.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
