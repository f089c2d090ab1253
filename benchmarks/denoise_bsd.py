"""Train a convolutional denoiser and measure it on the Berkeley images, as table 1 of the paper.

The networks are those of `published_network`.

``--data DIR`` has a folder of training images, ``--train`` (432 colour pictures, read as grey
levels), and one of test images, ``--test`` (68 grey ones); nothing is downloaded. Every run has a
name, writes ``benchmarks/results/denoise/NAME.json`` as it proceeds, and keeps in
``benchmarks/output/denoise`` its state, to resume after an interruption. Started again with more
epochs it continues; with the same ones it only evaluates.

    published="--batch-size 1 --crop-size 129 --learning-rate 1e-4 --cool-down 0 --epochs 250"
    published="$published --eps 8.3 --data DIR"  # theirs, 1e-3, is for a mean over pixels
    python benchmarks/denoise_bsd.py published-ae-ls $published
    python benchmarks/denoise_bsd.py published-hard $published --shrinkage hard --alpha 0.05
    python benchmarks/denoise_bsd.py published-dec $published --gradient dec
    quick="--batch-size 4 --crop-size 65 --data DIR"
    python benchmarks/denoise_bsd.py ae-ls-0.16 $quick --learning-rate 3e-3 --epochs 250
    python benchmarks/denoise_bsd.py hard-0.05 $quick --learning-rate 3e-3 --epochs 250 \
        --shrinkage hard --alpha 0.05
    slow="$quick --learning-rate 1e-3 --epochs 130"
    python benchmarks/denoise_bsd.py ae-ls-0.16-slow $slow --dict-init dct
    python benchmarks/denoise_bsd.py hard-0.05-slow $slow --shrinkage hard --alpha 0.05
    python benchmarks/denoise_bsd.py dec-0.16-slow $slow --gradient dec
    python benchmarks/denoise_bsd.py dec-0.16 $quick --learning-rate 2e-3 --epochs 60 \
        --cool-down 0.5 --gradient dec
    sweep="$quick --learning-rate 1e-3 --epochs 20 --cool-down 0.5 --one-grid"
    python benchmarks/denoise_bsd.py sweep-ae-ls-0.12 $sweep --dict-init dct --alpha 0.12
    python benchmarks/denoise_bsd.py sweep-hard-0.08 $sweep --shrinkage hard --alpha 0.08
    python benchmarks/denoise_bsd.py sweep-dec-0.2 $sweep --gradient dec --alpha 0.2
    learn="--atom-norm none --learn-threshold atom --learn-step --alpha 0.1"
    python benchmarks/denoise_bsd.py tied-a $quick $learn --learning-rate 3e-3 --cool-down 0.2 \
        --epochs 40
    cscnet="$learn --n-components 175 --atom-size 11 --stride 8 --n-unfoldings 12 --data DIR"
    python benchmarks/denoise_bsd.py cscnet-size $cscnet --batch-size 4 --crop-size 67 \
        --epochs 20 --one-grid
    shifts="--separate-atoms both --batch-size 1 --crop-size 112 --learning-rate 1e-3 --data DIR"
    python benchmarks/denoise_bsd.py cscnet-shifts $cscnet $shifts --start cscnet-size \
        --n-train-shifts 8 --cool-down 0.6 --epochs 30
    wide="$learn --atom-size 11 --stride 6"
    python benchmarks/denoise_bsd.py best-a $quick $wide --learning-rate 3e-3 --cool-down 0.2
    python benchmarks/denoise_bsd.py best-b $wide $shifts --start best-a --n-train-shifts 4 \
        --cool-down 0.6 --epochs 14
    wide="$wide --learn-threshold unfolding"
    python benchmarks/denoise_bsd.py best-a2 $quick $wide --learning-rate 3e-3 --cool-down 0.2 \
        --only-train
    python benchmarks/denoise_bsd.py best-c $wide $shifts --start best-a2 --n-train-shifts 4 \
        --cool-down 0.6 --epochs 14
    python benchmarks/denoise_bsd.py best-d $wide $shifts --start best-c --n-train-shifts 6 \
        --cool-down 0.8 --epochs 40

Two protocols are reported, each with one grid of positions and with the average over all:

* ``whole``: every test image whole, peak 1, seeded noise, mean of the PSNRs;
* ``crop``: a 129 x 129 crop of each, without a margin, and for peak the largest pixel of the crop,
  as in the authors' code. The mean over images depends on the places of the crops: it is averaged
  over four draws, and ``crop_std`` is the standard deviation of a single one.
"""

