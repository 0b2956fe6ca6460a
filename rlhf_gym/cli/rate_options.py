"""The options of `rlhf-gym rate`, the command about people who rate."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rlhf_gym.cli.columns import add_columns

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_WRITTEN = (
    "trl-explicit, trl-implicit, trl-conversational, trl-unpaired, hh, alpacafarm, openai-summarize, label-studio, argilla; "
    "docs/people.md says what each keeps"
)
_READ = (
    "openai-axes, openai-preference, oasst, ultrafeedback, pku-saferlhf, shp, chatbot-arena, helpsteer, helpsteer-preference, "
    "nectar, webgpt, prodigy, rewardbench-2, llama-factory, ratings, pairs"
)
STORE_HELP = "the run's directory, the feedback store's file, or its database's URL"


def add_rate(commands: Commands) -> None:
    """Add the command `rate` with its actions."""
    rate = commands.add_parser(
        "rate", allow_abbrev=False, help="serve the rating page, invite people, export, import and withdraw answers",
        description="Serve the rating page of a run or of a feedback store, until Ctrl-C, and print links that invite to it; "
        "or do one of the actions below. A run with `--rater web` serves its own page.",
    )  # fmt: skip
    rate.add_argument("--serve", metavar="RUN_OR_STORE", help=f"what to serve: {STORE_HELP}")
    add_address(rate, port=8722)
    rate.add_argument(
        "--url",
        metavar="URL",
        default="",
        help="public address (https://...), if a TLS proxy stands in front of the page",
    )
    rate.add_argument(
        "--title", metavar="TEXT", default="Which response is better?",
        help="title of every page (default: Which response is better?)",
    )  # fmt: skip
    rate.add_argument(
        "--guidelines", metavar="FILE", help="Markdown file of guidelines for raters (default: built-in ones)"
    )
    rate.add_argument(
        "--text", choices=("plain", "markdown"), default="plain",
        help="show responses as plain text, or render their Markdown (default: plain)",
    )  # fmt: skip
    rate.add_argument(
        "--attributes",
        metavar="A,B,...",
        default="overall",
        help="what people rate in rating queries (default: overall)",
    )
    rate.add_argument("--overlap", metavar="N", type=int, default=1, help="people who answer each query (default: 1)")
    rate.add_argument(
        "--lease", metavar="SECONDS", type=float, default=900,
        help="time for which a query is reserved for the rater who sees it (default: 900)",
    )  # fmt: skip
    rate.add_argument(
        "--check-questions", metavar="FILE",
        help="JSON Lines file of queries with known answers, for --practice and --check-share",
    )  # fmt: skip
    rate.add_argument(
        "--practice", metavar="N", type=int, default=0,
        help="practice questions before a rater's first query (default: 0)",
    )  # fmt: skip
    rate.add_argument(
        "--check-share", metavar="P", type=float, default=0.0,
        help="share of a rater's questions that are check questions, from 0 to below 1 (default: 0)",
    )  # fmt: skip
    rate.add_argument(
        "--repeat-share", metavar="P", type=float, default=0.0,
        help="share of a rater's questions that repeat an earlier one, from 0 to below 1 (default: 0)",
    )  # fmt: skip
    rate.add_argument(
        "--include-answered", action="store_true",
        help="hand out queries, too, that a file or a simulated rater has answered already (default: only open ones)",
    )  # fmt: skip
    rate.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of the orders shown and of the shares (default: 0)"
    )
    actions = rate.add_subparsers(dest="action", metavar="ACTION", title="actions")
    _add_invite(actions)
    _add_forget(actions)
    _add_export(actions)
    _add_import(actions)
    _add_withdraw(actions)


def _add_invite(actions: Commands) -> None:
    invite = actions.add_parser(
        "invite", allow_abbrev=False, help="print new invitation links",
        description="Make invitations to the rating page of a run or store, and print their links.",
    )  # fmt: skip
    _add_store(invite)
    invite.add_argument("--admin", action="store_true", help="invite an administrator, not a rater")
    invite.add_argument("--number", metavar="N", type=int, default=1, help="number of links (default: 1)")
    invite.add_argument("--uses", metavar="N", type=int, default=1, help="people whom a link lets in (default: 1)")
    invite.add_argument("--days", metavar="N", type=int, default=30, help="days until a link expires (default: 30)")
    invite.add_argument("--label", metavar="TEXT", default="", help="a note for yourself, e.g. whom the link is for")
    invite.add_argument("--url", metavar="URL", default="", help="public address of the page")
    invite.add_argument(
        "--port",
        metavar="N",
        type=int,
        default=8722,
        help="port of the page on this machine, without --url (default: 8722)",
    )


def _add_forget(actions: Commands) -> None:
    forget = actions.add_parser(
        "forget", allow_abbrev=False, help="remove what ties a rater's answers to a person",
        description="Remove what ties a rater's answers to a person. The answers stay, under the made-up name.",
    )  # fmt: skip
    forget.add_argument("rater", metavar="RATER", help="the rater's made-up name, e.g. web/calm-otter-41")
    _add_store(forget)


def _add_export(actions: Commands) -> None:
    export = actions.add_parser(
        "export", allow_abbrev=False, help="write a store's answers to a file, in a format of your choice",
        description="Write a store's answers to FILE: .jsonl, .json (one array), either with .gz, or .parquet. Answers that "
        "the format has no place for are left out and counted; what else the format loses is printed.",
    )  # fmt: skip
    export.add_argument("file", metavar="FILE", help="file to write")
    _add_store(export)
    export.add_argument("--format", metavar="NAME", default="native", help=f"native (the default), {_WRITTEN}")
    export.add_argument("--round", metavar="N", type=int, help="answers of this round only (default: of all rounds)")
    export.add_argument(
        "--every-purpose", action="store_true",
        help="include answers to check questions, practice and repetitions, marked by a column `purpose` (native always does)",
    )  # fmt: skip
    export.add_argument(
        "--all", action="store_true", help="include answers that were corrected later (format native only)"
    )


def _add_import(actions: Commands) -> None:
    take = actions.add_parser(
        "import", allow_abbrev=False, help="add the answers in a file to a store",
        description="Add the answers in FILE (.jsonl, .json, .csv, .tsv, also with .gz, or .parquet) to a store, which is made "
        "if there is none: a file, or a folder for a run that is to begin with these answers. An answer that is in the store "
        "already is not added again, one that has changed supersedes it. Rows that are left out are counted by reason.",
    )  # fmt: skip
    take.add_argument("file", metavar="FILE", help="file to read")
    _add_store(take)
    take.add_argument(
        "--format",
        metavar="NAME",
        default="auto",
        help=f"auto (the default: by the columns), native, {_READ}, {_WRITTEN}",
    )
    add_columns(take)
    take.add_argument(
        "--round", metavar="N", type=int, help="round of the answers (default: 0; format native has its own)"
    )
    take.add_argument(
        "--rater", metavar="NAME", default="import", help="signs answers that name no rater (default: import)"
    )


def _add_withdraw(actions: Commands) -> None:
    withdraw = actions.add_parser(
        "withdraw", allow_abbrev=False, help="take a query or an answer out of everything that reads the store",
        description="Withdraw queries (with all answers to them) or single answers. They stay stored, with a record of the "
        "withdrawal, and are not shown, exported or learned from any more. A run does not ask about them again.",
    )  # fmt: skip
    withdraw.add_argument(
        "id", metavar="ID", nargs="+", help="id of a query or an answer, or its first 6 characters or more"
    )
    _add_store(withdraw)
    withdraw.add_argument("--reason", metavar="TEXT", default="", help="why; kept with the record")


def add_address(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Add the address that a service listens on.

    Args:
        parser: the command's parser.
        port: the default port.
    """
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, which this machine alone can reach)",
    )  # fmt: skip
    parser.add_argument(
        "--port", metavar="N", type=int, default=port, help=f"port to listen on, 0 for a free one (default: {port})"
    )


def _add_store(action: argparse.ArgumentParser) -> None:
    action.add_argument("--store", metavar="RUN_OR_STORE", required=True, help=STORE_HELP)
