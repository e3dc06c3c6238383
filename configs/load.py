"""YAML recipe + dotted overrides -> a checked `Config`; and back to a dict for the run folder.

--config recipe.yaml --optim.lr 0.01   ->   load_config   ->   Config   ->   config_to_dict   ->   config.yaml
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from configs.check import check_config, data_kind, explain_empty
from configs.nearest import nearest
from configs.operations import refuse_no_list
from configs.schema import Config, GroupConfig

DEFAULT_RECIPE = Path(__file__).parent / "digits" / "simple_cnn.yaml"

_Config = TypeVar("_Config")
_Options = TypeVar("_Options")


@dataclasses.dataclass(frozen=True)
class _NoOptions:
    """Of a program that has none but those of a run."""


def load_config(argv: Sequence[str], *, prog: str, description: str) -> Config:
    """The configuration of a run, from a command line.

    Without `--config`, the recipe `configs/digits/simple_cnn.yaml` is taken. `--help` and `--print_config` print and
    leave. A mistake prints one message, with the nearest valid name or value, and leaves with exit code 2.

    Where `--model.name` names another network than the recipe, the recipe's `model.args`, which are those of its own
    network, do not hold.
    """
    return load_with_options(argv, options=_NoOptions, prog=prog, description=description)[0]


def load_with_options(
    argv: Sequence[str], *, options: type[_Options], prog: str, description: str, recipe: Path = DEFAULT_RECIPE
) -> tuple[Config, _Options]:
    """The configuration of a run, and options that a program has beside it, from one command line, as `load_config`.

    Args:
        argv: The command line, without the program.
        options: A dataclass whose fields are called like nothing in `Config`; its ValueErrors are mistakes, too.
        prog: What the program is called.
        description: What `--help` says of it.
        recipe: What is taken without `--config`.
    """
    following = [*argv[1:], "--"][: len(argv)]
    arguments = [
        "--dry_run=true" if word == "--dry-run" or (word == "--dry_run" and after.startswith("--")) else word
        for word, after in zip(argv, following, strict=True)
    ]
    recipes = [place for place, word in enumerate(arguments) if word == "--config" or word.startswith("--config=")]
    if not recipes:
        arguments = ["--config", str(recipe), *arguments]
    parser = build_parser(prog=prog, description=description, options=options)
    try:
        if recipes and recipes != [0]:
            raise ValueError(
                "--config must come once and first: a recipe overrides every option that stands before it."
            )
        return _parse(_without_args_of_another_model(arguments, parser=parser), parser=parser, options=options)
    except ValueError as error:
        _leave(parser, str(error))


def _without_args_of_another_model(arguments: list[str], *, parser: ArgumentParser) -> list[str]:
    """`arguments` with `--model.args {}` behind the recipe, if they then name another network than it."""
    num_words = 1 if arguments[0].startswith("--config=") else 2
    recipe, options = arguments[:num_words], arguments[num_words:]
    names = [options[place + 1] for place, word in enumerate(options[:-1]) if word == "--model.name"]
    names += [word.removeprefix("--model.name=") for word in options if word.startswith("--model.name=")]
    try:
        own = parser.parse_args(recipe).get("model.name") if names else None
    except (ArgumentError, OverflowError):
        return arguments  # the recipe is at fault, which parsing it in earnest says
    return arguments if not names or own in (None, *names) else [*recipe, "--model.args={}", *options]


def build_parser(*, prog: str, description: str, options: type = _NoOptions) -> ArgumentParser:
    """A parser that knows every field of `Config` by its full dotted name, and those of a program's own options."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML recipe; later options override it.")
    if dataclasses.fields(options):
        parser.add_class_arguments(options)
    parser.add_class_arguments(Config)
    return parser


def parse_config(argv: Sequence[str], *, parser: ArgumentParser) -> Config:
    """The checked configuration that `argv` describes.

    Raises:
        ValueError: Unknown key, wrong type or value, missing field, or an impossible combination.
    """
    return _parse(argv, parser=parser, options=_NoOptions)[0]