import argparse
import time
from math import cos, log10, pi
from pathlib import Path

import numpy as np
import torch
from common import circumstances, write_report
from denoisers import crops_of
from published_network import PublishedNetwork, epoch, initial_atoms, take_parameters

from skpudle.datasets import load_gray_images

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results" / "denoise"
STATES = BENCHMARKS / "output" / "denoise"

# of the authors' protocol, with one crop of each image
CROP, N_CROPS = 129, 4

# options that do not affect the result, or belong to one machine
_UNREPORTED = ("data", "verbose", "only_train", "one_grid")


def images_of(folder):
    return [image.astype(np.float32) for image in load_gray_images(folder)]


def psnr(image, target, peak):
    return 10 * log10(peak**2 / float(np.mean((image - target) ** 2, dtype=np.float64)))


# ---------------------------------------------------------------- training


def network_of(options):
    generator = torch.Generator().manual_seed(options.seed)
    how = options.n_components, options.atom_size, options.dict_init
    return PublishedNetwork(
        initial_atoms(*how, generator),
        stride=options.stride,
        alpha=options.alpha,
        n_unfoldings=options.n_unfoldings,
        step=None if options.step_size == "auto" else float(options.step_size),
        shrinkage=options.shrinkage,
        atom_norm=options.atom_norm,
        learn_threshold=options.learn_threshold,
        learn_step=options.learn_step,
        separate_atoms=options.separate_atoms,
    )


def rate_at(epoch, options):
    """Return the learning rate: constant, then a quarter of a cosine in the last part."""
    done = epoch / options.epochs
    left = min(1, (1 - done) / options.cool_down) if options.cool_down else 1
    return options.learning_rate * (1 - cos(pi / 2 * left)) if left < 1 else options.learning_rate


def train(network, optimizer, images, options, state):
    """Continue training until all epochs are done; ``state`` is changed and stored."""
    path, last = STATES / f"{options.name}.pt", (time.perf_counter(), time.process_time())
    path.parent.mkdir(parents=True, exist_ok=True)
    how = dict(sigma=options.sigma / 255, batch_size=options.batch_size, alpha=options.alpha)
    how |= dict(gradient=options.gradient, n_shifts=options.n_train_shifts)
    while state["epoch"] < options.epochs:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(state["epoch"], options)
        seed = [options.seed, state["epoch"]]
        generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**31)))
        crops = crops_of(images, options.crop_size, seed)
        state["losses"].append(epoch(network, optimizer, crops, generator, **how))
        state["epoch"] += 1
        now = time.perf_counter(), time.process_time()
        state["seconds"] += now[0] - last[0]
        state["cpu_seconds"] += now[1] - last[1]
        last = now
        stored = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(stored | {"state": state}, path)
        if options.verbose and state["epoch"] % options.verbose == 0:
            print(
                f"epoch {state['epoch']}/{options.epochs}  loss {state['losses'][-1]:.4g}  "
                f"step {float(network.step_size):.3f}  {state['seconds']:.0f} s",
                flush=True,
            )


# ---------------------------------------------------------------- evaluation


def denoised_crop(network, crop, shift_average):
    """Denoise a crop; without shifts no atom extends over its border."""
    if shift_average:
        return network.denoise(crop, shift_average=True)
    with torch.no_grad():
        x = torch.as_tensor(crop)[None, None]
        return network.decode(network.encode(x))[0, 0].numpy()


