"""Train the network of table 1 of the paper, and measure it on the Berkeley images.

`skpudle.ConvDenoiser` has atoms and thresholds of each unfolding. This network has one dictionary
for all unfoldings and for the decoder, with fixed thresholds and a fixed step.

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

Two protocols are reported, each with one grid of positions and with the average over all:

* ``whole``: every test image whole, peak 1, seeded noise, mean of the PSNRs;
* ``crop``: a 129 x 129 crop of each, without a margin, and for peak the largest pixel of the crop,
  as in the authors' code. The mean over images depends on the places of the crops: it is averaged
  over four draws, and ``crop_std`` is the standard deviation of a single one.
"""

import time
from itertools import product
from math import cos, log10, pi
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, STATES, circumstances, parse, write_report
from scipy.fft import dct
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, pad
from train_denoiser import crops_of

from skpudle.datasets import load_gray_images

RESULTS, STATES = RESULTS / "denoise", STATES / "denoise"

# of the authors' protocol, with one crop of each image
CROP, N_CROPS = 129, 4

# options that do not affect the result, or belong to one machine
_UNREPORTED = ("data", "verbose", "one_grid", "out")


def images_of(folder):
    return [image.astype(np.float32) for image in load_gray_images(folder)]


def psnr(image, target, peak):
    return 10 * log10(peak**2 / float(np.mean((image - target) ** 2, dtype=np.float64)))


# ---------------------------------------------------------------- network


def cosines(n, size):  # -> (n, 1, size, size), the slowest first
    waves = dct(np.eye(size), norm="ortho", axis=0)
    speeds = np.add.outer(np.arange(size), np.arange(size)).ravel()
    order = np.argsort(speeds, kind="stable")[:n]
    return torch.tensor(np.kron(waves, waves)[order].reshape(-1, 1, size, size)).float()


def initial_atoms(n, size, method, generator):
    atoms = torch.randn(n, 1, size, size, generator=generator)
    if method == "dct":
        atoms[: size**2] = cosines(n, size)
    return atoms / atoms.flatten(1).norm(dim=1)[:, None, None, None]


class PublishedNetwork(nn.Module):
    """An encoder of unfoldings of one dictionary, and its decoder.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, 1, size, size)
        Initial dictionary, of unit atoms.
    stride, n_unfoldings : int
        Distance of atoms, and number of unfoldings.
    alpha : float
        Penalty, or threshold of hard shrinkage.
    step : float
        Step of an unfolding.
    shrinkage : {"soft", "hard"}
        The shrinkage.
    """

    def __init__(self, atoms, *, stride, n_unfoldings, alpha, step, shrinkage):
        super().__init__()
        self.stride, self.n_unfoldings, self.shrinkage = stride, n_unfoldings, shrinkage
        self.atoms, self.alpha, self.step = nn.Parameter(atoms), alpha, step

    def encode(self, x):  # (n, 1, height, width) -> (n, n_components, *positions)
        z, level = 0.0, self.alpha * self.step
        for t in range(self.n_unfoldings):
            residual = x if t == 0 else x - self.decode(z)
            z = z + self.step * conv2d(residual, self.atoms, stride=self.stride)
            if self.shrinkage == "hard":
                z = z * (z.abs() > self.alpha)
            else:
                z = z - z.clamp(-level, level)
        return z

    def decode(self, z):
        return conv_transpose2d(z, self.atoms, stride=self.stride)

    @torch.no_grad()
    def project(self):
        """Make atoms of unit norm."""
        self.atoms.div_(
            self.atoms.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-12)
        )

    @torch.no_grad()
    def denoise(self, image, *, shift_average):  # (height, width) -> the same
        size, margin = image.shape, self.atoms.shape[-1] - 1
        ends = [-(n + margin) % self.stride + 2 * self.stride for n in reversed(size)]
        ends = [n for end in ends for n in (margin, margin + end)]
        x = pad(torch.as_tensor(image)[None, None], ends, mode="reflect")
        total, shifts = 0.0, [(0, 0)]
        if shift_average:
            shifts = list(product(range(self.stride), repeat=2))
        for i, j in shifts:
            part = x[..., i:, j:]
            n, m = (k - (k - margin - 1) % self.stride for k in part.shape[2:])
            decoded = self.decode(self.encode(part[..., :n, :m]))
            rows, columns = (
                slice(margin - a, margin - a + n) for a, n in zip((i, j), size)
            )
            total = total + decoded[0, 0, rows, columns]
        return (total / len(shifts)).numpy()


