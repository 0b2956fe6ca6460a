"""The tasks on the embedded model: prompts, rewards by hand, metrics, and the script that measures them."""

from __future__ import annotations

import doctest
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from benchmark_scripts import load_script
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

import rlhf_gym  # noqa: F401
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.rewards import load_reward, score
from rlhf_gym.rewards.builtin.harm import harm
from rlhf_gym.rewards.builtin.perplexity import Perplexity
from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.format_control import FORMATS
from rlhf_gym.tasks.sentiment import prompt_prefixes
from rlhf_gym.tasks.stars import Rating

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("words", "length", "format", "detox", "stars")


def value(task: Task, response: str, **columns: Any) -> float:
    assert task.reward is not None
    return float(score(task.reward, ["p"], [response], {k: [v] for k, v in columns.items()}).values[0])


@pytest.mark.parametrize("module", ["tasks.words", "tasks.length", "tasks.format_control", "rewards.builtin.harm"])
def test_examples_in_the_docstrings(module: str) -> None:
    result = doctest.testmod(import_module(f"rlhf_gym.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_split_for_good_and_what_is_held_out_is_the_same_for_every_seed(name: str) -> None:
    tasks = [load_task(name, seed=seed) for seed in (0, 1)]
    assert tasks[0].held_out == tasks[1].held_out
    assert tasks[0].prompts != tasks[1].prompts
    assert load_task(name, seed=1).prompts == tasks[1].prompts
    for task in tasks:
        assert not {p.text for p in task.prompts} & {p.text for p in task.held_out}
        assert 0.1 < len(task.held_out) / (len(task.prompts) + len(task.held_out)) < 0.25
    # The prompt prefix itself, and not only prefix and request together, is on one side.
    if name != "detox":  # whose prompts hold no request
        train, held_out = ({p.text.rpartition(": ")[2] for p in some} for some in (task.prompts, task.held_out))
        assert train | held_out == set(prompt_prefixes())
        assert not train & held_out
    assert len(load_task(name, num_prompts=3).prompts) == 3


@pytest.mark.parametrize("name", NAMES)
def test_rewards_and_metrics_take_the_columns_of_the_prompts(name: str) -> None:
    task = load_task(name)
    prompts = task.prompts[:4]
    columns = {key: [p.columns[key] for p in prompts] for key in prompts[0].columns}
    texts, responses = [p.text for p in prompts], ["", " the acting is great.", " " * 5, " \N{SNOWMAN} !?"]
    for reward in (task.reward, *(m for key, m in task.metrics.items() if key != "perplexity")):
        assert reward is not None
        assert np.isfinite(score(reward, texts, responses, columns).values).all()
    assert "perplexity" in task.metrics


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_passes_the_checker_and_its_spec_is_json(name: str) -> None:
    spec = gym.spec(f"rlhf_gym/{name.capitalize()}-v0")
    assert EnvSpec.from_json(spec.to_json()) == spec
    check_env(gym.make(f"rlhf_gym/{name.capitalize()}Turn-v0").unwrapped)


def test_words_by_hand() -> None:
    task = load_task("words", num_words=3)
    assert all(len(p.columns["words"]) == len(set(p.columns["words"])) == 3 for p in task.prompts)
    wanted = task.prompts[0].columns["words"]
    assert task.prompts[0].text.startswith(f"with {wanted[0]} and {wanted[1]} and {wanted[2]}: ")
    words = ["love", "money", "town"]
    assert value(task, "Money, LOVE and town", words=words) == 1.0
    assert value(task, "love love love", words=words) == pytest.approx(1 / 3)
    assert value(task, "lovely towns", words=words) == 0.0
    assert score(task.metrics["all_words"], ["p"], ["money"], {"words": [words]}).values[0] == 0.0


def test_length_by_hand() -> None:
    task = load_task("length", targets=[3])
    assert all(p.text.startswith("in 3 words: ") and p.columns == {"target": 3} for p in task.prompts)
    rewards = [value(task, " w" * n, target=3) for n in range(8)]
    assert rewards == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0])
    assert score(task.metrics["exact"], ["p"] * 2, ["a b c", "a b"], {"target": [3, 3]}).values.tolist() == [1.0, 0.0]
    assert score(task.metrics["words"], ["p"], [" a  b\nc"]).values.tolist() == [3.0]


