"""Texts beyond a model's context are counted before any work, and refused, skipped or truncated by one setting."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from test_chat_prompts import ASKED, chat_hub
from tiny_models import LetterTokenizer, tiny_language_model, tiny_seq2seq
from tiny_run import save_tiny_model, tiny_settings
from toy_tasks import count_a

from rlhf_gym.agents import SFT
from rlhf_gym.agents.common.given_pairs import encoded_pairs
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError, ModelError, TaskError, TextsTooLong
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import HubTokenizer
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.summary import summary
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.too_long import cut_prompt, fit_task

MODELS = {
    "gpt2": (lambda: tiny_language_model("gpt2", context=64), 64 - 8),
    "llama": (lambda: tiny_language_model("llama", context=64), 64 - 8),
    "bart": (lambda: tiny_seq2seq("bart"), 64),  # the encoder's own context: the response is the decoder's
}


@pytest.mark.parametrize("name", MODELS)
def test_the_prompts_of_a_task(name: str) -> None:
    make, room = MODELS[name]
    model = make()
    task = Task(
        "t", [Prompt("abc"), Prompt("x" * room), Prompt("abcde" * 18)], [Prompt("y" * 99), Prompt("q")], count_a, 8
    )
    with pytest.raises(
        TaskError, match=rf"1 of 3 prompts and 1 of 2 held-out prompts .* has 99 tokens; .* at most {room}\."
    ):
        fit_task(task, model)
    skipped, found = fit_task(task, model, "skip")
    assert [p.text for p in skipped.prompts] == ["abc", "x" * room]
    assert [p.text for p in skipped.held_out] == ["q"]
    assert [(one.what, one.number, one.total, one.done) for one in found] == [
        ("prompts", 1, 3, "skipped"), ("held-out prompts", 1, 2, "skipped"),
    ]  # fmt: skip
    cut, found = fit_task(task, model, "truncate")
    assert cut.prompts[2].text == ("abcde" * 18)[-room:]
    assert cut.held_out[0].text == "y" * room
    assert [(one.number, one.tokens, one.done) for one in found] == [
        (1, 90 - room, "beginning cut"), (1, 99 - room, "beginning cut"),
    ]  # fmt: skip
    assert fit_task(skipped, model) == (skipped, [])
    # What fits is taken: an encoder-decoder model needs no room for both together.
    agent = SFT(
        "LMPolicy", make_sb3_env(2, task=cut, tokenizer=model.tokenizer), language_model=model, data=[("ab", "a")]
    )
    assert agent.learn(4).num_timesteps >= 4


def test_what_no_choice_can_mend_is_refused() -> None:
    model = tiny_language_model(context=16)
    with pytest.raises(TaskError, match=r"up to 16 do not fit in the 16 tokens .*: lower task.max_new_tokens"):
        fit_task(Task("t", [Prompt("a")], max_new_tokens=16), model, "truncate")
    with pytest.raises(TaskError, match=r"all 1 prompts exceed the 8 tokens .*: give shorter ones"):
        fit_task(Task("t", [Prompt("a" * 9)], max_new_tokens=8), model, "skip")
    with pytest.raises(ConfigError, match="one of refuse, skip, truncate; got 'cut'"):
        fit_task(Task("t", [Prompt("a")]), model, "cut")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"do not fit in the 16 tokens.*fit_task\(task, model"):
        SFT("LMPolicy", make_sb3_env(1, task=Task("t", [Prompt("a" * 9)], (), count_a, 8), tokenizer=LetterTokenizer(28)),
            language_model=model, data=[("a", "b")])  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_pairs_to_imitate(name: str) -> None:
    model = MODELS[name][0]()
    data = [("abc", "de"), ("x" * 80, "abc"), ("abc", "y" * 80), ("x" * 80, "y" * 80)]
    limits = Limits.of(model.tokenizer, 0, 100)
    with pytest.raises(ModelError, match=r"3 of 4 pairs do not fit .*data\[1\]: a prompt of 80 tokens"):
        encoded_pairs(data, model, limits)
    pairs, found = encoded_pairs(data, model, limits, "skip")
    assert ([p.prompt for p in pairs], [str(one) for one in found]) == (
        ["abc"], [f"3 of 4 pairs exceed the 64 tokens of '{model.name}': they are skipped"],
    )  # fmt: skip
    pairs, found = encoded_pairs(data, model, limits, "truncate")
    expected = [(3, 3), (64, 4), (3, 64), (64, 64)] if model.encoder_decoder else [(3, 3), (60, 4), (3, 61), (32, 32)]
    assert [(len(p.prompt_ids), len(p.response_ids)) for p in pairs] == expected
    assert pairs[1].response_ids[-1] == model.tokenizer.eos_id  # a response that fits stays whole
    assert pairs[2].response == "y" * expected[2][1]
    assert [(one.what, one.number, one.tokens, one.done) for one in found] == [
        ("prompts of pairs", 2, 160 - expected[1][0] - expected[3][0], "beginning cut"),
        ("responses to learn", 2, 162 - expected[2][1] - expected[3][1], "end cut"),
    ]
    # The agent says it before it learns, and learns from what fits.
    task = Task("t", [Prompt("abc")], (), count_a, 8)
    with pytest.warns(TextsTooLong, match="2 of 4 pairs exceed|2 of 4 responses to learn exceed the length limit of 8"):
        agent = SFT(
            "LMPolicy", make_sb3_env(2, task=task, tokenizer=model.tokenizer), language_model=model, data=data,
            on_too_long="skip", n_episodes=2, batch_size=2,
        )  # fmt: skip
    agent.learn(30)
    assert agent.rollout is not None
    assert {len(e.prompt_ids) for e in agent.rollout.episodes} == {3}


def test_a_conversation_loses_its_oldest_turns_and_keeps_the_template_s_frame() -> None:
    tokenizer = HubTokenizer(chat_hub())
    length = lambda messages: len(tokenizer.encode_messages(messages))  # noqa: E731
    prompt, system = Prompt("a transcript", {"messages": ASKED, "label": 1}), ASKED[0]
    assert system["role"] == "system"
    room = length([system, ASKED[-1]])
    cut = cut_prompt(prompt, tokenizer, room)
    assert cut is not None
    assert (cut.columns["messages"], cut.columns["label"]) == ([system, ASKED[-1]], 1)
    assert cut.text == "\n\nSystem: Be brief.\n\nHuman: 3+3?\n\nAssistant:"
    cut = cut_prompt(prompt, tokenizer, room - 2)  # the last turn alone is too long: it loses its beginning
    assert cut is not None
    assert cut.columns["messages"] == [system, {"role": "user", "content": "3?"}]
    assert length(cut.columns["messages"]) == room - 2
    assert cut_prompt(prompt, tokenizer, room - 4) is None
    plain = HubTokenizer(chat_hub(), chat_template="off")
    shorter = cut_prompt(prompt, plain, 50)  # a model without a template is given the transcript
    assert shorter is not None
    words = cut_prompt(Prompt("one two three four", {"a": 1}), plain, 13)
    assert words == Prompt("three four", {"a": 1})  # "o three four" would fit: it begins with a whole word
    assert shorter.text == "\n\nSystem: Be brief.\n\nHuman: 3+3?\n\nAssistant:"


def test_a_run_counts_before_it_works_and_says_so_in_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"The film {i}", "target": "was good"} for i in range(8)]
    rows[3]["prompt"], rows[5]["target"] = "so very long " * 40 + "and 3", "was good " * 60
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "h.txt").write_text("unseen\nalso unseen\n")
    settings: dict[str, Any] = tiny_settings(
        save_tiny_model(tmp_path / "model"), reward_model={"enabled": False}, evaluation={"prompts": 2},
        task={"prompts": str(tmp_path / "p.jsonl"), "held_out": str(tmp_path / "h.txt"), "on_too_long": "truncate"},
    )  # fmt: skip
    settings["agent"] = {"name": "sft", "iterations": 1, "n_episodes": 8, "batch_size": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error", TextsTooLong)  # the run's own line says it
        run = run_loop(build(settings), tmp_path / "run", progress=Progress())
    said = capsys.readouterr().out
    lines = [row["in_words"] for row in json.loads(run.too_long_file.read_text())]
    assert lines[0].startswith("1 of 8 prompts exceed the 58 tokens that ")
    assert ": their beginning is cut, " in lines[0]
    assert any("responses to learn exceed the length limit of 6 tokens: their end is cut" in line for line in lines)
    assert said.index(lines[0]) < said.index("round 1 SFT ...")
    assert all(line in said and line in summary(run.path) for line in lines)
    assert read_run(run.path).too_long == tuple(lines)
    assert "1 of 8 prompts exceed" in (run.path / "report.html").read_text()
