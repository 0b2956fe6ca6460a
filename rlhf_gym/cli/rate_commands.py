"""The command about people who rate: serve the page, invite, forget, export and import answers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlhf_gym.cli.columns import columns_of
from rlhf_gym.errors import ConfigError


def rate(options: argparse.Namespace) -> None:
    """`rlhf-gym rate`: one of its actions, or ``--serve``.

    Raises:
        ConfigError: neither or both of an action and ``--serve`` are given, or an option does not fit the action.
    """
    if options.action is None and options.serve is None:
        raise ConfigError(
            "say what to serve: rlhf-gym rate --serve RUN_OR_STORE (or an action: invite, forget, export, import, withdraw)"
        )
    if options.action is not None and options.serve is not None:
        raise ConfigError(f"--serve does not go with {options.action}: give --store after {options.action} instead")
    actions = {
        None: _serve, "invite": _invite, "forget": _forget, "export": _export, "import": _import, "withdraw": _withdraw,
    }  # fmt: skip
    actions[options.action](options)


def _serve(options: argparse.Namespace) -> None:
    from rlhf_gym.store_places import store_of
    from rlhf_gym.study.checks import check_questions
    from rlhf_gym.study.leases import QueueSettings
    from rlhf_gym.web.page_settings import PageSettings, guidelines_from
    from rlhf_gym.web.server import Address
    from rlhf_gym.web.serving import serving

    store, run = store_of(options.serve)
    address = Address(options.host, options.port, options.url)
    page = PageSettings(
        title=options.title, guidelines=guidelines_from(options.guidelines), text=options.text, url=options.url,
        attributes=_attributes(options.attributes),
    )  # fmt: skip
    queue = QueueSettings(
        overlap=options.overlap, lease_seconds=options.lease, check_share=options.check_share,
        repeat_share=options.repeat_share, practice=options.practice, answered=options.include_answered,
        seed=options.seed,
    )  # fmt: skip
    checks = check_questions(options.check_questions)
    with serving(store, queue=queue, page=page, address=address, run=run) as served:
        served.store.add_queries(checks)
        print("\n".join(served.lines()), flush=True)
        print("Ctrl-C ends it; every answer is stored as soon as it is given", flush=True)
        served.server.wait()


def _invite(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.store_places import store_of
    from rlhf_gym.study.people import People

    url = (options.url or f"http://127.0.0.1:{options.port}").rstrip("/")
    if options.number < 1:
        raise ConfigError(f"--number must be at least 1, got {options.number}")
    with FeedbackStore(store_of(options.store)[0]) as store:
        people = People(store)
        for _ in range(options.number):
            token = people.invite(
                role="admin" if options.admin else "rater", label=options.label, uses=options.uses, days=options.days
            )
            print(f"{url}/join/{token}")


def _forget(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.store_places import store_of
    from rlhf_gym.study.people import People

    with FeedbackStore(store_of(options.store)[0]) as store:
        People(store).forget(options.rater)
    print(f"forgotten: nothing ties {options.rater} to a person any more; the judgements stay", file=sys.stderr)


def _export(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.feedback.exchange.files import export_feedback
    from rlhf_gym.feedback.exchange.formats import NATIVE, format_of
    from rlhf_gym.store_places import store_of

    format_of(options.format)
    if options.all and options.format != NATIVE:
        raise ConfigError(
            f"--all goes with --format {NATIVE}: {options.format} cannot tell a corrected answer from a current one"
        )
    with FeedbackStore(store_of(options.store)[0], read_only=True) as store:
        answers = store.answers(options.round, superseded=options.all)
    done = export_feedback(answers, options.file, options.format, every_purpose=options.every_purpose)
    reasons = ", ".join(f"{count} {reason}" for reason, count in done.dropped.items())
    left_out = f"; left out: {reasons}" if reasons else ""
    print(f"{options.file}: {done.written} records of {len(answers)} answers{left_out}", file=sys.stderr)
    if done.replaced:
        print(f"{done.replaced} lone surrogates, which only {NATIVE} can hold, became U+FFFD", file=sys.stderr)
    print(f"{options.format} has no place for: {done.loses}", file=sys.stderr)


def _import(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.feedback.exchange.files import spooled
    from rlhf_gym.table_files import not_readable

    problem = not_readable(Path(options.file))
    if problem:
        raise ConfigError(f"{options.file} could not be read: {problem}")
    reading = spooled(
        options.file, options.format, rater=options.rater, round=options.round, columns=columns_of(options.columns)
    )
    place = _store_to_fill(options.store)
    with reading as spool, FeedbackStore(place) as store:  # a file that is refused leaves no store behind
        added, rows = spool.add_to(store), spool.rows
    if rows.found:
        print(f"{options.file}: read as {rows.format}", file=sys.stderr)
    told = [f"{added.judgements} new answers to {added.queries} new queries"]
    told += [f"{added.changed} of them supersede an earlier one"] if added.changed else []
    told += [f"{added.known} that were there already"] if added.known else []
    told += [f"{added.withdrawn} of those were withdrawn, and stay so"] if added.withdrawn else []
    print(f"{place}: {', '.join(told)}{f'; left out: {rows.dropped}' if rows.dropped.counts else ''}", file=sys.stderr)
    if rows.noted.counts:
        print(f"taken all the same: {rows.noted}", file=sys.stderr)
    if added.again:
        print(
            f"{added.again} answers are to a query that the same rater answers in an earlier row, {added.otherwise} of them "
            "otherwise than the first",
            file=sys.stderr,
        )
    if added.gone:
        print(
            f"{added.gone} answers that an earlier import brought are not in the file any more; they stay. "
            "`rlhf-gym rate withdraw` takes one out",
            file=sys.stderr,
        )


def _withdraw(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.store_places import store_of

    with FeedbackStore(store_of(options.store)[0]) as store:
        for number in options.id:
            done = store.withdraw(number, reason=options.reason)
            what = "query" if done.kind == "query" else "answer"
            print(f"withdrawn: {what} {done.id} ({done.at:%Y-%m-%d %H:%M} UTC); it stays in the store", file=sys.stderr)


def _attributes(text: str) -> tuple[str, ...]:
    """The names in a list with commas, without the spaces around them."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"--attributes takes names with commas between them, each once; got {text!r}")
    return names


def _store_to_fill(given: str) -> str:
    """The store that an import goes to, new or there already.

    A name without an ending is a run's directory, also before there is a run in it: ``run --out`` begins one there.
    """
    from rlhf_gym.store_places import STORE_FILE, store_of

    path = Path(given)
    if "://" in given or path.is_file() or (path.suffix and not path.is_dir()):
        return given
    if path.is_dir() and any(one.name[0] != "." for one in path.iterdir()):
        return store_of(given)[0]  # refuses a folder of something else
    return str(path / STORE_FILE)
