"""Agreement on the administration page: the coefficients and the drawing over time are those of the answers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from web_study import joined, pairs, study

from rlhf_gym.feedback import Judgement, Query
from rlhf_gym.study.agreement import Agreement
from rlhf_gym.study.quality import quality
from rlhf_gym.web.agreement_view import agreement_chart, coefficients

START = datetime(2026, 11, 2, 9, tzinfo=UTC)


def answered(number: int, step: timedelta, differ: int) -> list[tuple[Query, Judgement]]:
    """Two raters on so many pairs; they differ on every `differ`-th."""
    found = []
    for i, query in enumerate(pairs(number)):
        for rater, choice in (("web/one", i % 2), ("web/two", (i + (i % differ == 0)) % 2)):
            at = START + i * step
            found.append((query, Judgement(query_id=query.id, rater=rater, choice=choice, created_at=at)))
    return found


def test_the_table_names_what_can_be_told() -> None:
    told = coefficients(Agreement(12, 9, 12, alpha=0.512, fleiss=0.498, fleiss_raters=2, cohen=-0.25))
    assert [(name, value) for name, value, _ in told] == [
        ("Krippendorff's alpha", "0.51"), ("Fleiss' kappa", "0.50"), ("Cohen's kappa", "\N{MINUS SIGN}0.25")
    ]  # fmt: skip
    assert "12 comparisons" in told[0][2]
    assert "2 raters" in told[1][2]
    assert coefficients(Agreement(3, 3, 3, None, None, 0, None)) == []


def test_the_drawing_over_a_sitting_and_over_days() -> None:
    sitting = str(agreement_chart(quality(answered(120, timedelta(seconds=20), differ=5))))
    assert "From 80.0% in the first of 2 periods to 80.0% in the last." in sitting
    assert sitting.count('class="dot agreed"') == sitting.count('class="dot beyond"') == sitting.count("whisker") == 2
    assert "comparisons complete" in sitting
    assert [words for words in ("50", "120") if f">{words}</text>" in sitting] == ["50", "120"]
    tips = re.findall(r"<title>(.*?)</title>", sitting)
    assert len(tips) == 2
    assert tips[0].startswith("02 Nov 09:00 to 09:16: 80.0% of 50 (95%: 67.0% to 88.8%)")
    assert "Krippendorff&#39;s alpha 0.60" in tips[0]  # (99 * 80 - 4900) / (9900 - 4900): of 100 labels 50 of a kind
    days = str(agreement_chart(quality(answered(120, timedelta(hours=1), differ=5))))
    assert "in the first of 6 periods" in days
    assert "02 Nov</text>" in days
    assert days.count('class="dot agreed"') == 6
    assert days.count('class="dot beyond"') == 5  # nine comparisons on the last day: too few for alpha
    assert agreement_chart(quality(answered(20, timedelta(hours=1), differ=5))) is None
    assert agreement_chart(quality([])) is None


def test_raters_who_contradict_each_other_are_drawn_below_zero() -> None:
    drawn = str(agreement_chart(quality(answered(100, timedelta(seconds=1), differ=1))))
    heights = [float(y) for y in re.findall(r'class="dot \w+" cx="[\d.]+" cy="([\d.]+)"', drawn)]
    assert all(0 < y <= 170 for y in heights)
    assert "\N{MINUS SIGN}1" in drawn
    assert [float(y.replace("\N{MINUS SIGN}", "-")) for y in re.findall(r'end">([^<]+)</text>', drawn)] == [
        -1, -0.5, 0, 0.5, 1
    ]  # fmt: skip  # no tick is rounded to what it is not


def test_the_page_shows_all_three_and_the_drawing(tmp_path: Path) -> None:
    with study(tmp_path, pairs(120)) as found:
        admin: Any = joined(found, "admin")
        assert "Beyond chance" not in admin.get("/admin").text
        found.store.add_judgements([judgement for _, judgement in answered(120, timedelta(seconds=20), differ=5)])
        page = admin.get("/admin").text
        for words in ("Krippendorff", "Fleiss", "Cohen", "Agreement over time", "Two raters agree on 80.0% of 120"):
            assert words in page, words
        report = quality(found.store.answers())
        for name, value, _ in coefficients(report.agreement):
            assert re.search(rf">{name.replace(chr(39), '&#39;')}</th><td>{value}</td>", page), name
