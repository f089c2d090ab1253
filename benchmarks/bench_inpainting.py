"""Fill in missing pixels by iterated denoising, and by linear and biharmonic interpolation.

    python benchmarks/bench_inpainting.py --out benchmarks/results/inpainting.json
    python benchmarks/bench_inpainting.py --widths 3 5 7 9

Parts of grey photographs and textures that come with scikit-learn and scikit-image lose a share of
their pixels at random, or eight scratches of some pixels' width. The report has the PSNR over the
lost pixels, for a peak of 1, and seconds of CPU time.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import circumstances, write_report
from scipy.interpolate import griddata
from scipy.ndimage import distance_transform_edt
from skimage import color, data
from skimage.draw import line
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import inpaint_biharmonic
from sklearn.datasets import load_sample_images

from skpudle.images import inpaint

SHARES = (0.3, 0.5, 0.8)
NAMES = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon",
    "page", "rocket",
)  # fmt: skip


def pictures(side):
    """Return the parts of the example of inpainting, and the middles of scikit-image's pictures."""
    china, flower = (image.mean(axis=2) / 255 for image in load_sample_images().images)
    found = {"roof": china[60:220, 180:400], "flower": flower[140:300, 180:400]}
    for name in NAMES:
        image = getattr(data, name)()
        image = color.rgb2gray(image) if image.ndim == 3 else image / 255
        starts = [(n - side) // 2 for n in image.shape]
        found[name] = image[tuple(slice(first, first + side) for first in starts)]
    return found


def lose(shape, share, width, rng):
    """Return lost pixels: a share at random, or, of a width, eight scratches from edge to edge."""
    if not width:
        return rng.random(shape) < share
    middles = np.zeros(shape, dtype=bool)
    height, length = shape
    for number in range(8):
        ends = rng.integers((length, length) if number % 2 else (height, height))
        across = (0, ends[0], height - 1, ends[1])
        middles[line(*across if number % 2 else (ends[0], 0, ends[1], length - 1))] = True
    return distance_transform_edt(~middles) <= (width - 1) / 2


def interpolate(damaged, lost):
    """Interpolate an image linearly, and by the nearest pixels beyond the known ones."""
    image = damaged.copy()
    for method in ("linear", "nearest"):
        gaps = np.isnan(image)
        places = np.argwhere(~lost)
        image[gaps] = griddata(places, damaged[~lost], np.argwhere(gaps), method=method)
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="of scikit-image's pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the pixels that are lost")
    parser.add_argument("--widths", type=int, nargs="*", help="of scratches, instead of shares")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = {
        "linear": interpolate,
        "biharmonic": lambda x, lost: inpaint_biharmonic(np.where(lost, 0, x), lost),
        "skpudle": lambda x, lost: inpaint(x),
    }
    losses = [(0, w) for w in options.widths or ()] or [(share, 0) for share in SHARES]
    rows = []
    for seed, (name, clean) in enumerate(pictures(options.side).items(), start=options.seed):
        for share, width in losses:
            lost = lose(clean.shape, share, width, np.random.default_rng(seed))
            damaged = np.where(lost, np.nan, clean)
            row, seconds = {"name": name, "missing": width or share}, {}
            for method, fill in methods.items():
                start = time.process_time()
                filled = fill(damaged, lost)
                seconds[f"seconds, {method}"] = time.process_time() - start
                row[f"{method} (dB)"] = peak_signal_noise_ratio(
                    clean[lost], filled[lost], data_range=1
                )
            rows.append(row | seconds)
            print(rows[-1], flush=True)
    for missing in (width or share for share, width in losses):
        gains = [r["skpudle (dB)"] - r["biharmonic (dB)"] for r in rows if r["missing"] == missing]
        print(f"{missing} missing: {np.mean(gains):+.2f} dB, smallest {min(gains):+.2f}")
    named = {k: str(v) for k, v in vars(options).items() if k != "out" and v is not None}
    report = {"title": "Inpainting", "options": named} | circumstances() | {"results": rows}
    write_report(options.out, report)


if __name__ == "__main__":
    main()
