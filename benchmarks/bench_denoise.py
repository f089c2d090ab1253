"""Time and memory of denoising by the packaged dictionary, and tiles against whole images.

Every size runs in its own process. Its peak memory, without imports and image, is read from the
kernel. Example::

    out=benchmarks/results/denoise_time.json
    python benchmarks/bench_denoise.py --size 481 321 --out $out
    python benchmarks/bench_denoise.py --size 3000 2000 --compare --out $out

The file keeps results of other sizes.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from common import circumstances, peak_megabytes, write_report

from skpudle._learners.convolutional.denoising import denoise_images
from skpudle.pretrained import load_denoiser


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(481, 321))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one-grid", action="store_true", help="without shift averaging")
    parser.add_argument("--compare", action="store_true", help="with the image in one tile")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    learner = load_denoiser(shift_average=not options.one_grid)
    rng = np.random.default_rng(0)
    coarse = torch.tensor(rng.uniform(size=(1, 1, 40, 30)), dtype=torch.float32)
    image = torch.nn.functional.interpolate(coarse, size=options.size, mode="bicubic")
    image = image + 25 / 255 * torch.tensor(rng.normal(size=image.shape), dtype=torch.float32)
    learner.denoise(image[..., :64, :64].numpy()[:, 0])  # warms up
    before, seconds = peak_megabytes(), []
    for _ in range(options.repeats):
        start = perf_counter()
        denoised = learner.denoise(image[:, 0].numpy())
        seconds.append(perf_counter() - start)
    result = {
        "name": "x".join(map(str, options.size)),
        "grids": 1 if options.one_grid else learner.stride**2,
        "seconds": sorted(seconds)[len(seconds) // 2],
        "megabytes": peak_megabytes() - before,
    }
    if options.compare:
        _, network = learner._read_and_build(image[:, 0].numpy())
        whole = denoise_images(
            network, image, shift_average=not options.one_grid, tile=max(options.size)
        )
        result["largest_difference"] = float(np.abs(denoised - whole[:, 0].numpy()).max())
        result["megabytes_in_one_tile"] = peak_megabytes() - before
    print(json.dumps(result))
    if options.out:
        stored = json.loads(options.out.read_text())["results"] if options.out.exists() else []
        others = [r for r in stored if (r["name"], r["grids"]) != (result["name"], result["grids"])]
        write_report(options.out, circumstances() | {"results": [*others, result]})


if __name__ == "__main__":
    main()
