"""The loop with a judge in the rater's place, from the command line: the same run, one word changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from chat_server import chat_server, material
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.rater_catalogue import check_rater


def likes_long(request: dict[str, object]) -> str:
    _, *texts = material(request)
    first, second = map(len, texts)
    return json.dumps({"reason": "longer", "better": "tie" if first == second else "A" if first > second else "B"})


def test_one_word_puts_a_judge_in_the_raters_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(save_tiny_model(tmp_path / "model"))))
    with chat_server(likes_long) as server:
        arguments = ["--rater", f"judge:{server.url}", "--set", f"rater.cache={tmp_path / 'replies.db'}"]
        code = main(["run", "--config", str(config), "--out", str(tmp_path / "run"), *arguments])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "judge:tiny-judge: 24 questions" in " ".join(said.out.split())
    assert "0% of 12 comparisons changed with the order" in " ".join(said.out.split())
    with FeedbackStore(tmp_path / "run" / "feedback.sqlite") as store:
        judged = [(query, judgement) for query, judgement in store.answers()]
    assert len(judged) == 12
    for query, judgement in judged:
        assert judgement.rater == "judge:tiny-judge"
        assert judgement.reason == "longer"
        assert judgement.ranking is not None
        best = judgement.ranking[0][0]
        assert len(query.responses[best]) == max(map(len, query.responses))


def test_a_judge_that_is_not_there_ends_in_one_line_and_the_run_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(save_tiny_model(tmp_path / "model"))))
    with chat_server(lambda _: 400) as server:
        spec = f"judge:tiny-judge@{server.url}"
        assert main(["run", "--config", str(config), "--out", str(tmp_path / "run"), "--rater", spec]) == 2
        assert "refused with status 400" in capsys.readouterr().err
        server.say = likes_long
        assert main(["run", "--out", str(tmp_path / "run"), "--resume"]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("rater", "message"),
    [
        ({"name": "judge:nowhere"}, "judge:URL or judge:MODEL@URL"),
        ({"name": "judge:http://x/v1", "beta": 2.0}, "rater.beta is for simulated raters"),
        ({"name": "simulated", "rubric": "Be kind."}, "rater.rubric is for judges"),
        ({"name": "judge:http://x/v1", "template": "none.j2"}, "'none.j2' cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(rater: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rater(build({"rater": rater}).rater)
