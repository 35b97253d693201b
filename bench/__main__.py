"""Run every bench, print a table, write `var/bench.json`. `python -m bench [name ...]` runs some."""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.ratio import Ratio, Skipped

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    """Run the named benches, or all; the exit status is the number that broke, not the number of missed goals."""
    chosen = names or sorted(p.stem.removeprefix("bench_") for p in HERE.glob("bench_*.py"))
    results: list[dict[str, Any]] = []
    broken = 0
    for name in chosen:
        started = time.perf_counter()
        sys.stdout.write(f"-- {name}\n")
        try:
            ratios: list[Ratio] = importlib.import_module(f"bench.bench_{name}").run()
        except Skipped as skipped:
            sys.stdout.write(f"   skipped: {skipped}\n")
            results.append({"bench": name, "skipped": str(skipped)})
            continue
        except Exception as error:
            broken += 1
            sys.stdout.write(f"   broke: {type(error).__name__}: {error}\n")
            continue
        for ratio in ratios:
            sign = "<=" if ratio.at_most else ">="
            mark = "ok  " if ratio.met else "MISS"
            sys.stdout.write(f"   {mark} {ratio.name}: {ratio.value:.3f} (goal {sign} {ratio.goal}) {ratio.detail}\n")
            results.append({"bench": name, "met": ratio.met, **asdict(ratio)})
        sys.stdout.write(f"   {time.perf_counter() - started:.0f} s\n")
    out = Path("var/bench.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1, default=str))
    sys.stdout.write(f"written to {out}\n")
    return broken


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
