"""A process that compares mathematical answers; separate, since a short text can keep algebra busy for ever.

Run as a file, by :mod:`rlhf_gym.rewards.builtin.math_answer`. Reads a line of JSON ``[[references], response]``, answers
``true`` or ``false`` by a line. Answers are read as LaTeX by a grammar; nothing in them is evaluated as Python.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

MEMORY = 2 * 2**30  # bytes that an answer may make it take

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*/\s*\d+)?(?:\\?%)?")
COMMAND = re.compile(r"\\[a-zA-Z]+")
WORD = re.compile(r"[^\W\d_]{2}")  # letters of an expression stand alone
MARKED = re.compile(r"\\boxed|\$|\\\(|\\\[|\\begin")


def parsed(text: str, *, whole: bool) -> list[Any]:
    r"""The answer that a text gives; empty where there is none.

    Args:
        text: LaTeX in ``$...$``, ``\(...\)`` or ``\boxed{...}``; without such marks, an expression by itself if it is
            ``whole``, and else the last number.
        whole: whether the text is nothing but the answer, as a reference is.
    """
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    # Only LaTeX: math-verify's reader of plain expressions goes through sympy.parse_expr, which is Python's eval.
    settings: Any = [LatexExtractionConfig(boxed_match_priority=0)]
    if not MARKED.search(text):
        if whole or (len(text.strip()) <= 60 and not WORD.search(COMMAND.sub("", text))):
            text = f"${text.strip()}$"
        else:
            numbers = NUMBER.findall(text)
            last = numbers[-1].rstrip(".,").replace("\\%", "%").replace("%", r"\%") if numbers else ""
            text = f"${last}$" if last else ""
    elif len(boxes := text.split("\\boxed")) > 2:  # the last one counts
        text = "\\boxed" + boxes[-1]
    return list(parse(text, extraction_config=settings, parsing_timeout=None)) if text else []


def equal(references: list[str], response: str) -> bool:
    """True if the answer in a response equals one of the references.

    Args:
        references: correct answers; each text is an answer as a whole.
        response: a text with an answer somewhere in it; False where none is found.
    """
    from math_verify import verify

    answer = parsed(response, whole=False)
    golds = (parsed(reference, whole=True) for reference in references)
    return bool(answer) and any(bool(gold) and verify(gold, answer, timeout_seconds=None) for gold in golds)


def main() -> None:
    """Answer until there are no more lines."""
    import logging

    logging.disable(logging.CRITICAL)  # math-verify warns that it has no time limit; the parent process has one
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not on this system
        pass
    sys.set_int_max_str_digits(100_000)
    for line in sys.stdin:
        references, response = json.loads(line)
        try:
            result = equal(references, response)
        except Exception:  # nothing that a model writes may end it
            result = False
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
