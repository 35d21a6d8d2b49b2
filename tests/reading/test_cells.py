from decimal import Decimal

import pytest

from fedfault.errors import UserError
from fedfault.reading.cells import read_column, write_cell, write_name


def read(*values, names=True):
    return read_column("here", [{"label": value} for value in values], "label", names=names)


def test_numbers_that_are_equal_are_one_name_whatever_their_type():
    assert set(read(1, 1.0, "1", "1.0", " 1 ", "1.", Decimal("1.00"))) == {"1"}
    assert read("0.0", "-0.0", -1, "-1.0", 2.5, "2.50") == ["0", "0", "-1", "-1", "2.5", "2.50"]


def test_a_letter_with_its_accent_is_one_name_however_it_is_written():
    assert set(read("caf\u00e9", "cafe\u0301")) == {"caf\u00e9"}
    assert read("cafe\u0301", names=False) == ["cafe\u0301"]  # a text stays as it is


def test_nan_none_and_blanks_are_nothing():
    assert set(read(float("nan"), None, "", " \n", Decimal("NaN"))) == {""}
    assert read_column("here", [{}], "label") == [""]


def test_text_stays_as_it_stands_but_for_its_ends():
    assert read(" 1.0 ", "1.", names=False) == ["1.0", "1."]
    assert [write_name(v) for v in ("1.0.0", "v2.0", "1e3", "007", "nan", "True")] == [
        "1.0.0", "v2.0", "1e3", "007", "nan", "True",
    ]  # fmt: skip


def test_a_number_of_more_digits_than_python_converts_is_a_name_as_it_stands():
    assert read("1" * 5000 + ".0", "1" * 5000) == ["1" * 5000 + ".0", "1" * 5000]


def test_floats_beyond_whole_numbers_are_written_as_python_writes_them():
    assert [write_cell(v) for v in (1e300, float("inf"), 2.0**53)] == ["1e+300", "inf", "9007199254740992"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1, None, "red"), "numbers in row 1 and text in row 3"),
        (("1", "2", "red", 1), "text in row 3 and numbers in row 4"),
        ((True, 1), "booleans in row 1 and numbers in row 2"),
        (("True", True), "text in row 1 and booleans in row 2"),
    ],
)
def test_a_column_of_two_types_is_an_error_that_names_rows(values, said):
    for names in (True, False):
        with pytest.raises(UserError, match=f"here: column 'label' holds {said}"):
            read(*values, names=names)


@pytest.mark.parametrize("value", [["a"], [], {"a": 1}, b"a"])
def test_values_that_are_no_text_are_an_error_that_names_the_row(value):
    with pytest.raises(UserError, match=f"holds {type(value).__name__} values, not text, the first in row 2"):
        read("a", value)


def test_conversations_are_named_as_such():
    with pytest.raises(UserError, match=r"these are conversations, which data\.columns=\{messages: COLUMN\}"):
        read([{"role": "user", "content": "a"}])


def test_an_infinite_number_is_an_error_that_names_the_row():
    with pytest.raises(UserError, match="column 'label' holds an infinite number in row 2"):
        read(1.0, float("-inf"))
