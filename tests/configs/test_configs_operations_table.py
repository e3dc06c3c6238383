"""The table of steps says what the reader of recipes does: its defaults are taken, its limits hold, none is missing."""

import dataclasses
import re
from typing import Any

import pytest
import yaml

from configs.operations import STEPS, read_operations
from configs.operations_table import step_table
from configs.schema import AugmentConfig

LINES = step_table().splitlines()[2:]
NEEDED = {"brightness": "factor", "contrast": "factor", "saturation": "factor", "sharpness": "factor", "hue": "shift"}


def rows_of_steps() -> dict[str, dict[str, list[str]]]:
    """step -> field -> default, one number, limits, meaning: as they stand in the table."""
    found: dict[str, dict[str, list[str]]] = {}
    names: list[str] = []
    for line in LINES:
        step, field, *cells = (cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|"))
        names = re.findall(r"`(\w+)`", step) or names
        for name in names:
            found.setdefault(name, {})
            if field:
                found[name][field.strip("`")] = cells
    return found


ROWS = rows_of_steps()
FIELDS = [(step, field) for step, fields in ROWS.items() for field in fields]


def read(step: str, **fields: Any) -> Any:
    """The step as a recipe's reader gives it, with what it must be given."""
    ((_, found),) = read_operations([{step: ({NEEDED[step]: 0.2} if step in NEEDED else {}) | fields}])
    return found


def test_every_step_and_every_field_has_a_line_and_a_meaning() -> None:
    assert set(ROWS) == set(STEPS)
    assert len(ROWS) == 17
    for step, fields in ROWS.items():
        assert list(fields) == [field.name for field in dataclasses.fields(STEPS[step])]
        assert all(re.fullmatch(r"[A-Z].*\.", cells[3]) for cells in fields.values()), step
    assert all(re.search(r"\| \*\*.+\.\*\* \|$", line) for line in LINES if re.search(r"^\| `", line))


@pytest.mark.parametrize(("step", "field"), FIELDS)
def test_defaults_and_limits_of_the_table_are_those_of_the_reader(step: str, field: str) -> None:
    default, _, limits, _ = ROWS[step][field]
    if default == "must be given":
        with pytest.raises(ValueError, match=f"needs {field}"):
            read_operations([step])
    elif step not in ("color_jitter", "affine"):  # they need something to vary
        value = yaml.safe_load(default)
        assert getattr(read(step), field) == (tuple(value) if isinstance(value, list) else value)
    least, most = (float(limit) for limit in limits.split(" to "))
    for outside in (least - 1, most + 1):
        whole = int(outside) if outside == int(outside) else outside
        with pytest.raises(ValueError, match=rf"{step}\.{field}=.* must be a.* from {least:g} to"):
            read(step, **{field: whole if not ROWS[step][field][1] else [whole, whole]})


@pytest.mark.parametrize(("step", "field"), [pair for pair in FIELDS if ROWS[pair[0]][pair[1]][1]])
def test_one_number_means_the_range_that_the_table_says(step: str, field: str) -> None:
    x = 5 if step == "posterize" else 0.3
    wanted = {
        "-x to x": (-x, x),
        "1 - x to 1 + x": (1 - x, 1 + x),
        "1 - x, but not below 0, to 1 + x": (1 - x, 1 + x),
        "x": (x, x),
    }[ROWS[step][field][1]]
    assert getattr(read(step, **{field: x}), field) == wanted


def test_the_help_of_the_list_names_every_step() -> None:
    said = (AugmentConfig.__doc__ or "").partition("operations: ")[2].partition("Names: ")[2].partition(";")[0]
    assert re.findall(r"\w+", said) == list(STEPS)
