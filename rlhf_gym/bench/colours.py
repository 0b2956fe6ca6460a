"""Colours of contenders, the same in every plot and on both backgrounds; dashes tell apart those that share a hue."""

from __future__ import annotations

# Okabe and Ito's hues, darkened for light backgrounds and lightened for dark ones; tests hold their contrast.
HUES = (
    ("#0b66b0", "#6fb7f2"), ("#a85400", "#f0a350"), ("#1f7a54", "#62cfa2"), ("#a03a78", "#e79ac8"), ("#5a4fc0", "#b1a8f5"),
    ("#8a6a00", "#dcc04a"), ("#b3372f", "#f39a92"), ("#4a6472", "#a5c0cf"),
)  # fmt: skip
DASHES = ("none", "6 3", "2 3")


def classes(contenders: list[str]) -> dict[str, str]:
    """The class of each contender in the style sheet, by its place."""
    return {contender: f"c{i % (len(HUES) * len(DASHES))}" for i, contender in enumerate(contenders)}


def style() -> str:
    """The rules of the style sheet."""
    rules, dark = [], []
    for i in range(len(HUES) * len(DASHES)):
        light, night = HUES[i % len(HUES)]
        dash = DASHES[i // len(HUES)]
        rules.append(f":root {{ --c{i}: {light}; }} .line.c{i} {{ stroke: var(--c{i}); stroke-dasharray: {dash}; }}")
        rules.append(
            f".dot.c{i}, .chart .end.c{i}, .key.c{i}, .area.c{i} {{ fill: var(--c{i}); }} .rule.c{i} {{ stroke: var(--c{i}); }}"
        )
        dark.append(f"--c{i}: {night};")
    return "\n".join([*rules, f"@media (prefers-color-scheme: dark) {{ :root {{ {' '.join(dark)} }} }}"])


def paper_style() -> str:
    """The rules that a plot needs on its own, on white."""
    rules = [
        "text { font: 12px sans-serif; fill: #333; } .grid { stroke: #e5e5e5; } .grid.zero, .axis { stroke: #888; }",
        ".line { fill: none; stroke-width: 2; stroke-linejoin: round; } .area { opacity: .14; } .hit { fill: none; }",
        ".rule { stroke-width: 2; } .mark-line { stroke: #666; stroke-dasharray: 5 4; }",
        ".line.other { stroke: #666; stroke-dasharray: 2 4; }",
    ]
    for i in range(len(HUES) * len(DASHES)):
        light = HUES[i % len(HUES)][0]
        rules.append(
            f".line.c{i} {{ stroke: {light}; stroke-dasharray: {DASHES[i // len(HUES)]}; }} .rule.c{i} {{ stroke: {light}; }}"
        )
        rules.append(f".dot.c{i}, text.end.c{i}, .area.c{i} {{ fill: {light}; }}")
    rules.append(
        ".line.best-of-n { stroke-width: 1.5; stroke-dasharray: 4 4; } .line.thin { stroke-width: 1; opacity: .5; } "
        ".dot.faint { opacity: .4; } .fit-band { opacity: .14; } .ring { fill: #fff; stroke-width: 1.5; opacity: .6; }"
    )
    for reward, (light, _) in zip(("proxy", "gold"), HUES[:2], strict=True):
        rules.append(f".line.{reward}, .ring.{reward} {{ stroke: {light}; }}")
        rules.append(f".dot.{reward}, text.end.{reward}, .fit-band.{reward} {{ fill: {light}; }}")
    return "\n".join(rules)
