"""The pages on data: their example works as it stands, their table is the code's, their messages are the programs'."""

import re
from pathlib import Path

import pytest

import pipelines
from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from pipelines.build import build_data
from pipelines.sources.torchvision_sets import SETS

DOCS = Path(pipelines.__file__).parents[1] / "docs"


def own_data_set() -> str:
    return (DOCS / "own_data_set.md").read_text()


def test_the_example_of_a_data_set_works_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", own_data_set(), re.DOTALL)
    (tmp_path / "shapes.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "--data.dataset shapes:Shapes --data.args.size 32" in own_data_set()
    config = Config(
        data=DataConfig(dataset="shapes:Shapes", args={"size": 32}),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=1, global_batch_size=8),
    )
    data = build_data(config, show_progress=True)
    assert data.train.class_names == ("circle", "square")
    assert data.val is not None
    assert data.test is not None
    assert [len(one.labels_N) for one in (data.train, data.val, data.test)] == [360, 40, 100]
    assert (data.spec.size_px, data.spec.channels) == (32, 3)
    (said,) = capsys.readouterr().out.splitlines()
    assert f"    {said}\n" in own_data_set()


def test_the_table_of_names_is_the_codes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", own_data_set(), re.MULTILINE)
    assert [(name, made) for name, made, _ in rows] == [(name, row.class_name) for name, row in SETS.items()]
    assert len(rows) == 32
    for name, _, splits in rows:
        written = {part.split()[0]: part for part in splits.split(", ")}
        assert [split for split, part in written.items() if "set aside" not in part] == list(SETS[name].splits)
        for split, arguments in SETS[name].splits.items():
            theirs = re.search(r"\(its (\w+)\)", written[split])
            if theirs:
                assert arguments["split"] == theirs[1]


def test_the_messages_explained_are_messages_of_the_code() -> None:
    text = (DOCS / "own_images.md").read_text()
    quoted = re.findall(r"^\| `(.*?)` \|", text.partition("## What the messages mean")[2], re.MULTILINE)
    assert len(quoted) == 10
    code = "".join(path.read_text() for path in (DOCS.parent / "pipelines").rglob("*.py"))
    code = re.sub(r'"\n\s+f?"', "", code)  # texts that go on in the next line
    code = re.sub(r"\{[^{}]*\}", "#", code)
    for message in quoted:
        for part in re.split(r"\.\.\.|'path'|\b[NM7]\b", message.replace("val has", "has").replace("train does", "#")):
            words = part.strip(" ;:")
            assert all(piece.strip() in code for piece in words.split("#")), words


def test_every_option_that_the_pages_name_is_one() -> None:
    fields = {
        section: set(field.type.__dataclass_fields__) if hasattr(field.type, "__dataclass_fields__") else set()
        for section, field in Config.__dataclass_fields__.items()
    }
    named = {
        option
        for page in ("own_images", "own_data_set")
        for option in re.findall(r"--(\w+\.\w+)", (DOCS / f"{page}.md").read_text())
    }
    assert len(named) > 15
    for option in named:
        section, name = option.split(".")
        assert name in fields[section], option
