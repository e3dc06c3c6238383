"""Scores the best checkpoint of a run again: `accelerate launch evaluate.py --run DIR [--split test] [--weights raw]`.

Those options of train.py that evaluation reads may follow: --evaluation.*, --data.* but for sampling and class_weights
(such as --data.root where the images have moved), --loader.*, --run.num_threads, --train.precision. Any number of
processes gives the same number.
"""

import argparse
import dataclasses
import os
from collections.abc import Sequence

from configs.load import config_keys, load_config
from configs.schema import AugmentConfig, ScheduleConfig
from engine.bad_samples import BadSampleLog
from engine.build import resolve_config, with_card
from engine.checkpoint import load_weights, read_card, scored_checkpoint
from engine.errors import clear_errors
from engine.evaluation import evaluate, summary_line, to_metrics
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import start_runtime
from models.build import build_model
from models.knn import with_knn
from models.surgery import find_head
from pipelines.build import Place, build_data, build_evaluation_loader, check_classes, check_dataset, fingerprint_splits

_READ = ("data.", "evaluation.", "loader.", "run.num_threads", "train.precision")
_UNREAD_DATA = ("data.sampling", "data.class_weights")  # how often training meets an image
_NEUTRAL = (  # what a run trained by, and need not hold where it is scored: processes, trackers, val, a pipeline, speed
    "--run.world_size=null",
    "--run.trackers=[]",
    "--run.select=last",
    "--train.early_stop_epochs=null",
    "--train.accumulation=null",
    "--augment.albumentations=null",
    "--augment.albumentations_hash=null",
    "--data.sampling=shuffled",
    "--data.class_weights={}",
    "--speed.compile=none",
    "--speed.shard=false",
)
_OF_ANOTHER_DATA_SET = (  # what the run's own data set was read by
    "--data.root=null",
    "--data.args={}",
    "--data.image_root=null",
    "--data.path_column=path",
    "--data.label_column=label",
)


def main() -> None:
    """Run folder -> configuration and checkpoint -> score."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="run folder of train.py or finetune.py")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="what to score")
    parser.add_argument(
        "--weights",
        choices=["judged", "raw"],
        default="judged",
        help="judged = the average, where the run has one (section average); raw = the weights themselves",
    )
    options, overrides = parser.parse_known_args()
    folder = RunFolder(options.run)
    with clear_errors():
        check_overrides(overrides)
        folder.read_config()
        checkpoint = scored_checkpoint(folder.checkpoints)
        card = read_card(checkpoint)
    is_another = any(word.partition("=")[0] == "--data.dataset" for word in overrides)
    neutral = _NEUTRAL + _OF_ANOTHER_DATA_SET * is_another
    arguments = ["--config", str(folder.path / "config.yaml"), *neutral, *overrides]
    config = load_config(arguments, prog="evaluate.py --run DIR", description=__doc__ or "")
    with clear_errors():
        config = dataclasses.replace(config, augment=AugmentConfig(), schedule=ScheduleConfig())  # training's alone
        config = with_card(resolve_config(config, os.environ), card)
        check_dataset(config.data)
        runtime = start_runtime(config.train.precision, config.run)
        with runtime.first_on_this_machine():
            data = build_data(config, show_progress=runtime.is_main)
        check_classes(data, card["class_names"])
        place = Place(runtime.device, runtime.dtype, runtime.rank, runtime.world_size, runtime.num_cores)
        loader = build_evaluation_loader(config, data, options.split, place=place, show_progress=runtime.is_main)
        num_classes = len(data.train.class_names)
        module = build_model(config.model, num_classes=num_classes, spec=data.spec, seed=0)
        if "knn" in card:  # in place of the last layer: finetune.py --strategy.classifier knn
            module = with_knn(module, find_head(module, num_classes=num_classes), **card["knn"])
        module = runtime.place(module)
        load_weights(module, checkpoint, weights=options.weights)
        progress = Progress(num_epochs=0, is_main=runtime.is_main)
        bad_log = BadSampleLog(None, runtime=runtime, progress=progress)
        score = evaluate(
            module,
            loader,
            num_classes=num_classes,
            runtime=runtime,
            bad_log=bad_log,
            step=0,
            tta=config.evaluation.tta,
        )
        progress.say(f"{checkpoint}\n{summary_line(score, split=options.split)}")
        if fingerprint_splits(data)[options.split] != card["data"].get(options.split):
            progress.say(f"(these are not the images that were {options.split} when the run was trained)")
        for name, value in to_metrics(score, split=options.split, class_names=data.train.class_names).items():
            progress.say(f"{name} {value}")
        runtime.end()


def check_overrides(words: Sequence[str]) -> None:
    """Checks that evaluation reads the options of train.py that were given; mistyped names are left to the parser.

    Raises:
        ValueError: It does not read one, or the checkpoint decides it.
    """
    sections = {key.partition(".")[0] for key in config_keys()}
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        name = option.removeprefix("--").replace("-", "_")  # --dry-run is dry_run
        section = name.partition(".")[0]
        if section in ("config", "model", "input"):
            raise ValueError(f"{option}: model and input are those of the checkpoint, and cannot be set here.")
        if name in ("data", "evaluation", "loader"):
            raise ValueError(f"{option}: set single fields of it here, as in --data.root DIR or --loader.backend NAME.")
        if section in sections and (not name.startswith(_READ) or name.startswith(_UNREAD_DATA)):
            raise ValueError(
                f"{option}: evaluation does not read it, for it trains nothing and writes nothing; leave it out. Of "
                "train.py's options it reads --data.* (but for sampling and class_weights), --evaluation.*, "
                "--loader.*, --run.num_threads and --train.precision."
            )


if __name__ == "__main__":
    main()
