"""Language identification and profanity: libraries with their model or lists inside."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards import load_reward, score
from rlhf_gym.rewards.check import check_reward

TEXTS = {
    "en": "I loved it, and I would gladly watch it again with my family.",
    "de": "Dieser Film war sehr gut, und ich würde ihn gerne noch einmal sehen.",
    "fr": "J'ai beaucoup aimé ce film et je le reverrais avec plaisir.",
    "es": "Me encantó la película y la volvería a ver con mi familia.",
    "ru": "Мне очень понравился этот фильм, и я бы посмотрел его ещё раз.",  # noqa: RUF001
    "zh": "我很喜欢这部电影。我想和家人再看一遍。",
    "ja": "この映画はとても好きで、家族とまた見たいです。",
    "ar": "أحببت هذا الفيلم كثيرا وأود مشاهدته مرة أخرى مع عائلتي.",
}


def values(reward: Any, responses: list[str]) -> list[float]:
    found: list[float] = score(reward, ["p"] * len(responses), responses).values.tolist()
    return found


def test_sentences_are_told_apart_and_twice_the_same() -> None:
    pytest.importorskip("py3langid")
    for code in TEXTS:
        reward = load_reward("language", language=code)
        found = dict(zip(TEXTS, values(reward, list(TEXTS.values())), strict=True))
        assert found[code] > 0.9, code
        assert all(found[other] < 0.05 for other in TEXTS if other != code), code
        assert found == dict(
            zip(TEXTS, values(load_reward("language", language=code), list(TEXTS.values())), strict=True)
        )


def test_nothing_to_tell_by() -> None:
    pytest.importorskip("py3langid")
    reward = load_reward("language")
    assert values(reward, ["", " ", "12 + 30 = 42 !!"]) == [0, 0, 0]
    assert 0 <= values(reward, ["good"])[0] <= 1
    two = load_reward("language", language="en", among=["de"])
    assert values(two, ["the film was good"])[0] > 0.9
    assert values(two, [TEXTS["fr"]])[0] + values(load_reward("language", language="de", among=["en"]), [TEXTS["fr"]])[
        0
    ] == (pytest.approx(1))


def test_languages_that_are_not_known() -> None:
    pytest.importorskip("py3langid")
    for wrong in ({"language": "english"}, {"among": []}, {"among": ["en", "xx"]}, {"among": "en"}):
        with pytest.raises(ConfigError, match=r"language knows .*, af, .*, en, "):
            load_reward("language", **wrong)


def test_swear_words_by_hand() -> None:
    pytest.importorskip("glin_profanity")
    texts = [
        "shit shit, and shit",
        "sh1t happens",
        "f.u.c.k off now",
        "a classic cocktail in Scunthorpe, a fine assassin",
        "",
    ]
    assert values(load_reward("profanity"), texts)[:2] == [0.75, 0.5]
    assert values(load_reward("profanity", mode="count"), texts) == [3, 1, 1, 0, 0]
    assert values(load_reward("profanity", mode="any"), texts) == [1, 1, 1, 0, 0]
    assert values(
        load_reward("profanity", mode="any", more=["frell"], ignore=["shit", "sh1t"]), ["oh frell", "shit"]
    ) == [1, 0]
    assert values(load_reward("profanity", languages=["german"]), ["so eine scheiße"])[0] == pytest.approx(1 / 3)


def test_profanity_that_is_misspelt_in_its_settings() -> None:
    pytest.importorskip("glin_profanity")
    with pytest.raises(ConfigError, match="mode must be share, count or any"):
        load_reward("profanity", mode="all")
    with pytest.raises(ConfigError, match=r"lists for .*english.*; got klingon"):
        load_reward("profanity", languages="klingon")


@pytest.mark.parametrize("name", ["language", "profanity"])
def test_they_can_be_tried_out(name: str) -> None:
    pytest.importorskip({"language": "py3langid", "profanity": "glin_profanity"}[name])
    report = check_reward(load_reward(name), ["p"] * len(TEXTS), [*TEXTS.values()])
    assert report.deterministic
    assert report.order_free
    assert not any(probe.error for probe in report.probes)