GOOD = {
    "one sentence": "it was a joy.",
    "a question": " was it a joy?",
    "an exclamation": "it was a joy!",
    "two sentences": "it was. what a joy!",
    "a quotation": '"what a joy!"',
    "an aside": "(it was a joy)",
}


def test_each_format_takes_its_own_and_no_other() -> None:
    task = load_task("format", partial=False)
    assert set(GOOD) == set(FORMATS) == {p.columns["format"] for p in task.prompts}
    for asked in FORMATS:
        for given, text in GOOD.items():
            assert value(task, text, format=asked) == float(asked == given), (asked, given)
    for text in ("", "joy?", "no. yes?", "was it a joy", "?" * 5, "was it a joy??"):
        assert value(task, text, format="a question") == 0.0
    assert value(task, ("very " * 20_000) + "long", format="two sentences") == 0.0  # and in no time


def test_a_part_of_a_format_earns_a_part() -> None:
    task = load_task("format")
    for asked in FORMATS:
        for given, text in GOOD.items():
            assert (value(task, text, format=asked) == 1) == (asked == given)
    cases = {
        ("a question", "why?"): 0.0,  # too short
        ("a question", "it was, was it"): 0.0,  # no sign
        ("a question", "was it? a joy"): 0.25,  # the sign elsewhere
        ("a question", "it was. was it?"): 0.25,  # in its place, one too many
        ("a question", '"it was. was it?"'): 0.0625,  # elsewhere, three too many
        ("a quotation", '"what a joy'): 0.25,  # one of two
        ("a quotation", 'what a joy"'): 0.375,  # in its place at the end, not at the beginning
        ("a quotation", 'so: "what a joy" she said'): 0.25,  # both elsewhere
        ("an aside", "(what a. joy)."): 0.5,  # both in place, and yet not the form
        ("two sentences", "what a joy."): 0.25,
        ("two sentences", "what. a. joy."): 0.25,
    }
    for (asked, text), wanted in cases.items():
        assert value(task, text, format=asked) == wanted, (asked, text)
    assert score(task.metrics["in_format"], ["p"], ["it was. was it?"], {"format": ["a question"]}).values[0] == 0.0


def test_stars_by_hand() -> None:
    scorer = SentimentScorer(np.array([40.0, -40.0]), 0.0, ["joy", "bore"])
    rating = Rating(scorer)
    texts = ["joy", "bore", "neither"]
    assert rating.ratings(texts) == pytest.approx([5, 1, 3])
    assert rating([""] * 3, texts, stars=[5, 5, 5]) == pytest.approx([1, 0, 0.5])
    assert rating.same([""] * 3, texts, stars=[5, 1, 4]) == [1.0, 1.0, 0.0]
    assert {p.columns["stars"] for p in load_task("stars").prompts} == {1, 2, 3, 4, 5}
    assert all(p.text.startswith("2 of 5 stars: ") for p in load_task("stars", stars=[2]).prompts)


ABUSE = (
    "you are an idiot.",
    "the director is a complete moron.",
    "what a stupid man.",
    "he is a pathetic loser and everybody knows it.",
    "shut up.",
    "the writer should be shot.",
    "go to hell, all of you.",
    "the lead actor is so stupid.",
    "i hope she dies.",
    "these people are scum.",
    "the cast are talentless hacks.",
    "you ugly piece of shit.",
)
CRITICISM = (
    "a stupid plot.",
    "the film is boring and far too long.",
    "the acting is pathetic.",
    "he is not an idiot.",
    "this damn film goes on for three hours.",
    "his stupid jokes fall flat.",
    "the soldier wants to kill the general's brother",
    "the director has made better films.",
    "i hated every minute of it.",
    "nobody in the cast can act.",
    "it is a mess.",
    "the hero dies in the end. he was never strong.",
    "a hell of a ride.",
    "",
)


@pytest.mark.parametrize("text", ABUSE)
def test_abuse_is_harm(text: str) -> None:
    assert harm(text) > 0.5


@pytest.mark.parametrize("text", [t for t in CRITICISM if "kill" not in t])
def test_criticism_is_not(text: str) -> None:
    assert harm(text) < 0.35


def test_an_insult_may_begin_in_the_prompt_but_only_the_response_counts() -> None:
    assert harm(" idiot.", before="the director is an") > harm(" idiot.") > 0.15
    assert harm(" fine film.", before="you stupid idiot, this is a") < 0.05
    assert harm(" stupid.", before="the director left. the plot is") < 0.1


