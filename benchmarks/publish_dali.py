"""What the check on a GPU found into what docs/dali.md shows.

benchmarks/results/gpu_check_<device>.json -> load_checks -> a table for each block of the page, the GPU's first
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.verdicts_gpu import judge, verdict_table

Checks = Mapping[str, dict[str, Any]]  # by device
_NOT_MEASURED = "On a GPU: not measured yet.\n"


def load_checks(results: Path) -> Checks:
    """What was found on a GPU and on a CPU, of those that were measured."""
    paths = {device: results / f"gpu_check_{device}.json" for device in ("cuda", "cpu")}
    return {device: json.loads(path.read_text()) for device, path in paths.items() if path.exists()}


def verdicts_block(checks: Checks) -> str:
    """What was wanted of a GPU, what was found, whether that is met."""
    table = verdict_table(judge(checks.get("cuda", {})))
    return f"{table}\n\n{_about(checks['cuda']) if 'cuda' in checks else _NOT_MEASURED}"


def loaders_block(checks: Checks) -> str:
    """Loaders whose batches end on the device, fastest first."""
    return _blocks(checks, lambda found: _loader_lines(found.get("loaders", {}).get("rows", [])))


def sweep_block(checks: Checks, name: str) -> str:
    """The contenders of a sweep, fastest first."""
    return _blocks(checks, lambda found: _loader_lines(found.get("sweeps", {}).get("rows", {}).get(name, [])))


def training_block(checks: Checks) -> str:
    """Networks, fed and not."""
    return _blocks(checks, lambda found: _training_lines(found.get("training", {}).get("rows", [])))


def pixels_block(checks: Checks) -> str:
    """How far each way's pixels are from Pillow's."""
    return _blocks(checks, lambda found: _pixel_lines(found.get("agreement", {}).get("pixels", [])))


def predictions_block(checks: Checks) -> str:
    """What a trained network makes of each way's pixels."""
    return _blocks(checks, lambda found: _prediction_lines(found.get("agreement", {}).get("predictions", [])))


def _blocks(checks: Checks, lines_of: Callable[[dict[str, Any]], list[str]]) -> str:
    tables = {device: lines for device, found in checks.items() if (lines := lines_of(found))}
    parts = [] if "cuda" in tables else [_NOT_MEASURED]
    parts += ["\n".join([*lines, "", _about(checks[device])]) for device, lines in tables.items()]
    return "\n".join(parts)


def _about(found: dict[str, Any]) -> str:
    about = found["about"]
    return f"{about['device']}; {about['cpu']}, {about['date']}, {about['commit'][:8]}, {about['versions']}.\n"


def _loader_lines(rows: list[dict[str, Any]]) -> list[str]:
    measured = sorted((row for row in rows if row["images_per_s"]), key=lambda row: -row["images_per_s"])
    if not measured:
        return []
    lines = ["| loader | threads | images/s | lowest | highest | GPU memory, MiB |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in measured:
        speeds = " | ".join(f"{row[column]:,.0f}" for column in ("images_per_s", "lowest", "highest"))
        memory = "" if row["gpu_memory_mib"] is None else f"{row['gpu_memory_mib']:,.0f}"
        lines.append(f"| `{row['contender']}` | {row['num_threads']} | {speeds} | {memory} |")
    missing = [f"`{row['contender']}` ({row['reason']})" for row in rows if not row["images_per_s"]]
    return [*lines, *(["", f"Not measured: {', '.join(missing)}."] if missing else [])]


def _training_lines(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    lines = ["| network | px | batch | fed by | images/s | lowest | highest | of the time, waited for data |"]
    lines += ["| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        speeds = " | ".join(f"{float(row[column]):,.0f}" for column in ("images_per_s", "lowest", "highest"))
        waited = "" if row["data"] == "synthetic" else f"{100 * float(row['data_wait_frac']):.1f} %"
        lines.append(
            f"| {row['model']} ({row['contender']}) | {row['size_px']} | {row['batch_size']} | {row['data']} | "
            f"{speeds} | {waited} |"
        )
    return lines


def _pixel_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["| way | mean of 255 | worst image | values off by more than 8 | largest | images unlike `dali`'s |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        far, unlike = (f"{100 * row[column]:.3g} %" for column in ("frac_far_off", "frac_unlike_dali"))
        lines.append(
            f"| `{row['way']}` | {row['mean_of_255']:.3f} | {row['worst_image_of_255']:.3f} | {far} | "
            f"{row['max_of_255']} | {unlike} |"
        )
    return lines


def _prediction_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["| way | images | top-1 | the same prediction | mean difference of logits (their spread) |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        top1, same = (f"{100 * row[column]:.2f} %" for column in ("top1_frac", "same_prediction_frac"))
        logits = f"{row['mean_logit_difference']:.4f} ({row['logit_std']:.2f})"
        lines.append(f"| `{row['way']}` | {row['num_samples']:,} | {top1} | {same} | {logits} |")
    return lines
