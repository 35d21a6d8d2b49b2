import collections
import csv
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedfault.errors import UserError
from fedfault.registry import build

TOPICS = b"text,topic\nhi,x\nho,y\n"
ROWS = [{"text": f'Text {i}, with "quotes"\nand a line.', "kind": f"k{i % 3}", "id": i} for i in range(30)]


def read(path, **options):
    return build("corpus", "text", path=str(path), **options)


def topics(corpus):
    return collections.Counter(d.topic for d in corpus.train + corpus.validation)


def write(path, rows):
    if path.suffix == ".tsv":
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_gives_a_document_a_row(tmp_path, ending):
    corpus = read(write(tmp_path / f"mine.{ending}", ROWS), topic_column="kind")
    assert topics(corpus) == {"k0": 10, "k1": 10, "k2": 10}
    assert {d.text for d in corpus.train + corpus.validation} == {row["text"] for row in ROWS}
    assert len(corpus.validation) == 3
    assert str(tmp_path) in corpus.source


def test_all_formats_give_the_same_fingerprint(tmp_path):
    made = [read(write(tmp_path / f"mine.{ending}", ROWS)) for ending in ("csv", "jsonl", "parquet")]
    assert len({corpus.fingerprint for corpus in made}) == 1
    assert topics(made[0]) == {"text": 30}


def test_several_text_columns_are_joined_by_line_breaks(tmp_path):
    rows = [{"title": "T", "body": f"b{i}", "n": i} for i in range(4)] + [{"title": "", "body": "alone", "n": 9}]
    corpus = read(write(tmp_path / "a.csv", rows), text_columns=["title", "body"])
    assert {d.text for d in corpus.train + corpus.validation} == {"T\nb0", "T\nb1", "T\nb2", "T\nb3", "alone"}


def test_numbers_can_be_topics(tmp_path):
    assert set(topics(read(write(tmp_path / "a.parquet", ROWS), topic_column="id"))) == {str(i) for i in range(30)}


def test_the_group_column_is_the_group_and_may_be_empty(tmp_path):
    rows = [{"text": f"t{i}", "by": ["ann", " bob ", ""][i % 3]} for i in range(30)]
    corpus = read(write(tmp_path / "a.csv", rows), group_column="by")
    assert collections.Counter(d.group for d in corpus.train + corpus.validation) == {"ann": 10, "bob": 10, "": 10}
    assert topics(corpus) == {"text": 30}


def test_quotes_in_a_tsv_file_are_text(tmp_path):
    rows = [{"text": t, "kind": "k"} for t in ('say "a", b', '"open', "two")]
    corpus = read(write(tmp_path / "a.tsv", rows), topic_column="kind")
    assert {d.text for d in corpus.train + corpus.validation} == {'say "a", b', '"open', "two"}
    assert corpus.tally.quoted == 1


