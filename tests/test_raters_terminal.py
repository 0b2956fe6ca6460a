"""A person at the terminal, played by a script."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.raters import RaterStoppedError, Ticket, ask
from rlhf_gym.raters.keyboard import Keyboard
from rlhf_gym.raters.terminal import TerminalRater
from rlhf_gym.text import visible


class Script(Keyboard):
    """Presses keys as they stand, then stops."""

    def __init__(self, keys: str) -> None:
        super().__init__(io.StringIO(keys))


def sit_down(keys: str, store: FeedbackStore | None = None) -> tuple[TerminalRater, io.StringIO]:
    screen = io.StringIO()
    return TerminalRater("ann", store, console=Console(file=screen, width=80), keyboard=Script(keys)), screen


def pairs(count: int) -> list[Query]:
    return [Query(prompt=f"prompt {i}", responses=("left", "right"), index=i) for i in range(count)]


def shown_choice(judgement: Judgement) -> str:
    assert judgement.choice is not None
    return "ab"[judgement.order_shown.index(judgement.choice)]


def test_one_key_a_decision() -> None:
    queries = pairs(5)
    rater, screen = sit_down("aBxts\nb\n")  # x and Enter mean nothing in a pair; the last key finishes
    judgements = rater.collect(rater.submit(queries))
    assert [j.query_id for j in judgements] == [q.id for q in queries]
    assert [shown_choice(judgements[i]) for i in (0, 1, 4)] == ["a", "b", "b"]
    assert (judgements[2].tie, judgements[3].skipped) == (True, True)
    assert {j.order_shown for j in judgements} == {(0, 1), (1, 0)}  # random, by query
    assert all(j.seconds is not None and 0 <= j.seconds < 10 for j in judgements)
    assert "prompt 4" in screen.getvalue()


def test_undo_corrects_and_stores_both(tmp_path: Path) -> None:
    queries = pairs(3)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        # a, a, back to the second (b), on to the third, back twice: the second stays, the third anew; finish.
        rater, _ = sit_down("aaubauu" + "bt" + "u" + "s" + "f", store)
        ask(rater, queries, store)
        current = {j.query_id: j for j in store.judgements()}
        assert shown_choice(current[queries[0].id]) == "a"
        assert shown_choice(current[queries[1].id]) == "b"
        assert current[queries[2].id].skipped
        # The second was corrected once (answering b again is no correction), the third twice: a, t, s.
        assert store.count().judgements == 3 + 1 + 2
        assert store.count().current == 3


def test_undo_reaches_across_collects_and_does_nothing_at_the_start() -> None:
    queries = pairs(2)
    rater, _ = sit_down("ua" + "ub" + "a" + "f")
    tickets = rater.submit(queries)
    (first,) = rater.collect(tickets[:1])
    second, third = rater.collect(tickets[1:])
    assert shown_choice(first) == "a"
    assert (second.query_id, second.supersedes, shown_choice(second)) == (queries[0].id, first.id, "b")
    assert third.query_id == queries[1].id


def test_stopping_keeps_what_was_answered_and_goes_on_later(tmp_path: Path) -> None:
    queries = pairs(4)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        with pytest.raises(RaterStoppedError, match="2 to go"):
            ask(sit_down("abq")[0], queries, store)  # kept by ask, although the rater has no store
        assert store.count().judgements == 2
        with pytest.raises(RaterStoppedError, match="1 to go"):
            ask(sit_down("t", store)[0], queries, store)  # the end of the input stops, too
        assert ask(sit_down("a.", store)[0], queries, store) in (0, 1)  # the rater stored it itself
        assert store.count().answered == 4


def test_answers_are_stored_the_moment_they_are_given(tmp_path: Path) -> None:
    class Crash(Script):
        def read(self) -> str:
            key = super().read()
            if key == "!":
                raise KeyboardInterrupt
            return key

    queries = pairs(3)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        store.add_queries(queries)
        rater = TerminalRater("ann", store, console=Console(file=io.StringIO()), keyboard=Crash("ab!"))
        with pytest.raises(KeyboardInterrupt):
            rater.collect(rater.submit(queries))
        assert store.count().judgements == 2


def test_rankings_and_ratings() -> None:
    ranked = Query(prompt="p", responses=("w", "x", "y", "z"), query_type="ranking")
    rated = Query(prompt="p", responses=("w", "x", "y"), query_type="rating")
    # "b", then "a" taken back for "d"; "b" again is refused; "a"; the last follows of itself. Then three digits.
    rater, _ = sit_down("baudba" + "9x15" + "f")
    first, second = rater.collect(rater.submit([ranked, rated]))
    assert first.ranking is not None
    assert ["abcd"[first.order_shown.index(i)] for (i,) in first.ranking] == ["b", "d", "a", "c"]
    assert second.ratings is not None
    assert [second.ratings["overall"][i] for i in second.order_shown] == [9.0, 1.0, 5.0]
    with pytest.raises(FeedbackError, match="at most 16 responses, got 17"):
        rater.submit([Query(prompt="p", responses=("x",) * 17, query_type="ranking")])
    with pytest.raises(FeedbackError, match="was not submitted"):
        rater.collect([Ticket("unknown", "ann")])


def test_model_text_cannot_reach_the_terminal_as_commands() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07 [bold red]markup[/] \u202erevesrever \ud800 \u2028 é 👩\u200d💻 " + "x" * 20_000
    rater, screen = sit_down("a.")
    rater.collect(rater.submit([Query(prompt=hostile, responses=(hostile, "fine"))]))
    text = screen.getvalue()
    assert not set("\x1b\x07\u202e\ud800\u2028") & set(text)
    assert "[bold red]markup[/]" in text
    assert "\\x1b[2J" in text
    assert "more characters" in text
    assert visible("tab\tline\n👩\u200d💻 é") == "tab\tline\n👩\u200d💻 é"


@pytest.fixture
def terminal() -> Iterator[tuple[int, Keyboard]]:
    mine, theirs = pty.openpty()
    with os.fdopen(theirs, "r", encoding="utf-8") as source:
        yield mine, Keyboard(source)
    os.close(mine)


def press(terminal: int, keys: Sequence[bytes], keyboard: Keyboard) -> list[str]:
    found = []
    for key in keys:
        os.write(terminal, key)
        found.append(keyboard.read())
    return found


def test_keys_of_a_real_terminal(terminal: tuple[int, Keyboard]) -> None:
    mine, keyboard = terminal
    assert press(mine, [b"a", b"T", b"\x1b[A"], keyboard) == ["a", "t", "\x1b"]
    os.write(mine, b"bd")
    assert [keyboard.read(), keyboard.read()] == ["b", "d"]  # typed fast
    os.write(mine, b"bd")
    assert keyboard.read() == "b"
    keyboard.discard()  # a new query appears: what was typed before is not about it
    assert press(mine, [b"s"], keyboard) == ["s"]


def test_the_best_of_several_and_forms_that_want_a_page() -> None:
    query = Query(prompt="p", responses=("x", "y", "z"), query_type="best")
    rater, _ = sit_down("tc\n")  # t, a tie, means nothing here
    [judgement] = rater.collect(rater.submit([query]))
    assert judgement.choice == judgement.order_shown[2]
    with pytest.raises(FeedbackError, match="use the rating page"):
        rater.submit([Query(prompt="p", responses=("x",), query_type="edit")])
