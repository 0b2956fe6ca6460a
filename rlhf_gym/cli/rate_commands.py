"""The command about people who rate: serve the page, invite, forget, export and import answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from rlhf_gym.errors import ConfigError


def rate(options: argparse.Namespace) -> None:
    """`rlhf-gym rate`: one of its actions, or ``--serve``.

    Raises:
        ConfigError: neither or both of an action and ``--serve`` are given, or an option does not fit the action.
    """
    if options.action is None and options.serve is None:
        raise ConfigError(
            "say what to serve: rlhf-gym rate --serve RUN_OR_STORE (or an action: invite, forget, export, import)"
        )
    if options.action is not None and options.serve is not None:
        raise ConfigError(f"--serve does not go with {options.action}: give --store after {options.action} instead")
    actions = {None: _serve, "invite": _invite, "forget": _forget, "export": _export, "import": _import}
    actions[options.action](options)


def _serve(options: argparse.Namespace) -> None:
    from rlhf_gym.study.checks import check_questions
    from rlhf_gym.study.leases import QueueSettings
    from rlhf_gym.web.page_settings import PageSettings, guidelines_from
    from rlhf_gym.web.server import Address
    from rlhf_gym.web.serving import serving, store_of

    store, run = store_of(options.serve)
    address = Address(options.host, options.port, options.url)
    page = PageSettings(
        title=options.title, guidelines=guidelines_from(options.guidelines), text=options.text, url=options.url,
        attributes=tuple(options.attributes.split(",")),
    )  # fmt: skip
    queue = QueueSettings(
        overlap=options.overlap, lease_seconds=options.lease, check_share=options.check_share,
        repeat_share=options.repeat_share, practice=options.practice, seed=options.seed,
    )  # fmt: skip
    checks = check_questions(options.check_questions)
    with serving(store, queue=queue, page=page, address=address, run=run) as served:
        served.store.add_queries(checks)
        print("\n".join(served.lines()), flush=True)
        print("Ctrl-C ends it; every answer is stored as soon as it is given", flush=True)
        served.server.wait()


def _invite(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.study.people import People
    from rlhf_gym.web.serving import store_of

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
    from rlhf_gym.study.people import People
    from rlhf_gym.web.serving import store_of

    with FeedbackStore(store_of(options.store)[0]) as store:
        People(store).forget(options.rater)
    print(f"forgotten: nothing ties {options.rater} to a person any more; the judgements stay", file=sys.stderr)


def _export(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.feedback.exchange.files import export_feedback
    from rlhf_gym.feedback.exchange.formats import NATIVE, format_of
    from rlhf_gym.web.serving import store_of

    format_of(options.format)
    if options.all and options.format != NATIVE:
        raise ConfigError(
            f"--all goes with --format {NATIVE}: {options.format} cannot tell a corrected answer from a current one"
        )
    with FeedbackStore(store_of(options.store)[0], read_only=True) as store:
        answers = store.answers(options.round, superseded=options.all)
    done = export_feedback(answers, options.file, options.format)
    print(f"{options.file}: {done.written} records of {len(answers)} answers{_left_out(done.dropped)}", file=sys.stderr)
    if done.replaced:
        print(f"{done.replaced} lone surrogates, which only {NATIVE} can hold, became U+FFFD", file=sys.stderr)
    print(f"{options.format} has no place for: {done.loses}", file=sys.stderr)


def _import(options: argparse.Namespace) -> None:
    from rlhf_gym.feedback import FeedbackStore
    from rlhf_gym.feedback.exchange.files import add_imported, import_feedback
    from rlhf_gym.feedback.exchange.formats import NATIVE
    from rlhf_gym.web.serving import store_of

    if options.round is not None and options.format == NATIVE:
        raise ConfigError(f"--round does not go with --format {NATIVE}: its queries name their own rounds")
    # All of the file is read before the store is opened: a file that is refused leaves nothing behind.
    found = import_feedback(options.file, options.format, rater=options.rater, round=options.round or 0)
    exists = "://" in options.store or Path(options.store).exists()
    with FeedbackStore(store_of(options.store)[0] if exists else options.store) as store:
        added = add_imported(store, found)
    print(
        f"{options.store}: {added.judgements} new answers to {added.queries} new queries"
        f"{f', {added.known} that were there already' if added.known else ''}{_left_out(found.dropped)}",
        file=sys.stderr,
    )


def _left_out(dropped: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"; left out: {reasons}" if reasons else ""
