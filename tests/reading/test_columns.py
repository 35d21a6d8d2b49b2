"""Which columns of a table could name topics or groups."""

import json

from fedfault.reading.columns import find_naming_columns

ROWS = [
    {
        "text": f"Text number {i}",
        "id": i,
        "topic": ["a", "b", "c"][i % 3],
        "site": i % 2,
        "note": "word " * 30,
        "one": 1,
    }
    for i in range(12)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_names_are_shared_by_rows_and_short_and_of_two_kinds_at_least(tmp_path):
    file = write(tmp_path / "x.jsonl", ROWS)
    assert find_naming_columns(file, ["text"]) == {"topic": 3, "site": 2}


def test_columns_in_use_are_left_out(tmp_path):
    assert find_naming_columns(write(tmp_path / "x.jsonl", ROWS), ["text", "topic", None]) == {"site": 2}


def test_values_that_are_missing_or_blank_are_no_names(tmp_path):
    rows = [{"text": str(i), "lang": ["", None, "en", "en"][i % 4]} for i in range(8)]
    assert find_naming_columns(write(tmp_path / "x.jsonl", rows), ["text"]) == {}


def test_columns_of_lists_are_no_names(tmp_path):
    rows = [{"text": str(i), "tags": [["x"], ["y"]][i % 2]} for i in range(8)]
    assert find_naming_columns(write(tmp_path / "x.jsonl", rows), ["text"]) == {}


def test_of_a_folder_the_first_table_is_read_and_plain_text_has_no_columns(tmp_path):
    assert find_naming_columns(tmp_path, []) == {}
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    assert find_naming_columns(tmp_path, []) == {}
    assert find_naming_columns(tmp_path / "a.txt", []) == {}
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "x.jsonl", ROWS)
    assert find_naming_columns(tmp_path, ["text"]) == {"topic": 3, "site": 2}