def _parse(argv: Sequence[str], *, parser: ArgumentParser, options: type[_Options]) -> tuple[Config, _Options]:
    own_names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]  # a dataclass
    try:
        parsed = parser.parse_args(list(argv))
    except ArgumentError as error:
        raise ValueError(explain_error(str(error), own_names=own_names)) from None
    except OverflowError:  # jsonargparse's float(10**400); it does not say of which option
        raise ValueError(
            "a whole number has more than 308 digits, beyond all that is computed with; write fewer digits."
        ) from None
    parsed.pop("config")
    _check_sections(parsed)
    own = {name: parsed.pop(name) for name in own_names}
    config = Config(**vars(parser.instantiate(parsed)))
    check_config(config)
    return config, options(**own)


def config_keys(schema: type = Config, *, prefix: str = "", may_change: bool = True) -> list[str]:
    """The dotted names of all fields, such as `optim.lr`.

    Args:
        schema: The dataclass to list.
        prefix: What stands before each name.
        may_change: False leaves out the fields that a resumed run may set differently.
    """
    keys = []
    for field in dataclasses.fields(schema):
        name = prefix + field.name
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            keys += config_keys(field.type, prefix=name + ".", may_change=may_change)
        elif may_change or not field.metadata.get("may_change"):
            keys.append(name)
    return keys


def config_to_dict(config: Any) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, ready for YAML or JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def replace_section(config: _Config, section: str, **changes: Any) -> _Config:
    """A copy of the configuration with fields of one section set anew."""
    replaced = dataclasses.replace(getattr(config, section), **changes)
    return dataclasses.replace(config, **{section: replaced})  # type: ignore[type-var]


