"""Denoisers that come with the package, and their files: a ``state_dict``, without pickling."""

import io
import os
import pickle
import zipfile
from copy import deepcopy
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import IO, Literal

import torch
from sklearn.utils.validation import check_is_fitted

from skpudle._data.files import MOST_UNFOLDINGS, named_errors, replace_file
from skpudle._denoiser.estimator import ConvDenoiser
from skpudle._denoiser.network import DenoisingNetwork

__all__ = ["load_denoiser", "save_denoiser"]

_PACKAGED = {
    "gaussian": "denoiser_gray.pt",
    "gaussian-small": "denoiser_gray_small.pt",
    "poisson": "denoiser_photons.pt",
}
_EXTRA = "_extra_state"


def _network_of(state):  # state_dict -> DenoisingNetwork
    """Return the network of a state; raise ValueError or KeyError if it is none."""
    shape, extra = state["analysis"].shape, state[_EXTRA]
    stride, n_axes = extra["stride"], len(shape) - 3
    fits = n_axes in (1, 2) and len(stride) == n_axes and shape[0] <= MOST_UNFOLDINGS
    if not fits or any(not 1 <= s <= k for s, k in zip(stride, shape[3:], strict=True)):
        raise ValueError(f"atoms of shape {tuple(shape)} do not go with a stride of {stride}")
    peak = float(extra["peak"])
    network = DenoisingNetwork(shape, stride, extra["noise_std"], peak=peak)
    network.load_state_dict(state)
    with torch.no_grad():
        levels = [network.thresholds, *([] if network.slopes is None else [network.slopes])]
        image = torch.linspace(0, 1, network.kernel[-1], device="cpu").expand(
            1, shape[2], *network.kernel
        )
        found = network.decode(network.encode(image))
        if min(float(level.min()) for level in levels) < 0 or not 0 < peak < float("inf"):
            raise ValueError("its thresholds or its peak are negative")
        if not found.isfinite().all():
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
    TypeError
        If it is no `ConvDenoiser`.
    NotFittedError
        If the learner is not fitted.
    ValueError
        If it has more than 1000 unfoldings, a stride larger than its atoms, or numbers beyond
        float32.
    """
    if not isinstance(learner, ConvDenoiser):
        raise TypeError(
            f"Files hold denoisers, and this is a {type(learner).__name__}. Pass a ConvDenoiser, "
            "or write the learner by skops or pickle."
        )
    check_is_fitted(learner)
    state = deepcopy(learner.network_).float().state_dict()
    try:
        _network_of(state)
    except ValueError as error:
        raise ValueError(f"{error}; this denoiser cannot be stored.") from error
    stored = io.BytesIO()
    torch.save(state, stored)
    if hasattr(file, "write"):
        file.write(stored.getbuffer())
        return
    name = os.fspath(file)
    replace_file(name if name.endswith(".pt") else f"{name}.pt", stored.getbuffer())


def load_denoiser(
    file: Literal["gaussian", "gaussian-small", "poisson"] | PathLike[str] | IO[bytes] = "gaussian",
    *,
    shift_average: bool = False,
    device: str = "auto",
) -> ConvDenoiser:
    """Return a fitted denoiser of images.

    Three come with the package. They are for grey images and have atoms of 7 x 7 pixels every 2
    pixels; every unfolding has its own atoms for analysis and for synthesis.

    - "gaussian": 64 atoms, 10 unfoldings, and thresholds that follow the noise. Trained on
      photographs with values from 0 to 1 and Gaussian noise of standard deviations from 5 / 255 to
      55 / 255. ``denoise`` estimates the noise unless it is given. It scales images with more
      noise, or in other units; it mixes its result with images that have less noise.
    - "gaussian-small": the same with 40 atoms and 6 unfoldings, three times as fast.
    - "poisson": 26 atoms and 8 unfoldings, trained on photographs with 1 to 4 expected photons in
      the brightest pixel. Counts go in, expected counts come out.

    Their data, licence, metrics and limits are on :doc:`/guide/images`.

    Parameters
    ----------
    file : {"gaussian", "gaussian-small", "poisson"}, path-like or file, default="gaussian"
        One of these, or a file of `save_denoiser`.
    shift_average : bool, default=False
        Whether `denoise` averages over all grids of positions: at most 0.1 dB better on 68
        photographs, in two to four times the time.
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
    if isinstance(file, str) and file in _PACKAGED:
        with (resources.files("skpudle.pretrained") / _PACKAGED[file]).open("rb") as packaged:
            return load_denoiser(packaged, shift_average=shift_average, device=device)
    opened = hasattr(file, "read")
    if not opened and not Path(file).exists():
        raise FileNotFoundError(
            f"{str(file)!r:.80} is neither a packaged denoiser nor a file. Pass one of "
            f"{[*_PACKAGED]}, or a file of save_denoiser."
        )
    content = file.read() if opened else Path(file).read_bytes()
    name = getattr(file, "name", file) if opened else file
    with named_errors(name, "denoiser", "Pass a file that save_denoiser wrote."):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(part.file_size for part in archive.infolist()) > len(content):
                raise ValueError("it claims more bytes than it has")
        try:
            state = torch.load(io.BytesIO(content), "cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError("it holds more than tensors and numbers") from None
        network = _network_of(state)
    return ConvDenoiser.from_network(network, shift_average=shift_average, device=device)
