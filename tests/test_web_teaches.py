"""A person in a real browser answers 200 pairs of the embedded model by keys, and the policy measurably moves their way.

The whole way, nothing replaced: `rlhf-gym run --rater web` on the embedded model, its link opened in Chromium, one key an
answer from nothing but the text on the screen, a reward model of these answers alone, PPO, the run's own evaluation.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from test_web_browser import CHROMIUM

from rlhf_gym.feedback import FeedbackStore

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "person_in_browser.py"


@pytest.mark.timeout(600)
def test_200_answers_in_a_browser_move_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "person"
    # Fewer, smaller and longer steps than by default: half a minute of training instead of three.
    settings = ["--iterations", "12", "--set", "agent.learning_rate=0.0004", "--set", "agent.n_episodes=48"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(out), *settings])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0, out.with_suffix(".log").read_text()
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 200
    assert found["win_rate_low"] > 0.5  # of a 95% interval, on prompts never trained on
    assert found["gold_after"] > found["gold_before"] + 0.2
    with FeedbackStore(out / "feedback.sqlite", read_only=True) as store:
        answers = store.answers()
        assert store.count().judgements == len(answers) == 200
    assert {judgement.rater.partition("/")[0] for _, judgement in answers} == {"web"}
    assert {judgement.order_shown for _, judgement in answers} == {(0, 1), (1, 0)}
    assert all((judgement.seconds or 0) >= 0.2 for _, judgement in answers)
    assert out.with_suffix(".png").stat().st_size > 10_000  # to be looked at
