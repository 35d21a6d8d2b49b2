import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedfault.config.files import MOST_BYTES, dump, parse_setting, read_layer
from fedfault.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5e-5", 0.00005),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("2.", 2.0),
        (".inf", math.inf),
        ("-3", -3),
        ("0", 0),
        ("017", "017"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("false", False),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("null", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("e3", "e3"),
        ("'1e-3'", "1e-3"),
        ("[a, 2, 1e1]", ["a", 2, 10.0]),
        ("[{a: no}]", [{"a": "no"}]),
        ("{}", {}),
    ],
)
def test_a_value_means_the_same_in_a_file_and_on_the_command_line(write, text, value):
    in_file = read_layer(write(f"section:\n  key: {text}\n"))["section", "key"]
    given = parse_setting(f"section.key={text}")["section", "key"]
    for entry in (in_file, given):
        assert entry.value == value
        assert type(entry.value) is type(value)
    assert (in_file.where, given.where) == ("x.yaml:2", "command line")


def test_every_key_knows_its_own_line(write):
    layer = read_layer(write("# comment\na:\n  b:\n    c: 1\n  d:\n    - x\n    - y\n"))
    assert {key: entry.where for key, entry in layer.items()} == {("a", "b", "c"): "x.yaml:4", ("a", "d"): "x.yaml:5"}


def test_a_byte_order_mark_is_not_a_key(write):
    assert ("a",) in read_layer(write(b"\xef\xbb\xbfa: 1\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: [1,\n", "x.yaml:3: not valid YAML: "),
        ("a: b: c\n", "x.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2\n", "x.yaml:2: not valid YAML: "),
        ("a:\n\tb: 2\n", "that cannot start any token; indent with blanks, not with tabs"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: not valid YAML: "),
        (b"a: 1\nb: caf\xe9\n", "x.yaml:2: not UTF-8 text (byte 0xe9)"),
        ("a: 1\nb: \0\n", r"x.yaml:2: character '\x00' is not allowed"),
        ("", "x.yaml: the file must be a mapping of sections, like 'federation:'; it holds nothing"),
        ("# only a comment\n", "it holds nothing"),
        ("- a\n", "it holds a list"),
        ("word\n", "it holds a single value"),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "x.yaml:4: key 'b' is given twice (first at x.yaml:2)"),
        ("a: [{b: 1, b: 2}]\n", "key 'b' is given twice"),
        ("1: x\n", "x.yaml:1: the key 1 must be text"),
        ("true: x\n", "the key True must be text"),
        ("[a]: x\n", "the key ['a'] must be text"),
        ("a: &x [1]\nb: *x\n", "x.yaml:2: not valid YAML: aliases (*name) are not supported"),
        ("a: &x [*x]\n", "aliases"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 20"),
        ("a: " + "x" * 5000, "x.yaml:1: a value of 5000 characters; at most 4096"),
        ("a: *.csv\n", 'text that begins with * has to stand in quotes of its own ("*a"), and a path is one file'),
        ("a: " + "9" * 30, "is beyond 64 bits: whole numbers are from -9223372036854775808 to 9223372036854775807"),
        ("a: !!int x\n", "'x' is not of type int"),
        ("a: !!bool x\n", "'x' is not of type bool"),
        ("a: !!python/object/apply:os.system [ls]\n", "x.yaml:1: the tag"),
        ("a: !!set {b, c}\n", "the tag"),
        ("a: !!binary aGk=\n", "the tag"),
        ('a: "\\U00110000"\n', "x.yaml:1: not valid YAML: "),
        ('a: "b\\0"\n', r"x.yaml:1: 'b\x00' holds a character that is not text"),
        ('"\\uD800": 1\n', r"x.yaml:1: '\ud800' holds a character that is not text"),
        ("%YAML 1." + "1" * 5000 + "\na: 1\n", "not valid YAML: "),
        ("a: " + " " * MOST_BYTES, "x.yaml: larger than 1 MB"),
        ("".join(f"a{i}: 1\n" for i in range(1001)), "x.yaml: 1001 settings, at most 1000"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_place(write, text, told):
    with pytest.raises(UserError) as e:
        read_layer(write(text))
    assert told in str(e.value)


def test_missing_files_and_folders_are_user_errors(write, tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_layer(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_layer(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "foo",
        "=3",
        "a..b=1",
        ".a=1",
        "a.=1",
        " =1",
        "",
        "a=[1,",
        "a={b: 1, b: 2}",
        "a=\0",
        "a\0=1",
        "\udc80=1",
        "a=\udc80",
    ],
)
def test_a_malformed_override_is_a_user_error(text):
    with pytest.raises(UserError, match=r"^command line: "):
        parse_setting(text)


def test_an_override_may_hold_equals_signs_and_mappings():
    assert parse_setting("data.path=a=b")["data", "path"].value == "a=b"
    layer = parse_setting("federation.algorithm={name: fedprox, mu: 1e-1}")
    assert layer["federation", "algorithm", "mu"].value == 0.1


@pytest.mark.parametrize("value", ["run #3", "#3", "'run'#3", "[a, b] # two", "{a: 1} #", "a: b #c", "'a #b' #c"])
def test_a_value_on_the_command_line_is_not_cut_off_at_a_comment(value):
    with pytest.raises(
        UserError, match=r"^command line: a # begins a comment.* quotes of its own, such as 'run #3' \(in "
    ):
        parse_setting(f"name={value}")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("run#3", "run#3"),
        ("'run #3'", "run #3"),
        ('"#3"', "#3"),
        ("[a#1, 'b #2']", ["a#1", "b #2"]),
        ("x.py#ab", "x.py#ab"),
    ],
)
def test_a_number_sign_in_a_word_or_in_quotes_is_text(value, read):
    assert parse_setting(f"name={value}")["name",].value == read


texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["1e-3", "no", "true", "017", "0o7", "~", "1:30", "*a", "2024-01-01"])
)
texts = texts.filter(lambda text: "\0" not in text)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), texts)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(scalars, max_size=4))
@example(["\x85", "a\u2028b", "a\nb", "a\r"])
def test_what_is_dumped_reads_back_the_same(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("dump") / "x.yaml"
    path.write_text(dump({"a": {"b": values}}), encoding="utf-8")
    back = read_layer(path)["a", "b"].value
    assert back == values
    assert [type(v) for v in back] == [type(v) for v in values]


def test_the_dump_is_ordinary_yaml_too():
    plain = {"lr": 1e-05, "general": "none", "name": "no", "text": "1e-3", "path": None}
    assert yaml.safe_load(dump(plain)) == plain
