"""The commands `fit-reward` and `eval-reward`: from a file, a store or a run to a reward model, and what it is worth."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError, FeedbackError, ModelError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.feedback.exchange.files import export_feedback
from rlhf_gym.feedback.exchange.formats import to_records
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.config import AgentConfig
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.fit_reward import fit_reward
from rlhf_gym.loop.preference_data import READ_COLUMNS, read_data
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rating_agreement import RatingAgreement
from rlhf_gym.loop.read_given import read_given
from rlhf_gym.loop.reward_ensemble import resampled
from rlhf_gym.loop.reward_evaluation import agreement_of, evaluate_reward, judge
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.reward_model.batches import is_held_out
from rlhf_gym.reward_model.ratings import Rating
from rlhf_gym.reward_model.readout import EncodedText
from rlhf_gym.rewards.base import score
from rlhf_gym.rewards.spec import load_reward

SETTINGS = ["--set", "trunk_layers=0", "--set", "epochs=3", "--set", "reward_model.layers=1"]


def pairs(number: int) -> list[tuple[str, str, str]]:
    return [(f"film {i} was", " a good one", " a bad film" if i % 2 else " bad") for i in range(number)]


def write(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("fit")
    records = [{"prompt": p, "chosen": c, "rejected": r, "margin": 2.0} for p, c, r in pairs(30)]
    data = write(folder / "pairs.jsonl", [*records, {"prompt": "x", "chosen": " same", "rejected": " same"}])
    assert main(["fit-reward", data, "--out", str(folder / "rm"), *SETTINGS]) == 0
    return folder, data


def test_a_file_becomes_a_reward(fitted: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = fitted
    reward = load_reward(str(folder / "rm"))
    good, bad = reward(["film 3 was"] * 2, [" a good one", " bad"])
    assert good > bad
    found = json.loads((folder / "rm" / "fit.json").read_text())
    assert found["fit"]["n_train"] + found["fit"]["n_validation"] == 30
    assert 0 < found["fit"]["ece_floor"] < 0.5
    assert reward.readout.layers == 1
    capsys.readouterr()
    assert main(["eval-reward", str(folder / "rm"), data, "--json", str(folder / "e.json")]) == 0
    out, err = capsys.readouterr()
    assert "1 pairs of equal responses" in err
    assert "30 comparisons" in out
    assert "a perfectly calibrated model of this size" in out
    assert json.loads((folder / "e.json").read_text())["fit"]["accuracy"] > 0.9
    # Any other reward can be judged, too; its scores are no log-odds.
    assert main(["eval-reward", "length", data]) == 0
    assert "log-loss" not in capsys.readouterr().out


def test_nothing_is_written_over_and_settings_are_known(
    fitted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = fitted
    (folder / "mine").mkdir(exist_ok=True)
    for arguments, message in (
        (["--out", str(folder / "mine")], "is no reward model: nothing is written over it"),
        (["--out", str(folder / "n"), "--set", "epoch=3"], "did you mean 'reward_model.epochs'"),
        (["--out", str(folder / "n"), "--set", "layers=99"], "cannot read 'embedded' after 99 layers"),
        (["--out", str(folder / "n"), "--seed", "-1"], "--seed must be at least 0"),
        (["--out", str(folder / "n"), "--format", "nonsense"], "there is no format 'nonsense'"),
    ):
        assert main(["fit-reward", data, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (folder / "n").exists()


def test_data_of_a_store_and_of_files(tmp_path: Path) -> None:
    store_file = str(tmp_path / "feedback.sqlite")
    with FeedbackStore(store_file) as store:
        asked = [Query(prompt=p, responses=(c, r), index=i) for i, (p, c, r) in enumerate(pairs(4))]
        check = Query(prompt="check", responses=("a", "b"), columns={"expected": {"choice": 0}}, index=9)
        store.add_queries([*asked, check])
        said = [Judgement(query_id=q.id, rater="ann", choice=0) for q in (*asked[:3], check)]
        said += [Judgement(query_id=q.id, rater="bob", choice=int(q is asked[2])) for q in asked[:3]]
        store.add_judgements([*said, Judgement(query_id=asked[3].id, rater="bob", skipped=True)])
    data = read_data(store_file)
    assert data.dropped == {"answers to check questions, practice and repetitions": 1, "skips": 1}
    assert len(data.preferences()) == 6
    assert agreement_of(data.answers) == pytest.approx(2 / 3)
    evaluation = evaluate_reward(lambda prompts, responses: [len(r) for r in responses], data)
    assert evaluation.ceiling == pytest.approx(0.5 + (1 / 3) ** 0.5 / 2)
    assert {(row.name, row.n) for row in evaluation.slices if row.by == "rater"} == {("ann", 3), ("bob", 3)}
    with pytest.raises(ConfigError, match="--format hh is about a file, and does not go with"):
        read_data(store_file, "hh")
    with pytest.raises(ConfigError, match="--columns prompt=question is about a file"):
        read_data(str(tmp_path), columns={"prompt": "question"})
    corrected = Judgement(query_id=asked[0].id, rater="ann", choice=1, supersedes=said[0].id)
    file = tmp_path / "all.jsonl"
    export_feedback([(asked[0], said[0]), (asked[0], corrected)], file, "native")
    assert [(j, read_data(str(file)).dropped) for _, j in read_data(str(file)).answers] == [
        (corrected, {"superseded answers": 1})
    ]
    turn = "\n\nHuman: Hi\n\nAssistant:"
    transcripts = write(tmp_path / "hh.jsonl", [{"chosen": turn + " Hello", "rejected": turn + " No"}])
    assert "(format hh)" in read_data(transcripts).source
    assert read_data(transcripts).preferences()[0].prompt == turn
    with pytest.raises(FeedbackError, match="is not plain from its columns"):
        read_data(write(tmp_path / "other.jsonl", [{"left": 1}]))
    named = write(tmp_path / "named.jsonl", [{"q": "p", "good": "a", "bad": "b"}])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert [(p.prompt, p.chosen, p.rejected) for p in read_data(named, columns=columns).preferences()] == [
        ("p", "a", "b")
    ]
    with pytest.raises(FeedbackError, match="prefers one response to another"):
        read_data(write(tmp_path / "same.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])).preferences()
    with pytest.raises(ConfigError, match="there is no run, store or file"):
        read_data(str(tmp_path / "nowhere"))
    assert read_data(str(tmp_path)).answers == data.answers  # a folder that an import filled
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="a folder without a run"):
        read_data(str(tmp_path / "empty"))


def test_an_evaluation_by_hand() -> None:
    def preference(chosen: str, rejected: str, margin: float, subset: int) -> Preference:
        return Preference("p", chosen, rejected, margin, query_id=f"q{subset}")

    preferences = [preference("a", "bbb", 1, 0), preference("cc", "d", 2, 1), preference("ee", "f", 2, 1)]
    scores = {
        ("p", text): value for text, value in zip(("a", "bbb", "cc", "d", "ee", "f"), (1, 0, 3, 0, 0, 1), strict=True)
    }
    queries = [
        Query(prompt="p", responses=("x", "y"), columns={"subset": name}, id=f"q{i}") for i, name in enumerate("st")
    ]
    answers = [(query, Judgement(query_id=query.id, rater="r", choice=0)) for query in queries]
    found = judge(preferences, scores, calibrated=True, answers=answers)
    assert found.fit.accuracy == pytest.approx(2 / 3)
    assert found.shorter_wins == pytest.approx(1 / 3)
    # Lengths differ by -2, 1, 1 and scores by 1, 3, -1: (-2 + 3 - 1) / ... = 0.
    assert found.length_correlation == pytest.approx(0)
    rows = {(row.by, row.name): (row.accuracy, row.n) for row in found.slices}
    assert rows == {
        ("length", "the chosen is shorter"): (1, 1), ("length", "the chosen is longer"): (0.5, 2),
        ("margin", "1"): (1, 1), ("margin", "2"): (0.5, 2), ("subset", "s"): (1, 1), ("subset", "t"): (0.5, 2),
    }  # fmt: skip
    assert (found.agreement, found.ceiling) == (None, None)


def test_a_run_gives_its_judgements(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {seed: 0}\n")
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        asked = [Query(prompt=p, responses=(c, r), index=i) for i, (p, c, r) in enumerate(pairs(6))]
        store.add_queries(asked)
        store.add_judgements([Judgement(query_id=q.id, rater="ann", choice=0) for q in asked])
    out = tmp_path / "rm"
    done = fit_reward(str(tmp_path), out, settings={"trunk_layers": 0, "epochs": 1})
    assert (done.result.n_train, done.result.n_validation) == (5, 1)
    assert (out / "reward_model.json").is_file()


def test_a_runs_ensemble_differs_where_it_does_not_know(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    for trunk, combine in ((0, "minimum"), (-1, "mean_minus_variance")):
        settings = tiny_settings(
            model, reward_model={"members": 3, "combine": combine, "variance_weight": 2.0, "trunk_layers": trunk},
            evaluation={"every": 1, "stop_above": {"ensemble_variance": 0.0}, "validation_prompts": 4, "best_of": 0},
        )  # fmt: skip
        stages = ("sample", "label", "fit", "train")
        run = run_loop(build(settings), tmp_path / combine, progress=Progress(quiet=True), stages=stages)
        training = json.loads((run.round(1) / "training.json").read_text())
        assert "validation/ensemble_variance is" in training["stopped"]
        assert len(json.loads((run.round(1) / "reward_model.json").read_text())["members"]) == 3
        context = RunContext.of(run.config(), run, Progress(quiet=True))
        prompts, responses = [f"Film {i}:" for i in range(6)], [" a good film " * i for i in range(6)]
        found = score(context.proxy(1), prompts, responses, {})
        folders = [run.round(1) / name for name in ("reward_model", "reward_model_2", "reward_model_3")]
        own = np.array([score(RewardModel.load(f, device="cpu"), prompts, responses, {}).values for f in folders])
        wanted = own.min(axis=0) if combine == "minimum" else own.mean(axis=0) - 2 * own.var(axis=0)
        assert found.values == pytest.approx(wanted, abs=1e-5)
        assert found.terms["ensemble_variance"] == pytest.approx(own.var(axis=0), abs=1e-5)
        assert own.var(axis=0).max() > 0
    shutil.rmtree(run.round(1) / "reward_model_3")
    with pytest.raises(ModelError, match=r"lacks .*reward_model_3"):
        context.proxy(1)
    for sections, message in (
        ({"reward_model": {"members": 2, "enabled": False}}, "leave one out"),
        ({"evaluation": {"every": 1, "stop_above": {"ensemble_variance": 1.0}}}, "and there is one"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(sections)


def test_a_resample_keeps_prompts_whole() -> None:
    given = [Preference(f"p{i}", "a", b, query_id=f"q{i}") for i in range(50) for b in ("b", "c")]
    drawn, _ = resampled(given, [], seed=0)
    by_prompt: dict[str, list[str]] = {}
    for p in drawn:
        by_prompt.setdefault(p.prompt, []).append(p.query_id)
    assert sum(len(ids) for ids in by_prompt.values()) == 100
    assert 25 < len(by_prompt) < 40  # about 63% of the prompts
    for ids in by_prompt.values():  # a query that comes again has another name, and all of its comparisons
        assert all(count == 2 for count in Counter(ids).values())


def test_members_on_one_prompt_are_told_apart_by_queries() -> None:
    given = [Preference("p", "a", b, query_id=f"q{i}") for i in range(50) for b in ("b", "c")]
    assert sum(map(is_held_out(given, 0.2, 0), given)) == 20  # ten queries, whole
    drawn, _ = resampled(given, [], seed=0)
    assert 25 < len({p.query_id.partition("#")[0] for p in drawn}) < 40


def test_odd_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = [(" a", " b"), (" b", " c"), (" c", " a")]
    rows = [{"prompt": f"p{i}", "chosen": c, "rejected": r} for i in range(5) for c, r in ring]
    rows += [{"prompt": "q", "chosen": c, "rejected": r} for c, r in ((" a", " b"), (" b", " a"), (" a", ""))]
    file = write(tmp_path / "odd.jsonl", rows)
    said = (
        "taken all the same: 1 prompts with contradictory preferences (a over b, and b over a), 5 prompts whose preferences go "
        "in circles (a over b over c over a), 1 comparisons with an empty response"
    )
    assert main(["eval-reward", "length", file]) == 0
    found = capsys.readouterr()
    assert said in found.err
    assert "[50.0%, 50.0%]" not in found.out  # a standard error of 0 on few comparisons is no certainty
    assert main(["fit-reward", file, "--out", str(tmp_path / "rm"), "--quiet", *SETTINGS]) == 0
    assert said in capsys.readouterr().err
    given = read_given(
        AgentConfig(name="preference_optimization", data=file, settings={"loss": "dpo"}), "preferences", 0.2
    )
    assert said in str(given)
    one = write(tmp_path / "one.jsonl", [{"prompt": "p", "chosen": f" {i}", "rejected": " b"} for i in range(10)])
    assert main(["eval-reward", "length", one]) == 0
    assert "taken all the same: 10 comparisons that are all on one prompt" in capsys.readouterr().err
    same = write(tmp_path / "same.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    assert main(["eval-reward", "length", same]) == 2
    assert "left out: 1 pairs of equal responses" in capsys.readouterr().err
    assert main(["fit-reward", file, "--out", str(tmp_path / "rm"), "--set", "members=2"]) == 2
    assert "--set members: fit-reward fits one reward model" in capsys.readouterr().err


def test_attributes_are_weighted(tmp_path: Path) -> None:
    asked = [Query(prompt=f"p{i}", responses=(" a", " b"), query_type="rating", index=i) for i in range(10)]
    said = [Judgement(query_id=q.id, rater="ann", ratings={"good": (5, 1), "safe": (1, 3)}) for q in asked]
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        store.add_queries(asked)
        store.add_judgements(said)

    def held_out(**weights: float) -> str:
        settings = {"trunk_layers": 0, "layers": 1, "epochs": 30, "learning_rate": 0.1, "attribute_weights": weights}
        out = tmp_path / "rm"
        fit_reward(str(tmp_path / "s.sqlite"), out, settings=settings)
        model = RewardModel.load(out, device="cpu")
        a, b = model(["p0", "p0"], [" a", " b"])
        return "a" if a > b else "b"

    assert held_out() == held_out(good=1.0, safe=1.9) == "a"  # of the mean; of 6.9 against 6.7
    assert held_out(good=1.0, safe=2.5) == "b"
    with pytest.raises(FeedbackError, match=r"no rating has the attribute kind .*; there are good, safe"):
        held_out(kind=1.0)
    with pytest.raises(ConfigError, match="attribute_weights must be finite numbers, not all 0"):
        held_out(good=0.0)
    built = build({"reward_model": {"attribute_weights": {"good": 1.0}}})
    assert built.reward_model.settings["attribute_weights"] == {"good": 1.0}


def test_of_a_file_only_what_is_read_is_kept_and_each_text_once(tmp_path):
    row = {"prompt": "Say something long.", "rejected": "no", "notes": "n" * 1000, "subset": "chat"}
    texts = ["this is good", "this is better"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row | {"chosen": text}) + "\n" for text in texts))
    kept = read_data(str(tmp_path / "p.jsonl"), keep=READ_COLUMNS).preferences()
    answers = read_data(str(tmp_path / "p.jsonl"), keep=READ_COLUMNS).answers
    assert [query.columns for query, _ in answers] == [{"subset": "chat"}] * 2
    assert kept[0].prompt is kept[1].prompt  # each row of the file spells it anew
    assert kept[0].rejected is kept[1].rejected
    assert read_data(str(tmp_path / "p.jsonl")).answers[0][0].columns["notes"] == "n" * 1000
    ids = EncodedText(range(100_000), 5)
    assert sys.getsizeof(ids) < 4.5 * len(ids)


def rated(number: int) -> list[dict[str, object]]:
    """Responses that are helpful or safe or both, with a rating of each; of some prompts only one is rated."""
    rows: list[dict[str, object]] = []
    for i in range(number):
        query = Query(
            prompt=f"film {i} was",
            responses=(" a good one", " bad", " a bad one", " good"),
            query_type="rating",
            index=i,
        )
        ratings: dict[str, tuple[float, ...]] = {"kind": (5, 1, 1, 5), "long": (4, 1, 4, 1)}
        if i % 3 == 0:
            del ratings["kind"]
        rows += to_records([(query, Judgement(query_id=query.id, rater="ann", ratings=ratings))], "native")[0]
    return rows


@pytest.mark.parametrize("loss", ["bradley_terry", "regression"])
def test_heads_for_attributes_are_learned_together_and_weighed_at_use(
    loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write(tmp_path / "rated.jsonl", rated(20)), str(tmp_path / "rm")
    heads = [
        "--set",
        f"loss={loss}",
        "--set",
        "attribute_weights={kind: 1, long: 0.5}",
        "--set",
        "attribute_heads=true",
    ]
    settings = ["--set", "trunk_layers=0", "--set", "epochs=40", "--set", "learning_rate=0.02", "--set", "layers=1"]
    assert main(["fit-reward", data, "--out", out, *settings, *heads]) == 0
    assert "by attribute\n  kind                         100.0%" in capsys.readouterr().out
    texts = [" a good one", " a bad one", " good", " bad"]
    model = load_reward(out)
    both = np.array(model(["film 3 was"] * 4, texts))
    kind = np.array(load_reward(f"{{reward: {out}, attribute_weights: {{kind: 1}}}}")(["film 3 was"] * 4, texts))
    long = np.array(RewardModel.load(out, attribute_weights={"long": 2.0})(["film 3 was"] * 4, texts))
    assert min(kind[[0, 2]]) > max(kind[[1, 3]])
    assert min(long[:2]) > max(long[2:])
    np.testing.assert_array_equal(np.argsort(both)[[0, 3]], [3, 0])
    heads_say = model.raw_heads(["film 3 was"] * 4, texts)
    np.testing.assert_allclose(both, (heads_say @ [1, 0.5]) * model.gain + model.bias, rtol=1e-6)
    model.weigh({"long": 2.0})  # normalised on the same samples, by their moments
    np.testing.assert_allclose(model(["film 3 was"] * 4, texts), long, rtol=1e-5)
    model.save(tmp_path / "again")
    assert RewardModel.load(tmp_path / "again").attributes == {"kind": 0.0, "long": 2.0}
    with pytest.raises(ModelError, match="no attribute 'funny': it has kind, long"):
        model.weigh({"funny": 1})
    weighed = f"{{reward: {out}, attribute_weights: {{long: 1}}}}"
    assert main(["eval-reward", weighed, data]) == 0
    said = capsys.readouterr().out
    assert "  long                         100.0%" in said
    assert "log-loss" not in said  # a weighted sum of log-odds is none


def test_comparisons_in_single_attributes_teach_their_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": f"film {i} was", "response_a": a, "response_b": b, "winner": "a", "attribute": name}
        for i in range(16)
        for name, a, b in (("kind", " good", " a bad one"), ("long", " a bad one", " good"))
    ]
    data, out = write(tmp_path / "p.jsonl", rows), str(tmp_path / "rm")
    settings = ["--set", "trunk_layers=0", "--set", "epochs=20", "--set", "layers=1", "--set", "attribute_heads=true"]
    assert main(["fit-reward", data, "--out", out, *settings, "--set", "attribute_weights={kind: 2, long: -1}"]) == 0
    good, bad = load_reward(out)(["film 1 was"] * 2, [" good", " a bad one"])
    assert good > bad
    assert "32 comparisons" not in capsys.readouterr().out  # those of negative weight judge their own head only
    wrong = [*settings, "--set", "attribute_weights={kind: 2, funny: 1}"]
    assert main(["fit-reward", data, "--out", out, *wrong]) == 2
    assert "of the attribute 'funny' (reward_model.attribute_weights) there are 0" in capsys.readouterr().err
    assert main(["fit-reward", data, "--out", out, *settings]) == 2
    assert "attribute_heads need attribute_weights" in capsys.readouterr().err


def test_one_class_and_pairs_without_a_prompt_are_said(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"p {i}", "completion": f"said {i}", "label": True} for i in range(4)]
    with pytest.raises(FeedbackError, match=r"All 4 ratings or labels are 1: one class says nothing"):
        read_data(write(tmp_path / "one.jsonl", rows)).preferences()
    rows[0]["label"] = False
    with pytest.raises(FeedbackError, match=r"Its 4 ratings or labels are of single responses .*--loss kto"):
        read_data(write(tmp_path / "two.jsonl", rows)).preferences()
    sides = [{"asked": "Why?", "chosen": f"good {i}", "rejected": "bad"} for i in range(3)]
    data = read_data(write(tmp_path / "orca.jsonl", [*sides]))
    data.preferences()
    assert "3 comparisons without a prompt (where a column of a file holds it: --columns prompt=NAME)" in data.remarks()


@pytest.mark.parametrize(("responses", "loss"), [(1, "ordinal"), (3, "regression")])
def test_ratings_alone_are_fitted_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], responses: int, loss: str
) -> None:
    said = [(" a good one", 5), (" a bad film", 1), (" a good film", 4)]
    rows = [
        {"q": f"film {i} was", "response": said[(i + k) % 3][0], "stars": said[(i + k) % 3][1]}
        for i in range(30)
        for k in range(responses)
    ]
    data, columns = (
        write(tmp_path / "rated.jsonl", [*rows, {"q": "x", "response": "y"}]),
        "--columns prompt=q rating=stars",
    )
    rm, arguments = str(tmp_path / "rm"), [*columns.split(), *SETTINGS, "--set", f"loss={loss}"]
    assert main(["fit-reward", data, "--out", rm, *arguments]) == 0
    out, err = capsys.readouterr()
    assert f"fitted on {24 * responses} ratings" in out
    assert "may have learned nothing" not in err
    assert ("accuracy" in out) is (responses > 1)
    found = json.loads((tmp_path / "rm" / "fit.json").read_text())["held_out"]["ratings"]
    assert found["n"] == 6 * responses
    assert found["correlation"] > 0.5
    assert found["rmse"] == pytest.approx(found["spread"] * (1 - found["correlation"] ** 2) ** 0.5)
    # Of the same file 24 prompts were fitted: eval-reward says so, and judges by the others what the fit held out.
    assert main(["eval-reward", rm, data, *columns.split(), "--json", str(tmp_path / "e.json")]) == 0
    out, err = capsys.readouterr()
    assert "1 rows without a rating that is a finite number" in err
    assert "24 of 30 prompts are among those that the reward model was fitted to; on the others alone" in out
    unseen = json.loads((tmp_path / "e.json").read_text())["unseen"]
    assert unseen["ratings"]["correlation"] == pytest.approx(found["correlation"], abs=1e-6)
    others = write(tmp_path / "others.jsonl", [{**row, "q": "another " + str(row["q"])} for row in rows])
    assert main(["eval-reward", rm, others, *columns.split()]) == 0
    assert "fitted to" not in capsys.readouterr().out
    assert main(
        ["fit-reward", write(tmp_path / "one.jsonl", [{**row, "stars": 3} for row in rows]), "--out", rm, *arguments]
    )
    assert "one class says nothing" in capsys.readouterr().err


def test_a_small_trunk_is_trained_or_stays_frozen_whichever_held_out_judgements_say(
    fitted: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rm"
    assert main(["fit-reward", fitted[1], "--out", str(out), "--set", "learning_rate=0.01"]) == 0
    printed, said = capsys.readouterr()
    losses = json.loads((out / "fit.json").read_text())["held_out_loss"]
    assert set(losses) == {"of the whole trunk", "with a frozen trunk"}
    best = min(losses, key=lambda way: float(losses[way]))
    assert f"kept the fit {best}" in printed + said
    found = json.loads((out / "fit.json").read_text())["fit"]
    assert found["epochs"][found["best_epoch"] - 1]["validation_loss"] == losses[best]
    reward = RewardModel.load(out)
    assert reward.readout.pooling == ("both" if best == "with a frozen trunk" else "last")
    reader = LanguageModel.load("embedded")
    same = all(map(torch.equal, reward.language_model.trunk.parameters(), reader.trunk.parameters()))
    assert same is (best == "with a frozen trunk")


def test_quarters_of_margins_stand_in_their_order() -> None:
    rows = [Preference(f"p{i}", "a", "b", float(i)) for i in range(12)]
    found = judge(
        rows, {(f"p{i}", text): score for i in range(12) for text, score in (("a", 1.0), ("b", 0.0))}, calibrated=True
    )
    named = [row.name for row in found.slices if row.by == "margin"]
    assert named == ["up to 2.75", "above 2.75, up to 5.5", "above 5.5, up to 8.25", "above 8.25"]


@pytest.mark.parametrize("loss", ["regression", "ordinal", "bradley_terry"])
def test_a_fit_that_may_have_learned_nothing_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: str
) -> None:
    rng = np.random.default_rng(1)
    rows: list[dict[str, object]] = [
        {"prompt": f"film {i} was", "response": text, "rating": int(stars)}
        for i in range(40)
        for text, stars in zip((" good", " bad"), rng.permutation(2) + 1, strict=True)
    ]
    data, trunk = write(tmp_path / "r.jsonl", rows), ["--set", "layers=1", "--set", "trunk_layers=1"]
    assert main(["fit-reward", data, "--out", str(tmp_path / "rm"), *trunk, "--set", f"loss={loss}", "--quiet"]) == 0
    said = capsys.readouterr().err
    what = "accuracy on held-out comparisons" if loss == "bradley_terry" else "correlation with held-out ratings"
    assert f"may have learned nothing: the {what} (" in said
    assert "--set epochs=10), a higher rate (--set learning_rate=0.003)" in said


def test_a_response_is_rated_several_times_and_by_several_raters(tmp_path: Path) -> None:
    rows = [("a", 5, None), ("b", 2, None), ("a", 4, None), ("a", 1, "ann"), ("b", 3, "ann"), ("b", "good", "ann")]
    data = read_data(
        write(tmp_path / "r.jsonl", [{"prompt": "p", "response": r, "rating": v, "rater": who} for r, v, who in rows])
    )
    assert [(q.responses, j.rater, j.ratings) for q, j in data.answers] == [
        (("a", "b"), "import", {"overall": (5.0, 2.0)}),
        (("a",), "import", {"overall": (4.0,)}),
        (("a", "b"), "ann", {"overall": (1.0, 3.0)}),
    ]
    assert data.dropped == {"rows without a rating that is a finite number": 1}
    assert [(p.chosen, p.margin) for p in data.preferences()] == [("a", 3.0), ("b", 2.0)]


def test_agreement_with_ratings_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=40)
    values = np.round(scores + rng.normal(size=40))  # with ties
    ratings = [Rating("p", str(i), float(value), "q", "r") for i, value in enumerate(values)]
    found = RatingAgreement.of(ratings, {("p", str(i)): float(score) for i, score in enumerate(scores)})
    expected = stats.pearsonr(scores, values)
    assert found.correlation == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-6)
    assert found.rank_correlation == pytest.approx(stats.spearmanr(scores, values).statistic)
    line = np.polyfit(scores, values, 1)
    assert found.rmse == pytest.approx(np.sqrt(np.mean((np.polyval(line, scores) - values) ** 2)))


def test_preferences_that_only_go_in_circles_teach_nothing_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circle = ((" a", " b"), (" b", " c"), (" c", " a"))
    data = write(
        tmp_path / "c.jsonl", [{"prompt": f"p{i}", "chosen": a, "rejected": b} for i in range(4) for a, b in circle]
    )
    assert main(["fit-reward", data, "--out", str(tmp_path / "rm"), "--quiet", *SETTINGS]) == 2
    said = capsys.readouterr().err
    assert "learned nothing: all responses have the same score" in said
    assert "4 prompts whose preferences go in circles" in said
    assert not (tmp_path / "rm").exists()
