"""Load the trained denoisers of the package, and save and load denoisers of one's own.

A file holds the ``state_dict`` of the `DenoisingNetwork` of a `skpudle.ConvDenoiser`. Files must be
read with ``weights_only=True``, which unpickles no objects: a file from a stranger cannot run code.
"""

import io
import os
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import IO, Literal

import torch
from sklearn.utils.validation import check_is_fitted

from skpudle._data.images import check_sizes
from skpudle._denoiser.estimator import ConvDenoiser
from skpudle._denoiser.network import DenoisingNetwork
from skpudle._fit.run import named_errors, replace_file

__all__ = ["load_denoiser", "save_denoiser"]

_PACKAGED = "gaussian", "gaussian-small", "poisson"


@torch.no_grad()
def _network_of(state):  # state_dict -> DenoisingNetwork
    """Build the `DenoisingNetwork` of a ``state_dict``, and check by a small image that it works.

    `save_denoiser` calls this function before it writes a file, and `load_denoiser` after it has
    read one. ``state`` has the atoms, thresholds and settings of the network. A bad ``state_dict``
    may raise an error of any kind; both callers turn the error into a ValueError that says what is
    wrong with the learner or the file.
    """
    shape = state["analysis"].shape  # n_unfoldings, n_components, n_channels, *kernel
    extra = state["_extra_state"]
    check_sizes(shape[3:], extra["stride"])
    network = DenoisingNetwork(shape, **extra)
    network.load_state_dict(state)
    image = torch.linspace(0, 1, shape[-1], device="cpu").expand(1, *shape[2:])
    if not network.decode(network.encode(image)).isfinite().all():
        raise ValueError("its pixels are not finite")
    return network


def save_denoiser(learner: ConvDenoiser, file: str | PathLike[str] | IO[bytes]) -> None:
    """Write a fitted denoiser to a file that `load_denoiser` reads.

    The file holds the network's ``state_dict`` in float32, and no other state of the estimator.

    Parameters
    ----------
    learner : ConvDenoiser
        A fitted denoiser.
    file : str, path-like or file object
        File to write; ".pt" is appended to a name that does not end with it. An older file of the
        same name is replaced when the new file is complete.

    Raises
    ------
    NotFittedError
        If the learner is not fitted.
    ValueError
        If the network's output is not finite in float32.
    """
    check_is_fitted(learner)
    state = deepcopy(learner.network_).float().state_dict()
    stored = io.BytesIO()
    with named_errors(
        learner, "denoiser that a file can hold", "Its numbers must be of float32."
    ):
        _network_of(state)
    torch.save(state, stored)
    if hasattr(file, "write"):
        file.write(stored.getbuffer())
    else:
        replace_file(os.fspath(file).removesuffix(".pt") + ".pt", stored.getbuffer())


def load_denoiser(
    file: Literal["gaussian", "gaussian-small", "poisson"]
    | PathLike[str]
    | IO[bytes] = "gaussian",
    *,
    shift_average: bool = False,
    device: str = "auto",
) -> ConvDenoiser:
    """Return a trained denoiser of images, of the package or from a file of `save_denoiser`.

    Three denoisers come with the package. They are for grey images; the two for Gaussian noise
    denoise colours as well. Their atoms have 7 x 7 pixels and are placed at every second pixel of
    both axes. An unfolding is one iteration of the encoder, with atoms and thresholds of its own.

    - "gaussian": 64 atoms, 10 unfoldings, and thresholds that follow the noise. Trained on
      photographs with values from 0 to 1 and Gaussian noise of standard deviations from 5 / 255 to
      55 / 255. ``denoise`` estimates the noise unless the user passes it. Images with more noise,
      or in other units, are scaled to the range of the training. For images with less noise the
      result is a weighted mean of the network's output and the input.
    - "gaussian-small": like "gaussian", but 40 atoms and 6 unfoldings, and three times as fast.
    - "poisson": 26 atoms and 8 unfoldings, trained on photographs with 0.9 to 4.5 expected photons
      in the brightest pixel. It takes photon counts of grey images and returns expected counts.

    The training data, licence, metrics and limits of the three are on :doc:`/guide/images`.

    Parameters
    ----------
    file : {"gaussian", "gaussian-small", "poisson"}, path-like or file, default="gaussian"
        Name of a denoiser of the package, or the path or file object of a file of `save_denoiser`.
    shift_average : bool, default=False
        Whether `denoise` averages over all shifts of the grid of positions of atoms. The peak
        signal-to-noise ratio on 68 photographs rises by at most 0.1 dB, and the time is two to four
        times as long.
    device : str, default="auto"
        Device to compute on, as for `ConvDenoiser`.

    Returns
    -------
    ConvDenoiser
        The fitted denoiser; `partial_fit` trains it further.

    Raises
    ------
    ValueError
        If the file is not a file of `save_denoiser`; the message names the file.
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
        name = (
            Path(__file__).with_name(f"{file}.pt") if file in _PACKAGED else Path(file)
        )
        if not name.exists():
            raise FileNotFoundError(
                f"There is no file {str(name)!r}. Pass one of {', '.join(_PACKAGED)}, or a file "
                "that save_denoiser wrote."
            )
        file = io.BytesIO(name.read_bytes())
    with named_errors(name, "denoiser", "Pass a file that save_denoiser wrote."):
        network = _network_of(torch.load(file, "cpu", weights_only=True))
    return ConvDenoiser.from_network(
        network, shift_average=shift_average, device=device
    )
