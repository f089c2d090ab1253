"""Train a denoiser of photons, for a range of light, and measure it by a published protocol.

``--data DIR`` has the folders of `train_denoiser.py`. A test image with values ``x`` gives counts
of expectation ``peak * x / max(x)`` at peaks 1, 2 and 4; the report has the PSNR of the estimated
expectations with that peak. Competitors are BM3D by the Anscombe transform and its exact inverse
(``--bm3d N``, on the first N images, in the same draws) and the weights for each peak published
with B. Tolooshams et al., "Convolutional dictionary learning based auto-encoders for natural
exponential-family distributions", ICML 2020: with 20,618 parameters, the first 12 images had 21.37,
22.31 and 23.51 dB in one draw. A run resumes after an interruption::

    python benchmarks/train_low_light.py low-light --data DIR --bm3d 12 \
        --save skpudle/pretrained/denoiser_photons.pt

An epoch is one crop of every image, with newly drawn photons. The learning rate falls in the second
half of training; extend a run before that.
"""

import argparse
import json
import time
from functools import partial

import numpy as np
import torch
from common import write_report
from denoisers import RESULTS, Muon, add_options, crops_of, psnr, report, resume, train

from skpudle import ConvDenoiser
from skpudle.datasets import load_gray_images
from skpudle.pretrained import save_denoiser

PEAKS = (1, 2, 4)
RANGE = (0.9, 4.5)  # of the peaks of training, low ones more often, since they weigh less


def learner_of(options):
    size = options.atom_size
    return ConvDenoiser(
        options.n_components,
        atom_shape=(size, size),
        stride=options.stride,
        n_unfoldings=options.n_unfoldings,
        alpha=0.4,  # about half the noise
        noise_std="poisson",
        crop_size=options.crop_size,
        optimizer=partial(Muon, threshold_rate=0.8),
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        dict_init="dct",
        random_state=options.seed,
    )


def bright_images(folder):
    """Return images scaled to a maximum of 1."""
    images = (image.astype(np.float32) for image in load_gray_images(folder))
    return [image / image.max() for image in images]


def evaluate(denoise, images):
    """Return for each peak the mean PSNR, of all and of the first 12, and seconds an image."""
    found = {}
    for peak in PEAKS:
        noise, values, start = np.random.default_rng(peak), [], time.process_time()
        for image in images:
            photons = noise.poisson(peak * image).astype(np.float32)
            values.append(psnr(denoise(photons) / peak, image))
        found[str(peak)] = {
            "first_12": round(float(np.mean(values[:12])), 3),
            "mean": round(float(np.mean(values)), 3),
            "n_images": len(images),
            "cpu_seconds_an_image": round((time.process_time() - start) / len(images), 2),
        }
    return found


def by_bm3d(photons):
    """Denoise by BM3D between Anscombe's transform and its exact inverse.

    M. Mäkitalo and A. Foi, "A closed-form approximation of the exact unbiased inverse of the
    Anscombe variance-stabilizing transformation", IEEE Transactions on Image Processing, 2011.
    """
    import bm3d

    root = np.maximum(bm3d.bm3d(2 * np.sqrt(photons + 3 / 8), sigma_psd=1.0), 2 * (3 / 8) ** 0.5)
    inverse = root**2 / 4 + 1.5**0.5 / 4 / root - 11 / 8 / root**2 + 5 / 8 * 1.5**0.5 / root**3
    return np.maximum(inverse - 1 / 8, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--bm3d", type=int, default=0, help="test images that BM3D denoises too")
    parser.add_argument("--only-bm3d", action="store_true", help="train and measure nothing else")
    parser.set_defaults(
        n_components=26, n_unfoldings=8, crop_size=97, batch_size=2, epochs=1100
    )  # depth and size by held-out training images
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    test = bright_images(options.data / options.test)
    if options.bm3d:
        baseline = evaluate(by_bm3d, test[: options.bm3d])
        write_report(RESULTS / "low-light-bm3d.json", baseline)
        print(json.dumps(baseline))
    if options.only_bm3d:
        return

    learner, state = resume(options, learner_of(options))

    def denoise(photons):
        return learner.denoise([photons])[0]

    if state["epoch"] < options.epochs:
        images, (low, high) = bright_images(options.data / options.train), RANGE

        def crops(seed):
            bright = crops_of(images, options.crop_size, seed)
            darkening = np.random.default_rng([*seed, 1]).uniform(1 / high, 1 / low, len(bright))
            return bright / darkening.astype(np.float32)[:, None, None]

        train(
            learner,
            crops,
            options,
            state,
            schedule=lambda done: min(1, 2 * (1 - done)),
            glance=lambda: evaluate(denoise, test[:4]),
        )
    results = {"one_grid": evaluate(denoise, test)}
    learner.set_params(shift_average=True)
    results["all_grids"] = evaluate(denoise, test[:12])
    print(json.dumps(results))
    report(learner, options, state, **results)
    if options.save:
        save_denoiser(learner.set_params(shift_average=False), options.save)


if __name__ == "__main__":
    main()
