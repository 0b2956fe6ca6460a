"""Sample completions: the right numbers at the right tokens, shown where one looks, harmless whatever a model generated."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import move_reference, small_agent, small_ppo
from rich.console import Console

from rlhf_gym.agents import GRPO, PPO, REINFORCE, TRPO, Completions
from rlhf_gym.agents.common.completions import as_table
from rlhf_gym.agents.common.traces import END, Trace, as_columns, token_texts, traces
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import load_tokenizer
from rlhf_gym.loop.report.heat_maps import heat_maps, write_heat_maps

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e[bold]x"


@pytest.mark.parametrize("kind", [PPO, TRPO, GRPO, REINFORCE])
def test_numbers_are_the_rollouts_own(kind: Any) -> None:
    agent = small_agent(kind)
    move_reference(agent)
    agent.learn(1)
    rollout = agent.rollout
    found = traces(agent, 4)
    assert [trace.why for trace in found] == ["first", "first", "best", "worst"]
    scores = [episode.score for episode in rollout.episodes]
    assert [t.score for t in found[:2]] == scores[:2]
    assert (found[2].score, found[3].score) == (max(scores[2:]), min(scores[2:]))
    for row, trace in enumerate(found[:2]):
        n = len(rollout.episodes[row].response_ids)
        assert len(trace.tokens) == n
        assert trace.rewards == rollout.rewards[row, :n].tolist()
        assert sum(trace.rewards) == pytest.approx(trace.score)
        assert trace.advantages == rollout.advantages[row, :n].tolist()
        assert any(trace.advantages)
        kls = rollout.log_probs[row, :n] - rollout.reference_log_probs[row, :n]
        torch.testing.assert_close(torch.tensor(trace.kls), kls)
        assert trace.kl == pytest.approx(float(kls.sum()), abs=1e-5)
        assert abs(trace.kl) > 1e-3
        assert (trace.values is None) == (kind in (GRPO, REINFORCE))
        if trace.values is not None:
            assert trace.values == rollout.values[row, :n].tolist()
        assert (trace.tokens[-1] == END) == (rollout.episodes[row].response_ids[-1] == agent.policy.limits.eos_id)
        assert "".join(trace.tokens).removesuffix(END) == trace.response


def test_there_is_nothing_before_the_first_iteration() -> None:
    with pytest.raises(ConfigError, match="before the first iteration"):
        traces(small_ppo())
    agent = small_ppo()
    agent.learn(1)
    with pytest.raises(ConfigError, match="count must be at least 1"):
        traces(agent, 0)
    assert len(traces(agent, 1000)) == len(agent.rollout.episodes)  # type: ignore[union-attr]


def test_characters_of_several_tokens_stand_at_their_last() -> None:
    tokenizer = load_tokenizer("embedded")
    ids = tokenizer.encode("naïve 電 film")
    texts = token_texts([*ids, tokenizer.eos_id], tokenizer)
    assert len(texts) == len(ids) + 1
    assert texts[-1] == END
    assert "".join(texts[:-1]) == tokenizer.decode(ids)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)


def trace(**changes: Any) -> Trace:
    plain: dict[str, Any] = {
        "why": "first", "prompt": "p", "response": "ab", "score": 1.0, "kl": 0.3, "ended": True, "terms": {"x": 2.0},
        "tokens": ["a", "b"], "rewards": [0.0, 1.0], "advantages": [-1.0, 0.5], "kls": [0.1, 0.2], "values": [0.4, 0.8],
    }  # fmt: skip
    return Trace(**(plain | changes))


def test_the_callback_looks_at_the_first_every_few_and_the_last(tmp_path: Path) -> None:
    out = io.StringIO()
    file = tmp_path / "new" / "completions.jsonl"
    callback = Completions(every=3, count=2, console=Console(file=out, width=100), file=file)
    agent = small_ppo()
    agent.learn(8 * 6 * 5, callback=callback)
    shown = sorted({json.loads(line)["iteration"] for line in file.read_text().splitlines()})
    assert shown[:2] == [1, 3]
    assert shown[-1] == agent.iteration
    assert all(i in (1, agent.iteration) or i % 3 == 0 for i in shown)
    assert len(file.read_text().splitlines()) == 2 * len(shown)
    assert f"iteration {agent.iteration}" in out.getvalue()
    first = json.loads(file.read_text().splitlines()[0])
    assert len(first["tokens"]) == len(first["advantages"]) == len(first["kls"])
    for bad in ({"every": 0}, {"count": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            Completions(**bad)


def test_weights_and_biases_gets_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    agent = small_ppo()
    with pytest.raises(ConfigError, match=r"call wandb\.init"):
        agent.learn(1, callback=Completions(console=False, wandb=True))
    with wandb.init(project="test", mode="offline", dir=str(tmp_path), settings=wandb.Settings(console="off")):
        small_ppo().learn(1, callback=Completions(count=2, console=False, wandb=True))
    [file] = tmp_path.glob("wandb/offline-run-*/files/media/table/completions_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"][:7] == ["why", "prompt", "response", "score", "kl", "tokens", "ended"]
    assert len(table["data"]) == 2


def test_nothing_that_a_model_generated_moves_the_cursor_or_runs(tmp_path: Path) -> None:
    hostile = trace(prompt=HOSTILE, response=HOSTILE, tokens=[HOSTILE, "b"])
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True, color_system=None).print(as_table([hostile], "t"))
    assert "\x1b[31m" not in out.getvalue()
    assert "\u202e" not in out.getvalue()
    assert "[bold]x" in out.getvalue()
    assert len(out.getvalue().splitlines()) == 3  # title, names, and a line a completion
    write_heat_maps(tmp_path / "maps.html", [hostile], title=HOSTILE)
    page = (tmp_path / "maps.html").read_text()
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "U+202E" in page


def test_shades_share_one_scale_over_iterations() -> None:
    before = trace(values=None, advantages=[-1.0, 0.1], rewards=[0.0, 0.0])
    after = trace(advantages=[2.0, -2.0])
    first, last = heat_maps({"one": [asdict(before)], "two": [asdict(after)]})
    strips = {strip.name: [cell.shade for cell in strip.cells] for strip in first.maps[0].strips}
    assert strips == {"reward": [0, 0], "advantage": [-2, 0], "KL": [2, 3]}  # -1 of 2 is half way: -1.5
    strips = {strip.name: [cell.shade for cell in strip.cells] for strip in last.maps[0].strips}
    assert strips["advantage"] == [3, -3]
    assert "value" in strips
    assert heat_maps({}) == []
    broken = {"tokens": ["a"], "rewards": [1.0, 2.0], "kls": ["x"], "values": None}
    [look] = heat_maps({"cut": [broken]})
    assert [strip.name for strip in look.maps[0].strips] == ["KL"]


def test_columns_take_all_terms() -> None:
    names, rows = as_columns([trace(), trace(terms={"y": 3.0})])
    assert names[7:] == ["x", "y"]
    assert [row[7:] for row in rows] == [[2.0, None], [None, 3.0]]


def test_any_environment_may_be_looked_at() -> None:
    agent = small_ppo(collect="step")
    agent.learn(1)
    assert all(len(t.tokens) == len(t.rewards) for t in traces(agent, 3))
