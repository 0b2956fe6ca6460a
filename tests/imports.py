"""The imports between the package's own modules, wherever they stand: in functions and for types too.

``python tests/imports.py`` prints what :mod:`test_imports` holds against its lists.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Graph = dict[str, set[str]]


def sources() -> dict[str, Path]:
    """Every module of the tree by the name under which it installs."""
    found = {}
    for package, folder in {"rlhf_gym": "rlhf_gym", "rlhf_gym.agents": "agents", "rlhf_gym.envs": "envs"}.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


def graph(modules: dict[str, Path]) -> Graph:
    """Map each module to those it imports; ``from package import name`` counts for ``package.name`` where that is a module."""
    return {name: _imported(name, file, modules) - {name} for name, file in modules.items()}


def _imported(module: str, file: Path, modules: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base]) if base else ".".join(parent)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in modules else base)
    return {name for name in found if name in modules}


def pairs(edges: Graph) -> set[tuple[str, str]]:
    """Two modules that import each other, in the order of their names."""
    return {(a, b) for a, others in edges.items() for b in others if a < b and a in edges[b]}


def circles(edges: Graph) -> list[set[str]]:
    """Groups of modules each of which reaches every other by imports (Tarjan 1972), largest first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group: set[str] = set()
            while name not in group:
                group.add(stack.pop())
            if len(group) > 1:
                found.append(group)

    for name in edges:
        if name not in index:
            visit(name)
    return sorted(found, key=lambda group: (-len(group), min(group)))


def within(edges: Graph, group: set[str]) -> set[tuple[str, str]]:
    """The imports inside a group."""
    return {(a, b) for a in group for b in edges[a] if b in group}


def basenames(modules: dict[str, Path]) -> dict[str, list[str]]:
    """File names that more than one module has, with those modules."""
    found = defaultdict(list)
    for name, file in modules.items():
        found[file.stem].append(name)
    return {stem: names for stem, names in sorted(found.items()) if len(names) > 1}


def main() -> None:
    """Print pairs, circles and shared names."""
    modules = sources()
    edges = graph(modules)
    print("modules that import each other:", *sorted(pairs(edges)), sep="\n  ")
    print("circles:")
    for group in circles(edges):
        print(f"  {len(group)} modules: {', '.join(sorted(group))}")
        for a, b in sorted(within(edges, group)):
            print(f"    {a} -> {b}")
    print("file names of more than one module:")
    for stem, names in basenames(modules).items():
        print(f"  {stem}: {', '.join(names)}")


if __name__ == "__main__":
    main()
