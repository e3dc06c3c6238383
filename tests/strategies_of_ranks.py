"""Run by torchrun, or alone: trains a recipe by one strategy after the other, and writes what each rank ended with.

strategies_of_ranks.py OUT RECIPE STRATEGY ... -> OUT/STRATEGY, run folders; OUT/states_0.pt, OUT/states_1.pt, by rank

A layer is a stage.
"""

import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import engine.run  # noqa: E402  # found by the line above
import train as program  # noqa: E402
from configs.load import load_config, replace_section  # noqa: E402
from engine.build import build_folder, resolve_config  # noqa: E402
from engine.build_strategy import build_strategy_phases  # noqa: E402
from engine.progress import Progress  # noqa: E402
from engine.run import Desk  # noqa: E402
from engine.runtime import start_runtime  # noqa: E402
from engine.writer import snapshot  # noqa: E402

out, recipe, *strategies = sys.argv[1:]
states = {}
fit = engine.run.fit


def keeping(module, job):
    before = snapshot(module.state_dict())
    state = fit(module, job)
    states[job.folder.path.name] = {"before": before, "after": snapshot(state.module.state_dict())}
    return state


def build_phases(config, loader, loader_of, *, layers):
    return build_strategy_phases(config, loader, loader_of, stages=layers, layers=layers)


engine.run.fit, program.build_phases = keeping, build_phases
runtime = None
for name in strategies:
    words = ["--config", recipe, "--run.out", f"{out}/{name}", "--run.num_threads", "1"]
    config = load_config(words, prog="", description="")
    config = resolve_config(replace_section(config, "strategy", name=name), os.environ)
    runtime = runtime or start_runtime(config.train.precision, config.run)
    progress = Progress(num_epochs=config.train.epochs, is_main=runtime.is_main)
    program.train(config, Desk(runtime, build_folder(config), progress))
    runtime.wait_for_all()
torch.save(states, f"{out}/states_{runtime.rank}.pt")
runtime.end()
