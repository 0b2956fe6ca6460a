"""Rows of files: separators inside a row, and messages for files that are not what their names say."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from rlhf_gym import json_rows, table_files
from rlhf_gym.errors import TaskError
from rlhf_gym.table_files import rows_from_file

# Each of these ends a line for `str.splitlines`: carriage return, form feed, next line, line and paragraph separator.
TEXT = "zero\rone\x0ctwo\x85three\u2028four\u2029five"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".json"])
def test_separators_inside_a_text_do_not_end_its_row(tmp_path: Path, suffix: str) -> None:
    lines = {
        ".txt": [TEXT, "second"],
        ".jsonl": [json.dumps({"prompt": text}, ensure_ascii=False) for text in (TEXT, "second")],
        ".csv": ["prompt", TEXT, "second"],
    }
    lines[".json"] = ["[" + ",".join(lines[".jsonl"]) + "]"]
    for zipped in (False, True):
        file = tmp_path / f"rows{suffix}{'.gz' * zipped}"
        raw = ("\ufeff" + "\n".join(lines[suffix])).encode()
        file.write_bytes(gzip.compress(raw) if zipped else raw)
        assert list(rows_from_file(file)) == [{"prompt": TEXT}, {"prompt": "second"}]
        file.write_bytes(raw if zipped else gzip.compress(raw))  # a browser unpacks a file and keeps its name
        assert list(rows_from_file(file)) == [{"prompt": TEXT}, {"prompt": "second"}]


def test_a_json_file_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list on one line or many, one object, or lines of JSON under the name of a list; cut anywhere."""
    rows = [{"prompt": f"{i} ] , é€ [ \\" * i, "n": [i, {"x": i}]} for i in range(40)]
    file = tmp_path / "rows.json"
    for chunk in (1, 50, 1 << 20):
        monkeypatch.setattr(json_rows, "_CHUNK", chunk)
        monkeypatch.setattr(table_files, "_PIECE", chunk)
        for text in (
            json.dumps(rows),
            json.dumps(rows, ensure_ascii=False),
            json.dumps(rows, indent=2),
            "\n".join(map(json.dumps, rows)),
        ):
            file.write_text(text)
            assert list(rows_from_file(file)) == rows
        file.write_text(json.dumps(rows[3], indent=1))
        assert list(rows_from_file(file)) == [rows[3]]
        file.write_text("[]\n")
        assert list(rows_from_file(file)) == []
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows, indent=2))  # a list under the name of lines
    assert list(rows_from_file(tmp_path / "rows.jsonl")) == rows
    reader = rows_from_file(file)
    file.write_text(json.dumps(rows)[:-5])
    with pytest.raises(TaskError, match="not JSON"):
        list(reader)


def test_rows_inside_a_json_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{i} ]}} , [ \\" * i, "n": [{"x": i}]} for i in range(40)]
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    file = tmp_path / "rows.json"
    for largest, chunk in ((1 << 23, 1 << 20), (64, 1), (64, 1000)):  # looked at whole, or read row by row
        monkeypatch.setattr(json_rows, "_LARGEST", largest)
        monkeypatch.setattr(json_rows, "_CHUNK", chunk)
        for held in (
            {"data": rows}, {"anything": rows}, {"version": 1, "of": {"a": "b"}, "rows": rows, "count": 40, "tags": ["t"]}
        ):  # fmt: skip
            for indent in (None, 1):
                file.write_text(json.dumps(held, indent=indent))
                assert list(rows_from_file(file)) == rows
        for row in ({"messages": turns * 9}, {"prompt": "p" * 99, "completions": rows}, {"data": {"a": 1}}):
            file.write_text(json.dumps(row))
            assert list(rows_from_file(file)) == [row]
        file.write_text(json.dumps({"train": rows, "test": rows}))
        with pytest.raises(TaskError, match="in a file of its own"):
            list(rows_from_file(file))
        file.write_text(json.dumps({"data": rows})[:-1])
        with pytest.raises(TaskError, match="not JSON"):
            list(rows_from_file(file))
    file.write_text('{"data": []}')
    assert list(rows_from_file(file)) == []


def test_quoted_fields_and_windows_line_ends_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'prompt,label\r\n"two\r\nlines, one comma",a\r\nplain,b\r\n')
    assert list(rows_from_file(file)) == [
        {"prompt": "two\r\nlines, one comma", "label": "a"},
        {"prompt": "plain", "label": "b"},
    ]
    file.write_text("prompt,label\na,b,\n")  # a comma at the end
    assert list(rows_from_file(file)) == [{"prompt": "a", "label": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", '[\n {"prompt": "a"},\n {"prompt" "b"}\n]', "line 3: not JSON .*at column 12"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt"}\n', "line 2: not JSON"),
        ("rows.json", '[{"prompt": "a"}, 3]', "item 2: expected an object, got int"),
        (
            "rows.jsonl",
            '{"prompt": "a"}\n{"prompt": "b',
            r"line 2: not JSON \(Unterminated string starting at column 12\)",
        ),
        ("rows.jsonl", '{"prompt": "a"}\n3\n', "line 2: expected an object, got int"),
        ("rows.csv", "prompt,label\na,b\na, well,b\n", "line 3: 3 fields, expected the 2 of the header; quote"),
        ("rows.csv", f"prompt\n{'a' * 200_000}\n", "line 2: field larger than field limit .*as .jsonl instead"),
        ("rows.json", '[{"prompt": "a"}', "line 1: not JSON .the list does not end"),
        ("rows.json", '[{"prompt": "a"} {"prompt": "b"}]', "not JSON .Expecting ',' delimiter at column 18"),
        ("rows.json", '[{"prompt": "a"}]\n{}', "something stands after the list"),
        ("rows.csv", 'prompt,label\na,b\n"a,b\nc,d\ne,f\n', "line 3: unexpected end of data .*begins there; quote"),
        ("rows.csv", 'prompt,label\n"a" x,b\nc,d\n', "line 2: .*double the quotes"),
        ("rows.csv", "prompt,label,prompt\na,b,c\n", "line 1: two columns are called 'prompt'"),
        ("rows.csv", "prompt,label\ra,b\r", "end with carriage returns alone"),
        ("rows.ods", "", "cannot read rows from .*expected a file ending in .txt"),
    ],
)
def test_files_that_are_not_what_their_names_say(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    with pytest.raises(TaskError, match=message):
        list(rows_from_file(tmp_path / name))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    (tmp_path / "rows.parquet").write_text("prompt\n")
    with pytest.raises(TaskError, match="cannot be read as Parquet: "):
        list(rows_from_file(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt", "rows.json"])
@pytest.mark.parametrize(
    ("encoding", "said"), [("latin-1", "not UTF-8 text .* of line 1"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16")]
)
def test_other_encodings_are_named(tmp_path: Path, name: str, encoding: str, said: str) -> None:
    for text in ("caf\xe9 x", "caf\xe9"):
        (tmp_path / name).write_bytes(f'{{"prompt": "{text}"}}'.encode(encoding))
        with pytest.raises(TaskError, match=said):
            list(rows_from_file(tmp_path / name))


def test_folders_and_pipes_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    os.mkfifo(tmp_path / "b.csv")
    for name, said in (("a.csv", "is a folder"), ("b.csv", "is a pipe"), ("c.csv", "there is no file")):
        with pytest.raises(TaskError, match=said):
            rows_from_file(tmp_path / name)
