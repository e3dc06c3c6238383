"""What the folders of runs are called."""

from benchmarks.cells import Cell, run_name
from benchmarks.recipes import STUDIES


def test_a_name_says_study_recipe_what_is_changed_and_seed() -> None:
    assert run_name("levers", Cell("configs/cifar10/speedrun94.yaml", "", 0)) == "levers-speedrun94-0"
    cell = Cell("configs/a/b.yaml", "--data.root %WORK%/seven --distill.teachers [%RUNS%/x]", 3)
    assert run_name("s", cell) == "s-b---data.root-seven---distill.teachers-[%RUNS%_x]-3"


def test_a_name_of_200_letters_keeps_its_beginning_and_a_hash_of_all_of_it() -> None:
    def name(letters: int, *, seed: int = 0) -> str:
        return run_name("s", Cell("r.yaml", "x" * (letters - len("s-r--0")), seed))

    assert name(199) == f"s-r-{'x' * 193}-0"
    assert len(name(200)) == len(name(999)) == 199
    assert name(200).startswith(f"s-r-{'x' * 182}-")
    assert len({name(200), name(200, seed=1), name(201)}) == 3


def test_every_run_of_every_study_has_a_folder_of_its_own() -> None:
    names = [run_name(study, cell) for study, cells in STUDIES.items() for cell in cells]
    assert len(names) == len(set(names)) > 200
    assert max(len(name) for name in names) < 200
    assert not any("/" in name for name in names)
