"""Training steps on the CPU with and without `engine.launch.keep_freed_memory`: `python -m benchmarks.cpu_memory`.

Each measurement is a process of its own, for the setting lasts as long as the process; the two take turns.
"""

import resource
import statistics
import subprocess
import sys
import time

import torch

from engine.launch import keep_freed_memory
from models.simple_cnn import SimpleCNN

_BATCH_SIZE = 256
_NUM_WARMUP, _NUM_STEPS, _NUM_REPEATS = 5, 20, 5


def main() -> None:
    """Prints a line per setting: images per second (median, lowest, highest) and peak memory."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    results: dict[str, list[tuple[float, float]]] = {"default": [], "kept": []}
    for _ in range(_NUM_REPEATS):
        for setting, measured in results.items():
            command = [sys.executable, "-m", "benchmarks.cpu_memory", setting]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            images_per_s, mib = output.split()
            measured.append((float(images_per_s), float(mib)))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_NUM_REPEATS} repeats")
    for setting, measured in results.items():
        speeds = [speed for speed, _ in measured]
        peak_mib = statistics.median(peak for _, peak in measured)
        print(
            f"{setting:8} {statistics.median(speeds):8,.0f} images/s ({min(speeds):,.0f} to {max(speeds):,.0f}), "
            f"peak {peak_mib:,.0f} MiB"
        )


def measure(setting: str) -> None:
    """Prints images per second and peak MiB of training steps in this process, warm-up dropped."""
    if setting == "kept":
        keep_freed_memory()
    module = SimpleCNN(in_channels=3, num_classes=10, size_px=32).to(memory_format=torch.channels_last)
    images = torch.randn(_BATCH_SIZE, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (_BATCH_SIZE,))
    optimizer = torch.optim.AdamW(module.parameters())
    durations = []
    for _ in range(_NUM_WARMUP + _NUM_STEPS):
        start = time.perf_counter()
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        durations.append(time.perf_counter() - start)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(_BATCH_SIZE / statistics.median(durations[_NUM_WARMUP:]), peak_mib)


if __name__ == "__main__":
    main()
