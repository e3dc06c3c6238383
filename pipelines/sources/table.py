"""Tables on disk, row by row with line numbers: .csv (separated by commas, semicolons or tabs), .tsv, .jsonl.

file -> encoding, separator, header -> Row(line, the values of the columns that are asked for, as text)
"""

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".csv", ".tsv", ".jsonl")
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t"}


class Column(NamedTuple):
    """A column to read, and the option that names another one (empty = none does)."""

    name: str
    option: str


class Row(NamedTuple):
    """The line it starts in, counted from 1, and a value per column, without the spaces around it."""

    line: int
    values: list[str]


def read_header(file: Path) -> list[str]:
    """The names of the columns: the first line of a .csv or .tsv, all keys of the objects of a .jsonl.

    Raises:
        ValueError: The file is empty, or no text.
    """
    lines = _read_lines(file)
    if file.suffix == ".jsonl":
        return list(dict.fromkeys(name for _, found in _objects(lines, file) for name in found))
    return _header(lines, file, wanted=[])[0]


def read_rows(file: Path, columns: Sequence[Column]) -> Iterator[Row]:
    """The rows of a table; empty lines are passed over.

    Raises:
        ValueError: A column that is not there, a row with another number of fields than the header, a quote that is
            not closed, a line that is no JSON object, a value that is no text and no number, or no UTF-8.
    """
    lines = _read_lines(file)
    yield from _read_json(lines, file, columns) if file.suffix == ".jsonl" else _read_csv(lines, file, columns)


def _read_lines(file: Path) -> Iterator[str]:
    """The lines of a text, with their ends; a byte order mark is passed over."""
    number = 0
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for line in lines:
                number += 1
                yield line
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}, line {number + 1} or soon after: it is not UTF-8 text ({error.reason}); save the file as UTF-8."
        ) from error


def _header(lines: Iterator[str], file: Path, *, wanted: Sequence[str]) -> tuple[list[str], str]:
    """The names of the columns, and the separator: one by which all wanted columns are there, or most."""
    first = next(lines, "").rstrip("\r\n")
    if not first.strip():
        raise ValueError(f"{file}, line 1: it is empty; the first line names the columns, for example path,label.")
    found = {}
    for separator in _SEPARATORS[file.suffix]:
        names = [name.strip() for name in next(csv.reader([first], delimiter=separator, skipinitialspace=True))]
        found[separator] = names
    separator = max(found, key=lambda one: (set(wanted) <= set(found[one]), len(found[one])))  # of equals the first
    return found[separator], separator


def _check_columns(names: Sequence[str], columns: Sequence[Column], file: Path) -> None:
    for column in columns:
        if names.count(column.name) > 1:
            raise ValueError(f"{file}, line 1: two columns are called {column.name!r}; rename one.")
        if column.name not in names:
            others = [name for name in names if name not in [one.name for one in columns]] or list(names)
            likely = (difflib.get_close_matches(column.name, others, n=1, cutoff=0.4) or others)[0]
            option = f"; name the right one, for example --{column.option} {likely}" if column.option else ""
            if names == [one.name for one in columns if one.name in names]:
                option = "; add it, or move the table away: without it, images can be neither trained on nor scored"
            raise ValueError(
                f"{file}, line 1: there is no column {column.name!r}; there are {', '.join(names)}{option}."
            )


def _read_csv(lines: Iterator[str], file: Path, columns: Sequence[Column]) -> Iterator[Row]:
    names, separator = _header(lines, file, wanted=[column.name for column in columns])
    _check_columns(names, columns, file)
    places = [names.index(column.name) for column in columns]
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)  # `a, "b, c"` has two fields
    line = 2
    try:
        for fields in reader:
            if fields and fields != [""]:
                if len(fields) != len(names):
                    raise ValueError(
                        f"{file}, line {line}: {len(fields)} fields, but line 1 names {len(names)} columns "
                        f"({', '.join(names)}); put a field that contains {separator!r} into double quotes."
                    )
                yield Row(line, [fields[place].strip() for place in places])
            line = reader.line_num + 2
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {line}: {error}; a double quote that is opened must be closed, and one within a field is "
            "written twice."
        ) from error


def _read_json(lines: Iterator[str], file: Path, columns: Sequence[Column]) -> Iterator[Row]:
    for line, found in _objects(lines, file):
        values = []
        for column in columns:
            if column.name not in found:
                option = f", or name the right one by --{column.option} NAME" if column.option else ""
                raise ValueError(
                    f"{file}, line {line}: there is no key {column.name!r}, but {', '.join(found) or 'none'}; "
                    f"add it{option}."
                )
            values.append(_as_text(found[column.name], f"{file}, line {line}: {column.name}"))
        yield Row(line, values)


def _objects(lines: Iterator[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {line}: no JSON ({error}); a .jsonl holds one object per line.") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file}, line {line}: {text.strip()[:40]} is no JSON object; write {{...}} per line.")
        yield line, found


def _as_text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where} is {json.dumps(value)[:40]}; write a text or a number.")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a pair of \\u escapes
        raise ValueError(
            f"{where} is {json.dumps(value)[:40]}, which is no text ({error.reason}); correct it."
        ) from error
    return text