def differing_keys(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """The keys in which two configurations, as dicts, ask for different results; `key: old -> new` each.

    A field that `old` lacks, because it was written before there was one, had its default.
    """
    defaults = config_defaults()
    keys = config_keys(may_change=False)
    pairs = ((key, _lookup(old, key, default=defaults.get(key)), _lookup(new, key)) for key in keys)
    return [f"{key}: {before} -> {after}" for key, before, after in pairs if before != after]


def default_run_folder(config: Config) -> str:
    """`runs/<data>-<model>-<hash>`: the same command finds its folder again, another configuration gets another.

    Fields at their default stay out of the hash, so that a later version, with more fields, finds it too.
    """
    plain = config_to_dict(config)
    defaults = config_defaults()
    values = {key: _lookup(plain, key) for key in config_keys(may_change=False)}
    values = {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
    values["model.args"] = plain["model"]["args"]  # in the hash from the first version on, empty or not
    data = config.data.dataset
    # torchvision's data sets are the same wherever they lie
    root = config.data.root if data_kind(data) != "torchvision" else None
    values["data.root"] = root and str(Path(root).resolve())  # other images, another run
    if config.data.image_root is not None:
        values["data.image_root"] = str(Path(config.data.image_root).resolve())
    for key, path in (("weights.run", config.weights.run), ("weights.file", config.weights.file)):
        if path is not None:  # other weights, another run
            values[key] = str(Path(path).resolve())
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    if root is not None:
        data = Path(root).resolve().name
    data, model = (name.replace("/", "_").replace(":", ".") for name in (data, config.model.name))
    return f"runs/{data}-{model}-{digest}"


def explain_error(message: str, *, own_names: Sequence[str] = ()) -> str:
    """Jsonargparse's message, with the nearest valid name or value added; `own_names` are valid too."""
    if "GroupConfig" in message and (explained := _explain_group(message)):
        return explained
    unknown = re.findall(r"--([\w.-]+)", message) if "unrecognized arguments" in message else []
    option = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    option_at_top = re.search(  # each version of jsonargparse says it in its own way
        r"No action for key \"([\w.]+)\"|Key '([\w.]+)' is not expected|Option '([\w.-]+)' is not accepted",
        message,
    )
    if option:
        unknown = [f"{option[1]}.{option[2]}" if not option[2].startswith(option[1] + ".") else option[2]]
    elif option_at_top:
        unknown = [name for name in option_at_top.groups() if name]
    if unknown:
        return "\n".join(
            f"unknown option {name!r}; {nearest(_in_our_words(name), [*own_names, *_keys_like(name)])}"
            for name in unknown
        )
    literal = re.search(r"Literal\[(.*?)\].*(?:Got|Given) value: (.*)", message, flags=re.DOTALL)
    no_list = re.search(r'"augment\.operations":.*Got value: ?(.*)', message, flags=re.DOTALL)
    if no_list:
        shown = no_list[1].strip()
        return explain_empty("augment.operations", default=()) if shown in ("", "None") else refuse_no_list(shown)
    if literal:
        choices = re.findall(r"'([^']*)'", literal[1])
        return f"{message.strip()}\n{nearest(literal[2].strip(), choices)}"
    no_tuple = re.search(r"Expected a <class 'tuple'>\. Got value: (\S.*)", message)
    return f"{message.strip()}\nwrite a list: [{no_tuple[1].strip()}]" if no_tuple else message.strip()


def _explain_group(message: str) -> str | None:
    """What is wrong with a group of optim.groups, which jsonargparse speaks of as a class; None if it says it well."""
    fields = [field.name for field in dataclasses.fields(GroupConfig)]
    no_group = re.search(r"Not a valid subclass of GroupConfig\. Got value: (.*)", message)
    if no_group:
        return (
            f"optim.groups has {no_group[1]}, which is no group; write each as {{match: [PATTERN], lr: ...}}, with one "
            f"or more of {', '.join(fields)}."
        )
    unknown = re.search(r"Option '([\w.-]+)' is not accepted|Key '([\w.-]+)' is not expected", message)
    if unknown:
        name = unknown[1] or unknown[2]
        return f"optim.groups: a group has no option {name!r}; {nearest(name, fields)}"
    return None


def _in_our_words(name: str) -> str:
    """A name in which what others call otherwise is called as here."""
    return name.replace("learning_rate", "lr")


def _keys_like(name: str) -> list[str]:
    """The names that `name` may stand for: every key and, where it has no dot, the sections too."""
    sections = [field.name for field in dataclasses.fields(Config)]
    return config_keys() if "." in name else list(dict.fromkeys([*sections, *config_keys()]))


def _check_sections(parsed: Namespace) -> None:
    """Jsonargparse lets a section without fields (`input:` alone, `input: 3`) pass and fails on it later."""
    for field in dataclasses.fields(Config):
        value = parsed[field.name]
        if dataclasses.is_dataclass(field.type) and not isinstance(value, Namespace):
            fields = ", ".join(f"{field.name}.{one.name}" for one in dataclasses.fields(field.type))
            raise ValueError(f"{field.name}={value} is a section, not a value; set its fields ({fields}) or drop it.")


def config_defaults(schema: type = Config, *, prefix: str = "") -> dict[str, Any]:
    """The defaults of all fields that have one, as plain values: dotted name -> default."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found |= config_defaults(field.type, prefix=f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            found[prefix + field.name] = json.loads(json.dumps(field.default))
        elif field.default_factory is not dataclasses.MISSING:
            found[prefix + field.name] = field.default_factory()
    return found


def _lookup(plain: dict[str, Any], key: str, *, default: Any = None) -> Any:
    value: Any = plain
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def _leave(parser: ArgumentParser, message: str) -> NoReturn:
    program = "train.py" if parser.prog.startswith("evaluate.py") else parser.prog  # whose help has every option
    print(f"{parser.prog}: error: {message}\n({program} --help lists every option)", file=sys.stderr)
    raise SystemExit(2)
