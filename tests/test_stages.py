"""Every stage of the loop by itself, from the command line: sft, train-preferences, label, eval, export."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import save_tiny_model

from rlhf_gym.cli.main import main
from rlhf_gym.errors import FeedbackError, TaskError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.exchange.files import import_into
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.config import AgentConfig
from rlhf_gym.loop.given_data import Given
from rlhf_gym.loop.metrics_table import MetricsTable
from rlhf_gym.loop.model_evaluation import Measured, pass_at_k
from rlhf_gym.loop.read_given import read_given
from rlhf_gym.loop.run_directory import RunDirectory

QUICK = ["--device", "cpu", "--quiet", "--set", "run.threads=1", "--set", "agent.checkpoint_every=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": f"Film {i}:", "chosen": f" good {i % 3}", "rejected": f" bad {i % 2}"} for i in range(20)]
    rows += [rows[0], {"prompt": "Film 21:", "chosen": " same", "rejected": " same"}]
    rows += [{"prompt": "word " * 70, "chosen": " a", "rejected": " b"}]  # beyond the context of 64 tokens
    return written(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def output(*arguments: str | Path) -> str:
    """What a command prints that ends well."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([str(a) for a in arguments]) == 0
    return printed.getvalue()


def error(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rlhf-gym: ")
    assert said.count("\n") == 1
    return said


@pytest.fixture(scope="module")
def tuned(model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train-preferences`."""
    out = tmp_path_factory.mktemp("stages") / "dpo"
    printed = output(
        "train-preferences", pairs, "--loss", "dpo", "--beta", "0.2", "--model", model, "--out", out, "--passes", 2,
        "--learning-rate", 0.01, *QUICK,
    )  # fmt: skip
    assert "prefers the chosen response in" in printed
    assert "gold" not in printed  # nothing was scored
    assert not (out / "round-1" / "completions.jsonl").exists()
    return out


def test_preferences_are_learned_from_in_a_run(tuned: Path, capsys: pytest.CaptureFixture[str], pairs: Path) -> None:
    rows = MetricsTable(RunDirectory(tuned).metrics_file).rows
    # 16 of 20 pairs are not held out: 32 responses an iteration, two passes.
    assert len(rows) == 2
    assert float(rows[-1]["train/loss"]) < float(rows[0]["train/loss"])
    assert json.loads((tuned / "round-1" / "held_out.json").read_text())["n"] == 4
    evaluation = json.loads((tuned / "evaluation.json").read_text())
    assert evaluation["n"] == 4
    assert "win_rate" not in evaluation
    assert (tuned / "report.html").exists()
    assert "holds a run already" in error(capsys, "train-preferences", pairs, "--out", tuned) or "already" in error(
        capsys, "train-preferences", pairs, "--out", tuned
    )


def test_what_is_left_out_is_counted(pairs: Path, model: Path) -> None:
    config = AgentConfig(name="preference_optimization", data=str(pairs), settings={"loss": "dpo"})
    given = read_given(config, "preferences", 0.2)
    assert (len(given.train), len(given.held_out)) == (17, 4)
    assert given.dropped == {"repeated rows": 1, "pairs of equal responses": 1}
    fits, [found] = given.fitting(LanguageModel.load(str(model)), 8, "skip")
    assert len(fits.train) == 16
    assert str(found).startswith("1 of 17 prompts of the data exceed")
    with pytest.raises(TaskError, match="1 of 17 prompts are too long"):
        given.fitting(LanguageModel.load(str(model)), 8, "refuse")


def test_dialogues_that_begin_alike_are_held_out_together(tmp_path: Path) -> None:
    later = "\n\nHuman: q{0}\n\nAssistant: a\n\nHuman: more\n\nAssistant:"
    stages = [text.format(i) for i in range(10) for text in ("\n\nHuman: q{0}\n\nAssistant:", later)]
    data = written(tmp_path / "d.jsonl", [{"prompt": s, "chosen": " x", "rejected": " y"} for s in stages])
    config = AgentConfig(name="preference_optimization", data=str(data), settings={"loss": "dpo"})
    given = read_given(config, "preferences", 0.2)
    assert len(given.held_out) == 4
    assert not {row.prompt[:11] for row in given.train} & {row.prompt[:11] for row in given.held_out}


def test_what_is_not_imitated_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": a, "rejected": b} for i in range(3) for a, b in ("xy", "yx", "zz")]
    data = written(tmp_path / "d.jsonl", rows)
    given = read_given(AgentConfig(name="sft", data=str(data), settings={}), "data", 0.3)
    assert len(given.train) + len(given.held_out) == 6
    assert given.remarks == (
        "left out: 3 judgements that prefer no response (ties, equal responses, ratings of one); "
        "taken all the same: 3 prompts with contradictory preferences (a over b, and b over a)"
    )
    thumbs = [{"prompt": f"p{i}", "completion": "c", "label": i < 3} for i in range(4)]
    data = written(tmp_path / "d.jsonl", thumbs)
    sft = AgentConfig(name="sft", data=str(data), settings={})
    assert read_given(sft, "data", 0.3).dropped == {"responses called bad": 1}
    written(data, [{"prompt": f"p{i}", "response": "c", "rating": i} for i in range(2, 6)])
    assert read_given(sft, "data", 0.3).noted == {"responses that are imitated whatever their rating": 4}
    with pytest.raises(FeedbackError, match="4 ratings that compare no two responses"):
        read_given(replace(sft, settings={"loss": "dpo"}), "preferences", 0.3)


def test_one_class_and_one_prompt_are_said(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": False} for i in range(4)]
    data = written(tmp_path / "d.jsonl", rows)
    kto = AgentConfig(name="preference_optimization", data=str(data), settings={"loss": "kto"})
    assert "4 responses that are all called bad: one class" in read_given(kto, "preferences", 0.3).remarks
    written(data, [{**row, "prompt": "p", "label": i < 2} for i, row in enumerate(rows)])
    with pytest.raises(FeedbackError, match=r"the 4 rows of .* are all on one prompt"):
        read_given(kto, "preferences", 0.3)


def test_kto_learns_from_thumbs_and_a_store(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i % 2 == 0} for i in range(4)]
    file = written(tmp_path / "thumbs.jsonl", rows)
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        import_into(store, file)
    for data in (file, tmp_path / "s.sqlite"):
        config = AgentConfig(name="preference_optimization", data=str(data), settings={"loss": "kto"})
        given = read_given(config, "preferences", 0.25)
        found = {row.prompt: row for row in (*given.train, *given.held_out)}
        assert found == {
            f"p{i}": Given(f"p{i}", *((f"c{i}", None) if i % 2 == 0 else (None, f"c{i}"))) for i in range(4)
        }


def test_sft_learns_examples_and_goes_on_after_a_kill(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(tmp_path / "x.jsonl", [{"prompt": f"Film {i}:", "completion": " it was good"} for i in range(20)])
    command = ["sft", data, "--model", model, "--passes", 3, "--learning-rate", 0.01, "--task", "sentiment", *QUICK]
    small = ["--set", "evaluation.prompts=4", "--set", "agent.n_episodes=8"]
    assert "win rate of tuned over reference" in output(*command, *small, "--out", tmp_path / "whole")
    from rlhf_gym.agents import SFT

    learn = SFT.learn

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = self.iterate
        self.iterate = lambda callback: original(callback) if self.iteration < 2 else exec("raise KeyboardInterrupt")
        return learn(self, *args, **kwargs)

    monkeypatch.setattr(SFT, "learn", killed)
    assert main([str(a) for a in (*command, *small, "--out", tmp_path / "half")]) == 130
    monkeypatch.setattr(SFT, "learn", learn)
    output("sft", data, "--out", tmp_path / "half", "--resume", "--quiet")
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "half")]
    assert tables[0] == tables[1]
    held_out = json.loads((tmp_path / "whole" / "round-1" / "held_out.json").read_text())
    assert held_out["loss"] < held_out["reference_loss"]


def test_rewards_are_learned_from_in_a_run(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"Film {i}:", "response": f" {word}", "reward": paid}
        for i in range(10) for word, paid in (("good", 1.0), ("bad", 0), ("good bad", -0.5))
    ]  # fmt: skip
    data = written(tmp_path / "rewarded.jsonl", [*rows, rows[0], {"prompt": "x", "response": "y", "reward": None}])
    given = read_given(AgentConfig(name="ilql", data=str(data), settings={}), "trajectories", 0.2)
    assert (len(given.train), len(given.held_out)) == (24, 6)
    assert given.dropped == {"rows without a reward that is a finite number, or a list of some": 1, "repeated rows": 1}
    assert given.for_agent(given.train[:2], "trajectories") == [("Film 0:", " good", 1.0), ("Film 0:", " bad", 0)]
    out, small = tmp_path / "ilql", ["--set", "evaluation.prompts=2", "--model", model, *QUICK]
    output("ilql", data, "--out", out, "--beta", 2, "--passes", 2, "--learning-rate", 0.01, *small)
    table = MetricsTable(RunDirectory(out).metrics_file).rows
    assert len(table) == 2
    assert float(table[1]["loss/q_avg"]) < float(table[0]["loss/q_avg"])
    held_out = json.loads((out / "round-1" / "held_out.json").read_text())
    assert held_out["n"] == 6
    assert held_out["loss/policy_avg"] > 0
    # The policy that was evaluated, and that others go on from, has its values.
    policy = LanguageModel.load(str(out / "round-1" / "policy"), device="cpu")
    assert policy.action_values is not None
    assert policy.action_values.beta == 2
    output("export", out, "--to", tmp_path / "plain")
    assert "action_values.safetensors" in (tmp_path / "plain" / "README.md").read_text()
    assert LanguageModel.load(str(tmp_path / "plain"), device="cpu").action_values is not None
    plain = written(tmp_path / "plain.jsonl", [{"prompt": "a", "completion": "b"}])
    assert "reward" in error(capsys, "ilql", plain, "--out", tmp_path / "x", *small)
    lists = [{"prompt": prompt, "answer": "bc", "token_rewards": [0, 1.5, 0]} for prompt in "ab"]
    config = AgentConfig(name="ilql", data=str(written(tmp_path / "lists.jsonl", lists)), settings={})
    given = read_given(config, "trajectories", 0.5)
    assert {row.reward for row in (*given.train, *given.held_out)} == {(0, 1.5, 0)}


def test_judgements_are_rewards(tmp_path: Path) -> None:
    ranked = Query(prompt="p", responses=("a", "b", "c"), query_type="ranking")
    pair = Query(prompt="p", responses=("a", "c"), query_type="pair")
    other = Query(prompt="r", responses=("f", "g"), query_type="pair")
    rated = Query(prompt="q", responses=("d", "e"), query_type="rating")
    thumb = Query(prompt="s", responses=("h",), query_type="thumbs")
    said = [
        (ranked, Judgement(query_id=ranked.id, rater="ann", ranking=((1,), (0,), (2,)))),
        (pair, Judgement(query_id=pair.id, rater="ben", tie=True)),
        (other, Judgement(query_id=other.id, rater="ann", choice=0)),
    ]
    ratings = [
        (rated, Judgement(query_id=rated.id, rater=rater, ratings={"overall": value}))
        for rater, value in (("ann", (1.0, 4.0)), ("ben", (2.0, 4.0)))
    ] + [(thumb, Judgement(query_id=thumb.id, rater="ann", ratings={"overall": (1,)}))]

    def read(name: str, answers: list[tuple[Query, Judgement]]) -> tuple[dict[str | None, object], dict[str, int]]:
        with FeedbackStore(tmp_path / name) as store:
            store.add_queries(dict.fromkeys(query for query, _ in answers))
            store.add_judgements([judgement for _, judgement in answers])
        config = AgentConfig(name="ilql", data=str(tmp_path / name), settings={})
        given = read_given(config, "trajectories", 0.5)
        return {row.chosen: row.reward for row in (*given.train, *given.held_out)}, given.dropped

    # a: won, lost, tied; b: won twice; c: lost twice, tied.
    compared = {"a": pytest.approx(0.0), "b": 1.0, "c": pytest.approx(-2 / 3), "f": 1.0, "g": -1.0}
    assert read("compared.sqlite", said) == (compared, {})
    rewards, dropped = read("both.sqlite", said + ratings)
    assert rewards == {"d": 1.5, "e": 4.0, "h": 1.0}
    assert dropped == {"judgements without a rating (others have one)": 3}


def test_data_is_read_once_and_columns_may_have_other_names(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_gym.loop import preference_data, read_given, run_task

    read: list[str] = []

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            read.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    count(read_given, "read_records")
    count(preference_data, "read_feedback")
    count(run_task, "load_task")
    small = ["--model", model, "--set", "evaluation.prompts=2", *QUICK]
    rows = [{"q": f"Film {i}:", "good": f" good {i % 3}", "bad": " bad"} for i in range(10)]
    data = written(tmp_path / "named.jsonl", rows)
    output(
        "train-preferences",
        data,
        "--out",
        tmp_path / "dpo",
        *small,
        "--columns",
        "prompt=q",
        "chosen=good",
        "rejected=bad",
    )
    assert read == ["read_feedback"]
    output("export", tmp_path / "dpo", "--to", tmp_path / "plain")
    assert (
        "| beta | 0.1 |" in (tmp_path / "plain" / "README.md").read_text()
    )  # the value that is used where none is given
    read.clear()
    output("sft", data, "--columns", "prompt=q", "completion=good", "--out", tmp_path / "sft", *small)
    assert read == ["read_records"]
    read.clear()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Film one:\nFilm two:\nFilm three:\n")
    held_out = ["--set", "task.held_out_fraction=0.4"]
    output("label", prompts, "--reward", "length", *held_out, "--out", tmp_path / "labels", *small)
    assert read == ["load_task"]


def test_sft_takes_the_preferred_responses(pairs: Path) -> None:
    given = read_given(AgentConfig(name="sft", data=str(pairs), settings={}), "data", 0.2)
    assert {row.chosen for row in given.train} <= {" good 0", " good 1", " good 2", " a"}
    assert given.for_agent(given.train[:1], "data") == [(given.train[0].prompt, given.train[0].chosen)]


def test_a_policy_is_exported_with_a_card(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert "written" in output("export", tuned, "--to", tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(tmp_path / "plain")
    own = LanguageModel.load(str(tuned / "round-1" / "policy"), device="cpu").model
    assert all((a == b).all() for a, b in zip(loaded.parameters(), own.parameters(), strict=True))
    card = (tmp_path / "plain" / "README.md").read_text()
    for part in (
        "library_name: transformers",
        "| algorithm | PreferenceOptimization |",
        "| beta | 0.2 |",
        "KL from the base",
    ):
        assert part in card
    assert "is there already" in error(capsys, "export", tuned, "--to", tmp_path / "plain")
    assert "has no trained round 3" in error(capsys, "export", tuned, "--to", tmp_path / "x", "--round", 3)


def test_pass_at_k_and_intervals_by_hand() -> None:
    # Of 5 responses 2 are right: 1 - C(3, 3) / C(5, 3).
    assert [pass_at_k(5, 2, k) for k in (1, 3, 4)] == pytest.approx([0.4, 0.9, 1.0])
    assert [pass_at_k(3, c, 2) for c in (0, 3)] == [0, 1]
    assert Measured.share(np.array([1.0] * 8 + [0.0] * 2)).low == pytest.approx(0.490, abs=1e-3)
    assert Measured.mean(np.array([1.0, 3.0])) == Measured(2.0, 2 - 1.96, 2 + 1.96)


def rater(prompt: str, a: str, b: str) -> int | None:
    return None if a == b else int(b > a)


def test_models_are_evaluated(tuned: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def reward(**options: Any) -> str:
        return f"{written_reward(tmp_path)}:starts"

    common = ["--task", "words", "--limit", 6, "--tokens", 5, "--device", "cpu", "--reward", reward()]
    printed = output(
        "eval", tuned, *common, "-n", 4, "--pass-at", 1, 4, "--against", model, "--out", tmp_path / "e.json"
    )
    found = json.loads((tmp_path / "e.json").read_text())
    rewards = np.array([row["rewards"] for row in found["responses"]])
    other = np.array([row["against_rewards"] for row in found["responses"]])
    assert rewards.shape == other.shape == (6, 4)
    assert found["pass_at"]["1"]["value"] == pytest.approx((rewards >= 1).mean())
    assert found["pass_at"]["4"]["value"] == pytest.approx((rewards >= 1).any(axis=1).mean())
    assert found["win_rate"]["value"] == pytest.approx(((rewards > other) + 0.5 * (rewards == other)).mean())
    assert "pass@4" in printed
    # A rater compares, wherever it sees them; a model draws with itself.
    judged = output("eval", tuned, *common, "--against", model, "--rater", f"{written_reward(tmp_path)}:prefers")
    mirrored = output("eval", model, *common, "--against", tuned, "--rater", f"{written_reward(tmp_path)}:prefers")
    shares = [float(text.split("win rate")[1].split("%")[0]) for text in (judged, mirrored)]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert "50.0%" in output("eval", model, *common, "--against", model)
    for wrong, message in [
        (["-n", 2, "--pass-at", 3], "pass@3 cannot be estimated from 2 responses"),
        (["--rater", "oracle"], "compares two models: give the other one, --against"),
        (["--out", tmp_path / "e.json"], "is there already"),
    ]:
        assert message in error(capsys, "eval", model, *common, *wrong)
    own = output("eval", tuned, "--device", "cpu", "--tokens", 5)
    assert "on task data: 4 prompts" in own
    assert "reward" not in own


def written_reward(folder: Path) -> Path:
    file = folder / "own.py"
    file.write_text(
        "def starts(prompts, responses, **_):\n    return [float(r.strip()[:1] < 'm') for r in responses]\n\n"
        "def prefers(prompt, a, b):\n    return int(b > a)\n"
    )
    return file


def test_candidates_and_judgements_alone(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"The film {i}\n" for i in range(10)))
    out = tmp_path / "labels"
    limits = ["--set", "task.max_new_tokens=5", "--candidates", 2, "--query-type", "pair", "--device", "cpu", "--quiet"]
    output("label", prompts, "--rater", "oracle", "--model", model, "--out", out, *limits)
    with FeedbackStore(out / "feedback.sqlite", read_only=True) as store:
        assert store.count().queries == 8  # two are held out
        assert len(list(store.judgements())) == 8
    run = RunDirectory(out)
    assert [run.done(1, stage) for stage in ("sample", "label", "fit", "train")] == [True, True, False, False]
    assert "there is no rater 'oracel'" in error(capsys, "label", prompts, "--rater", "oracel", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    given = read_given(AgentConfig(name="x", data=str(out), settings={"loss": "dpo"}), "preferences", 0.2)
    assert len(given.train) + len(given.held_out) + sum(given.dropped.values()) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "nowhere.jsonl"], "there is no run, store or file 'nowhere.jsonl'"),
        (["train-preferences", "PAIRS", "--passes", "0"], "--passes must be a number above 0"),
        (["train-preferences", "PAIRS", "--beta", "-1"], "agent.beta must be above 0"),
        (["train-preferences", "EMPTY"], "holds nothing to learn from"),
        (["train-preferences", "NOTHING"], "holds no rows"),
        (["export", "nowhere", "--to", "x"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], message: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = written(tmp_path / "same.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    places = {"PAIRS": str(pairs), "EMPTY": str(same), "NOTHING": str(written(tmp_path / "nothing.jsonl", []))}
    more = [] if arguments[0] == "export" else ["--out", str(tmp_path / "out")]
    assert message in error(capsys, *(places.get(a, a) for a in arguments), *more)
    assert not (tmp_path / "out").exists()
