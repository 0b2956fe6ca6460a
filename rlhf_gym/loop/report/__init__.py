"""The report: one self-contained HTML file that shows a colleague what a run did.

`write_report(run_dir)` reads the run directory and nothing else, so a report can be made again at any time, of a
finished run or of one that stopped half-way.
"""

from __future__ import annotations

from rlhf_gym.loop.report.page import write_report

__all__ = ["write_report"]
