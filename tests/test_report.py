"""The report: it tells the truth of a run directory, whatever state that is in, and no text in it can act."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from fake_run import HOSTILE, build_run
from hypothesis import given
from hypothesis import strategies as st

from rlhf_gym.credentials import is_secret
from rlhf_gym.loop.report import formatting, write_report
from rlhf_gym.loop.report.frontier import frontier
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.report.simulation import comparison
from rlhf_gym.loop.report.svg import Chart, nice_ticks, padded, spread, tick_labels

STAGES = ("started", "reward_model", "agent", "evaluated")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(build_run(tmp_path_factory.mktemp("runs") / "demo")).read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_stopped_anywhere_has_a_report(tmp_path: Path, stage: str) -> None:
    run_dir = build_run(tmp_path / stage, stage=stage)
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    html = path.read_text(encoding="utf-8")
    assert ("Not there yet" in html) == (stage != "evaluated")
    assert not list(run_dir.glob(".report-*"))


def test_a_run_is_reported_watched_and_analysed_without_torch(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", iterations=3, pairs=9)
    (run / "config.yaml").write_text("run: {seed: 1}\n")  # the fake's own holds a secret that is no setting
    code = (
        "import sys; from rlhf_gym.cli.main import main; import rlhf_gym.web.watch\n"
        f"codes = [main([command, {str(run)!r}]) for command in ('report', 'analyse')]\n"
        "print(codes, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0] []"


def test_a_run_beside_its_run_with_the_fitted_rater(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", iterations=3))
    assert comparison(run) is None

    def beside(gaps: list[float]) -> str:
        pairs = [{"prompt": f"p{i}", "gold_after": 1.0} for i in range(len(gaps))]
        others = [{**pair, "gold_after": 1 + gap} for pair, gap in zip(pairs, gaps, strict=True)]
        mine, theirs = ({**run.evaluation, "pairs": rows} for rows in (pairs, others))
        found = comparison(replace(run, evaluation=mine, fitted_run=replace(run, evaluation=theirs)))
        assert found is not None
        assert all(own == other for _, own, other in found.rows)
        return found.verdict

    assert "differs by +1.000 ± 0.741 (95%) from this run's: beyond chance" in beside([0.0, 2.0] * 4)  # SD 1.069
    assert "within chance" in beside([-1.0, 2.0] * 4)
    assert "Too few" in beside([0.0, 1.0])


def test_an_empty_directory_has_a_report_too(tmp_path: Path) -> None:
    assert "not come to its evaluation" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_headline_metrics_are_the_runs(report: str) -> None:
    words = re.sub(r"\s+", " ", "".join(Elements(report).words))
    for metric in (
        "81.2%",
        "95% interval 72% to 88%, 96 prompts",
        "9.42",
        "78.1%",
        "± 1.9 points",
        "1,024",
        "4 min 47 s",
    ):
        assert metric in words
    assert "rlhf-gym run --config demo/config.yaml --out demo --resume" in words


def test_what_speaks_against_a_win_rate_is_said(tmp_path: Path, report: str) -> None:
    words = re.sub(r"\s+", " ", "".join(Elements(report).words))
    assert "81.2% of held-out prompts by the gold reward (77.0% by gold, if fluent, 72.0% by a second judge)" in words
    assert "labels agree with gold" in words
    assert "rings the best of 1, 2, 3, 4, 6, 8 responses" in words
    assert "9.21 ± 0.11" in words
    assert "9.42 ± 0.42" in words
    assert "Before you believe it" not in words
    bad = write_report(build_run(tmp_path / "bad", gibberish=True)).read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", "".join(Elements(bad).words))
    for sentence in (
        "may be no better than a coin: its accuracy of 52.5% has a 95% interval from 37.0% to 68.0%",
        "66% of the tuned responses leave the reference's range of perplexity",
        "Where a response has to be fluent to win, the win rate is 9.0%",
        "The second judge does not confirm the win rate by gold: 31.0%",
    ):
        assert sentence in words


def test_same_run_same_bytes(tmp_path: Path, report: str) -> None:
    assert write_report(build_run(tmp_path / "demo")).read_text(encoding="utf-8") == report


def test_the_policy_allows_this_style_and_script_and_nothing_else(report: str) -> None:
    policies = re.findall(r'Content-Security-Policy" content="([^"]*)"', report)
    assert len(policies) == 1
    policy = policies[0].replace("&#39;", "'")
    for tag in ("style", "script"):
        sources = re.findall(f"<{tag}>(.*?)</{tag}>", report, re.DOTALL)
        assert len(sources) == 1
        digest = base64.b64encode(hashlib.sha256(sources[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_nothing_is_loaded_from_anywhere(report: str) -> None:
    for tag, attributes in Elements(report).elements:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form", "a")
        assert not {"src", "srcset", "action", "style"} & attributes.keys()
        assert attributes.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import", report)


def test_model_text_is_shown_and_cannot_act(report: str) -> None:
    parsed = Elements(report)
    assert sum(tag == "script" for tag, _ in parsed.elements) == 1
    words = "".join(parsed.words)
    assert HOSTILE[0] in words
    assert "{{ 7 * 7 }} {% raw %} ${7*7}" in words
    for code in ("U+202E", "U+2066", "U+0007", "U+0000", "U+001B", "U+E0041", "U+D800", "U+2028"):
        assert f">{code}</span>" in report
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u2028]", report)


def test_secrets_are_left_out(report: str) -> None:
    assert "sk-not-for-eyes" not in report
    assert "hunter2" not in report
    assert "max_new_tokens" in report


@pytest.mark.parametrize("name", ["evaluation.json", "versions.json", "config.yaml", "round-1/reward_model.json"])
@pytest.mark.parametrize("content", ['{"cut": [1, 2', "[1, 2]", "\x00\x01", "{a: [}"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: str) -> None:
    run_dir = build_run(tmp_path / "run", iterations=3, pairs=9)
    (run_dir / name).write_text(content)
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert f'<p class="problem" role="alert">{name}' in html


def test_metrics_of_the_wrong_kind_do_not_break_the_page(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "run", iterations=3)
    odd = {"win_rate": "much", "kl": None, "n": [], "gold_before": math.nan, "pairs": [{"prompt": 3}, "x", {}]}
    (run_dir / "evaluation.json").write_text(json.dumps(odd))
    (run_dir / "round-1" / "reward_model.json").write_text('{"bins": [{"count": 0}, 3], "epochs": {}, "ece": "x"}')
    assert "Not there yet" in write_report(run_dir).read_text(encoding="utf-8")


def test_missing_values_and_a_row_cut_short(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "round,iteration,timesteps,objective/scores,objective/kl,gold,reward/left_out\n"
        "1,1,100,0.5,0.1,,\n1,2,200,0.75,nan,0.25,1\n2,1,300,inf,0.4,0.5,\n2,2,4"
    )
    run = read_run(tmp_path)
    assert run.series("proxy") == [0.5, 0.75, None]
    assert run.series("kl") == [0.1, None, 0.4]
    assert run.series("gold") == [None, 0.25, 0.5]
    assert [metric.key for metric in run.terms] == ["reward/left_out"]
    assert [(iteration.round, iteration.index) for iteration in run.iterations] == [(1, 1), (1, 2), (2, 3)]
    write_report(tmp_path)


def test_the_frontier_is_standardised_on_the_references_scores(tmp_path: Path) -> None:
    """Worked by hand: gold before has mean 2 and standard deviation 1, proxy before 0 and 2 (n - 1 = 8)."""
    golds, proxies = [1.0] * 4 + [2.0] + [3.0] * 4, [-2.0] * 4 + [0.0] + [2.0] * 4
    pairs = [{"gold_before": gold, "proxy_before": proxy} for gold, proxy in zip(golds, proxies, strict=True)]
    evaluation = {"kl": 4.0, "gold_after": 2.5, "proxy_after": 3.0, "pairs": pairs}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "metrics.csv").write_text(
        "round,iteration,objective/kl,objective/scores,gold\n1,1,-0.01,0,2\n1,2,9,4,3\n"
    )
    found = frontier(read_run(tmp_path))
    assert found is not None
    assert found.standardised
    assert found.held_out is not None
    points = [(point.root_kl, point.proxy, point.gold, point.gap) for point in (*found.points, found.held_out)]
    assert points == [(0, 0, 0, 0), (3, 2, 1, 1), (2, 1.5, 0.5, 1)]


def test_without_reference_scores_the_frontier_says_so(tmp_path: Path) -> None:
    run_dir = build_run(tmp_path / "run", stage="agent")
    found = frontier(read_run(run_dir))
    assert found is not None
    assert not found.standardised
    assert (found.points[0].proxy, found.points[0].gold) == (0, 0)
    assert "compare shapes, not heights" in write_report(run_dir).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0.12345, "0.123"), (-1.5, "−1.50"), (1234567, "1,234,567"), (38.21, "38.2"), (0, "0"), (2.5e-5, "2.5e−05")],  # noqa: RUF001
)
def test_numbers(value: float, printed: str) -> None:
    assert formatting.number(value) == printed


def test_numbers_without_a_value() -> None:
    assert formatting.number(None) == formatting.number(math.nan) == formatting.percent(math.inf) == formatting.MISSING
    assert formatting.number(-0.0001, 2) == "0.00"
    assert [formatting.duration(seconds) for seconds in (9.4, 287.4, 7325)] == ["9 s", "4 min 47 s", "2 h 02 min"]


@pytest.mark.parametrize("key", ["api_key", "judge_api_key", "hf_token", "token", "password", "client_secret"])
def test_secret_keys(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", ["pad_token", "max_new_tokens", "eos_token", "keys"])
def test_keys_that_are_no_secret(key: str) -> None:
    assert not is_secret(key)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_lie_in_the_range_and_are_told_apart(low: float, span: float, count: int) -> None:
    span = max(span, abs(low) * 1e-3)
    ticks = nice_ticks(low, low + span, count)
    assert 1 <= len(ticks) <= 2 * count + 1
    assert all(low - 1e-6 * span <= tick <= low + span + 1e-6 * span for tick in ticks)
    if max(map(abs, ticks)) < 10_000:
        assert len(set(tick_labels(ticks))) == len(ticks)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=5))
def test_labels_are_spread_apart_in_order(places: list[float]) -> None:
    moved = spread(places, 10)
    ordered = [moved[index] for index in sorted(range(len(places)), key=lambda index: places[index])]
    assert all(after - before >= 10 - 1e-6 for before, after in itertools.pairwise(ordered))


@given(st.lists(st.floats(-1e9, 1e9), max_size=6), st.booleans())
def test_an_axis_is_never_empty(values: list[float], from_zero: bool) -> None:
    low, high = padded(values, from_zero=from_zero)
    assert low < high
    assert all(low <= value <= high for value in values)


def test_a_missing_value_breaks_the_line() -> None:
    chart = Chart(100, 100, (0, 10), (0, 10))
    chart.line([(0, 1), (1, 2), (2, None), (3, 4), (4, None), (5, 5), (6, 6)], "proxy")
    drawn = chart.render("t", "d")
    assert (drawn.count("<polyline"), drawn.count("<circle")) == (2, 1)


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_the_contrast_that_wcag_aa_asks_for() -> None:
    style = resources.files("rlhf_gym.loop.report").joinpath("page.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        chips = [f"{side}{shade}" for side in ("low", "high") for shade in (1, 2, 3)]
        pairs = [("ink", ground) for ground in ("page", "panel", "mid", *chips)]
        pairs += [(ink, "panel") for ink in ("soft", "proxy", "gold", "other", "gap")]
        pairs += [("soft", "page"), ("soft", "mid"), ("warn-ink", "warn"), ("page", "ink")]
        for ink, ground in pairs:
            lighter, darker = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, ground)
