"""Run by torchrun: trains two recipes one after the other, and writes what each rank ended with beside the runs.

averages_of_ranks.py OUT RECIPE RECIPE -> OUT/0, OUT/1, run folders; OUT/states_0.pt, OUT/states_1.pt, by rank
"""

import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import engine.run  # noqa: E402  # found by the line above
import train as program  # noqa: E402
from configs.load import load_config  # noqa: E402
from engine.build import build_folder, resolve_config  # noqa: E402
from engine.progress import Progress  # noqa: E402
from engine.run import Desk  # noqa: E402
from engine.runtime import start_runtime  # noqa: E402

out, *recipes = sys.argv[1:]
states = []
fit = engine.run.fit


def keeping(module, job):
    state = fit(module, job)
    states.append(
        {
            "raw": state.module.state_dict(),
            "average": state.average.module.state_dict(),
            "step": state.step,
            "best_step": state.best_step,
            "num_stale_epochs": state.num_stale_epochs,
        }
    )
    return state


engine.run.fit = keeping
runtime = None
for number, recipe in enumerate(recipes):
    words = ["--config", recipe, "--run.out", f"{out}/{number}", "--run.num_threads", "1"]
    config = resolve_config(load_config(words, prog="", description=""), os.environ)
    runtime = runtime or start_runtime(config.train.precision, config.run)
    progress = Progress(num_epochs=config.train.epochs, is_main=runtime.is_main)
    program.train(config, Desk(runtime, build_folder(config), progress))
    runtime.wait_for_all()
torch.save(states, f"{out}/states_{runtime.rank}.pt")
runtime.end()
