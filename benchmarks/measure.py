"""What the benchmarks share: arguments, clocks, tables.

Variants are timed in turns (A B C A B C ...) in one process, so that a machine that slows down slows all of them. The
least time is the number to compare; the median beside it tells how busy the machine was.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.models import SIZES, Size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parser(description: str | None, default_size: str) -> argparse.ArgumentParser:
    """The arguments every benchmark has; the caller adds its own."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--size", choices=sorted(SIZES), default=default_size)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the table and the settings there as well")
    return arguments


def setting(args: argparse.Namespace) -> tuple[Size, torch.device, torch.dtype]:
    """Size, device and dtype that the arguments name; sets the number of threads."""
    torch.set_num_threads(args.threads)
    return SIZES[args.size], torch.device(args.device), DTYPES[args.dtype]


def machine(device: torch.device) -> str:
    """The machine and the versions that a number belongs to, in one line."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        found = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
        name = found[0].partition(":")[2].strip() if found else platform.processor() or platform.machine()
        name += f" ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, diffusers {diffusers.__version__}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one run, its work on the device included."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def in_turns(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each run of each variant, `repeats` rounds of one run each. Warm them up before."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            times[name].append(seconds(run, device))
    return times


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest |difference| over largest |value| of the first."""
    return ((ours.float() - theirs.float()).abs().max() / ours.float().abs().max()).item()


def least_and_median(values: Sequence[float]) -> tuple[float, float]:
    return min(values), statistics.median(values)


def report(
    title: str, rows: Sequence[Mapping[str, Any]], args: argparse.Namespace, device: torch.device, **extra: Any
) -> None:
    """Print a table (a row's missing cells are blank), and write it with the settings to `--json`."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{title}\n{machine(device)}")
    for line in cells:
        first, *others = (
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        content = {"title": title, "machine": machine(device), "settings": settings, "rows": list(rows), **extra}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
