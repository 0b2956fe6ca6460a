"""Engines: responses by other means than the built-in decoder, by the same rules, with known weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from completions_server import ADAPTER_PATHS, PATHS, CompletionsServer, RefusalError, serving
from held_port import held_port
from ppo_setups import assert_same_weights, learn, letters_env, small_agent, small_ppo, weights
from stable_baselines3.common.vec_env import VecMonitor
from tiny_models import LetterTokenizer, tiny_language_model, tiny_seq2seq
from tiny_run import metrics_table, save_tiny_model, tiny_settings

from rlhf_gym.agents import GRPO, NLPO, PPO
from rlhf_gym.agents.common.rollout import flat
from rlhf_gym.cli.parser import make_parser
from rlhf_gym.errors import ConfigError, EngineError, RewardError
from rlhf_gym.lm.engines.comparison import compare
from rlhf_gym.lm.engines.completions_engine import CompletionsEngine
from rlhf_gym.lm.engines.engine import ResponseReader, ResponseSettings
from rlhf_gym.lm.engines.find_engine import find_engine
from rlhf_gym.lm.engines.served_folder import save_uniform, save_untied, shared_output
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop

PROMPTS = [[2, 3, 4], [5, 6], [7], [3, 3, 3, 3], [9, 8]]


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with serving(tiny_language_model(scale=3.0)) as one:
        yield one


def engine_at(server: CompletionsServer, **options: Any) -> CompletionsEngine:
    return CompletionsEngine(f"vllm:{server.url}", server.url, **({"patience": 0.0} | options))


def settings_of(model: LanguageModel, **limits: Any) -> ResponseSettings:
    return ResponseSettings(replace(Limits.of(model.tokenizer), **({"max_new_tokens": 8} | limits)))


def ppo_at(server: CompletionsServer, **options: Any) -> PPO:
    return small_ppo(engine=f"vllm:{server.url}", scale=3.0, **({"engine_patience": 0.0} | options))


def test_ppo_learns_from_a_server_that_follows_its_weights(server: CompletionsServer) -> None:
    seen = []

    class Watching(PPO):
        def prepare(self, rollout: Any) -> None:
            super().prepare(rollout)
            seen.append(rollout)

    agent = small_agent(Watching, engine=f"vllm:{server.url}", scale=3.0, engine_patience=0.0)
    rows = learn(agent, None, iterations=3)  # type: ignore[arg-type]
    assert [[e.version for e in rollout.episodes] for rollout in seen] == [[i] * 16 for i in range(3)]
    for row in rows:
        assert row["mismatch/log_prob_difference"] < 1e-5
        assert (row["engine/stale"], row["engine/resent"], row["engine/reloads"]) == (0, 0, 0)
        assert row["time/weights_seconds"] > 0
    labels = [body["new_version"] for body in server.bodies("/update_weight_version")]
    assert [label.split("-")[3] for label in labels[1:]] == ["0", "1", "2"]
    assert labels[0] == "rlhf-gym-probe"
    seeds = [body["seed"] for body in server.bodies("/v1/completions")]
    assert len(seeds) == 1 + 4 + 3 * 16  # the probe, the comparison, each response once
    assert len(set(seeds[5:])) == 48
    # The values, which no engine gives, are those of the value head before each token.
    assert float(flat(seen[0].values, range(16), seen[0].mask).abs().sum()) > 0
    assert not list(Path(agent.rollout_engine.engine._folder).glob("*-0-*"))
    agent.rollout_engine.engine.close()
    assert not agent.rollout_engine.engine._folder.exists()


def test_a_group_has_one_prompt_and_different_responses(server: CompletionsServer) -> None:
    agent = small_agent(
        GRPO, engine=f"openai:{server.url}/v1", scale=3.0, group_size=4, old_log_probs="recompute",
        importance_sampling="token_truncate",
    )  # fmt: skip
    [row] = learn(agent, None, iterations=1)  # type: ignore[arg-type]
    episodes = agent.rollout.episodes
    assert len({tuple(e.prompt_ids) for e in episodes[:4]}) == 1
    assert len({tuple(e.response_ids) for e in episodes[:4]}) > 1
    assert row["mismatch/ratio"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("limits", "sampling", "stop"),
    [
        ({}, Sampling(), ()),
        ({"min_new_tokens": 5}, Sampling(0.6), ()),
        ({"suppress_tokens": (1, 4, 5)}, Sampling(1.5, 20), ()),
        ({}, Sampling(1.0, 0, 0.7), ("c", "ab")),
    ],
)
def test_settings_mean_what_they_mean_to_the_built_in_engine(
    server: CompletionsServer, limits: dict[str, Any], sampling: Sampling, stop: tuple[str, ...]
) -> None:
    model = server.first
    settings = replace(settings_of(model, **limits), sampling=sampling, stop=stop)
    names = [f"vllm:{server.url}", "builtin"] + ["transformers"] * ("min_new_tokens" not in limits)
    for name in names:
        engine = find_engine(name)
        engine.load_weights(model, 3)
        assert compare(engine, model, PROMPTS, settings, most=0.01) < 1e-5, name
        responses = engine.generate(PROMPTS * 4, settings, seed=1, episodes=range(20))
        again = engine.generate(PROMPTS * 4, settings, seed=1, episodes=range(20))
        assert [r.ids for r in again] == [r.ids for r in responses]
        own = response_log_probs(model, PROMPTS * 4, [r.ids for r in responses], sampling, settings.limits)
        for response, expected in zip(responses, own, strict=True):
            torch.testing.assert_close(torch.tensor(response.log_probs), expected, atol=1e-4, rtol=1e-4)
            assert response.version == 3
            assert not set(response.ids) & set(settings.limits.suppress_tokens)
            text = model.tokenizer.decode(response.ids)
            ended = response.ids[-1] in settings.limits.eos_ids or any(s in text for s in stop)
            assert response.ended == ended
            assert ended or len(response.ids) == 8
            assert len(response.ids) >= limits.get("min_new_tokens", 0)
            assert not any(s in response.text for s in stop)
        assert len({len(r.ids) for r in responses}) > 1
        engine.close()


def test_a_server_that_dies_and_comes_back_without_its_weights(server: CompletionsServer) -> None:
    """Responses are drawn anew with the right weights, and are those that would have come without the death."""
    plain = ppo_at(server)
    learn(plain, None, iterations=2)  # type: ignore[arg-type]
    server.restart()
    answered = []

    def die(body: dict[str, Any]) -> None:
        answered.append(body)
        if len(answered) == 1 + 4 + 16 + 9:  # in the second iteration
            server.restart()
            raise RefusalError(0)

    server.before = die
    agent = ppo_at(server)
    first, second = learn(agent, None, iterations=2)  # type: ignore[arg-type]
    assert first["engine/resent"] == 0
    assert second["engine/reloads"] == 1
    assert second["engine/resent"] == 16
    assert 0 < second["engine/stale"] < 16
    assert [e.version for e in agent.rollout.episodes] == [1] * 16
    assert [e.response_ids for e in agent.rollout.episodes] == [e.response_ids for e in plain.rollout.episodes]
    assert_same_weights(weights(agent), weights(plain))


def test_one_lost_request_is_sent_again_alone(server: CompletionsServer) -> None:
    model, lost = server.first, []

    def lose(body: dict[str, Any]) -> None:
        if not lost:
            lost.append(body)
            raise RefusalError(500, "EngineCore died")

    engine = engine_at(server)
    engine.load_weights(model, 0)
    settings = settings_of(model)
    expected = engine.generate(PROMPTS[:1], settings, seed=0, episodes=[7])
    server.before = lose
    assert engine.generate(PROMPTS[:1], settings, seed=0, episodes=[7]) == expected
    assert engine.metrics() == {"engine/stale": 0, "engine/resent": 1, "engine/reloads": 0}
    assert engine.metrics()["engine/resent"] == 0
    # A server that never works again is given up.
    server.before = lambda body: lose(lost.clear() or body)
    with pytest.raises(EngineError, match=r"status 500: 'EngineCore died' \(0 of 5 responses after 5 attempts\)"):
        engine.generate(PROMPTS, settings, seed=0, episodes=range(5))


def test_two_runs_at_one_server_are_noticed(server: CompletionsServer) -> None:
    one, other = engine_at(server), engine_at(server)
    one.load_weights(server.first, 0)
    other.load_weights(server.first, 0)
    one.generate(PROMPTS, settings_of(server.first), seed=0, episodes=range(5))
    assert one.metrics()["engine/reloads"] == 1
    server.before = lambda body: setattr(server, "version", "another run's")
    with pytest.raises(EngineError, match="changed by somebody else: give each run a server"):
        one.generate(PROMPTS[:1], settings_of(server.first), seed=0, episodes=range(1))
    assert one.metrics()["engine/stale"] == 5


def test_no_server_is_one_line_and_learns_nothing() -> None:
    with held_port() as port:
        agent = small_ppo(engine=f"vllm:http://127.0.0.1:{port}", engine_patience=0.0)
        before = weights(agent)
        with pytest.raises(EngineError, match=r"cannot be reached \(ConnectionRefusedError.*tried for 0 s"):
            agent.learn(iterations=1)
        assert_same_weights(weights(agent), before)


def other_model(server: CompletionsServer) -> str:
    server.ignores_reloads, server.model = True, tiny_language_model(scale=1.0)
    return "goes on with the output layer that it started with|is not the model that learns"


def raw_log_probs(server: CompletionsServer) -> str:
    plain = Sampling()

    def before_temperature(reply: dict[str, Any]) -> None:
        body = reply["request"]
        choice = reply["choices"][0]
        limits = Limits(0, max_new_tokens=64)
        [own] = response_log_probs(server.model, [body["prompt"]], [choice["token_ids"]], plain, limits)
        choice["logprobs"]["token_logprobs"] = own.tolist()

    server.change = before_temperature
    return "start its server with --logprobs-mode processed_logprobs"


def no_ids(server: CompletionsServer) -> str:
    server.change = lambda reply: reply["choices"][0].pop("token_ids")
    return r"returns no ids of the drawn tokens \(return_token_ids\)"


def no_log_probs(server: CompletionsServer) -> str:
    server.change = lambda reply: reply["choices"][0].pop("logprobs")
    return r"returns no log-probabilities"


def no_means(server: CompletionsServer) -> str:
    server.paths = PATHS[:2]
    return "lacks /collective_rpc, .*VLLM_SERVER_DEV_MODE=1"


def no_completions(server: CompletionsServer) -> str:
    server.paths = []
    return "offers no /v1/completions"


def short_context(server: CompletionsServer) -> str:
    def cut(reply: dict[str, Any]) -> None:
        choice = reply["choices"][0]
        choice["token_ids"], choice["finish_reason"] = choice["token_ids"][:1], "length"
        choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:1]

    server.change = cut
    return "without an end: give its server room"


def refuses(server: CompletionsServer) -> str:
    def refuse(body: dict[str, Any]) -> None:
        raise RefusalError(400, "top_k is not supported")

    server.before = refuse
    return "refused /v1/completions with status 400: 'top_k is not supported'"


def ignores_the_ban(server: CompletionsServer) -> str:
    server.change = lambda reply: reply["choices"][0].__setitem__("token_ids", [1] * 8)
    return "drew token 1 at place 0 of a response, against suppress_tokens|came with"


@pytest.mark.parametrize(
    "fault",
    [
        other_model,
        raw_log_probs,
        no_ids,
        no_log_probs,
        no_means,
        no_completions,
        short_context,
        refuses,
        ignores_the_ban,
    ],
)
def test_a_server_that_will_not_do_is_refused_before_anything_is_learned(server: CompletionsServer, fault: Any) -> None:
    agent = ppo_at(server, temperature=0.5)
    before, message = weights(agent), fault(server)
    with pytest.raises(EngineError, match=message) as error:
        agent.learn(iterations=1)
    assert "\n" not in str(error.value)
    assert_same_weights(weights(agent), before)
    assert agent.iteration == 0


def test_an_adapter_is_swapped_and_the_base_stays(server: CompletionsServer) -> None:
    server.paths = [*PATHS, *ADAPTER_PATHS]
    base = tiny_language_model(scale=3.0)
    agent = small_ppo(engine=f"vllm:{server.url}", engine_patience=0.0, language_model=base, lora={"rank": 2})
    died = []

    def die(body: dict[str, Any]) -> None:
        if body["model"].split("-")[3] == "2" and not died:
            died.append(body)
            server.restart()
            raise RefusalError(404, f"The model `{body['model']}` does not exist.")

    server.before = die
    rows = learn(agent, None, iterations=3)  # type: ignore[arg-type]
    assert all(row["mismatch/log_prob_difference"] < 1e-5 for row in rows)
    assert rows[2]["engine/reloads"] == 1
    assert len(server.adapters) == 1
    assert not server.bodies("/collective_rpc")
    # Without these paths the whole model goes, the adapter merged into it.
    server.paths, server.before = PATHS, lambda body: None
    merged = small_ppo(engine=f"vllm:{server.url}", engine_patience=0.0, language_model=base, lora={"rank": 2})
    rows = learn(merged, None, iterations=2)  # type: ignore[arg-type]
    assert all(row["mismatch/log_prob_difference"] < 1e-5 for row in rows)
    assert server.bodies("/collective_rpc")


def test_a_reward_that_fails_ends_the_requests(server: CompletionsServer) -> None:
    engine = engine_at(server)
    engine.load_weights(server.first, 0)

    def fail(done: int) -> None:
        raise RewardError("the reward failed")

    with pytest.raises(RewardError):
        engine.generate(PROMPTS, settings_of(server.first), seed=0, episodes=range(5), on_progress=fail)


def test_a_stop_sequence_of_the_servers_own_is_gone_on_from(server: CompletionsServer) -> None:
    """Where the server ends a response at a text that is no stop sequence of ours, the rest is asked for."""
    asked = []

    def early(reply: dict[str, Any]) -> None:
        asked.append(server.bodies("/v1/completions")[-1])
        choice = reply["choices"][0]
        if len(asked) == 1:
            choice["token_ids"], choice["finish_reason"] = choice["token_ids"][:2], "stop"
            choice["logprobs"]["token_logprobs"] = choice["logprobs"]["token_logprobs"][:2]

    server.change = early
    engine = engine_at(server)
    engine.load_weights(server.first, 0)
    asked.clear()
    settings = replace(settings_of(server.first, min_new_tokens=8), stop=("zzz",))
    [response] = engine.generate(PROMPTS[:1], settings, seed=0, episodes=[0])
    assert len(response.ids) == 8
    assert (asked[1]["prompt"], asked[1]["max_tokens"], asked[1]["min_tokens"]) == (
        [*PROMPTS[0], *response.ids[:2]],
        6,
        6,
    )
    assert "stop" not in asked[1]


def test_what_an_engine_cannot_do_is_refused_by_name() -> None:
    url = "vllm:http://127.0.0.1:9"
    with pytest.raises(ConfigError, match="leave collect='step' out"):
        small_ppo(engine=url, collect="step")
    with pytest.raises(ConfigError, match="must be stepped token by token"):
        small_ppo(VecMonitor(letters_env()), engine=url)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        small_ppo(engine=url, language_model=tiny_seq2seq())
    with pytest.raises(ConfigError, match=r"bias of -100, which a temperature above 4 weakens: got 5"):
        small_ppo(engine=url, temperature=5.0)
    with pytest.raises(ConfigError, match="cannot keep responses from ending before min_new_tokens=3"):
        small_ppo(engine="transformers", task={"minimum": 3})
    with pytest.raises(ConfigError, match="NLPO has no engine"):
        small_agent(NLPO, engine=url)
    with pytest.raises(ConfigError, match=r"no engine 'vlm'; did you mean 'vllm'\? Expected one of builtin"):
        small_ppo(engine="vlm")
    with pytest.raises(ConfigError, match="needs the http:// or https:// address"):
        small_ppo(engine="vllm:localhost:8000")
    with pytest.raises(ConfigError, match="RLHF_GYM_ENGINE_KEY"):
        small_ppo(engine="openai:http://me:secret@localhost:8000")
    with pytest.raises(ConfigError, match="no subclass of"):
        small_ppo(engine="collections:OrderedDict")
    with pytest.raises(ConfigError, match=r"needs vllm in this environment .*vllm:http://host:port"):
        small_ppo(engine="vllm")


def test_vllm_in_a_process_is_refused_where_several_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    engine, model = find_engine("vllm"), tiny_language_model()
    engine.refuse(model, settings_of(model))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    with pytest.raises(ConfigError, match="8 learn together: start a server, and give engine vllm:http://host:port"):
        engine.refuse(model, settings_of(model))
    engine.close()


def test_transformers_generates_in_this_process() -> None:
    rows = learn(small_ppo(engine="transformers", scale=3.0), None, iterations=1)  # type: ignore[arg-type]
    assert all(row["mismatch/log_prob_difference"] < 1e-5 for row in rows)
    # The noise of training is its own.
    torch.manual_seed(0)
    expected = torch.rand(1)
    engine, model = find_engine("transformers"), tiny_language_model()
    torch.manual_seed(0)
    engine.load_weights(model, 0)
    engine.generate(PROMPTS, settings_of(model), seed=0, episodes=range(5))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers_generates_in_the_precision_of_products(kind: str) -> None:
    """Weights are rounded, once for each version; rotary frequencies, which are a buffer, are not."""
    model, engine = tiny_language_model(kind, scale=3.0), find_engine("transformers")
    model.product_dtype = torch.bfloat16
    rounded: list[torch.nn.Module] = []
    for version in range(2):
        with torch.no_grad():
            for weight in model.model.parameters():
                weight *= 1.1
        engine.load_weights(model, version)
        rounded.append(engine._rounded)
        for mine, weight in zip(engine._rounded.parameters(), model.model.parameters(), strict=True):
            assert torch.equal(mine, weight.bfloat16())
        for mine, buffer in zip(engine._rounded.buffers(), model.model.buffers(), strict=True):
            assert torch.equal(mine, buffer)
        compared = compare(engine, model, PROMPTS, settings_of(model), most=0.1)
        assert 1e-5 < compared < 0.05  # it is not float32 that generates
    assert rounded[0] is rounded[1]
    engine.close()
    assert engine._rounded is None


def test_a_reader_refuses_tokens_that_the_settings_forbid() -> None:
    model = tiny_language_model()
    limits = Limits(1, (0,), 2, 4)
    reader = ResponseReader("mine", model, ResponseSettings(limits))
    good = reader.read([3], [5, 6, 1, 7], [-1.0] * 4, 2)
    assert good is not None
    assert (good.ids, good.ended, good.version) == ([5, 6, 1], True, 2)
    assert reader.read([3], [5, 6], [-1.0] * 2, 2) is None
    for ids, why in (([5, 0], "suppress_tokens"), ([5, 1], "min_new_tokens=2"), ([5, 99], "logits")):
        with pytest.raises(EngineError, match=f"drew token {ids[1]} at place 1.*{why}"):
            reader.read([3], ids, [-1.0] * 2, 2)
    with pytest.raises(EngineError, match="2 tokens came with 1 finite"):
        reader.read([3], [5, 6], [-1.0, float("nan")], 2)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_folder_with_an_output_layer_of_its_own_is_the_same_model(kind: str, tmp_path: Path) -> None:
    model = tiny_language_model(kind, scale=3.0)
    save_untied(model, tmp_path)
    again = LanguageModel.load(str(tmp_path), tokenizer=LetterTokenizer())
    ids = torch.tensor([[2, 3, 4]])
    torch.testing.assert_close(again.logits(again.hidden(ids)), model.logits(model.hidden(ids)))
    network: Any = again.model
    assert network.get_output_embeddings().weight is not network.get_input_embeddings().weight
    if kind == "llama":  # it has an output layer of its own as it is
        assert shared_output(model) is None
        return
    save_uniform(model, tmp_path / "uniform")
    uniform = LanguageModel.load(str(tmp_path / "uniform"), tokenizer=LetterTokenizer())
    logits = uniform.logits(uniform.hidden(ids))
    torch.testing.assert_close(logits.log_softmax(-1), torch.full_like(logits, -math.log(28)))
    # The output layer that the server started with would tell the tokens apart.
    stale = model.logits(uniform.hidden(ids)).detach().log_softmax(-1)
    assert float((stale + math.log(28)).abs().max()) > 0.1


def test_a_run_asks_for_its_engine_first_and_trains_by_it(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    settings = tiny_settings(folder, reward_model={"enabled": False}, agent={"iterations": 2, "engine_patience": 0})
    with held_port() as port:
        settings["agent"]["engine"] = f"vllm:http://127.0.0.1:{port}"
        with pytest.raises(EngineError, match="cannot be reached"):
            run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
        assert not (tmp_path / "run").exists()  # nothing was loaded or asked
    with serving(LanguageModel.load(str(folder))) as server:
        parsed = vars(make_parser().parse_args(["run", "--engine", f"vllm:{server.url}"]))
        settings["agent"]["engine"] = parsed["agent.engine"]
        run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
        header, *rows = [line.split(",") for line in metrics_table(run.path).splitlines()]
        assert [float(row[header.index("engine/stale")]) for row in rows] == [0, 0]
        assert all(float(row[header.index("mismatch/log_prob_difference")]) < 1e-4 for row in rows)
        assert len(server.bodies("/v1/completions")) >= 16
