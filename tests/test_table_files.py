"""Rows of files: separators inside a row, and messages for files that are not what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_gym.errors import TaskError
from rlhf_gym.table_files import rows_from_file

# Each of these ends a line for `str.splitlines`: form feed, next line, line and paragraph separator.
TEXT = "one\x0ctwo\x85three\u2028four\u2029five"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_separators_inside_a_text_do_not_end_its_row(tmp_path: Path, suffix: str) -> None:
    lines = {
        ".txt": [TEXT, "second"],
        ".jsonl": [json.dumps({"prompt": text}, ensure_ascii=False) for text in (TEXT, "second")],
        ".csv": ["prompt", TEXT, "second"],
    }
    file = tmp_path / f"rows{suffix}"
    file.write_text("\n".join(lines[suffix]), encoding="utf-8")
    assert list(rows_from_file(file)) == [{"prompt": TEXT}, {"prompt": "second"}]


def test_quoted_fields_and_windows_line_ends_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'prompt,label\r\n"two\r\nlines, one comma",a\r\nplain,b\r\n')
    assert list(rows_from_file(file)) == [
        {"prompt": "two\nlines, one comma", "label": "a"},
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
        ("rows.jsonl", '{"prompt": "a"}\n3\n', "line 2: expected an object, got int"),
        ("rows.csv", "prompt,label\na,b\na, well,b\n", "line 3: 3 fields, expected the 2 of the header; quote"),
        ("rows.csv", f"prompt\n{'a' * 200_000}\n", "line 2: field larger than field limit .*as .jsonl instead"),
        ("rows.ods", "", "cannot read rows from .*expected a file ending in .txt"),
    ],
)
def test_files_that_are_not_what_their_names_say(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TaskError, match=message):
        list(rows_from_file(tmp_path / name))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    (tmp_path / "rows.parquet").write_text("prompt\n")
    with pytest.raises(TaskError, match="cannot be read as Parquet: "):
        list(rows_from_file(tmp_path / "rows.parquet"))
