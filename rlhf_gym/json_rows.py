"""The objects in a JSON text, read piece by piece: of a list, of a list inside an object, or one after another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_gym.errors import TaskError

_CHUNK = 1 << 20  # characters that are read at once
# Characters of an object that is looked at whole, before it is taken for one that holds a list of rows.
_LARGEST = 1 << 23
_HOLDERS = ("data", "rows", "examples", "instances", "items", "records", "samples", "train", "validation", "test")
_SPACE = " \t\r\n"


def json_rows(lines: Iterator[str], place: str) -> Iterator[dict[str, Any]]:
    """The items of a JSON list, those of the one list of objects in an object, or the objects that stand one after another.

    An object that is all there is holds its rows if a list of objects is its only value (but for a conversation's messages), or
    is called ``data``, ``rows``, ``train``, ... beside other values.

    Args:
        lines: the text's lines, each with its newline.
        place: the file's name, for messages.

    Raises:
        TaskError: the text is no JSON, its items are no objects, or an object holds several such lists.
    """
    reader = _Reader(lines, place)
    first = reader.peek()
    if first == "[":
        reader.start += 1
        yield from reader.items()
        reader.end("the list")
    elif first == "{" and (held := reader.into_list()):
        yield from reader.items()
        reader.leave(held)
    elif first:
        row = reader.object()
        if reader.peek() == "" and (name := _list_in(row, place)) is not None:
            yield from (as_object(item, f"{place}, item {i}") for i, item in enumerate(row[name], start=1))
            return
        yield row
        while reader.peek():
            yield reader.object()


def as_object(value: Any, place: str) -> dict[str, Any]:
    """A value that is an object.

    Args:
        value: as it was read.
        place: where it stands, for the message.

    Raises:
        TaskError: it is none.
    """
    if not isinstance(value, dict):
        raise TaskError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def _list_in(row: Mapping[str, Any], place: str) -> str | None:
    """The name of the list that holds an object's rows; None where the object is a row itself."""
    known = [name for name, value in row.items() if isinstance(value, list) and name.casefold() in _HOLDERS]
    lists = [name for name in row if _holds_rows(row[name])]
    if len(known) > 1 and len(lists) > 1:
        raise TaskError(f"{place} holds several lists of rows ({', '.join(known)}): save each in a file of its own")
    if len(row) == 1 and (known or lists):
        return (known or lists)[0] if lists or row[known[0]] == [] else None
    return known[0] if len(known) == 1 and known[0] in lists else None


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and _is_row(value[0])


def _is_row(value: Any) -> bool:
    """True for an object that is no message of a conversation."""
    return isinstance(value, Mapping) and not value.keys() & {"role", "from"}


class _Reader:
    """Reads values of a text that need not fit into memory.

    Args:
        lines: the text's lines.
        place: the file's name.
    """

    def __init__(self, lines: Iterator[str], place: str) -> None:
        self._lines, self._place = lines, place
        self._decode = json.JSONDecoder().raw_decode
        self.text, self.start = "", 0  # what is not parsed yet begins at `start`
        self._line, self._column = 1, 1  # the place of the text's beginning in the file
        self._item = 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            while self.start < len(self.text) and self.text[self.start] in _SPACE:
                self.start += 1
            if self.start < len(self.text):
                return self.text[self.start]
            if not self._more(_CHUNK):
                return ""

    def object(self) -> dict[str, Any]:
        """The object that begins here."""
        self._item += 1
        return as_object(self._value(), f"{self._place}, item {self._item}")

    def items(self) -> Iterator[dict[str, Any]]:
        """The items of the list whose bracket was read, up to the bracket that ends it."""
        while (character := self.peek()) != "]":
            if not character:
                raise self._refuse("the list does not end", self.start)
            if self._item:
                if character != ",":
                    raise self._refuse("Expecting ',' delimiter", self.start)
                self.start += 1
                if not self.peek():
                    continue
            yield self.object()
        self.start += 1

    def end(self, what: str) -> None:
        """Check that nothing follows."""
        at = self.start
        if self.peek():
            raise self._refuse(f"something stands after {what}", at)

    def into_list(self) -> str:
        """Step into the list of rows in an object too large to be looked at whole; empty where it is no such object.

        Returns:
            The list's name.
        """
        while len(self.text) - self.start < _LARGEST and self._more(_LARGEST):
            pass
        if len(self.text) - self.start < _LARGEST:
            return ""
        at, number = self._skip(self.start + 1), 0
        try:
            while True:
                name, at = self._decode(self.text, at)
                at = self._after(":", at)
                if self.text[at] == "[" and (number == 0 or name.casefold() in _HOLDERS):
                    first, _ = self._decode(self.text, self._skip(at + 1))
                    if _is_row(first):
                        self.start = at + 1
                        return str(name)
                _, at = self._decode(self.text, at)
                at, number = self._after(",", at), number + 1
        except (ValueError, IndexError, RecursionError):
            return ""  # whatever is wrong is said where the object is read

    def leave(self, held: str) -> None:
        """Read on to the end of the object, after its list of rows.

        Args:
            held: the list's name.
        """
        while self.peek() == ",":
            self.start += 1
            self.peek()
            name = self._value()
            if self.peek() != ":" or not isinstance(name, str):
                raise self._refuse("Expecting ':' delimiter", self.start)
            self.start += 1
            self.peek()
            if _holds_rows(self._value()) or held.casefold() not in _HOLDERS:
                raise TaskError(
                    f"{self._place} holds {name!r} beside {held!r}: save the list of rows in a file of its own"
                )
        if self.peek() != "}":
            raise self._refuse("Expecting ',' delimiter", self.start)
        self.start += 1
        self.end("the object")

    def _after(self, character: str, at: int) -> int:
        at = self._skip(at)
        if self.text[at] != character:
            raise ValueError
        return self._skip(at + 1)

    def _skip(self, at: int) -> int:
        while self.text[at] in _SPACE:
            at += 1
        return at

    def _value(self) -> Any:
        while True:
            try:
                value, self.start = self._decode(self.text, self.start)
                return value
            except json.JSONDecodeError as error:
                at = error.pos - self.start
                if not self._more(max(_CHUNK, 2 * (len(self.text) - self.start))):  # it may only be cut
                    raise self._refuse(error.msg.removesuffix(" at"), self.start + at) from error
            except RecursionError:
                raise TaskError(f"{self._place}, item {self._item}: JSON nested too deeply") from None

    def _more(self, fewest: int) -> bool:
        """Read on, keeping what is not parsed yet; False at the end of the file."""
        read = self.text[: self.start]
        self._line += read.count("\n")
        self._column = len(read) - read.rfind("\n") if "\n" in read else self._column + len(read)
        parts, length = [self.text[self.start :]], 0
        for part in self._lines:
            parts.append(part)
            length += len(part)
            if length >= fewest:
                break
        self.text, self.start = "".join(parts), 0
        return length > 0

    def _refuse(self, problem: str, at: int) -> TaskError:
        before = self.text[:at]
        column = len(before) - before.rfind("\n") if "\n" in before else self._column + len(before)
        return TaskError(
            f"{self._place}, line {self._line + before.count(chr(10))}: not JSON ({problem} at column {column})"
        )
