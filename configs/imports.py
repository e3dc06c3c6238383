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
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise ValueError(f"{option}={name}: {module_name} imports {error.name}, which is not installed.") from error
        raise ValueError(
            f"{option}={name}: there is no module {error.name!r}; it is looked for in {here} and among the installed "
            "packages; start in the folder that holds it, or set PYTHONPATH."
        ) from error
    except Exception as error:  # whatever a user's module does when it is imported
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{option}={name}: importing {module_name} failed at {place.filename}:{place.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        names = [one for one in vars(module) if not one.startswith("_")]
        raise ValueError(f"{option}={name}: {module_name} has no {attribute!r}; {nearest(attribute, names)}")
    return getattr(module, attribute)
