"""What the reader of tables makes of CSV files, good and bad."""

from __future__ import annotations

import numpy as np
import pytest

from fastbp.table import read_table


@pytest.fixture
def table(tmp_path):
    """Write a file and read it as a table."""

    def write_and_read(text: str, encoding: str = "utf-8", **options):
        path = tmp_path / "data.csv"
        path.write_text(text, encoding=encoding, newline="")
        return read_table(str(path), **options)

    return write_and_read


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        pytest.param("a,b\n1,2.5\n3,-4e1\n", "utf-8", id="plain"),
        pytest.param("a,b\n1,2.5\n3,-4e1", "utf-8", id="no last newline"),
        pytest.param("a,b\r\n1,2.5\r\n3,-4e1\r\n", "utf-8", id="windows"),
        pytest.param("a,b\n1,2.5\n3,-4e1\n", "utf-8-sig", id="byte order mark"),
        pytest.param("\na,b\n\n1,2.5\n   \n3,-4e1\n\n", "utf-8", id="blank lines"),
        pytest.param(" a , b \n 1 , 2.5\n3,  -4e1 \n", "utf-8", id="spaces"),
        pytest.param('"a","b"\n"1","2.5"\n"3","-4e1"\n', "utf-8", id="quotes"),
    ],
)
def test_numbers(table, text, encoding):
    X = table(text, encoding).numbers(["b", "a"])
    np.testing.assert_array_equal(X, [[2.5, 1], [-40, 3]])
    assert X.flags.c_contiguous
    assert X.dtype == np.float64


@pytest.mark.parametrize(
    ("cells", "labels", "task"),
    [
        (["1", "0", "1"], [1, 0, 1], "classification"),
        (["1.5", "0", "1"], [1.5, 0.0, 1.0], "regression"),
        (["NA", "None", "nan"], ["NA", "None", "nan"], "classification"),
        (["True", "False", "True"], [True, False, True], "classification"),
        (['"one, ""two"""', "ü", "1"], ['one, "two"', "ü", "1"], "classification"),
    ],
)
def test_labels_keep_their_type(table, cells, labels, task):
    target = table("\n".join(["x,y", *(f"0,{cell}" for cell in cells)]))
    assert target.labels("y").tolist() == labels
    assert [type(label) for label in target.labels("y").tolist()] == [type(label) for label in labels]
    assert target.guess_task("y") == task


def test_a_column_can_be_read_as_text(table):
    assert table("x,y\n1,007\n2,08\n", dtype={"y": str, "not there": str}).labels("y").tolist() == [
        "007",
        "08",
    ]


def test_blanks_around_cells_do_not_count(table):
    target = table('x,y,flag\n0,ja ,True\n0, "nein" ,True\n0,"\tja",\n0,ja\t,False\n')
    assert target.labels("y").tolist() == ["ja", "nein", "ja", "ja"]
    assert target.frame["flag"].tolist()[:2] == [True, True]
    with pytest.raises(ValueError, match="line 3, column 'y': the cell is missing"):
        table('x,y\n0,ja\n0,"  "\n').labels("y")


def test_a_column_too_large_to_standardise_is_named(table):
    with pytest.raises(ValueError, match=r"data\.csv, column 'b': numbers as large as 2e\+200 cannot be standardised"):
        table("a,b\n1,1e200\n3,-2e200\n").numbers(["a", "b"])
    assert table("a\n1e100\n2e100\n").numbers(["a"]).max() == 2e100


def test_text_among_numbers_is_no_class_unless_told(table):
    target = table("x,y\n0,1.5\n0,n/a\n0,2.5\n")
    with pytest.raises(ValueError, match=r"line 3, column 'y': 'n/a' is not .*--task classification"):
        target.guess_task("y")
    assert target.labels("y").tolist() == ["1.5", "n/a", "2.5"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,b\n1,2\n3,oops\n", 3),
        ("a,b\r\n1,2\r\n3,oops\r\n", 3),
        ("\na,b\n1,2\n\n3,oops\n", 5),
        ('a,"b"\n"1\n",2\n3,oops\n', 4),
        ('"c\nc",a,b\n0,1,2\n0,3,oops\n', 4),
    ],
)
def test_lines_are_counted_as_an_editor_does(table, text, line):
    with pytest.raises(ValueError, match=rf"data\.csv, line {line}, column 'b': 'oops' is not a finite number"):
        table(text).numbers(["b"])


def test_the_first_bad_cell_in_the_file_is_named(table):
    with pytest.raises(ValueError, match="line 2, column 'b': the cell is missing"):
        table("a,b\n1,\nx,2\n").numbers(["a", "b"])


def test_long_text_and_long_headers_are_cut(table):
    with pytest.raises(ValueError, match=r"'x{37}\.\.\.' is not") as error:
        table(f"a\n{'x' * 10_000}\n").numbers(["a"])
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match="and 990 more"):
        table(",".join(f"c{k}" for k in range(1000)) + "\n" + "1," * 999 + "1\n").check_columns(["d"])
