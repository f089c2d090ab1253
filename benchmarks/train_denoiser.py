"""Train a denoiser for any noise, with its own atoms for every unfolding, and measure it.

``--data DIR`` has a folder of training images, ``--train`` (432 colour pictures, read as grey
levels), and one of test images, ``--test`` (68 grey ones); nothing is downloaded. A run has a name,
writes ``benchmarks/results/denoisers/NAME.json`` as it proceeds, and keeps its state in
``benchmarks/output/denoise``, to resume after an interruption::

    python benchmarks/train_denoiser.py any-noise --data DIR --epochs 1100 \
        --save skpudle/pretrained/denoiser_gray.pt
    python benchmarks/train_denoiser.py any-noise-small --data DIR --epochs 600 \
        --n-components 40 --n-unfoldings 6 --save skpudle/pretrained/denoiser_gray_small.pt

An epoch is one crop of every image, with new noise of a new level for every crop. With ``--only
25`` the network is for one level, to measure the gain of a model for each level.
"""

import argparse
import json
import time
from functools import partial
from math import cos, pi

import numpy as np
import torch
from denoisers import Muon, add_options, crops_of, psnr, report, resume, train

from skpudle import ConvDenoiser
from skpudle.datasets import load_gray_images
from skpudle.pretrained import save_denoiser

LEVELS = (15, 25, 50)  # levels of published comparisons, for pixels to 255


def learner_of(options):
    size = options.atom_size
    noise_std = (5 / 255, 55 / 255) if options.only is None else options.only / 255
    return ConvDenoiser(
        options.n_components,
        atom_shape=(size, size),
        stride=options.stride,
        n_unfoldings=options.n_unfoldings,
        alpha=0.04,  # about half the noise in the middle of its range
        noise_std=noise_std,
        crop_size=options.crop_size,
        optimizer=Muon,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        dict_init="dct",
        random_state=options.seed,
    )


def evaluate(learner, images, levels, *, shift_average, tell=True):
    """Return the mean PSNR at each level of seeded noise, and CPU seconds an image."""
    learner.set_params(shift_average=shift_average)
    found, start = {}, time.process_time()
    for level in levels:
        noise, values = np.random.default_rng(level), []
        for image in images:
            noisy = image + level / 255 * noise.standard_normal(image.shape, dtype=np.float32)
            told = {"noise_std": level / 255} if tell else {}
            values.append(psnr(learner.denoise([noisy], **told)[0], image))
        found[str(level)] = round(float(np.mean(values)), 3)
    seconds = (time.process_time() - start) / (len(levels) * len(images))
    return found | {"cpu_seconds_an_image": round(seconds, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--only", type=float, help="the only level of noise, for pixels to 255")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    levels = LEVELS if options.only is None else (int(options.only),)
    test = [image.astype(np.float32) for image in load_gray_images(options.data / options.test)]

    learner, state = resume(options, learner_of(options))
    if state["epoch"] < options.epochs:
        images = load_gray_images(options.data / options.train)
        images = [image.astype(np.float32) for image in images]
        train(
            learner,
            partial(crops_of, images, options.crop_size),
            options,
            state,
            schedule=lambda done: (1 + cos(pi * done)) / 2,
            glance=lambda: evaluate(learner, test[:4], levels, shift_average=False),
        )
    results = {
        "one_grid": evaluate(learner, test, levels, shift_average=False),
        "all_grids": evaluate(learner, test, levels, shift_average=True),
    }
    if options.only is None:
        results["noise_estimated"] = evaluate(learner, test, levels, shift_average=True, tell=False)
    print(json.dumps(results))
    report(learner, options, state, **results)
    if options.save:
        save_denoiser(learner.set_params(shift_average=False), options.save)


if __name__ == "__main__":
    main()