def test_a_tsv_that_a_writer_of_csv_has_quoted_is_told(tmp_path):
    with (tmp_path / "a.tsv").open("w", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab")
        writer.writerows([["text", "kind"], ['He said "hi"', "a"], ["plain", "a"], ['"all"', "b"], ['x "y', "b"]])
    tally = read(tmp_path / "a.tsv", topic_column="kind").tally
    assert tally.quoted == 3
    assert tally.describe()[-1].startswith("3 cells of .tsv files stand in quotes")
    assert read(write(tmp_path / "b.csv", [{"text": '"one ""x"""'}, {"text": "two"}])).tally.quoted == 0


def test_columns_that_are_not_read_are_told(tmp_path):
    """A table with labels, read without data.topic_column, had one topic and not a word on the labels."""
    rows = [{"id": i, "text": f"t{i}", "label": "ab"[i % 2], "site": "x"} for i in range(20)]
    file = write(tmp_path / "a.csv", rows)
    assert (
        read(file)
        .tally.describe()[-1]
        .startswith("columns not read: id, label, site; data.topic_column names the topic")
    )
    assert read(file, topic_column="label", group_column="site").tally.unread == "id"
    assert read(file, text_columns=["id", "text"], topic_column="label", group_column="site").tally.unread == ""
    asked = write(tmp_path / "b.jsonl", [{"question": f"q{i}", "answer": "a", "label": "x"} for i in range(9)])
    assert read(asked).tally.unread == "label"
    assert read(asked, columns={"prompt": "question", "completion": "label"}).tally.unread == "answer"


def test_a_folder_of_text_files_has_its_sub_folders_as_topics(tmp_path):
    for name in (
        "x/1.txt",
        "x/2.txt",
        "x/deep/3.txt",
        "y/4.txt",
        "y/5.txt",
        "6.txt",
        ".hidden/7.txt",
        "y/.8.txt",
        "y/9.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    assert topics(read(tmp_path)) == {"x": 3, "y": 2, "text": 1}


def test_a_single_text_file_is_cut_at_blank_lines(tmp_path):
    paragraphs = [f"{i} " + "word " * 200 for i in range(6)]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(paragraphs).encode())
    corpus = read(tmp_path / "a.txt")
    assert len(corpus.train) + len(corpus.validation) == 6
    assert any(d.text.startswith("0 word") for d in corpus.train + corpus.validation)  # no byte-order mark


def test_short_paragraphs_of_a_text_file_are_a_document_each(tmp_path):
    lines = [f"Paragraph {i}\n  goes on." for i in range(40)]
    (tmp_path / "a.txt").write_text("\n \n" + "\n  \t\n\n".join(lines) + "\n\n")
    corpus = read(tmp_path / "a.txt")
    assert sorted(d.text for d in corpus.train + corpus.validation) == sorted(lines)
    assert (corpus.tally.train, corpus.tally.empty) == (40, 0)


def test_a_long_part_of_a_text_file_is_cut_where_lines_end(tmp_path):
    (tmp_path / "a.txt").write_text("Short.\n\n" + "\n".join(f"{i:04} {'x' * 94}" for i in range(30)))
    corpus = read(tmp_path / "a.txt")
    assert sorted(len(d.text) for d in corpus.train + corpus.validation) == [6, 999, 1999]  # 20 lines, then 10


def test_a_folder_with_train_and_validation_keeps_them(tmp_path):
    write(tmp_path / "train.csv", ROWS[:20])
    write(tmp_path / "train-2.csv", ROWS[20:25])
    write(tmp_path / "valid.csv", ROWS[24:])
    write(tmp_path / "other.csv", ROWS)
    corpus = read(tmp_path)
    assert len(corpus.train) == 24
    assert len(corpus.validation) == 6


def test_a_folder_of_other_tables_is_pooled(tmp_path):
    write(tmp_path / "a.csv", ROWS[:10])
    write(tmp_path / "b.jsonl", ROWS[10:])
    (tmp_path / "README.txt").write_text("not data")
    assert topics(read(tmp_path)) == {"text": 30}


def test_rows_without_text_are_dropped_and_long_fields_are_read(tmp_path):
    rows = [{"text": t} for t in ("", "  ", "a" * 200_000, "b")]
    corpus = read(write(tmp_path / "a.csv", rows))
    assert sorted(len(d.text) for d in corpus.train + corpus.validation) == [1, 200_000]


def test_missing_values_in_jsonl_and_parquet_are_no_text(tmp_path):
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}]
    assert topics(read(write(tmp_path / "a.parquet", rows))) == {"text": 2}
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"other": 1}\n{"text": "two"}')
    assert topics(read(tmp_path / "b.jsonl")) == {"text": 2}


