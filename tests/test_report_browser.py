"""The report in a real browser: it loads nothing, breaks no policy, fits a phone, and no label covers another.

Skipped where there is no Chromium, or no Playwright to drive it (`pip install playwright`; no browser download needed).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_run import build_run

from rlhf_gym.loop.report import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

RUNS: dict[str, dict[str, Any]] = {
    "demo": {},
    "short": {"rounds": 1, "iterations": 1, "pairs": 3},
    "long": {"rounds": 5, "iterations": 50, "pairs": 250},
    "agent": {"stage": "agent", "rounds": 1, "iterations": 9},
    "started": {"stage": "started"},
}
# Names of labels that leave their drawing or cover one another by more than a hair.
CLASHES = """() => [...document.querySelectorAll("svg.chart")].flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
  const name = svg.getAttribute("aria-label").split(".")[0];
  const out = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 2
    || b.bottom > frame.bottom + 2).map(([t]) => `${name}: ${t} leaves the drawing`);
  boxes.forEach(([t, a], i) => boxes.slice(i + 1).forEach(([u, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 4) out.push(`${name}: ${t} covers ${u}`);
  }));
  return out;
})"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    return {name: write_report(build_run(base / name, **settings)) for name, settings in RUNS.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Chromium's sandbox refuses to run as root, which is who tests in a container.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def opened(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page, with what the console said and what was requested."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(0)  # how long a page takes depends on who else is working on the machine
    said: list[str] = []
    asked: list[str] = []

    def dismiss(dialog: Any) -> None:
        said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", dismiss)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, said, asked


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_is_clean(browser: Any, reports: dict[str, Path], name: str, width: int) -> None:
    page, said, asked = opened(browser, reports[name], viewport={"width": width, "height": 900})
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [reports[name].as_uri()]
    assert page.title() == f"{name} · RLHF run"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CLASHES) == []
    page.context.close()


def test_dark_and_light(browser: Any, reports: dict[str, Path]) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page, _, _ = opened(browser, reports["started"], color_scheme=scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.context.close()
    assert len(grounds) == 2


def test_it_works_without_script(browser: Any, reports: dict[str, Path]) -> None:
    page, _, _ = opened(browser, reports["demo"], java_script_enabled=False)
    assert page.locator("svg.chart").count() == 9 + 3 + 4 + 1
    assert page.locator(".pairs tbody tr:visible").count() == 12
    page.get_by_label("Show all 96 rows").check()
    assert page.locator(".pairs tbody tr:visible").count() == 96
    assert page.locator(".hit title").count() > 0
    page.context.close()


def test_sorting_and_tooltips(browser: Any, reports: dict[str, Path]) -> None:
    page, said, _ = opened(browser, reports["demo"], viewport={"width": 1280, "height": 900})
    gains = "[...document.querySelectorAll('.pairs tbody td:nth-child(6)')].map((cell) => Number(cell.dataset.value))"
    heading = page.get_by_role("button", name="Gold gain")
    heading.click()
    assert page.evaluate(gains) == sorted(page.evaluate(gains), reverse=True)
    heading.click()
    assert page.evaluate(gains) == sorted(page.evaluate(gains))
    assert page.get_by_role("columnheader", name="Gold gain").get_attribute("aria-sort") == "ascending"
    assert page.locator(".pairs tbody tr:visible").count() == 12
    page.locator("#curves .hit").first.hover()
    assert page.locator(".tip").inner_text().startswith("Iteration 1, round 1")
    assert said == []
    page.context.close()


def test_it_prints(browser: Any, reports: dict[str, Path]) -> None:
    page, _, _ = opened(browser, reports["demo"])
    assert page.pdf(format="A4", print_background=True).startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.get_by_text("The numbers behind the curves").is_hidden()
    page.context.close()