def test_a_prompt_counts_only_if_asked() -> None:
    arguments = ["the director is an"], [" idiot."]
    assert load_reward("harm")(*arguments)[0] > load_reward("harm", include_prompt=False)(*arguments)[0]


def test_detox_reports_two_terms_that_add_up() -> None:
    task = load_task("detox", harmless_weight=3.0)
    assert task.reward is not None
    texts = ["you idiot!", " the acting is awful and the plot makes no sense.", "ok"]
    scored = score(task.reward, ["the director:"] * 3, texts)
    helpful, harmless = scored.terms["helpful"], scored.terms["harmless"]
    assert scored.values == pytest.approx(helpful + 3 * harmless)
    assert harmless[0] < -0.5 < -0.05 < harmless[1]
    assert helpful[1] > 0.8 > 0.5 >= helpful[0]
    assert helpful[2] == 0.0
    assert score(task.metrics["abusive"], ["p"] * 2, texts[:2]).values.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("words", {"num_words": 0}, "num_words must be a whole number in 1..6"),
        ("length", {"targets": []}, "targets must be whole numbers"),
        ("length", {"targets": [0]}, "targets must be whole numbers"),
        ("format", {"formats": ["a poem"]}, "formats must be some of one sentence"),
        ("stars", {"stars": [6]}, r"whole numbers in 1..5, got \[6\]"),
        ("detox", {"harmless_weight": -1}, "at least 0, got -1"),
        ("detox", {"num_prompts": 10_000}, "prompts to train on; asked for 10000"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(name, **options)


def test_perplexity_is_the_models_own() -> None:
    import torch

    from rlhf_gym.lm.language_model import LanguageModel

    model = LanguageModel.load("embedded")
    metric = Perplexity(model)
    prompt, response = "the acting of this comedy is", " so bad that i left."
    values = metric([prompt, prompt, prompt], [response, "", response * 60])
    ids, more = model.tokenizer.encode_prompt(prompt), model.tokenizer.encode(response)
    with torch.no_grad():
        loss = model.model(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    expected = float(torch.exp(-loss.gather(-1, torch.tensor(more)[:, None]).mean()))
    assert values[0] == pytest.approx(expected, rel=1e-4)
    assert values[1] == 1.0
    assert 1 < values[2] < 1000
    assert Perplexity(model, limit=2.0)([prompt], [" xqz xqz"]) == [2.0]
    with pytest.raises(ConfigError, match="at least 1"):
        Perplexity(limit=0)


def test_the_new_rewards_have_names() -> None:
    assert load_reward("harm")([""], ["you idiot"])[0] > 0.5
    assert isinstance(load_reward("perplexity", limit=5), Perplexity)


def test_the_reference_metrics_are_written_between_the_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load_script("tasks/reference_metrics.py")
    page = tmp_path / "format.md"
    page.write_text("before\n<!-- reference metrics -->\nold\n<!-- end -->\nafter\n")
    arguments = ["reference_metrics.py", "format", "--samples", "4", "--docs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    module.main()
    first = page.read_text()
    assert first.startswith("before\n<!-- reference metrics -->\n4 held-out prompts")
    assert first.endswith("<!-- end -->\nafter\n")
    assert "old" not in first
    assert re.search(r"\| reward \| \d\.\d+ ± \d\.\d+ \| ", first)
    module.main()
    assert page.read_text() == first
    monkeypatch.setattr(module, "EPISODES", 16)
    monkeypatch.setattr(sys, "argv", [*arguments, "--train", "30"])
    module.main()
    assert re.search(r"after 30 tokens of PPO .* \d+ nats a response from there", page.read_text())
    assert "| | sampled | greedy | sampled after PPO |" in page.read_text()
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="expected one line"):
        module.main()
    capsys.readouterr()


def test_every_page_of_the_catalogue_has_its_metrics() -> None:
    module = load_script("tasks/reference_metrics.py")
    assert set(NAMES) < set(module.TASKS)
    for name in module.TASKS:
        text = (module.DOCS / f"{name}.md").read_text()
        table = text.split(module.BEGIN)[1].split(module.END)[0]
        assert "| reward | " in table
        assert "| perplexity | " in table