@pytest.mark.parametrize(
    ("name", "data", "options", "parts"),
    [
        ("a.csv", TOPICS, {"text_columns": ["txt"]}, ["no column 'txt'", "mean 'text'", "known: text, topic"]),
        ("a.csv", TOPICS, {"topic_column": "topics"}, ["did you mean 'topic'", "data.topic_column"]),
        ("a.csv", TOPICS, {"group_column": "author"}, ["no column 'author'", "data.group_column"]),
        ("a.txt", b"a", {"group_column": "author"}, ["data.group_column=author", "leave it out"]),
        ("a.tsv", b"text\ttopic\nhi\n", {}, ["line 2 has 1 fields", "the header has 2"]),
        ("a.csv", b"body\nhi\n", {}, ["no column 'text'", "data.text_columns"]),
        ("a.csv", b"text,topic\nhi,\nho,y\n", {"topic_column": "topic"}, ["1 of 2 rows"]),
        ("a.csv", b"text\n", {}, ["no rows"]),
        ("a.csv", b"", {}, ["no rows"]),
        ("a.csv", b"text\n\"\"\n\" \"\n", {}, ["no text in it"]),
        ("a.csv", b"text\none\n", {}, ["only one text"]),
        ("a.csv", b"text\none,two\n", {}, ["line 2", "more fields", "is a quote missing"]),
        ("a.csv", b"text;label\none, two;a\n", {}, ["line 2", "more fields", "the header has semicolons"]),
        ("a.csv", b"text;label\none two;a\n", {}, ["no column 'text'", "the header has semicolons"]),
        ("a.csv", b'text\n"one\n', {}, ["not CSV"]),
        ("a.csv", b"text\n", {"text_columns": []}, ["data.text_columns is empty"]),
        ("a.csv", b"text\na\n", {"text_columns": ["text", "text"]}, ["names a column twice"]),
        ("a.csv", b"text\ncaf\xe9\n", {}, ["0xe9 at offset 8", "not UTF-8"]),
        ("a.txt", b"a\0b", {}, ["binary"]),
        ("a.txt", b"a", {"text_columns": ["text"]}, ["plain text", "leave it out"]),
        ("a.txt", b"a", {"topic_column": "t"}, ["leave it out and put the files of each topic into"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', {}, ["line 2 is not JSON"]),
        ("a.jsonl", b'["a"]\n', {}, ["line 1 is not a JSON object"]),
        ("a.jsonl", b'{"text": ["a", "b"]}\n', {}, ["column 'text' holds list"]),
        ("a.parquet", b"PAR1nonsense", {}, ["not a readable Parquet file"]),
        ("a.xlsx", b"x", {}, ["must end in one of .csv, .tsv, .jsonl, .parquet, .json, .txt"]),
    ],
)  # fmt: skip
def test_bad_files_are_explained(tmp_path, name, data, options, parts):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        read(tmp_path / name, **options)
    for part in parts:
        assert part in str(error.value)
    assert len(str(error.value)) < 500


def test_bad_paths_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"needs data\.path"):
        build("corpus", "text")
    with pytest.raises(UserError, match="no file in the folder"):
        read(tmp_path)
    (tmp_path / "mine.csv").write_text("text\n")
    with pytest.raises(UserError, match=r"no such file or folder; did you mean 'mine\.csv'"):
        read(tmp_path / "mime.csv")
    with pytest.raises(UserError, match="nor is"):
        read(tmp_path / "nowhere" / "a.csv")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("train", "test"), [("reviews_train", "reviews_TEST"), ("train/part", "test/part"), ("part", "Dev-Set/part")]
)
def test_a_file_called_test_validates_and_is_never_trained_on(tmp_path, ending, train, test):
    rows = [{"text": f"Text {i}", "kind": "k"} for i in range(30)]
    for name, own in ((train, rows[:20]), (test, rows[20:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.{ending}", own)
    corpus = read(tmp_path)
    assert {d.text for d in corpus.train} == {row["text"] for row in rows[:20]}
    assert {d.text for d in corpus.validation} == {row["text"] for row in rows[20:]}
    assert corpus.tally.train_files == f"{train}.{ending}"
    assert corpus.tally.validation_files == f"{test}.{ending}"


def test_text_files_have_sides_and_their_topics_are_the_other_folders(tmp_path):
    for name in ("train/glad/1.txt", "train/cross/2.txt", "test/glad/3.txt", "test/cross/4.txt", "test/cross/5.txt"):
        (tmp_path / "moods" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "moods" / name).write_text(f"text of {name}")
    for path in (tmp_path, tmp_path / "moods"):
        corpus = read(path)
        assert [d.topic for d in corpus.train] == ["cross", "glad"]
        assert [d.topic for d in corpus.validation] == ["cross", "cross", "glad"]


def test_files_that_are_not_read_are_named(tmp_path):
    for name in ("train.csv", "valid.csv", "test.csv", "more.csv"):
        write(tmp_path / name, [{"text": f"{name} {i}"} for i in range(5)])
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "b.json").write_text("[]")
    tally = read(tmp_path).tally
    assert tally.left_out == "more.csv, test.csv, b.json, notes.txt"
    assert "files left out: more.csv, test.csv" in tally.describe()[0]


def test_sums_and_moods_are_all_there(tmp_path):
    sums = [{"text": f"{a} {sign} {b}", "kind": sign} for a in (2, 3, 4) for b in (5, 6) for sign in "+-"]
    assert topics(read(write(tmp_path / "sums.jsonl", sums), topic_column="kind")) == {"+": 6, "-": 6}
    moods = [{"text": f"day {i} {face}", "kind": face} for i in range(4) for face in "\U0001f600\U0001f621"]
    assert set(topics(read(write(tmp_path / "moods.jsonl", moods), topic_column="kind")).values()) == {4}


def test_repeats_are_kept_where_that_is_asked_for(tmp_path):
    path = write(tmp_path / "a.csv", [{"text": f"Text {i % 10}"} for i in range(30)])
    assert topics(read(path)) == {"text": 10}
    assert read(path).tally.repeated == 20
    assert topics(read(path, keep_repeats=True)) == {"text": 30}


def test_nan_is_no_text_and_no_topic(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "kind": 1.0}\n{"text": NaN, "kind": 0}\n{"text": "two", "kind": 1}\n')
    corpus = read(path, topic_column="kind")
    assert topics(corpus) == {"1": 2}
    assert corpus.tally.empty == 1
    path.write_text('{"text": "one", "kind": 1.0}\n{"text": "two", "kind": NaN}\n')
    with pytest.raises(UserError, match=r"1 of 2 rows have nothing in the topic column 'kind', the first is row 2"):
        read(path, topic_column="kind")


def test_a_validation_part_without_text_is_an_error_and_not_split_off(tmp_path):
    (tmp_path / "train.csv").write_text("text\na\nb\nc\n")
    (tmp_path / "test.csv").write_text('text\n" "\n""\n')
    with pytest.raises(UserError, match="no text in the 2 rows of the validation part"):
        read(tmp_path)


def test_a_folder_of_one_text_is_refused_with_the_way_to_read_it(tmp_path):
    (tmp_path / "input.txt").write_text("one\n\ntwo\n")
    with pytest.raises(UserError, match=r"the folder holds one text, input\.txt, .* give data\.path the file itself"):
        read(tmp_path)


@pytest.mark.parametrize(("name", "words"), [("split", ("train", "test")), ("Set", ("Training", "dev", "test"))])
def test_a_column_that_says_which_rows_are_for_testing_is_refused(tmp_path, name, words):
    rows = [{"text": f"Text {i}", name: words[i % len(words)]} for i in range(12)]
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(UserError, match=rf"column '{name}' says of rows .*{12 // len(words)} {words[1]}.*train\.csv"):
        read(path)
    assert topics(read(path, topic_column=name)) == dict.fromkeys(words, 12 // len(words))


def test_a_column_that_says_one_side_or_other_things_is_left_alone(tmp_path):
    for words in (["train"], ["test"], ["a", "test"], ["1", "2"]):
        rows = [{"text": f"Text {i}", "split": words[i % len(words)]} for i in range(12)]
        assert topics(read(write(tmp_path / "a.csv", rows))) == {"text": 12}


def test_a_folder_of_json_files_with_an_object_a_line_is_read(tmp_path):
    for name, n in (("train", 20), ("test", 5)):
        (tmp_path / f"{name}.json").write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(n)))
    (tmp_path / "labels.csv").write_text("text\na\nb\n")
    corpus = read(tmp_path)
    assert (len(corpus.train), len(corpus.validation), corpus.tally.left_out) == (20, 5, "labels.csv")


@pytest.mark.parametrize(
    ("name", "said"), [("train.json", ""), ("train.csv.gz", "; unpack it first"), ("train/a.txt", "")]
)
def test_a_file_called_train_is_not_left_out(tmp_path, name, said):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"data": []}')
    (tmp_path / "labels.csv").write_text("text\na\nb\n")
    with pytest.raises(
        UserError, match=rf"{name} is called train and would be left out, as labels\.csv would be .*{said}"
    ):
        read(tmp_path)
    (tmp_path / "train.csv").write_text("text\na\nb\n")
    assert name in read(tmp_path).tally.left_out


