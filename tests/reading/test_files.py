import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedfault.errors import UserError
from fedfault.reading import files


def test_a_tsv_has_no_quotes_and_keeps_other_line_separators(tmp_path):
    (tmp_path / "a.tsv").write_bytes('\ufeffone\ttwo\r\n"a\t b"\n\u2028\t\n'.encode())
    assert files.read_rows(tmp_path / "a.tsv") == [{"one": '"a', "two": ' b"'}, {"one": "\u2028", "two": ""}]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_lines_may_end_in_a_carriage_return_alone(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    lines = ["one,two", "a,b", "c,d"]
    file.write_bytes("".join(line + "\r" for line in lines).replace(",", "," if ending == ".csv" else "\t").encode())
    rows = [(f"{file}: line 2", {"one": "a", "two": "b"}), (f"{file}: line 3", {"one": "c", "two": "d"})]
    assert files.list_numbered_rows(file) == rows
    file.write_bytes(b"one\r")
    assert files.read_rows(file) == []


def test_a_carriage_return_in_a_tsv_of_other_lines_is_kept(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"one\ttwo\na\rb\tc\n")
    assert files.read_rows(tmp_path / "a.tsv") == [{"one": "a\rb", "two": "c"}]


def test_a_tsv_of_a_header_has_no_rows(tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\n")
    assert files.read_rows(tmp_path / "a.tsv") == []


@pytest.mark.parametrize("line", ["a", "a\tb\tc", ""])
def test_a_tsv_line_with_too_few_or_too_many_fields_is_named(tmp_path, line):
    (tmp_path / "a.tsv").write_text(f"one\ttwo\na\tb\n{line}\na\tb\n")
    with pytest.raises(UserError, match=r"a\.tsv: line 3 has \d fields, but the header has 2"):
        files.read_rows(tmp_path / "a.tsv")


def test_labels_are_counted_from_the_first():
    assert files.label_name("mine", "here", 1, ("a", "b")) == "b"
    assert files.label_name("mine", "here", "1", ("a", "b"), first=1) == "a"
    assert {files.label_name("mine", "here", label, ("a", "b")) for label in (1, 1.0, "1.0", " 1")} == {"b"}


@pytest.mark.parametrize("label", [0, 3, -1, "a", "1.5", 1.5, True, None, float("nan"), "", "1" * 5000])
def test_a_label_that_is_not_there_is_explained(label):
    with pytest.raises(UserError, match=r"here: label .*; mine has 1 to 2 for a, b"):
        files.label_name("mine", "here", label, ("a", "b"), first=1)


def test_the_first_layout_that_fits_is_chosen():
    rows = [{"a": 1, "b": 2, "c": 3}]
    assert files.choose_columns("mine", "here", rows, ("a", "d"), ("b", "c"), ("a",)) == ("b", "c")
    with pytest.raises(UserError, match=r"here: mine needs the columns a, d or e \(found: a, b, c\)"):
        files.choose_columns("mine", "here", rows, ("a", "d"), ("e",))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", "text,label,text\na,b,c\n"),
        ("a.csv", '"text","label","text"\na,b,c\n'),
        ("a.tsv", "text\tlabel\ttext\na\tb\tc\n"),
        ("a.jsonl", '{"text": "a", "label": "b", "text": "c"}\n'),
    ],
)
def test_a_column_that_is_there_twice_is_an_error(tmp_path, name, data):
    (tmp_path / name).write_text(data)
    place = re.escape(str(tmp_path / name)) + (": line 1" if name.endswith(".jsonl") else "")
    with pytest.raises(UserError, match=f"{place}: 2 columns are called 'text'; rename or remove all but one"):
        files.read_rows(tmp_path / name)


def test_a_parquet_column_that_is_there_twice_is_an_error(tmp_path):
    table = pa.table([["a"], ["b"], ["c"]], names=["text", "label", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="2 columns are called 'text'"):
        files.read_rows(tmp_path / "a.parquet")


def test_columns_without_a_name_may_be_there_twice(tmp_path):
    (tmp_path / "a.csv").write_text("text,,\na,b,c\n")
    assert [row["text"] for row in files.read_rows(tmp_path / "a.csv")] == ["a"]


@pytest.mark.parametrize("fields", ["a", "a,b,c"])
def test_a_csv_line_with_too_few_or_too_many_fields_is_named(tmp_path, fields):
    (tmp_path / "a.csv").write_text(f"one,two\na,b\n\n{fields}\n")
    with pytest.raises(UserError, match=r"a\.csv: line 4 has (fewer|more) fields than the header"):
        files.read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize("value", [r'"cut \ud83d"', r'["\udc00"]', r'{"a": "\ud83d\ud83d"}'])
def test_half_a_character_is_an_error_that_names_the_line(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "whole \\ud83d\\ude00"}}\n\n{{"text": {value}}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: line 3 has half a character"):
        files.read_rows(tmp_path / "a.jsonl")


def test_half_a_character_in_the_name_of_a_column_is_an_error_too(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"\ud83d": "a"}')
    with pytest.raises(UserError, match="line 1 has half a character"):
        files.read_rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "9" * 5_000])
