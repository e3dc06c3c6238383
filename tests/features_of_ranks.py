"""Run by torchrun: the features of digits, computed twice with one cache, and what each rank holds of them.

features_of_ranks.py OUT CACHE -> OUT/rank_0.pt, OUT/rank_1.pt: features, labels, ids; how often the network was called
"""

import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs.load import load_config  # noqa: E402  # found by the line above
from engine.features import cached_features, features_key  # noqa: E402
from engine.progress import Progress  # noqa: E402
from engine.runtime import start_runtime  # noqa: E402
from models.build import build_model  # noqa: E402
from pipelines.build import Place, build_data, build_evaluation_loader, fingerprint_splits  # noqa: E402

out, cache = map(Path, sys.argv[1:])
words = ["--loader.eval_batch_size_per_rank", "50", "--loader.backend", "resident", "--run.num_threads", "1"]
config = load_config(words, prog="", description="")
runtime = start_runtime("fp64", config.run)
data = build_data(config, show_progress=False)
place = Place(runtime.device, runtime.dtype, runtime.rank, runtime.world_size, 1)
module = runtime.place(build_model(config.model, num_classes=10, spec=data.spec, seed=0))
head = next(reversed([name for name, one in module.named_modules() if isinstance(one, nn.Linear)]))
calls: list[int] = []
module.register_forward_pre_hook(lambda *_: calls.append(1))
key = features_key(
    config,
    module,
    head=head,
    spec=data.spec,
    fingerprint=fingerprint_splits(data)["train"],
    backend="resident",
    runtime=runtime,
)
held, counts = [], []
for _ in range(2):
    loader = build_evaluation_loader(config, data, "train", place=place, show_progress=False)
    features = cached_features(
        module,
        loader,
        head=head,
        folder=cache,
        key=key,
        runtime=runtime,
        beat=lambda: runtime.watchdog.beat("computing features"),
        progress=Progress(num_epochs=0, is_main=runtime.is_main),
    )
    held.append(tuple(features))
    counts.append(len(calls))
torch.save({"held": held, "counts": counts, "key": key}, out / f"rank_{runtime.rank}.pt")
runtime.end()
