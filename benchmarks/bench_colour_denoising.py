"""Denoise colour pictures of scikit-image and scikit-learn, against BM3D and non-local means.

The packaged dictionary, for grey images, takes the channels one by one, or their mean and two
differences; it is given the noise or estimates it. BM3D is bm3d on PyPI, in colour. Non-local means
are scikit-image's: patches of 5 x 5 pixels within 6 pixels, and 0.8 times the noise as the filter's
strength, as in its gallery. Example::

    python benchmarks/bench_colour_denoising.py --out benchmarks/results/colour_denoising.json
"""

import argparse
from pathlib import Path
from time import process_time

import numpy as np
import torch
from bm3d import bm3d_rgb
from common import circumstances, write_report
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_nl_means
from sklearn.datasets import load_sample_image

from skpudle.pretrained import load_denoiser

SIZE = 256  # pixels of the upper left corner along each axis: BM3D is slow


def pictures():
    shipped = {name: getattr(data, name)() for name in ("astronaut", "coffee", "chelsea")}
    shipped |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {n: (p[:SIZE, :SIZE] / 255).astype(np.float32) for n, p in shipped.items()}


def methods(level):
    learner = load_denoiser(shift_average=True)

    def by_channel(noisy):
        channels = learner.denoise(list(np.moveaxis(noisy, -1, 0)), noise_std=level)
        return np.stack(channels, axis=-1)

    def non_local(noisy):
        options = dict(patch_size=5, patch_distance=6, fast_mode=True, channel_axis=-1)
        return denoise_nl_means(noisy, h=0.8 * level, sigma=level, **options)

    return {
        "skpudle": lambda noisy: learner.denoise([noisy], noise_std=level)[0],
        "skpudle, noise estimated": lambda noisy: learner.denoise([noisy])[0],
        "skpudle, channel by channel": by_channel,
        "BM3D, colour": lambda noisy: bm3d_rgb(noisy, level),
        "non-local means": non_local,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", type=int, nargs="*", default=[15, 25, 50])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for level in options.levels:
        found, seconds = {}, {}
        for name, clean in pictures().items():
            noise = np.random.default_rng(level).standard_normal(clean.shape, dtype=np.float32)
            noisy = clean + level / 255 * noise
            for method, denoise in methods(level / 255).items():
                start = process_time()
                value = peak_signal_noise_ratio(
                    clean, np.asarray(denoise(noisy), np.float32), data_range=1
                )
                seconds[method] = seconds.get(method, 0.0) + process_time() - start
                found.setdefault(method, {})[name] = round(value, 2)
        for method, values in found.items():
            mean = round(float(np.mean(list(values.values()))), 2)
            took = round(seconds[method] / len(values), 1)
            row = {"sigma": level, "method": method, "mean_psnr": mean} | values
            results.append(row | {"cpu_seconds": took})
            print(row, flush=True)
    if options.out:
        write_report(options.out, circumstances() | {"results": results})


if __name__ == "__main__":
    main()
