"""What must not be written where others read it: secret settings, and passwords in addresses."""

from __future__ import annotations

import re

_SECRET = re.compile(r"(^|_)(api_?key|secret|password|(api|access|auth|bearer|hf)_token)$|^token$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def is_secret(key: str) -> bool:
    """True for a configuration key whose value must not be shown to whoever gets the report."""
    return _SECRET.search(key) is not None


def without_credentials(value: str) -> str:
    """Remove `user:password@` from every address in a value."""
    return _CREDENTIALS.sub("", value)
