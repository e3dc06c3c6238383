"""Stands in for `accelerate launch PROGRAM`: notes how it was called, then ends as the program's option --ends says.

finish: well. fail: an error that would come again. lose: a process is lost. save: the same after a checkpoint, and only
at the first start. stop: when it is told to, and only at the first start.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path

_NOTED = ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS", "PET_SIGNALS_TO_HANDLE", "TMPDIR")


def main(words: list[str]) -> int:
    options = {word: value for word, value in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}
    control = Path(options["--run.control"])
    data = Path(options.get("--data.root", "nowhere"))
    call = {
        "host": platform.node(),
        "words": words,
        "options": options,
        "environ": {name: os.environ.get(name) for name in _NOTED},
        "data": sorted(path.name for path in data.iterdir()) if data.exists() else [],
    }
    with open(control / f"calls-{platform.node()}.jsonl", "a") as file:
        file.write(json.dumps(call) + "\n")
    is_first = "SLURM_RESTART_COUNT" not in os.environ
    match options["--ends"]:
        case "fail":
            (control / "failed").write_text("nothing to learn from\n")
            return 1
        case "lose":
            return 1
        case "save" if is_first:
            (control / "saved").write_text("step 7\n")
            return 1
        case "stop" if is_first:
            while not (control / "stop").exists():
                time.sleep(0.05)
            time.sleep(0.5)  # for the other node to see it
            (control / "stopped").write_text("a file called stop, step 7\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
