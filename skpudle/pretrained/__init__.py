"""Load the denoisers that come with the package, and write and read files of denoisers.

A file holds the ``state_dict`` of a denoiser's network. It is read without unpickling objects, so
that a file from a stranger cannot run code.
"""

import io
import os
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import IO, Literal

import torch
from sklearn.utils.validation import check_is_fitted

from skpudle._data.foreign import named_errors, replace_file
from skpudle._data.images import check_sizes
from skpudle._denoiser.estimator import ConvDenoiser
from skpudle._denoiser.network import DenoisingNetwork

__all__ = ["load_denoiser", "save_denoiser"]

_PACKAGED = "gaussian", "gaussian-small", "poisson"


@torch.no_grad()
def _network_of(state):  # state_dict -> DenoisingNetwork
    """Return the network of a ``state_dict``, if it denoises an image; else raise an error."""
    shape, extra = state["analysis"].shape, state["_extra_state"]
    check_sizes(shape[3:], extra["stride"])
    network = DenoisingNetwork(shape, **extra)
    network.load_state_dict(state)
    image = torch.linspace(0, 1, shape[-1], device="cpu").expand(1, *shape[2:])
    if not network.decode(network.encode(image)).isfinite().all():
        raise ValueError("its pixels are not finite")
    return network


def save_denoiser(learner: ConvDenoiser, file: str | PathLike[str] | IO[bytes]) -> None:
    """Write a fitted denoiser to a file, the ``state_dict`` of its network in float32.

    Parameters
    ----------
    learner : ConvDenoiser
        A fitted denoiser.
    file : str, path-like or file object
        File to write; ".pt" is appended to a name without it. An older file of that name is
        replaced when the new one is complete.

    Raises
    ------
    NotFittedError
        If the learner is not fitted.
    ValueError
        If it has numbers beyond float32.
    """
    check_is_fitted(learner)
    state, stored = deepcopy(learner.network_).float().state_dict(), io.BytesIO()
    with named_errors(learner, "denoiser that a file can hold", "Its numbers must be of float32."):
        _network_of(state)
    torch.save(state, stored)
    if hasattr(file, "write"):
        file.write(stored.getbuffer())
    else:
        replace_file(os.fspath(file).removesuffix(".pt") + ".pt", stored.getbuffer())


def load_denoiser(
    file: Literal["gaussian", "gaussian-small", "poisson"] | PathLike[str] | IO[bytes] = "gaussian",
    *,
    shift_average: bool = False,
    device: str = "auto",
) -> ConvDenoiser:
    """Return a fitted denoiser of images.

    Three denoisers come with the package. They are for grey images and have atoms of 7 x 7 pixels
    every 2 pixels. An unfolding is one step of the encoder; every unfolding has its own atoms for
    analysis and for synthesis.

    - "gaussian": 64 atoms, 10 unfoldings, and thresholds that follow the noise. Trained on
      photographs with values from 0 to 1 and Gaussian noise of standard deviations from 5 / 255 to
      55 / 255. ``denoise`` estimates the noise unless it is given. Images with more noise, or in
      other units, are scaled to the range of the training. For images with less noise the result is
      mixed with the input.
    - "gaussian-small": like "gaussian", but 40 atoms and 6 unfoldings, and three times as fast.
    - "poisson": 26 atoms and 8 unfoldings, trained on photographs with 1 to 4 expected photons in
      the brightest pixel. Counts go in, expected counts come out.

    The training data, licence, metrics and limits of the three are on :doc:`/guide/images`.

    Parameters
    ----------
    file : {"gaussian", "gaussian-small", "poisson"}, path-like or file, default="gaussian"
        Name of a denoiser of the package, or a file of `save_denoiser`.
    shift_average : bool, default=False
        Whether `denoise` averages over all grids of positions. The peak signal-to-noise ratio rises
        by at most 0.1 dB on 68 photographs, and the time to two to four times the time.
    device : str, default="auto"
        Device to compute on.

    Returns
    -------
    ConvDenoiser
        The denoiser; it can be trained further by `partial_fit`.

    Raises
    ------
    ValueError
        If the file, which the message names, is not one of `save_denoiser`.
    FileNotFoundError
        If there is neither such a file nor such a name.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_image
    >>> from skpudle.pretrained import load_denoiser
    >>> image = load_sample_image("china.jpg").mean(axis=2)[:64, :80] / 255
    >>> load_denoiser().denoise([image], noise_std=15 / 255)[0].shape
    (64, 80)
    """
    name = getattr(file, "name", file)
    if not hasattr(file, "read"):
        name = Path(__file__).with_name(f"{file}.pt") if file in _PACKAGED else Path(file)
        file = io.BytesIO(name.read_bytes())
    with named_errors(name, "denoiser", "Pass a file that save_denoiser wrote."):
        network = _network_of(torch.load(file, "cpu", weights_only=True))
    return ConvDenoiser.from_network(network, shift_average=shift_average, device=device)
