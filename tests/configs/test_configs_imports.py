"""Import paths: what package.module:Name gives, and what each way to fail is answered with."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.imports import is_import_path, load_object

Write = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty present folder; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(here: Path) -> Write:
    """write("pkg/nets.py", text): a file of the present folder."""

    def write(name: str, text: str) -> Path:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def refusal(name: str, *, option: str = "model.name") -> str:
    """The message that a name is refused with."""
    with pytest.raises(ValueError, match=f"^{re.escape(option)}=") as caught:
        load_object(name, option=option)
    return str(caught.value)


@pytest.mark.parametrize("name", ["nets:Net", "pkg.nets:Net", ":Net", "nets:", ":"])
def test_a_name_with_a_colon_is_an_import_path(name: str) -> None:
    assert is_import_path(name)


@pytest.mark.parametrize("name", ["", "simple_cnn", "torchvision/resnet18", "timm/vit", "pkg.nets.Net", "nets.py"])
def test_a_name_without_a_colon_is_none(name: str) -> None:
    assert not is_import_path(name)


def test_an_object_of_an_installed_package_is_found() -> None:
    assert load_object("pathlib:Path", option="model.name") is Path


def test_an_object_of_a_module_in_the_present_folder_is_found(write: Write) -> None:
    write("nets_a.py", "class Net:\n    width = 7\n")
    assert load_object("nets_a:Net", option="model.name").width == 7
    assert load_object("nets_a:Net", option="model.name") is sys.modules["nets_a"].Net


@pytest.mark.parametrize("marker", [True, False], ids=["with_init", "without_init"])
def test_an_object_of_a_package_in_the_present_folder_is_found(write: Write, marker: bool) -> None:
    name = f"package_{marker}"
    write(f"{name}/inner/nets.py", "from .sizes import WIDTH\n")
    write(f"{name}/inner/sizes.py", "WIDTH = 9\n")
    if marker:
        write(f"{name}/__init__.py", "")
        write(f"{name}/inner/__init__.py", "")
    assert load_object(f"{name}.inner.nets:WIDTH", option="data.dataset") == 9


def test_the_present_folder_is_looked_in_last_and_entered_once(write: Write, here: Path) -> None:
    write("colorsys.py", "raise RuntimeError('this file hides a module of Python')\n")
    write("nets_b.py", "Net = 1\n")
    assert load_object("colorsys:rgb_to_hsv", option="model.name")(1, 1, 1) == (0, 0, 1)
    for _ in range(3):
        load_object("nets_b:Net", option="model.name")
    assert sys.path.count(str(here)) == 1
    assert sys.path[-1] == str(here)


def test_an_object_that_is_none_or_false_is_an_object_too(write: Write) -> None:
    write("nets_c.py", "nothing = None\nno = False\n")
    assert load_object("nets_c:nothing", option="model.name") is None
    assert load_object("nets_c:no", option="model.name") is False


@pytest.mark.parametrize("option", ["model.name", "data.dataset"])
@pytest.mark.parametrize("name", ["nets:", ":Net", ":", "nets"])
def test_half_an_import_path_is_refused_with_its_form(name: str, option: str) -> None:
    assert refusal(name, option=option) == f"{option}={name!r} is no import path; write package.module:Name."


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("no_such_nets:Net", "no_such_nets"),
        ("no_such_package.nets:Net", "no_such_package"),
        ("json.no_such_nets:Net", "json.no_such_nets"),
        ("email.mime.no_such_nets:Net", "email.mime.no_such_nets"),
        ("nets_file.py:Net", "nets_file.py"),
    ],
)
def test_a_module_that_is_missing_is_named_with_the_places_looked_in(
    write: Write, here: Path, name: str, missing: str
) -> None:
    write("nets_file.py", "Net = 1\n")
    assert refusal(name) == (
        f"model.name={name}: there is no module {missing!r}; it is looked for in {here} and among the installed "
        "packages; start in the folder that holds it, or set PYTHONPATH."
    )


def test_both_remedies_of_a_missing_module_work(write: Write, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("elsewhere/nets_d.py", "Net = 4\n")
    assert "start in the folder that holds it, or set PYTHONPATH" in refusal("nets_d:Net")
    monkeypatch.syspath_prepend(str(path.parent))  # what PYTHONPATH does
    assert load_object("nets_d:Net", option="model.name") == 4
    write("other/nets_e.py", "Net = 5\n")
    assert "there is no module 'nets_e'" in refusal("nets_e:Net")
    monkeypatch.chdir(here / "other")
    assert load_object("nets_e:Net", option="model.name") == 5


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("import no_such_package\n", "no_such_package"),
        ("from no_such_package.layers import Block\n", "no_such_package"),
        ("import json.no_such_part\n", "json.no_such_part"),
        ("import importing.no_such_part\n", "importing.no_such_part"),
        ("from . import nothing_yet\nfrom .no_such_part import Block\n", "importing.no_such_part"),
        ("import importing.net\n", "importing.net"),
    ],
)
def test_a_module_missing_inside_the_users_own_is_told_apart_from_the_module_itself(
    write: Write, text: str, missing: str
) -> None:
    write("importing/__init__.py", "nothing_yet = None\n")
    write("importing/nets.py", text)
    wanted = f"data.dataset=importing.nets:Net: importing.nets imports {missing}, which is not installed."
    assert refusal("importing.nets:Net", option="data.dataset") == wanted


def test_a_module_missing_in_the_package_around_the_users_module_is_told_apart_too(write: Write) -> None:
    write("around/__init__.py", "import no_such_package\n")
    write("around/nets.py", "Net = 1\n")
    assert refusal("around.nets:Net") == (
        "model.name=around.nets:Net: around.nets imports no_such_package, which is not installed."
    )


@pytest.mark.parametrize(
    ("text", "line", "wanted"),
    [
        ("one = 1\n\nraise RuntimeError('no licence')\n", 3, "RuntimeError: no licence"),
        ("def build():\n    return 1 / 0\n\n\nNet = build()\n", 2, "ZeroDivisionError: division by zero"),
        ("Net = undefined_name\n", 1, "NameError: name 'undefined_name' is not defined"),
        (
            "import json\nfrom json import no_such_name\n",
            2,
            "ImportError: cannot import name 'no_such_name' from 'json'",
        ),
        ("raise ModuleNotFoundError('type pip install birds')\n", 1, "ModuleNotFoundError: type pip install birds"),
        ("one = 1\ndef f(:\n    pass\n", 2, "SyntaxError: invalid syntax"),
        ("def f():\npass\n", 2, "IndentationError: expected an indented block"),
    ],
    ids=["raises", "raises_in_a_function", "name", "from_import", "no_module_named", "syntax", "indentation"],
)
def test_a_module_that_fails_when_imported_is_answered_with_file_line_and_error(
    write: Write, text: str, line: int, wanted: str
) -> None:
    path = write("failing.py", text)
    message = refusal("failing:Net")
    assert message.startswith(f"model.name=failing:Net: importing failing failed at {path}:{line}: {wanted}")
    assert "frozen" not in message


def test_a_failure_in_another_file_of_the_user_names_that_file(write: Write) -> None:
    write("outer_nets.py", "import inner_nets\n")
    path = write("inner_nets.py", "x = [][1]\n")
    assert refusal("outer_nets:Net") == (
        f"model.name=outer_nets:Net: importing outer_nets failed at {path}:1: IndexError: list index out of range"
    )


@pytest.mark.parametrize("text", ["import no_such_package\n", "1 / 0\n", "def f(:\n"])
def test_the_error_behind_a_refusal_stays_attached(write: Write, text: str) -> None:
    write("failing.py", text)
    with pytest.raises(ValueError, match=r"^model\.name=failing:Net: ") as caught:
        load_object("failing:Net", option="model.name")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError | ZeroDivisionError | SyntaxError)


def test_a_module_that_failed_can_be_mended_and_imported_again(write: Write) -> None:
    write("mended.py", "raise RuntimeError\n")
    assert "RuntimeError" in refusal("mended:Net")
    write("mended.py", "Net = 'a longer file, so that no stale byte code is taken'\n")
    assert load_object("mended:Net", option="model.name").startswith("a longer file")


@pytest.mark.parametrize(
    ("attribute", "nearest"),
    [("SmallNett", "SmallNet"), ("smallnet", "SmallNet"), ("build_nt", "build_net"), ("SmallNet.forward", "SmallNet")],
)
def test_a_name_that_the_module_lacks_is_refused_with_the_nearest_one(
    write: Write, attribute: str, nearest: str
) -> None:
    write("nets_f.py", "import math\n_hidden = 1\nclass SmallNet: ...\ndef build_net(): ...\n")
    message = refusal(f"nets_f:{attribute}")
    assert message.startswith(f"model.name=nets_f:{attribute}: nets_f has no {attribute!r}; nearest: {nearest}")
    assert message.endswith("; valid: math, SmallNet, build_net")
    assert load_object(f"nets_f:{nearest}", option="model.name") is getattr(sys.modules["nets_f"], nearest)


def test_a_name_like_none_in_the_module_is_refused_with_all_of_them(write: Write) -> None:
    write("nets_g.py", "class Net: ...\n")
    assert refusal("nets_g:xyzzy") == "model.name=nets_g:xyzzy: nets_g has no 'xyzzy'; valid: Net"