def test_files_of_one_data_set_name_booleans_and_short_floats_alike(tmp_path):
    for name, values, written in (
        ("flags", [True, False], ["true", "FALSE"]),
        ("scores", [0.1, 0.25], ["0.1", "0.25"]),
    ):
        (tmp_path / name).mkdir()
        kind = pa.array(values * 5, pa.float32() if name == "scores" else pa.bool_())
        table = pa.table({"text": [f"train {i}" for i in range(10)], "kind": kind})
        pyarrow.parquet.write_table(table, tmp_path / name / "train.parquet")
        write(tmp_path / name / "test.csv", [{"text": f"test {i}", "kind": written[i % 2]} for i in range(10)])
        corpus = read(tmp_path / name, topic_column="kind")
        assert {d.topic for d in corpus.validation} == {d.topic for d in corpus.train} == set(map(str, values))


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_the_header_again_is_an_error_with_its_line(tmp_path, ending, separator):
    lines = [separator.join(row) for row in (("text", "kind"), ("one", "a"), ("text", "kind"), ("two", "a"))]
    (tmp_path / f"a.{ending}").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"a\.{ending}: line 3 is the header again"):
        read(tmp_path / f"a.{ending}", topic_column="kind")
    (tmp_path / f"b.{ending}").write_text("text\none\ntext\n")
    assert topics(read(tmp_path / f"b.{ending}")) == {"text": 2}


def test_a_text_file_of_one_line_is_told_to_be_broken(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 5000)
    with pytest.raises(UserError, match=r"only one text.*2,000 characters where lines end: break its lines"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["data.csv.gz", "data.xlsx", "data.ndjson", "a.arrow"])
def test_a_packed_table_is_not_left_out_for_the_texts_beside_it(tmp_path, name):
    for text in ("README", "LICENSE"):
        (tmp_path / f"{text}.txt").write_text(text)
    (tmp_path / "texts.zip").write_text("x")
    (tmp_path / "texts.tar.gz").write_text("x")
    assert topics(read(tmp_path)) == {"text": 2}
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=f"{name} is a table that is not read; .*; or move it away"):
        read(tmp_path)
