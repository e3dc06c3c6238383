"""Scores the best checkpoint of a run again: `accelerate launch evaluate.py --run DIR [--split test]`.

Options of train.py may follow, for example --data.root where the images have moved. Any number of processes gives the
same number.
"""

import argparse
import os

from configs.load import load_config, replace_section
from engine.bad_samples import BadSampleLog
from engine.build import resolve_config, with_card
from engine.checkpoint import load_weights, read_card, scored_checkpoint
from engine.evaluation import evaluate, summary_line, to_metrics
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import clear_errors, start_runtime
from models.build import build_model
from pipelines.build import Place, build_data, build_evaluation_loader, check_classes, check_dataset


def main() -> None:
    """Run folder -> configuration and checkpoint -> score."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="run folder of train.py")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test", help="what to score")
    options, overrides = parser.parse_known_args()
    folder = RunFolder(options.run)
    with clear_errors():
        folder.read_config()
        checkpoint = scored_checkpoint(folder.checkpoints)
        card = read_card(checkpoint)
        for word in overrides:
            if word.startswith(("--config", "--model", "--input")):
                raise ValueError(f"{word}: model and input are those of the checkpoint, and cannot be set here.")
    arguments = ["--config", str(folder.path / "config.yaml"), *overrides]
    config = load_config(arguments, prog="evaluate.py --run DIR", description=__doc__ or "")
    with clear_errors():
        config = with_card(resolve_config(config, os.environ), card)
        config = replace_section(config, "run", world_size=None)  # any number of processes gives the same score
        check_dataset(config.data)
        runtime = start_runtime(config.train.precision, config.run)
        with runtime.first_on_this_machine():
            data = build_data(config, show_progress=runtime.is_main)
        check_classes(data, card["class_names"])
        place = Place(runtime.device, runtime.dtype, runtime.rank, runtime.world_size, runtime.num_cores)
        loader = build_evaluation_loader(config, data, options.split, place=place, show_progress=runtime.is_main)
        num_classes = len(data.train.class_names)
        module = runtime.place(build_model(config.model, num_classes=num_classes, spec=data.spec, seed=0))
        load_weights(module, checkpoint)
        progress = Progress(num_epochs=0, is_main=runtime.is_main)
        bad_log = BadSampleLog(None, runtime=runtime, progress=progress)
        score = evaluate(module, loader, num_classes=num_classes, runtime=runtime, bad_log=bad_log, step=0)
        progress.say(f"{checkpoint}\n{summary_line(score, split=options.split)}")
        for name, value in to_metrics(score, split=options.split, class_names=data.train.class_names).items():
            progress.say(f"{name} {value}")
        runtime.end()


if __name__ == "__main__":
    main()
