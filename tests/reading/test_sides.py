import errno
from pathlib import Path

import pytest

from fedfault.errors import UserError
from fedfault.reading import sides


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_tables_are_found_in_the_folder_and_where_the_hub_has_them(tmp_path):
    for name in ("train.tsv", "data/train-00000-of-00001.parquet", "simple/dev.csv", "other/train.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    train, validation, left_out = sides.find_sides(tmp_path, "mine", inside=("data", "simple"))
    assert [p.name for p in train] == ["train.tsv", "train-00000-of-00001.parquet"]
    assert [p.name for p in validation] == ["dev.csv"]
    assert left_out == []
    assert sides.find_sides(tmp_path, "mine").validation == []
    assert sides.find_sides(tmp_path, "mine", inside=("simple",), names=("validation", "test"))[1] == []


def test_a_folder_without_train_is_explained(tmp_path):
    (tmp_path / "test.csv").touch()
    with pytest.raises(UserError, match=r"no train file; mine reads train \(\.csv, \.tsv, .*validation or dev"):
        sides.find_sides(tmp_path, "mine", names=("validation", "dev"))


@pytest.mark.parametrize(
    ("part", "names"),
    [
        (
            "test",
            "test.csv TEST.CSV reviews_test.jsonl reviews-test-v2.jsonl test-00000-of-00001.parquet Test.tsv testset.csv "
            "TestSet.csv myTest.csv reviews.test.csv test_data.csv test1.csv 2013test.csv testing.csv eval.csv tests.csv "
            "evaluation_set.csv a~test~b.csv \u00e9t\u00e9_test.csv",
        ),
        (
            "validation",
            "validation.csv valid.csv VAL.csv val_01.csv dev.tsv Dev-Set.csv devset.csv DEV.csv imdb.dev.csv heldout.csv "
            "held-out.csv hold_out.csv validate.csv HeldOut.csv ValidationSet.csv development.csv reviews-validation.csv",
        ),
        (
            "train",
            "train.csv TRAIN.csv trainSet.csv my_train.csv training.csv Training-Data.csv train-00001-of-2.parquet",
        ),
        (
            "",
            "latest.csv contest.csv testimony.csv devil.csv value.csv invalid.csv trainer.csv strain.csv evaluator.csv",
        ),
    ],
)
def test_the_part_is_in_the_name_in_any_spelling(part, names):
    for name in names.split():
        stem = name.rpartition(".")[0]
        assert sides.name_parts(stem) == ({part} - {""}), name


@pytest.mark.parametrize(
    ("names", "train", "validation", "left_out"),
    [
        (["r_train.csv", "r_test.csv"], [0], [1], []),
        (["train/part.csv", "test/part.csv"], [0], [1], []),
        (["Train/a.csv", "TEST_DATA/a.csv"], [0], [1], []),
        (["a.csv", "b.csv", "c-dev.csv"], [0, 1], [2], []),
        (["a.csv", "dev/b.csv", "test/c.csv"], [0], [1], [2]),
        (["train.csv", "other.csv", "valid.csv"], [0], [2], [1]),
        (["train.csv", "other.csv"], [0], [], [1]),
        (["a.csv", "b.csv"], [0, 1], [], []),
        (["deep/down/train/x/1.csv", "deep/down/val/x/1.csv"], [0], [1], []),
        (["dev-test.csv", "a.csv"], [1], [0], []),
    ],
)
def test_files_called_test_or_validation_are_never_trained_on(tmp_path, names, train, validation, left_out):
    found = touch(tmp_path, *names)
    assert sides.sort_files(tmp_path, found) == tuple([found[i] for i in own] for own in (train, validation, left_out))


def test_the_name_of_the_folder_that_is_given_says_nothing(tmp_path):
    found = touch(tmp_path / "test", "a.csv")
    assert sides.sort_files(tmp_path / "test", found).train == found


@pytest.mark.parametrize("names", [["test.csv"], ["dev/a.csv", "test/b.csv"]])
def test_a_folder_of_nothing_but_test_files_is_explained(tmp_path, names):
    found = touch(tmp_path, *names)
    with pytest.raises(UserError, match=r"nothing to train on.*add one called train, or give the file itself"):
        sides.sort_files(tmp_path, found)


@pytest.mark.parametrize("name", ["train_test.csv", "train/test.csv", "test/train.csv"])
def test_a_name_that_says_train_and_test_is_an_error(tmp_path, name):
    with pytest.raises(UserError, match=r"is called test and train; rename it"):
        sides.sort_files(tmp_path, touch(tmp_path, name))


def test_names_are_told_below_the_folder_in_common_and_no_more_than_six(tmp_path):
    found = touch(tmp_path, "train/a.csv", "test/a.csv")
    assert sides.name_sides(sides.Sides(found[:1], found[1:], [])) == ["train/a.csv", "test/a.csv", ""]
    found = touch(tmp_path, *(f"x/{i}.csv" for i in range(7)))
    assert sides.name_sides(sides.Sides(found, [], []))[0] == "0.csv, 1.csv, 2.csv, 3.csv, 4.csv, 5.csv and 1 more"


def test_a_folder_in_which_something_may_not_be_read_is_an_error_with_its_name(tmp_path, monkeypatch):
    """As /proc is for everybody but its owners; root reads what others may not, so that the refusal is made here."""
    touch(tmp_path, "a.csv", "b.csv")
    usual = Path.is_file

    def is_file(path):
        if path.name == "b.csv":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    with pytest.raises(
        UserError, match=r"data\.path=.*: .*b\.csv: permission denied; choose a place that you may read"
    ):
        sides.list_files(tmp_path, deep=True)
