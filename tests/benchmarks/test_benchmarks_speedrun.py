"""The comparison with airbench's scripts, with a script of the same form that needs no GPU."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.speedrun import Run, parse_table, read_ours, run_script, save_rows, summarise

TABLE = """
-------------------------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
-------------------------------------------------------------------------------
|  warmup  |      0  |     0.1000  |   0.1000  |               |        9.0000  |
|          |   eval  |     0.1000  |   0.1000  |       0.1000  |        9.5000  |
-------------------------------------------------------------------------------
|       0  |      0  |     0.5000  |   0.6000  |               |        0.3000  |
|          |   eval  |     0.9500  |   0.9300  |       0.9410  |        2.6000  |
-------------------------------------------------------------------------------
|       1  |      0  |     0.5000  |   0.6000  |               |        0.3000  |
|          |   eval  |     0.9500  |   0.9300  |       0.9390  |        2.8000  |
-------------------------------------------------------------------------------
Mean: 0.9400    Std: 0.0010
"""


@pytest.fixture
def images(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for name in ("b", "a"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_the_last_line_of_each_run_counts_and_the_warm_up_does_not():
    assert parse_table(TABLE) == [Run("airbench", 0.941, 2.6, None), Run("airbench", 0.939, 2.8, None)]


def test_what_prints_no_table_is_said():
    with pytest.raises(ValueError, match="the script printed no table with a column tta_val_acc"):
        parse_table("Mean: 0.94")


def test_a_script_is_run_as_it_is_but_for_its_number_of_runs_on_our_images(images, tmp_path):
    script = tmp_path / "airbench.py"
    script.write_text(
        "import torch\n"
        "train = torch.load('cifar10/train.pt')\n"
        "assert train['images'].shape == (6, 32, 32, 3) and train['images'].dtype == torch.uint8\n"
        "assert train['images'][:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]\n"
        "assert train['labels'].tolist() == [0, 0, 0, 1, 1, 1] and train['classes'] == ['a', 'b']\n"
        "assert len(torch.load('cifar10/test.pt')['labels']) == 2\n"
        "print('|  run  |  epoch  |  tta_val_acc  |  total_time_seconds  |')\n"
        "accs = torch.tensor([print(f'|  {run}  |  eval  |  0.9{run}  |  2.{run}  |') or 0. for run in range(200)])\n"
    )
    runs = run_script(script, data=images, num_runs=3)
    assert runs == [Run("airbench", 0.9, 2.0, None), Run("airbench", 0.91, 2.1, None), Run("airbench", 0.92, 2.2, None)]


def test_a_script_that_says_its_number_of_runs_otherwise_is_refused(images, tmp_path):
    script = tmp_path / "airbench.py"
    script.write_text("for run in range(n): pass\n")
    with pytest.raises(ValueError, match="has 0 places that look like its number of runs; wanted 1"):
        run_script(script, data=images, num_runs=3)


def test_compilation_is_what_the_first_epoch_takes_beyond_the_others(tmp_path):
    rows = [
        {"step": 1},
        *({"step": step, "train/epoch_s": seconds} for step, seconds in ((1, 9.0), (2, 1.0), (3, 1.2))),
        {"step": 3, "test/score_s": 0.5, "test_single/score_s": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "result.json").write_text(json.dumps({"test/top1_frac": 0.94}))
    run = read_ours(tmp_path)
    assert run.seconds == pytest.approx(1.1 + 1.0 + 1.2 + 0.5)
    assert run.seconds_with_compile == pytest.approx(11.7)


def test_the_summary_has_mean_spread_and_ratio():
    runs = [Run("ours", 0.94, 3.0, 33.0), Run("ours", 0.942, 3.3, 36.0), *parse_table(TABLE)]
    assert summarise(runs).splitlines() == [
        "ours: 94.10 +- 0.14 % (n = 2), 3.15 s, with compilation 34.50 s",
        "airbench: 94.00 +- 0.14 % (n = 2), 2.70 s",
        "ours / airbench: 1.17 of the seconds",
    ]


def test_rows_are_added_and_say_on_what_they_were_measured(tmp_path):
    for _ in range(2):
        save_rows(tmp_path / "speedrun.csv", parse_table(TABLE), target="94", options=["--train.precision", "fp16"])
    lines = (tmp_path / "speedrun.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[0] == "contender,top1_frac,seconds,seconds_with_compile,target,options,device,torch,date,commit"
    assert f",94,--train.precision fp16,CPU,{torch.__version__}," in lines[1]
    assert np.isclose(float(lines[1].split(",")[1]), 0.941)
