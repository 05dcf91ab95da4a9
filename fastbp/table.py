"""Tables from CSV files. Every complaint names the file, and the line and the column where there is one."""

from __future__ import annotations

import csv
import difflib
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbp.validation import require


@dataclass(frozen=True)
class Table:
    """
    The cells of a CSV file, and where they came from.

    Parameters
    ----------
    path : str
        The file, as it is named in errors.
    frame : pandas.DataFrame
        One row per record; a missing cell is NaN.
    """

    path: str
    frame: Any

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the order of the file."""
        return list(self.frame.columns)

    def check_columns(self, wanted: Sequence[str]) -> None:
        """Raise ValueError unless every wanted column is there."""
        missing = [name for name in wanted if name not in self.frame.columns]
        if missing:
            near = difflib.get_close_matches(missing[0], self.names, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            what = "column" if len(missing) == 1 else "columns"
            raise ValueError(
                f"{self.path}: no {what} {_listing(missing)}{hint}; the columns are {_listing(self.names)}"
            )

    def numbers(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The named columns as a matrix; ValueError for a cell that is missing or not a finite number, and for numbers
        so far apart that they have no standard deviation.
        """
        self.check_columns(names)
        X = np.stack([self._parse(name) for name in names], axis=1)
        bad = ~np.isfinite(X)
        if bad.any():
            row, j = np.argwhere(bad)[0]
            raise self._cell_error(row, names[j])
        with np.errstate(over="ignore", invalid="ignore"):
            too_large = ~np.isfinite(X.std(axis=0))
        if too_large.any():
            j = too_large.argmax()
            raise ValueError(
                f"{self.path}, column {_quote(names[j])}: numbers as large as {np.abs(X[:, j]).max():g} cannot be "
                f"standardised"
            )
        return X

    def labels(self, name: str) -> NDArray[Any]:
        """One column as class labels: text or numbers as pandas reads them; ValueError for a missing cell."""
        self.check_columns([name])
        missing = self.frame[name].isna().to_numpy()
        if missing.any():
            raise self._cell_error(missing.argmax(), name)
        return self.frame[name].to_numpy()

    def guess_task(self, name: str) -> str:
        """
        What kind of target a column is.

        Parameters
        ----------
        name : str
            Name of the column.

        Returns
        -------
        {"classification", "regression"}
            Regression for numbers with decimals. Text among cells that are numbers for the most part is an
            error: it would turn every number into a class of its own.
        """
        labels = self.labels(name)
        if labels.dtype == object:
            is_number = np.isfinite(self._parse(name))
            if 0.5 < is_number.mean() < 1:
                error = self._cell_error(is_number.argmin(), name)
                raise ValueError(f"{error} (if it is a class, give --task classification)")
        return "regression" if labels.dtype.kind == "f" else "classification"

    def _parse(self, name: str) -> NDArray[np.float64]:
        """A column as numbers, NaN where it has none."""
        column = require("pandas", "cli").to_numeric(self.frame[name], errors="coerce")
        return column.to_numpy(dtype=np.float64, na_value=np.nan)

    def _cell_error(self, row: np.intp, name: str) -> ValueError:
        """The error for a cell, with its line and text read again from the file."""
        missing = (int(row) + 2, [""] * len(self.names))  # a lone "" is no record to the csv module
        line, cells = next(islice(_read_records(self.path), int(row) + 1, None), missing)
        text = cells[self.names.index(name)].strip()
        problem = f"{_quote(text)} is not a finite number" if text else "the cell is missing"
        return ValueError(f"{self.path}, line {line}, column {_quote(name)}: {problem}")


def read_table(path: str, dtype: Mapping[str, type] | None = None) -> Table:
    """
    Read a CSV file: UTF-8, cells parted by commas, a header row of distinct names.

    Parameters
    ----------
    path : str
        The file.
    dtype : mapping of str to type, optional
        Types of columns that are not to be guessed.

    Returns
    -------
    Table
        With one row at least, and as many cells in every row as in the header.

    Raises
    ------
    ValueError
        If the file is anything else.
    """
    pandas = require("pandas", "cli")
    names = _read_header(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(
                path,
                header=0,
                names=names,
                index_col=False,
                dtype=dtype,
                encoding="utf-8-sig",
                keep_default_na=False,  # "NA" may be the name of a class
                na_values=[""],
                skipinitialspace=True,
                low_memory=False,  # one type for a whole column, not one for each part of it
            )
    except (UnicodeDecodeError, pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
        _check_widths(path, len(names))
        raise ValueError(f"{path}: {error}") from error
    text = frame.select_dtypes(exclude=["number", "bool"])
    frame[text.columns] = text.map(lambda cell: cell.strip() or None if isinstance(cell, str) else cell)
    if frame[names[-1]].isna().any():  # pandas fills up a row that is too short
        _check_widths(path, len(names))
    if frame.empty:
        raise ValueError(f"{path}: there are no data rows below the header")
    return Table(path, frame)


def _read_records(path: str) -> Iterator[tuple[int, list[str]]]:
    """Every record that is not blank, the header first, after the number of the line where it begins."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        line = 1
        try:
            for cells in reader:
                if len(cells) > 1 or "".join(cells).strip():
                    yield line, cells
                line = reader.line_num + 1
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not a CSV file in UTF-8") from error


def _read_header(path: str) -> list[str]:
    """The names of the columns, none empty and none twice."""
    _, cells = next(_read_records(path), (0, []))
    names = [cell.strip() for cell in cells]
    if not names:
        raise ValueError(f"{path}: the file is empty")
    if "\0" in "".join(names):
        raise ValueError(f"{path}: not a CSV file in UTF-8")
    if "" in names:
        raise ValueError(f"{path}: column {names.index('') + 1} of the header has no name")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path}: {count} columns of the header are named {_quote(name)}")
    return names


def _check_widths(path: str, width: int) -> None:
    """Raise for the first record that has not as many cells as the header."""
    for line, cells in _read_records(path):
        if len(cells) != width:
            what = "cell" if len(cells) == 1 else "cells"
            raise ValueError(f"{path}, line {line}: {len(cells)} {what} where the header has {width}")


def _quote(text: str) -> str:
    """Text from a file, short and on one line."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _listing(names: Sequence[str]) -> str:
    """The first of some names, quoted."""
    shown = ", ".join(map(_quote, names[:10]))
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
