import pytest

from fedfault.errors import UserError
from fedfault.reading import files


def test_a_tsv_has_no_quotes_and_keeps_other_line_separators(tmp_path):
    (tmp_path / "a.tsv").write_bytes('\ufeffone\ttwo\r\n"a\t b"\n\u2028\t\n'.encode())
    assert files.read_rows(tmp_path / "a.tsv") == [{"one": '"a', "two": ' b"'}, {"one": "\u2028", "two": ""}]


def test_a_tsv_of_a_header_has_no_rows(tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\n")
    assert files.read_rows(tmp_path / "a.tsv") == []


@pytest.mark.parametrize("line", ["a", "a\tb\tc", ""])
def test_a_tsv_line_with_too_few_or_too_many_fields_is_named(tmp_path, line):
    (tmp_path / "a.tsv").write_text(f"one\ttwo\na\tb\n{line}\na\tb\n")
    with pytest.raises(UserError, match=r"a\.tsv: line 3 has \d fields, but the header has 2"):
        files.read_rows(tmp_path / "a.tsv")


def test_tables_are_found_in_the_folder_and_where_the_hub_has_them(tmp_path):
    for name in ("train.tsv", "data/train-00000-of-00001.parquet", "simple/dev.csv", "other/train.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    train, validation = files.find_sides(tmp_path, "mine", inside=("data", "simple"))
    assert [p.name for p in train] == ["train.tsv", "train-00000-of-00001.parquet"]
    assert [p.name for p in validation] == ["dev.csv"]
    assert files.find_sides(tmp_path, "mine")[1] == []
    assert files.find_sides(tmp_path, "mine", inside=("simple",), names=("validation", "test"))[1] == []


def test_a_folder_without_train_is_explained(tmp_path):
    (tmp_path / "test.csv").touch()
    with pytest.raises(UserError, match=r"no train file; mine reads train \(\.csv, \.tsv, .*validation or dev"):
        files.find_sides(tmp_path, "mine", names=("validation", "dev"))


def test_labels_are_counted_from_the_first():
    assert files.label_name("mine", "here", 1, ("a", "b")) == "b"
    assert files.label_name("mine", "here", "1", ("a", "b"), first=1) == "a"


@pytest.mark.parametrize("label", [0, 3, -1, "a", "1.0", None, ""])
def test_a_label_that_is_not_there_is_explained(label):
    with pytest.raises(UserError, match=r"here: label .*; mine has 1 to 2 for a, b"):
        files.label_name("mine", "here", label, ("a", "b"), first=1)


def test_the_first_layout_that_fits_is_chosen():
    rows = [{"a": 1, "b": 2, "c": 3}]
    assert files.choose_columns("mine", "here", rows, ("a", "d"), ("b", "c"), ("a",)) == ("b", "c")
    with pytest.raises(UserError, match=r"here: mine needs the columns a, d or e \(found: a, b, c\)"):
        files.choose_columns("mine", "here", rows, ("a", "d"), ("e",))
