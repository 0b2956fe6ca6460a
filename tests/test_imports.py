"""No circles among the modules, not even for types, and no two files of one name; `python tests/imports.py` prints both."""

from __future__ import annotations

from pathlib import Path

from imports import basenames, circles, graph, sources, within

SAME_ROLE = {"__init__", "base"}
"""Names that say which role a file has in its package, and nothing else."""

SHARED = {
    "checkpoint", "losses",
}  # fmt: skip
"""Names that two files have today; this list only shrinks, too."""


def test_no_import_closes_a_circle() -> None:
    edges = graph(sources())
    closing = {edge for group in circles(edges) for edge in within(edges, group)}
    assert closing == set(), "a circle: move what both sides need into a file below them"


def test_no_new_file_has_anothers_name() -> None:
    shared = set(basenames(sources())) - SAME_ROLE
    assert not shared - SHARED, "files of one name: call the new one by what it holds"
    assert not SHARED - shared, "no longer shared: delete these from SHARED"


def test_imports_in_functions_and_for_types_count(tmp_path: Path) -> None:
    texts = {
        "p": "",
        "p.a": "def f():\n    from p import b\n",
        "p.b": "if TYPE_CHECKING:\n    from .c import X\n",
        "p.c": "import p.a\n",
        "p.d": "import p.a\nimport os\n",
    }
    modules = {}
    for name, text in texts.items():
        modules[name] = tmp_path / ("__init__.py" if name == "p" else f"{name[2:]}.py")
        modules[name].write_text(text)
    edges = graph(modules)
    assert edges == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a"}, "p.d": {"p.a"}}
    assert circles(edges) == [{"p.a", "p.b", "p.c"}]
