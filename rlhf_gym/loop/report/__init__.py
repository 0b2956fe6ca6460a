"""The report: one self-contained HTML file that shows a colleague what a run did.

`write_report(run_dir)` reads the run directory and nothing else, so a report can be made again at any time, of a
finished run or of one that stopped half-way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_gym.loop.report.page import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    """Import it when it is first asked for: the rating page draws with this folder's files, and does without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf_gym.loop.report import page

    return getattr(page, name)
