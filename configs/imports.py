"""An object named on the command line as package.module:Name: your own network, your own data set."""

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

from configs.nearest import nearest


def is_import_path(name: str) -> bool:
    """Whether a name has the form package.module:Name."""
    return ":" in name


def load_object(name: str, *, option: str) -> Any:
    """The object that `package.module:Name` names; modules are looked for in the present folder too.

    Args:
        name: What was given.
        option: The option it was given to, for messages.

    Raises:
        ValueError: The module cannot be found or imported, or has no such name.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{option}={name!r} is no import path; write package.module:Name.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does when it is imported
        raise ValueError(f"{option}={name}: {_why(error, module_name=module_name, here=here)}") from error
    if not hasattr(module, attribute):
        names = [one for one in vars(module) if not one.startswith("_")]
        close = nearest(attribute, names, if_many=f"{len(names)} names")
        raise ValueError(f"{option}={name}: {module_name} has no {attribute!r}; {close}")
    return getattr(module, attribute)


def _why(error: Exception, *, module_name: str, here: str) -> str:
    """What an import failed of: the module itself is missing, one that it imports, or anything else, with its place."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        if not (module_name + ".").startswith(error.name + "."):
            return f"{module_name} imports {error.name}, which is not installed."
        return (
            f"there is no module {error.name!r}; it is looked for in {here} and among the installed packages; start in "
            "the folder that holds it, or set PYTHONPATH."
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename}:{last.lineno}"
    if isinstance(error, SyntaxError) and error.filename:  # the traceback ends in the import system
        place = f"{error.filename}:{error.lineno}"
    return f"importing {module_name} failed at {place}: {type(error).__name__}: {error}"