def test_json_beyond_what_python_reads_is_an_error_that_names_the_line(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{{"text": {value}}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: line 2 is not JSON"):
        files.read_rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**30], pa.int32()).cast(pa.date32()),
        pa.array([2**60], pa.int64()).cast(pa.timestamp("us")),
        pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")),
    ],
    ids=["date", "time", "bytes"],
)
def test_a_parquet_value_that_python_does_not_have_is_an_error(tmp_path, column):
    pyarrow.parquet.write_table(pa.table({"text": ["a"], "odd": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: column 'odd' \(.*\) cannot be read"):
        files.read_rows(tmp_path / "a.parquet")


def test_a_json_file_is_a_list_of_objects_or_has_an_object_a_line(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('[\n{"text": "a"},\n{"text": "b"}\n]')
    assert files.list_numbered_rows(file) == [(f"{file}: row 1", {"text": "a"}), (f"{file}: row 2", {"text": "b"})]
    file.write_text('{"text": "a"}\n\n{"text": "b"}')
    assert files.list_numbered_rows(file) == [(f"{file}: line 1", {"text": "a"}), (f"{file}: line 3", {"text": "b"})]
    file.write_text('[{"text": "a"}, "b"]')
    with pytest.raises(UserError, match="row 2 is not a JSON object"):
        files.read_rows(file)
    file.write_text('[{"text": "a"}')
    with pytest.raises(UserError, match="is not JSON"):
        files.read_rows(file)
    (tmp_path / "a.jsonl").write_text('[{"text": "a"}]')
    with pytest.raises(UserError, match=r"is it a JSON list\? Such a file is called \.json"):
        files.read_rows(tmp_path / "a.jsonl")


def test_of_the_json_files_of_a_folder_those_with_a_list_of_objects_are_tables(tmp_path):
    for name, text in {"list": ' [\n {"a": 1}]', "object": '{"a": 1}', "numbers": "[1, 2]", "empty": "[]"}.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert [file.stem for file in sorted(tmp_path.iterdir()) if files.is_table(file)] == ["list"]


def test_json_files_with_an_object_a_line_are_tables_and_settings_are_not(tmp_path):
    long = '{"a": "' + "x" * 2 * files.LOOKED_AT + '"}\n'
    tables = {"lines": '{"a": 1}\n{"a": 2}\n', "long": long * 2, "marked": '\ufeff\n{"a": 1}\r\n\r\n{"a": 2}'}
    others = {"settings": '{\n  "a": {\n    "b": 1\n  }\n}\n', "one": '{"a": 1}\n', "empty": "", "braces": "{\n{\n"}
    for name, text in (tables | others).items():
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    assert {file.stem for file in tmp_path.iterdir() if files.is_table(file)} == set(tables)


def test_the_advice_for_a_data_set_of_several_splits_writes_files_called_by_these(tmp_path):
    datasets = pytest.importorskip("datasets")
    split = {"train": [f"text {i}" for i in range(5)], "test": ["one", "two"]}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_dict({"text": own}) for name, own in split.items()})
    whole.save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    arrow = next((tmp_path / "saved" / "train").glob("*.arrow"))
    code = re.search(r'python -c "(.*)"$', files.explain_ending(arrow))[1]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "files", capture_output=True, check=True)
    found = {file.stem: [row["text"] for row in files.read_rows(file)] for file in (tmp_path / "files").iterdir()}
    assert found == split


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ({"text|label": "a|b"}, "the header has bars where a .csv file has commas"),
        ({"text;label": "a;1"}, "the header has semicolons"),
    ],
)
def test_other_separators_are_named_as_what_they_are(tmp_path, column, hint):
    with pytest.raises(UserError, match=hint):
        files.check_columns(tmp_path, [column], ["text"], "data.text_columns")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_the_pointer_of_git_lfs_is_not_the_file(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(
        UserError, match=r"is a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`"
    ):
        files.read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"text": "a"},\n{"text": "b"},\n', "line 1 is not JSON.*no comma between them"),
        ('{\n "text": "a"\n}\n', "line 1 is not JSON.*an object over several lines"),
        ('[\n{"text": "a"}\n]\n', "line 1 is not JSON.*is it a JSON list"),
    ],
)
def test_json_that_is_no_object_a_line_is_told_from_broken_json(tmp_path, written, said):
    (tmp_path / "a.jsonl").write_text(written)
    with pytest.raises(UserError, match=said):
        files.read_rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("a.jsonl.gz", "", "; unpack it first"),
        ("a.xlsx", "", "; save the sheet as CSV in UTF-8"),
        ("a.arrow", "", "to_parquet"),
        ("a.ndjson", "", "; rename it to a.jsonl"),
        ("a.docx", "", "^$"),
    ],
)
def test_a_file_of_another_ending_is_explained(tmp_path, name, written, said):
    (tmp_path / name).write_text(written)
    assert re.search(said, files.explain_ending(tmp_path / name))


def test_a_table_of_another_ending_is_refused_with_the_way_to_one_that_is_read(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv\.gz: a table must end in one of \.csv, .*; unpack it first"):
        files.list_numbered_rows(tmp_path / "a.csv.gz")


def test_the_code_that_writes_an_object_a_line_does(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [{"text": "a"}, {"text": "b"}]}')
    with pytest.raises(UserError, match="one JSON object with 2 rows in 'data'") as e:
        files.read_rows(tmp_path / "a.json")
    code = re.search(r'python -c "(.*)" >', str(e.value))[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == '{"text": "a"}\n{"text": "b"}\n'


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_floats_of_a_parquet_file_are_the_shortest_that_they_are_nearest_to(tmp_path, kind):
    import numpy as np

    values = np.array([0.1, 2.0, -1.5, float("inf")], kind.to_pandas_dtype())
    column = pa.array([*values, None], kind)
    pyarrow.parquet.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    assert [row["x"] for row in files.read_rows(tmp_path / "a.parquet")] == [0.1, 2.0, -1.5, float("inf"), None]