def epoch(network, optimizer, images, generator, *, sigma, batch_size, gradient, alpha):
    """Make one pass through clean crops, with new noise; return the mean loss of a crop."""
    losses, size = [], network.atoms.shape[-1]
    for clean in torch.as_tensor(images)[:, None].split(batch_size):
        flips = torch.randint(2, (3,), generator=generator).tolist()
        axes = [axis for axis, flip in zip((2, 3), flips) if flip]
        clean = clean.flip(axes).mT if flips[2] else clean.flip(axes)
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
        rows, columns = (n - (n - size) % network.stride for n in clean.shape[2:])
        codes = network.encode(noisy[..., :rows, :columns])
        codes = codes.detach() if gradient == "dec" else codes
        residual = network.decode(codes) - clean[..., :rows, :columns]
        loss = 0.5 * residual.square().sum() / len(clean)
        losses.append(loss.item())
        if gradient == "ae-lasso":
            loss = loss + alpha * codes.abs().sum() / len(codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.project()
    return float(np.mean(losses))


# ---------------------------------------------------------------- training


def network_of(options):
    generator = torch.Generator().manual_seed(options.seed)
    how = options.n_components, options.atom_size, options.dict_init
    names = "stride", "n_unfoldings", "alpha", "step", "shrinkage"
    return PublishedNetwork(
        initial_atoms(*how, generator),
        **{name: getattr(options, name) for name in names},
    )


def rate_at(epoch, options):
    """Return the learning rate: constant, then a quarter of a cosine in the last part."""
    done = epoch / options.epochs
    left = min(1, (1 - done) / options.cool_down) if options.cool_down else 1
    return (
        options.learning_rate * (1 - cos(pi / 2 * left))
        if left < 1
        else options.learning_rate
    )


def train(network, optimizer, images, options, state):
    """Continue training until all epochs are done; ``state`` is changed and stored."""
    path, last = (
        STATES / f"{options.name}.pt",
        (time.perf_counter(), time.process_time()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    how = dict(
        sigma=options.sigma / 255, batch_size=options.batch_size, alpha=options.alpha
    )
    how |= dict(gradient=options.gradient)
    while state["epoch"] < options.epochs:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(state["epoch"], options)
        seed = [options.seed, state["epoch"]]
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng(seed).integers(2**31))
        )
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
            loss = state["losses"][-1]
            print(
                f"epoch {state['epoch']}/{options.epochs}  loss {loss:.4g}", flush=True
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
        whole.append(
            psnr(network.denoise(noisy, shift_average=shift_average), image, 1.0)
        )
        crops.append([])
        for _ in range(N_CROPS):
            starts = [int(places.integers(n - CROP + 1)) for n in image.shape]
            inside = tuple(slice(start, start + CROP) for start in starts)
            crop, target = (
                denoised_crop(network, noisy[inside], shift_average),
                image[inside],
            )
            target = target[: len(crop), : crop.shape[1]]
            crops[-1].append(psnr(crop, target, target.max()))
    crops = np.mean(crops, axis=0)
    return {
        "whole": float(np.mean(whole)),
        "crop": float(np.mean(crops)),
        "crop_std": float(np.std(crops, ddof=1)),
    }


def main():
    options = parse(
        __doc__, names=["name"], data=str, train="cbsd432", test="bsd68", gradient="ae-ls",
        alpha=0.16, shrinkage="soft", epochs=50, n_components=64, atom_size=9, stride=4,
        dict_init="random", n_unfoldings=15, step=0.1, crop_size=CROP, batch_size=16,
        learning_rate=2e-3, cool_down=0.4, eps=1e-8, sigma=25.0, one_grid=False, seed=0, verbose=1,
    )  # fmt: skip
    path = STATES / f"{options.name}.pt"
    state = {"epoch": 0, "seconds": 0.0, "cpu_seconds": 0.0, "losses": []}
    network = network_of(options)
    optimizer = torch.optim.Adam(
        [network.atoms], lr=options.learning_rate, eps=options.eps
    )
    if path.exists():
        stored = torch.load(path, weights_only=True)
        network.load_state_dict(stored["network"])
        optimizer.load_state_dict(stored["optimizer"])
        state = stored["state"]
    train(
        network,
        optimizer,
        images_of(Path(options.data) / options.train),
        options,
        state,
    )
    tests = images_of(Path(options.data) / options.test)
    result = {
        "options": {k: v for k, v in vars(options).items() if k not in _UNREPORTED},
        "epochs": state["epoch"],
        "training_seconds": state["seconds"],
        "training_cpu_seconds": state["cpu_seconds"],
        "n_parameters": network.atoms.numel(),
        "losses": state["losses"],
        "circumstances": circumstances(),
    }
    protocols = [("one grid", False), ("all grids", True)]
    for label, shift_average in protocols[: 1 if options.one_grid else 2]:
        start = time.perf_counter()
        result[label] = evaluate(
            network, tests, options.sigma / 255, shift_average=shift_average
        )
        result[label]["seconds"] = time.perf_counter() - start
        print(f"{options.name}, {label}: ", result[label], flush=True)
    write_report(RESULTS / f"{options.name}.json", result)


if __name__ == "__main__":
    main()
