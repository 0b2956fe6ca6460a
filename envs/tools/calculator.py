"""A calculator: exact fractions, a parser of its own, and limits on everything that could grow."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

from rlhf_gym.envs.tools.tool import Tool, ToolError
from rlhf_gym.text import shorten

LONGEST = 400
"""Most characters of an expression."""
DEEPEST = 40
"""Most parentheses and signs inside one another."""
MOST_BITS = 2048
"""Most bits of a numerator or a denominator."""

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|(\*\*|//|[-+*/%^(),]|[a-z]+))")
_SAME = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-"})
"""The signs of multiplication, division and subtraction in print."""


def calculate(expression: str) -> str:
    """The value of an arithmetic expression: exact where it has a finite decimal form, else twelve significant digits.

    Numbers, ``+ - * / // % ** ^``, parentheses, ``sqrt``, ``abs``, ``min``, ``max`` and ``round``; the signs of print, too.
    Nothing is executed: the expression is parsed here, operator by operator.

    Args:
        expression: the expression.

    Raises:
        ToolError: it cannot be read, divides by zero, or its value is too large.

    >>> calculate("3847 * (12 + 9182)"), calculate("1/8"), calculate("2/3"), calculate("sqrt(2)")
    ('35369318', '0.125', '0.666666666667', '1.41421356237')
    """
    if len(expression) > LONGEST:
        raise ToolError(f"The expression has {len(expression)} characters; at most {LONGEST} are allowed.")
    parser = _Parser(expression.translate(_SAME))
    value = parser.sum(0)
    if parser.token:
        raise parser.unexpected()
    return _shown(value)


class _Parser:
    """Recursive descent; ``token`` is the next symbol, empty at the end."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.token = text, 0, ""
        self.advance()

    def advance(self) -> None:
        rest = self.text[self.place :]
        if not rest.strip():
            self.token = ""
            self.place = len(self.text)
            return
        found = _TOKEN.match(rest)
        if found is None:
            raise ToolError(f"Cannot read {shorten(rest.strip(), 20)} in the expression; {_EXPECTED}")
        self.token = found[1] or found[2]
        self.place += found.end()

    def unexpected(self) -> ToolError:
        what = f"{self.token!r} is not expected there" if self.token else "the expression ends too early"
        return ToolError(f"Cannot read the expression: {what}; {_EXPECTED}")

    def take(self, *symbols: str) -> str:
        """The next symbol if it is one of these, else nothing."""
        found = self.token if self.token in symbols else ""
        if found:
            self.advance()
        return found

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+", "-"):
            other = self.product(depth)
            value = _small(value + other if sign == "+" else value - other)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while sign := self.take("*", "/", "//", "%"):
            other = self.signed(depth)
            if sign != "*" and not other:
                raise ToolError("Division by zero.")
            if sign == "*":
                value *= other
            elif sign == "/":
                value /= other
            else:
                value = Fraction(value // other) if sign == "//" else value % other
            _small(value)
        return value

    def signed(self, depth: int) -> Fraction:
        if depth > DEEPEST:
            raise ToolError(f"The expression is nested more than {DEEPEST} deep.")
        if sign := self.take("-", "+"):
            value = self.signed(depth + 1)
            return -value if sign == "-" else value
        base = self.atom(depth)
        if self.take("**", "^"):
            return _power(base, self.signed(depth + 1))
        return base

    def atom(self, depth: int) -> Fraction:
        token = self.token
        if token and (token[0].isdigit() or token[0] == "."):
            self.advance()
            return _small(Fraction(token))
        if self.take("("):
            value = self.sum(depth + 1)
            self.close()
            return value
        if token.isalpha() and token in _FUNCTIONS:
            self.advance()
            if not self.take("("):
                raise self.unexpected()
            values = [self.sum(depth + 1)]
            while self.take(","):
                values.append(self.sum(depth + 1))
            self.close()
            most, function = _FUNCTIONS[token]
            if len(values) > most:
                raise ToolError(f"{token} takes {most} value{'s' * (most > 1)}, got {len(values)}.")
            return function(values)
        raise self.unexpected()

    def close(self) -> None:
        if not self.take(")"):
            raise self.unexpected()


_EXPECTED = "expected numbers, + - * / // % ** ( ), sqrt, abs, min, max, round"


def _small(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator).bit_length() > MOST_BITS:
        raise ToolError("The result is too large.")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if not base and exponent < 0:
        raise ToolError("Division by zero.")
    size = max(abs(base.numerator), base.denominator).bit_length()
    if abs(exponent) * max(size - 1, 0) > MOST_BITS:  # before anything is computed
        raise ToolError("The result is too large.")
    if exponent.denominator == 1 and abs(exponent) <= MOST_BITS:
        return _small(base**exponent.numerator)
    if base < 0:
        raise ToolError("A negative number has no power that is no whole number.")
    return _of_float(lambda: float(base) ** float(exponent))


def _root(values: list[Fraction]) -> Fraction:
    if values[0] < 0:
        raise ToolError("A negative number has no square root.")
    return _of_float(lambda: float(values[0]) ** 0.5)


def _of_float(compute: Callable[[], float]) -> Fraction:
    """A value that only floating point gives, at the twelve digits that are shown of it."""
    try:
        return Fraction(f"{compute():.12g}")
    except (OverflowError, ValueError, ZeroDivisionError):
        raise ToolError("The result is too large.") from None


_FUNCTIONS: dict[str, tuple[int, Callable[[list[Fraction]], Fraction]]] = {
    "sqrt": (1, _root),
    "abs": (1, lambda values: abs(values[0])),
    "round": (1, lambda values: Fraction(round(values[0]))),
    "min": (20, min),
    "max": (20, max),
}


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    while rest % 10 == 0 or rest % 5 == 0 or rest % 2 == 0:
        rest //= 10 if rest % 10 == 0 else 5 if rest % 5 == 0 else 2
        places += 1
    if rest == 1 and places <= 12:  # a finite decimal form
        digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
        shown = f"{digits[:-places]}.{digits[-places:]}".rstrip("0")
        return f"-{shown}" if value < 0 else shown
    with localcontext(prec=12):
        return str(Decimal(value.numerator) / Decimal(value.denominator))


def calculator_tool(name: str = "calculator") -> Tool:
    """The calculator as a tool.

    Args:
        name: the name that the policy calls it by.
    """
    return Tool(
        name,
        "the value of an arithmetic expression",
        calculate,
        {"expression": str},
        frozenset({"expression"}),
        argument_pattern=r"[0-9.()+*/ \-]+",
        example="12 * (3 + 4)",
    )
