"""Measure how time and memory of one update grow with n, m, p and T, each over two decades.

    python benchmarks/bench_scale.py --out benchmarks/results/scale.json

One size varies at a time, the others stay at ``BASE``; every point is its own process, see
`bench_update.py`. Exponents are slopes of least-squares lines in the logarithms, through all points
and through the upper decade, where the fixed cost of an update matters less.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import circumstances, write_report

BASE = {"n": 256, "m": 256, "p": 512, "n_unfoldings": 100}
VARIED = {
    "n": [32, 100, 320, 1000, 3200],
    "m": [32, 100, 320, 1000, 3200],
    "p": [32, 100, 320, 1000, 3200],
    "n_unfoldings": [10, 32, 100, 320, 1000],
}


def measure(sizes, options):
    flags = [f"--{name.replace('_', '-')}={size}" for name, size in sizes.items()]
    flags += [f"--{name}={getattr(options, name)}" for name in ("dtype", "device", "repeats")]
    flags += [f"--n-nonzero={min(options.n_nonzero, sizes['p'])}", "--variant=skpudle"]
    script = Path(__file__).with_name("bench_update.py")
    command = [sys.executable, str(script), *flags]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def slope(sizes, values):
    usable = np.array(values) > 0
    if usable.sum() < 2:
        return None
    logs = np.log(np.array(sizes)[usable]), np.log(np.array(values)[usable])
    return float(np.polyfit(*logs, 1)[0])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--n-nonzero", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()

    report = {"benchmark": "scale", "options": vars(options), **circumstances(options.device)}
    report |= {"base": BASE, "results": []}
    for name in options.only:
        rows = []
        for size in VARIED[name]:
            row = measure(BASE | {name: size}, options)
            rows.append({"size": size, "seconds": row["seconds"], "megabytes": row["megabytes"]})
        result = {"name": name, "points": rows}
        for unit in ("seconds", "megabytes"):
            sizes, values = zip(*((row["size"], row[unit]) for row in rows), strict=True)
            result[f"{unit}_exponent"] = slope(sizes, values)
            result[f"{unit}_exponent_upper_decade"] = slope(sizes[-3:], values[-3:])
        report["results"].append(result)
        print(
            f"{name:13s} time ~ {name}^{result['seconds_exponent']:.2f} "
            f"(upper decade {result['seconds_exponent_upper_decade']:.2f}):",
            ", ".join(f"{1e3 * r['seconds']:.1f} ms {r['megabytes']:.0f} MB" for r in rows),
            flush=True,
        )
        write_report(options.out, report)


if __name__ == "__main__":
    main()