def evaluate(network, images, sigma, *, shift_average):
    """Return the mean PSNRs of both protocols, in dB, and their deviation between crops."""
    noise, places = np.random.default_rng(0), np.random.default_rng(1)
    whole, crops = [], []
    for image in images:
        noisy = image + sigma * noise.standard_normal(image.shape, dtype=np.float32)
        whole.append(psnr(network.denoise(noisy, shift_average=shift_average), image, 1.0))
        crops.append([])
        for _ in range(N_CROPS):
            starts = [int(places.integers(n - CROP + 1)) for n in image.shape]
            inside = tuple(slice(start, start + CROP) for start in starts)
            crop, target = denoised_crop(network, noisy[inside], shift_average), image[inside]
            target = target[: len(crop), : crop.shape[1]]
            crops[-1].append(psnr(crop, target, target.max()))
    crops = np.mean(crops, axis=0)
    return {
        "whole": float(np.mean(whole)),
        "crop": float(np.mean(crops)),
        "crop_std": float(np.std(crops, ddof=1)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the run and of its files")
    parser.add_argument("--data", type=Path, required=True, help="folder of the two folders below")
    parser.add_argument("--train", default="cbsd432")
    parser.add_argument("--test", default="bsd68")
    parser.add_argument("--gradient", choices=["dec", "ae-lasso", "ae-ls"], default="ae-ls")
    parser.add_argument("--alpha", type=float, default=0.16)
    parser.add_argument("--shrinkage", choices=["soft", "hard"], default="soft")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--n-components", type=int, default=64)
    parser.add_argument("--atom-size", type=int, default=9)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--dict-init", choices=["random", "dct"], default="random")
    parser.add_argument("--n-unfoldings", type=int, default=15)
    parser.add_argument("--step-size", default="0.1", help='a number or "auto"')
    parser.add_argument("--atom-norm", choices=["unit", "ball", "none"], default="unit")
    parser.add_argument("--learn-threshold", choices=["one", "atom", "unfolding"])
    parser.add_argument("--learn-step", action="store_true")
    parser.add_argument("--separate-atoms", choices=["analysis", "decoder", "both"])
    parser.add_argument("--n-train-shifts", type=int, default=1)
    parser.add_argument("--crop-size", type=int, default=CROP)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--cool-down", type=float, default=0.4, help="share of falling rates")
    parser.add_argument("--eps", type=float, help="of Adam")
    parser.add_argument("--sigma", type=float, default=25, help="of the noise, for pixels to 255")
    parser.add_argument("--max-images", type=int, help="of the test images, for a quick look")
    parser.add_argument("--only-train", action="store_true", help="without an evaluation")
    parser.add_argument("--one-grid", action="store_true", help="evaluate without shift averaging")
    parser.add_argument("--start", help="name of a run to start from, with parameters to add to it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, default=1, help="epochs between two printed lines")
    options = parser.parse_args()

    path = STATES / f"{options.name}.pt"
    state = {"epoch": 0, "seconds": 0.0, "cpu_seconds": 0.0, "losses": []}
    network = network_of(options)
    learned = [value for value in network.parameters() if value.requires_grad]
    eps = {} if options.eps is None else {"eps": options.eps}
    optimizer = torch.optim.Adam(learned, lr=options.learning_rate, **eps)
    start = STATES / f"{options.start or options.name}.pt"
    for origin in (path, start):
        if origin.exists():
            stored = torch.load(origin, weights_only=True)
            take_parameters(network, stored["network"])
            if origin == path:
                state = stored["state"]
                optimizer.load_state_dict(stored["optimizer"])
            else:
                state["start"] = stored["state"]
            break
    train(network, optimizer, images_of(options.data / options.train), options, state)
    if options.only_train:
        return

    tests = images_of(options.data / options.test)[: options.max_images]
    result = {
        "options": {k: v for k, v in vars(options).items() if k not in _UNREPORTED},
        "epochs": state["epoch"],
        "training_seconds": state["seconds"],
        "training_cpu_seconds": state["cpu_seconds"],
        "n_parameters": sum(value.numel() for value in learned),
        "step_size": float(network.step_size),
        "losses": state["losses"],
        "start": state.get("start"),
        "circumstances": circumstances(),
    }
    protocols = [("one grid", False), ("all grids", True)]
    for label, shift_average in protocols[: 1 if options.one_grid else 2]:
        start = time.perf_counter()
        result[label] = evaluate(network, tests, options.sigma / 255, shift_average=shift_average)
        result[label]["seconds"] = time.perf_counter() - start
        print(f"{options.name}, {label}: ", result[label], flush=True)
    write_report(RESULTS / f"{options.name}.json", result)


if __name__ == "__main__":
    main()
