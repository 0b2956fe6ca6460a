"""The share of the public API whose docstrings say what they should, as a ratchet: it may rise and never fall.

``python tests/docstrings.py`` lists what is missing; ``python tests/docstrings.py --update`` keeps the numbers of today.
Counted over public functions and methods, and over classes for their constructors:

- ``args``: those of two or more parameters, with ``Args:``
- ``raises``: those that raise, with ``Raises:``
- ``shapes``: those with a Tensor or array among parameters or results, with a shape in brackets
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imports import sources

KEPT = Path(__file__).with_name("docstrings.json")
KINDS = ("args", "raises", "shapes")
_TENSOR = re.compile(r"\b(Tensor|NDArray|ndarray|Array)\b")
_SHAPE = re.compile(r"\[[^\]\n]*\]")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Counted:
    """One function of the public API, and of each kind whether its docstring has it; None where it need not."""

    name: str
    has: dict[str, bool | None]


def public(module: str, tree: ast.Module) -> Iterator[Counted]:
    """The public functions, methods and constructors of a module, by their code."""
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield _counted(f"{module}.{node.name}", node, ast.get_docstring(node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if not isinstance(inner, Function) or _inherits(inner):
                    continue
                if inner.name == "__init__":  # documented in its class
                    yield _counted(f"{module}.{node.name}", inner, ast.get_docstring(node))
                elif not inner.name.startswith("_"):
                    yield _counted(f"{module}.{node.name}.{inner.name}", inner, ast.get_docstring(inner))


def _inherits(function: Function) -> bool:
    """True for an override without a docstring: that of its base stands."""
    return ast.get_docstring(function) is None and function.name != "__init__"


def _counted(name: str, function: Function, docstring: str | None) -> Counted:
    said = docstring or ""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters = [p for p in parameters if p.arg not in ("self", "cls")]
    extra = [p for p in (arguments.vararg, arguments.kwarg) if p is not None]
    annotations = [ast.unparse(a) for p in parameters if (a := p.annotation) is not None]
    if function.returns is not None:
        annotations.append(ast.unparse(function.returns))
    return Counted(
        name,
        {
            "args": "Args:" in said if len(parameters) + len(extra) >= 2 else None,
            "raises": "Raises:" in said if any(_raises(node) for node in _own(function)) else None,
            "shapes": _SHAPE.search(said) is not None if any(map(_TENSOR.search, annotations)) else None,
        },
    )


def _raises(node: ast.AST) -> bool:
    """True for a ``raise`` that a caller sees as it stands here; what has not been written is nobody's to catch."""
    if not isinstance(node, ast.Raise) or node.exc is None:
        return False
    return not ast.unparse(node.exc).startswith(("NotImplementedError", "AssertionError", "AttributeError"))


def _own(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def everything() -> list[Counted]:
    """The whole public API."""
    modules = {name: file for name, file in sources().items() if not any(p.startswith("_") for p in name.split("."))}
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in modules.items()}
    return [counted for name, tree in trees.items() for counted in public(name, tree)]


def shares(found: list[Counted]) -> dict[str, float]:
    """Of each kind, the percentage that has it, rounded down to a tenth."""
    result = {}
    for kind in KINDS:
        has = [counted.has[kind] for counted in found if counted.has[kind] is not None]
        result[kind] = 100.0 if not has else 1000 * sum(map(bool, has)) // len(has) / 10
    return result


def main() -> None:
    """List what is missing, or keep today's numbers."""
    found = everything()
    if "--update" in sys.argv[1:]:
        KEPT.write_text(json.dumps(shares(found), indent=2) + "\n")
    else:
        for kind in KINDS:
            print(f"without {kind}:", *(c.name for c in found if c.has[kind] is False), sep="\n  ")
    print(shares(found))


if __name__ == "__main__":
    main()
