"""Rewards by name, from files and from YAML; the built-in rewards."""

from __future__ import annotations

import json
import re
import runpy
import sys
import textwrap
from pathlib import Path

import pytest

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import CachedReward, FillOnError, reward_state, score
from rlhf_gym.rewards.builtin.text_statistics import syllables
from rlhf_gym.rewards.service.overlap import is_slow
from rlhf_gym.rewards.spec import BUILT_IN, load_reward


def one(spec, response, prompt="p", options=None, **columns):
    reward = load_reward(spec, **(options or {}))
    return score(reward, [prompt], [response], {k: [v] for k, v in columns.items()}).values[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "neighbour.py").write_text("BONUS = 10\n")
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            from neighbour import BONUS

            def count(prompts, responses, letter="a"):
                return [r.count(letter) + BONUS for r in responses]

            class Counter:
                def __init__(self, letter):
                    self.letter = letter
                def __call__(self, prompts, responses):
                    return [r.count(self.letter) for r in responses]

            class NoReward:
                pass

            number = 3
            """
        )
    )
    return tmp_path


def test_a_function_or_class_in_a_file(folder, monkeypatch):
    assert one(f"{folder}/mine.py:count", "banana") == 13
    assert one(f"{folder}/mine.py:count", "banana", options={"letter": "n"}) == 12
    assert one(f"{folder}/mine.py:Counter", "banana", options={"letter": "b"}) == 1
    monkeypatch.chdir(folder)
    assert one("mine.py:count", "banana") == 13


def test_two_files_of_one_name(folder):
    (folder / "other").mkdir()
    (folder / "other" / "mine.py").write_text("def count(prompts, responses):\n    return [0.0] * len(responses)\n")
    assert one(f"{folder}/mine.py:count", "a") == 11
    assert one(f"{folder}/other/mine.py:count", "a") == 0


def test_a_module_in_the_present_folder(folder, monkeypatch):
    (folder / "only_here.py").write_text("def f(prompts, responses):\n    return [7.0] * len(responses)\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    assert one("only_here:f", "x") == 7


def test_an_installed_module():
    assert one("rlhf_gym.rewards.builtin.text_statistics:Length", "a b") == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lenght", "there is no reward 'lenght'; did you mean 'length'?"),
        ("nothing_like_it", "there is no reward 'nothing_like_it'"),
        ("", "a text or a mapping, got ''"),
        ("nowhere.py:f", "there is no file 'nowhere.py'"),
        ("mine.py", "write mine.py:NAME"),
        ("{folder}/mine.py:cuont", "there is no 'cuont' in {folder}/mine.py; did you mean 'count'?"),
        ("{folder}/mine.py:number", "is of type int, expected a function"),
        ("{folder}/mine.py:NoReward", "give the class a __call__"),
        ("{folder}/mine.py:Counter", "needs the option 'letter'. It takes letter"),
        ("no_such_module_:f", "there is no module 'no_such_module_'"),
        ("{folder}/broken.py:f", "SyntaxError: invalid syntax [broken.py, line 1]"),
        ("{folder}/absent.yaml", "there is no reward file"),
        ("{folder}/list.yaml", "must hold a mapping"),
        ({"reward": "length", "sum": []}, "exactly one of the keys"),
        ({"unit": "words"}, "exactly one of the keys"),
        ({"sum": []}, "needs a list of rewards"),
        ({"sum": ["length"], "wieght": 1}, "unknown keys 'wieght'"),
        ({"sum": [{"reward": "length", "weight": "high"}]}, "weight must be a number, got 'high'"),
        ({"minimum": [{"reward": "length", "weight": 2}]}, "weights belong to a sum"),
        ({"reward": "length", "clip": 3}, "clip must be"),
        ({"reward": "length", "per_word": "no"}, "per_word must be true or false, got 'no'"),
        ({"reward": "length", "unit": "word"}, "did you mean 'words'"),
        ({"reward": "length", "units": "words"}, "has no option 'units'; did you mean 'unit'? It takes unit, target"),
        ({"reward": "length", "wieght": 2}, "did you mean 'weight'?"),
        ("{{reward: length", "the reward in braces, line 1"),
        ("{{}}", "exactly one of the keys"),
        ("regex", "did you mean 'format'?"),
        ("qwertz", "there is no reward 'qwertz'. Expected one of sentiment,"),
        ({"constrained": {"objective": "length", "constraint": "length", "level": 1}, "cache": True}, "cache: a cache is for"),
        ({"reward": "format", "pattern": "("}, "not a regular expression"),
        ({"reward": "contains_words", "words": ["!"]}, "letters or digits"),
        ({"reward": "repetition", "n": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_specifications_that_are_wrong(folder, spec, message):
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "list.yaml").write_text("- a\n")
    if isinstance(spec, str):
        spec = spec.format(folder=folder)
    with pytest.raises(ConfigError, match=re.escape(message.replace("{folder}", str(folder)))):
        load_reward(spec)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' [mine.py, line 1]"),
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero [mine.py, line 2]"),
        ("raise SystemExit(5)\n", "SystemExit: 5"),
        ("def f(:\n", "SyntaxError: invalid syntax [mine.py, line 1]"),
    ],
)
def test_a_file_that_breaks_is_one_line(tmp_path, code, message):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_reward(f"{tmp_path}/mine.py:f")
    assert "\n" not in str(caught.value)


def test_a_mapping_on_the_command_line():
    reward = load_reward("{sum: [{reward: length, unit: characters}, {reward: length, weight: 10}]}")
    assert score(reward, ["p"], ["ab c"]).values.tolist() == [24]


def test_yaml(folder):
    (folder / "reward.yaml").write_text(
        textwrap.dedent(
            f"""
            sum:
              - {{reward: length, name: words, weight: -0.5, clip: [0, 3]}}
              - {{reward: {folder}/mine.py:count, letter: n}}
              - minimum: [length, {{reward: repetition, n: 1}}]
                weight: 2
            """
        )
    )
    scored = score(load_reward(f"{folder}/reward.yaml"), ["p"], ["banana banana x y"])
    assert {name: v[0] for name, v in scored.terms.items() if name.endswith("_weighted")} == {
        "words_weighted": -1.5,
        "count_weighted": 14,
        "minimum_weighted": 0.5,
    }
    assert scored.values[0] == 13


def test_yaml_pieces():
    assert one({"reward": "length", "above": 2}, "a b") == 1
    assert one({"reward": "length", "per_word": True}, "a b c") == 1
    assert one({"product": ["length", "length"]}, "a b c") == 9
    assert (
        one({"ensemble": ["length", {"reward": "length", "unit": "characters"}], "variance_weight": 1}, "a b") == 2.25
    )
    assert one({"sum": ["length"], "clip": [0, 1]}, "a b") == 1


def test_every_combinator_in_yaml(folder):
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps({"prompt": "p", "response": "a " * n}) + "\n" for n in (1, 3))
    )
    gate = {"gate": {"when": {"reward": "length"}, "reward": "repetition", "level": 3, "otherwise": -5}}
    assert one(gate, "a b") == -5
    assert one(gate, "a b a") == 0
    held = {
        "constrained": {"objective": "repetition", "constraint": "length", "level": 4, "multiplier": 1, "rate": 0.5}
    }
    assert one(held, "a b") == (0 + 1 * (2 - 4)) / 2
    learned = load_reward(held)
    score(learned, ["p"], ["a b"])
    assert reward_state(learned) == [{"name": "constrained", "state": {"multiplier": 2.0}}]
    assert one({"reward": "length", "standardise": str(folder / "samples.jsonl")}, "a a a") == 1
    assert one({"reward": "length", "running": True}, "a a a") == 0
    assert one({"reward": "length", "running": {"shift": False, "clip": 2}}, "a a a") == 2
    assert one({"reward": "length", "schedule": [[0, 0.5], [10, 1]]}, "a a a") == 1.5
    assert one({"reward": "length", "cache": True}, "a a a") == 3
    cached = load_reward({"reward": "length", "cache": 7, "clip": [0, 2]})
    assert cached.parts[0].reward.size == 7
    (folder / "fails.py").write_text("def fails(prompts, responses):\n    raise RuntimeError('no')\n")
    filled = {"reward": f"{folder}/fails.py:fails", "on_error": {"fill": -1}, "name": "mine"}
    scored = score(load_reward({"sum": [filled]}), ["p"], ["r"])
    assert scored.values.tolist() == [-1]
    assert scored.terms["fails_failed"].tolist() == [1]
    assert scored.terms["mine_weighted"].tolist() == [-1]
    # The cache first, then what replaces failures: a failure is never cached.
    both = load_reward({"reward": "length", "on_error": {"fill": 0}, "cache": True})
    assert isinstance(both.reward, FillOnError)
    assert isinstance(both.reward.reward, CachedReward)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"gate": {"when": "length"}}, "gate needs the rewards when and reward"),
        ({"gate": {"when": "length", "reward": "nothing"}}, "gate.reward: there is no reward 'nothing'"),
        ({"gate": {"when": "length", "reward": "length", "levle": 1}}, "gate: "),
        ({"gate": {"when": "length", "reward": "length"}, "weight": 1}, "'gate' has the unknown keys 'weight'"),
        ({"sum": ["length", {"product": ["length", {"reward": "lenght"}]}]}, "sum[1].product[1]: there is no reward"),
        ({"sum": [{"reward": "length", "clip": [2, "b"]}]}, "sum[0]: clip must be a number, got 'b'"),
        ({"sum": ["length"], "clp": [0, 1]}, "did you mean 'clip'?"),
        ({"constrained": {"objective": "length", "constraint": "length"}}, "constrained: "),
        ({"constrained": {"objective": "length", "constraint": "length", "level": 1, "rate": -1}}, "rate above 0"),
        ({"reward": "length", "schedule": [[5, 1], [1, 2]]}, "ascending samples"),
        ({"reward": "length", "schedule": 3}, "schedule must be a list"),
        ({"reward": "length", "on_error": "fill"}, "on_error must be raise, skip, {fill"),
        ({"reward": "length", "cache": -1}, "size must be at least 1"),
        ({"reward": "length", "standardise": "absent.jsonl"}, "standardise: there is no file 'absent.jsonl'"),
    ],
)
def test_combinators_that_are_wrong_name_their_place(spec, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_reward(spec)


def test_slow_in_yaml():
    assert not is_slow(load_reward("length"))
    assert is_slow(load_reward({"reward": "length", "slow": True, "name": "far", "clip": [0, 1]}))
    assert is_slow(load_reward({"sum": ["repetition", {"reward": "length", "slow": True}]}))
    denied = load_reward({"sum": [{"reward": "length", "slow": True}], "slow": False})
    assert not is_slow(denied)
    assert score(denied, ["p"], ["a b"]).values.tolist() == [2]
    with pytest.raises(ConfigError, match=r"sum\[0\]: slow must be true or false, got 'yes'"):
        load_reward({"sum": [{"reward": "length", "slow": "yes"}]})


def test_length():
    assert one("length", "") == 0
    assert one("length", " one  two\nthree ") == 3
    assert one("length", "héllo", options={"unit": "characters"}) == 5
    assert one("length", "a b c", options={"target": 2}) == -0.5
    assert one("length", "", options={"target": 2}) == -1


def test_repetition():
    assert one("repetition", "a b c d") == 0
    assert one("repetition", "a b") == 0
    assert one("repetition", "a b c a b c") == pytest.approx(1 / 4)
    assert one("repetition", "a a a a", options={"n": 1}) == 0.75


def test_format():
    pattern = r"<answer>.*</answer>"
    assert one("format", " <answer>1\n2</answer>\n", options={"pattern": pattern}) == 1
    assert one("format", "so <answer>1</answer>", options={"pattern": pattern}) == 0
    assert one("format", "so <answer>1</answer>", options={"pattern": pattern, "whole": False}) == 1


def test_contains_words():
    wanted = {"words": ["art", "New York"]}
    assert one("contains_words", "A party in new york.", options=wanted) == 0.5
    assert one("contains_words", "ART!", options=wanted | {"mode": "any"}) == 1
    assert one("contains_words", "art in York New", options=wanted | {"mode": "all"}) == 0
    assert one("contains_words", "Größe", options={"words": "größe"}) == 1
    assert one("contains_words", "", options=wanted) == 0


def test_exact_match():
    assert one("exact_match", "The  Answer!", reference="answer") == 1
    assert one("exact_match", "answers", reference="answer") == 0
    assert one("exact_match", " 42 ", reference=42) == 1
    assert one("exact_match", "b", reference=["a", "b"]) == 1
    assert one("exact_match", "The answer", options={"normalise": False}, reference="answer") == 0
    assert one("exact_match", "x", options={"column": "label"}, label="x") == 1
    with pytest.raises(RewardError, match="needs the column 'reference'; the data have 'label'"):
        one("exact_match", "x", label="x")


def test_readability():
    easy = one("readability", "The cat sat on the mat. It was a big cat.")
    hard = one("readability", "Institutional considerations necessitate comprehensive organisational evaluation.")
    assert easy == pytest.approx(206.835 - 1.015 * 11 / 2 - 84.6 * 1)
    assert hard < 0 < easy
    assert one("readability", "") == 0
    assert [syllables(w) for w in ("film", "movie", "made", "table", "wanted", "rhythm", "x")] == [1, 2, 1, 2, 2, 1, 1]


LIBRARIES = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu", "vader": "vaderSentiment",
             "json_schema": "jsonschema", "profanity": "glin_profanity", "language": "py3langid"}  # fmt: skip


def test_metrics_against_a_reference():
    for name in ("rouge", "bleu", "chrf"):
        pytest.importorskip(LIBRARIES[name])
        text = "the film is a quiet triumph"
        assert one(name, text, reference=text) == pytest.approx(1)
        assert one(name, text, reference=["something else", text]) == pytest.approx(1)
        assert one(name, "", reference=text) == 0
        assert 0 < one(name, "the film is a loud mess", reference=text) < 0.9
        with pytest.raises(RewardError, match=f"'{name}' got 3 as the reference of sample 0"):
            one(name, text, reference=3)
    assert one("rouge", "a b x", reference="a b", options={"kind": "rouge1"}) == pytest.approx(0.8)
    with pytest.raises(ConfigError, match="rouge1 to rouge9"):
        load_reward("rouge", kind="rouge0")


def test_vader():
    pytest.importorskip("vaderSentiment")
    assert one("vader", "a wonderful, brilliant film") > 0.5
    assert one("vader", "a terrible film") < -0.3


def test_json_schema():
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "required": ["a"]}
    assert one("json_schema", '{"a": 1}', options={"schema": schema}) == 1
    assert one("json_schema", '{"b": 1}', options={"schema": schema, "parses": 0.25}) == 0.25
    assert one("json_schema", "not json", options={"schema": schema}) == 0
    assert one("json_schema", "[" * 100_000, options={"schema": schema}) == 0
    assert one("json_schema", '{"a": 1}', schema=schema) == 1
    with pytest.raises(ConfigError, match="needs a JSON schema"):
        load_reward("json_schema", schema={"type": "nonsense"})


def test_libraries_that_are_missing(monkeypatch):
    for name, module in LIBRARIES.items():
        for known in [m for m in sys.modules if m.split(".")[0] == module]:
            monkeypatch.setitem(sys.modules, known, None)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf"reward '{name}' needs .*pip install 'rlhf-gym\[metrics\]'"):
            load_reward(name)


def test_every_built_in_is_there():
    models = {"classifier", "reward_model", "toxicity", "sentiment_classifier", "judge", "per_token", "steps"}
    models |= {"process_reward_model"}
    assert models < set(BUILT_IN)  # they have tests of their own
    for name in set(BUILT_IN) - models:
        if library := {**LIBRARIES, "math": "math_verify"}.get(name):
            pytest.importorskip(library)
        load_reward(
            name, **({"pattern": "x"} if name == "format" else {"words": ["x"]} if name == "contains_words" else {})
        )


def test_the_example(capsys):
    example = Path(__file__).parent.parent / "examples" / "custom_reward.py"
    runpy.run_path(str(example), run_name="__main__")
    shown = capsys.readouterr().out
    assert "repetition_weighted" in shown
    assert "a random episode earned" in shown
    assert one(f"{example}:politeness", "Thank you, sorry") == 2
