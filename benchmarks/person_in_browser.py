"""A person in a real browser teaches the embedded model: they answer 200 pairs by keys, and the policy follows their taste.

    python benchmarks/person_in_browser.py --out runs/person

The script starts `rlhf-gym run --rater web`, opens the printed link in Chromium (through Playwright), and answers every pair by
keys, from nothing but the text on the screen: the person likes what the sentiment scorer likes, and presses 1 or 7 where one
response is much better, 2 or 6 where it is better, 3 or 5 where the difference is small. The reward model is fitted to these
answers alone. At the end the run's evaluation gives the tuned model's win rate over the reference by the person's taste, on
prompts never trained on. A picture of the page after half of the pairs, and the run's output, are put next to
the run's directory.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS = (
    "rater.query_type=pair", "sampling.candidates=2", "people.port=0", "task.max_new_tokens=32", "task.min_new_tokens=16",
    "sampling.temperature=0.8", "agent.kl_coef=0.05", "model.name=embedded",
)  # fmt: skip


def start(options: argparse.Namespace) -> tuple[subprocess.Popen[Any], str]:
    """Start the run; returns its process, and the link for raters that it prints."""
    settings = [*SETTINGS, f"sampling.prompts={options.pairs}", f"agent.iterations={options.iterations}", *options.set]
    given = [word for setting in settings for word in ("--set", setting)]
    log = options.out.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-P",
        "-m",
        "rlhf_gym",
        "run",
        "--rater",
        "web",
        "--out",
        str(options.out),
        *given,
    ]
    process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)
    while True:
        found = re.search(r"raters: +(\S+)\s", log.read_text())
        if found:
            return process, found[1]
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.2)


def key(better_by: float) -> str:
    """The key for a preference: positive numbers prefer A, by so much; negative ones prefer B."""
    place = 3 if abs(better_by) < 0.2 else 2 if abs(better_by) < 1 else 1
    return "4" if better_by == 0 else str(place if better_by > 0 else 8 - place)


def teach(link: str, pairs: int, picture: Path) -> float:
    """Answer every pair, and take a picture of the page after half of them; returns seconds an answer."""
    from playwright.sync_api import sync_playwright

    from rlhf_gym.tasks import load_task

    taste: Any = load_task("sentiment").reward
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(link)
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector(".prompt", timeout=600_000)
        began = time.monotonic()
        for number in range(pairs):
            card = page.locator(".card").get_attribute("data-id")
            prompt = page.locator(".prompt .text").inner_text()
            texts = page.locator(".response .text").all_inner_texts()
            if number == pairs // 2:
                page.screenshot(path=picture)
            first, second = taste([prompt, prompt], texts)
            page.wait_for_timeout(210)
            page.keyboard.press(key(float(first) - float(second)))
            page.wait_for_function("id => document.querySelector('.card').dataset.id !== id", arg=card)
        took = (time.monotonic() - began) / pairs
        page.wait_for_function("() => !sessionStorage.getItem('unsent') || sessionStorage.getItem('unsent') === '[]'")
        browser.close()
    return took


def main() -> int:
    """Run and print the results; returns 1 if the win rate over the reference is not above one half, beyond chance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's directory")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="any other setting")
    options = parser.parse_args()
    process, link = start(options)
    try:
        seconds = teach(link, options.pairs, options.out.with_suffix(".png"))
        process.wait()
    finally:
        process.kill()
    found = json.loads((options.out / "evaluation.json").read_text())
    results = {
        name: found[name] for name in ("n", "win_rate", "win_rate_low", "win_rate_high", "gold_before", "gold_after")
    }
    print(json.dumps({"seconds_an_answer": round(seconds, 2), **results}, indent=1))
    return int(found["win_rate_low"] <= 0.5)


if __name__ == "__main__":
    sys.exit(main())
