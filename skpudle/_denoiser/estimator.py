"""Train networks of convolutions that remove noise from images, and use them: `ConvDenoiser`.

An optimiser of torch trains a `DenoisingNetwork` on random crops of images. Clean images get noise
in each update. Of pairs of a noisy and a clean image the noisy one is the input, and the clean one
the target.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, count
from math import ceil, inf, log2, log10, pi
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.utils.data import DataLoader

from skpudle._compilation import threads_for
from skpudle._data.arrays import check_range, input_attributes, make_generator
from skpudle._data.images import extend, is_one_image, read_targets
from skpudle._denoiser.network import DenoisingNetwork
from skpudle._fit.fitted import pack, unpack
from skpudle._fit.messages import warn_of_early_end, warn_of_rise
from skpudle._fit.run import Epoch, Interrupts, take
from skpudle._fit.train import Diverged, Stopping
from skpudle._learners.convolutional.base import ImageEstimator, geometry_of, parts_of_images
from skpudle._learners.convolutional.learn import penalty_of_correlations
from skpudle._learners.parameters import fits, sets_parameters
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding._unfold import default_step

ImagesLike = ArrayLike | Tensor | Sequence[ArrayLike]


# ---------------------------------------------------------------- training


def draw_cosines(shape, generator):  # (n, n_channels, *kernel) -> Tensor of the shape
    """Return initial atoms of norm 1: products of cosines along all axes, channels included.

    The products of the lowest frequencies come first. If there are more atoms than products, the
    remaining atoms are random. Random or orthogonal atoms instead cost 1 dB after 120 epochs.
    """
    options = dict(dtype=torch.float64, device="cpu")
    sizes = torch.tensor(shape[1:], **options)
    places = torch.cartesian_prod(*(torch.arange(n, **options) for n in shape[1:]))
    slowest = places[(places / sizes).sum(1).argsort(stable=True)][: shape[0]]
    cosines = torch.cos(pi * slowest[:, None] * (places + 0.5) / sizes).prod(2)
    atoms = torch.randn(shape, generator=generator, **options)
    atoms[: len(cosines)] = cosines.unflatten(1, shape[1:])
    return project_atoms(atoms)


def crop_shape(images, network, size):  # list of (n_channels, *size), -> list of int
    """Return the shape of crops for training, which atoms at all positions cover exactly.

    Each side is ``size``, rounded down. "auto" is the size of the smallest image, and at most 49
    pixels or 129 samples of a signal: many positions of atoms, but far less than a photograph. A
    crop has at least one pixel inside of the margin that losses leave out, see `Training`.
    """
    shape = []
    for axis, (k, s) in enumerate(zip(network.kernel, network.stride, strict=True), start=1):
        n = min(image.shape[axis] for image in images)
        n = min(n, (129, 49)[len(network.kernel) - 1]) if size == "auto" else size
        shape.append(k + s * max((n - k) // s, -(-(k - 1) // s)))
    return shape


def draw_crop(image, shape, generator):  # (n_channels, *size) -> (n_channels, *shape)
    """Return a random crop of an image.

    Crops of pictures are flipped at random along both axes, and square crops also transposed at
    random. An image that is smaller than a crop is continued by reflection first.
    """
    missing = [max(k - n, 0) for n, k in zip(image.shape[1:], shape, strict=True)]
    if any(missing):
        image = extend(image[None], [m // 2 for m in missing], [m - m // 2 for m in missing])[0]
    options = dict(generator=generator, device="cpu")
    for axis, (n, k) in enumerate(zip(image.shape[1:], shape, strict=True), start=1):
        if n > k:
            image = image.narrow(axis, int(torch.randint(n - k + 1, (), **options)), k)
    if len(shape) == 2:  # pictures
        *flips, transposed = torch.randint(2, (3,), **options).tolist()
        image = image.flip([axis for axis, flip in zip((-1, -2), flips, strict=True) if flip])
        image = image.mT if transposed and shape[0] == shape[1] else image
    return image.contiguous()


@torch.no_grad()
def initialise(network, alpha, images, generator):
    """Set the parameters of a new network: cosines as atoms, and thresholds from a penalty.

    ``alpha`` is the penalty or "auto", and ``images`` a list of training images (n_channels,
    *size). All unfoldings get the same atoms. For a range of noise the penalty sets the slopes, and
    the thresholds without noise stay 0. The step of the encoder is contained in the atoms: its root
    in the analysis and its root in the synthesis, so that both have entries of equal size.
    """
    atoms = draw_cosines(network.analysis.shape[1:], generator).to(images[0])
    step, noise = float(default_step(ConvDictionary(atoms, network.stride))), network.noise
    if alpha == "auto":
        # 1.6 times the noise level, as in the paper's denoiser: 0.16 for a noise of 25 / 255.
        alpha = 1.6 * noise.typical
        alpha = alpha or penalty_of_correlations([x[None] for x in images], atoms, network.stride)
    for layers in (network.analysis, network.synthesis):
        layers.copy_(atoms * step**0.5)
    network.levels[-1].fill_(alpha * step**0.5)


@dataclass(eq=False)
class Training:
    """A network in training, on images that are divided by ``unit``.

    Attributes
    ----------
    network : DenoisingNetwork
        The network, which changes; its thresholds are in units of ``unit``.
    loader : DataLoader
        Batches of crops.
    optimizer : Optimizer
        An optimiser of torch.
    pairs : bool
        Whether the second half of the channels of crops is the target; otherwise updates add noise.
    n_steps, losses : int, list of float
        Updates so far, and mean losses of epochs.
    inputs : dict
        Fitted attributes of the input: number and names of features.
    unit : float
        The power of two that divides images, so that learning rates do not depend on their unit.
    unchanged : float
        The mean loss of crops that a network returns as they are, in the last epoch.
    """

    network: DenoisingNetwork
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    pairs: bool
    n_steps: int
    losses: list
    inputs: dict

    def __post_init__(self):
        self.unit = 2.0 ** ceil(log2(self.network.peak))
        self.network.adjust_levels(1 / self.unit)

    def attributes(self):
        """Return the fitted attributes with tensors on the CPU, so that they load everywhere."""
        state = pack(self.optimizer.state_dict()["state"])
        return self.inputs | {
            "network_": deepcopy(self.network).cpu().adjust_levels(self.unit),
            "training_noise_std_": self.network.noise_std,
            "n_iter_": len(self.losses),
            "n_steps_": self.n_steps,
            "loss_curve_": np.array(self.losses, dtype=np.float64),
            "ended_by_": None,
            "_optimizer_state": {"name": str(type(self.optimizer)), "state": state},
        }

    def _update(self, images):
        """Update the network by a batch of crops (n, n_channels, *size).

        Return an array of two losses, summed over the crops: the loss of the network, and the loss
        of a network that would return its input.
        """
        network, targets = self.network, images
        if self.pairs:
            images, targets = images.chunk(2, dim=1)
            sigma = network.noise_of(images)
        else:
            images, sigma = network.noise.added_to(images, self.loader.generator)
        # losses leave out a margin, which fewer atoms cover than the inside
        inside = (..., *(slice(k - 1, 1 - k or None) for k in network.kernel))
        x, target = images / self.unit, (targets / self.unit)[inside]
        self.optimizer.zero_grad()
        with threads_for(network.analysis[0], x, network.stride):
            found = network.decode(network.encode(x, sigma))
            loss = 0.5 * (found[inside] - target).square().sum()
            (loss / len(x)).backward()
        self.optimizer.step()
        network.adjust_levels()
        self.n_steps += 1
        unchanged = 0.5 * (x[inside] - target).square().sum()
        return np.array([loss.item(), unchanged.item()])

    def run_epoch(self, interrupts):
        """Update the network by one crop of each image, and append the mean loss to ``losses``.

        The loss is in the units of the images. After Ctrl-C the epoch ends with the present update.

        Raises
        ------
        Diverged
            If training diverged in the epoch; the network is then what it was before.
        """
        before, total, n_crops = deepcopy(self.network.state_dict()), np.zeros(2), 0
        with torch.enable_grad(), torch.device("cpu"):  # the loader draws its order on the CPU
            for images in self.loader:
                total, n_crops = total + self._update(images), n_crops + len(images)
                if interrupts.pending or not np.isfinite(total).all():
                    break
        numbers = torch.tensor(total), *self.network.parameters()
        if not all(value.isfinite().all() for value in numbers):
            self.network.load_state_dict(before)
            raise Diverged(self.n_steps, Epoch(attributes=self.attributes))
        loss, self.unchanged = total * self.unit**2 / n_crops
        self.losses.append(loss)


# ---------------------------------------------------------------- the estimator


@sets_parameters()
class ConvDenoiser(ImageEstimator):
    """Denoising network of convolutions, trained by backpropagation through its encoder.

    By default `fit` trains 64 atoms of 7 x 7 pixels on clean images, to which every update adds
    noise; it takes pairs of noisy and clean images, too. `denoise` removes noise from images of any
    size. The network is an unfolded sparse encoder, each unfolding with an analysis, a synthesis
    and thresholds, and a decoder [1]_. See
    :doc:`/guide/images`.

    Parameters
    ----------
    n_components : int, default=64
        Number of atoms.

    atom_shape : int or tuple of int, default=(7, 7)
        Size of an atom: two numbers for pictures, one for signals.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies of an atom. "auto" is 1 for signals and 2 for pictures, or
        the size of an atom if that is smaller.

    noise_std : float, tuple (low, high), "poisson" or "auto", default="auto"
        Standard deviation of the Gaussian noise that is added to clean images, in their units, or
        that pairs have. With (low, high) one network serves all levels between. "poisson": counts
        are drawn from clean images, and the network sees their roots (Anscombe), with noise of
        about 1. "auto" is .45 times the deviation of clean pixels, or that of pairs' differences.

    alpha : float or "auto", default="auto"
        Penalty that thresholds start from. "auto" is 1.6 times the noise, or without noise a tenth
        of the largest correlation with a first atom.

    n_unfoldings : int, default=8
        Number of iterations of the encoder.

    crop_size : int or "auto", default="auto"
        Size of the random crops to train on. "auto" is the smallest image, and at most 49, or 129
        of signals.

    shift_average : bool, default=False
        Whether `denoise` and `score` average over all grids of positions, in up to ``stride`` times
        the time along each axis.

    channels_first : bool, default=False
        Whether channels are the first axis of a signal or image, (n, n_channels, length).

    optimizer : "adam" or callable, default="adam"
        A callable takes parameters and ``lr`` and returns an optimiser of torch.

    learning_rate : float, default=1e-3
        The first learning rate, which falls to 0 along a cosine over ``max_iter`` epochs.

    batch_size : int or "auto", default="auto"
        Images in an update; "auto" is at most 4.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training; "auto" is 250.

    tol : float or None, default=1e-4
        Five checks in a row with less relative progress end training. None: ``max_iter`` epochs.

    device : str, default="auto"
        A torch device; "auto" is that of a tensor input, else CUDA if present, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of first atoms, crops and noise.

    verbose : int, default=0
        Whether to print a line per epoch, and per tile that `denoise` has denoised.

    Attributes
    ----------
    network_ : torch.nn.Module
        The network: ``analysis``, ``synthesis``, ``thresholds`` and ``slopes`` of each unfolding,
        and ``peak``, the largest magnitude of a clean pixel (of its root for "poisson").
        ``network_(x, sigma)`` denoises a batch (n, n_channels, height, width), differentiably.

    training_noise_std_ : float, tuple or "poisson"
        The noise of training.

    n_iter_, n_steps_, loss_curve_, ended_by_, n_features_in_
        As in `PUDLEDictionaryLearning`.

    See Also
    --------
    skpudle.pretrained.load_denoiser : Trained denoisers.
    ConvPUDLEDictionaryLearning : Sparse dictionaries of signals and images; the forms of input.

    References
    ----------
    .. [1] N. Janjusevic, A. Khalilian-Gourtani and Y. Wang, "CDLNet: Noise-Adaptive Convolutional
       Dictionary Learning Network for Blind Denoising and Demosaicing", IEEE Open Journal of
       Signal Processing, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_sample_images
    >>> from skpudle import ConvDenoiser
    >>> images = [image.mean(axis=2) / 255 for image in load_sample_images().images]
    >>> learner = ConvDenoiser(8, noise_std=0.1, crop_size=65, max_iter=2, tol=None, random_state=0)
    >>> learner.fit(images).denoise([image[:65, :97] for image in images])[0].shape
    (65, 97)
    """

    def __init__(
        self,
        n_components: int = 64,
        *,
        atom_shape: int | tuple[int, ...] = (7, 7),
        stride: int | tuple[int, ...] | Literal["auto"] = "auto",
        noise_std: float | tuple[float, float] | Literal["poisson", "auto"] = "auto",
        alpha: float | Literal["auto"] = "auto",
        n_unfoldings: int = 8,
        crop_size: int | Literal["auto"] = "auto",
        shift_average: bool = False,
        channels_first: bool = False,
        optimizer: Literal["adam"] | Callable = "adam",
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Set the parameters."""

    _allows_nan, _stride_of_pictures = False, 2
    n_iter_no_change = 5

    @property
    def _n_channels(self):
        return self.network_.analysis.shape[2]

    @classmethod
    def from_network(cls, network: DenoisingNetwork, **params: Any) -> Self:
        """Return the estimator of a trained network, with further parameters.

        Parameters
        ----------
        network : torch.nn.Module
            A network, such as ``network_`` or one that is read from a file.
        **params : dict
            Parameters of the estimator that are not those of the network.

        Returns
        -------
        ConvDenoiser
            Ready for `denoise`.
        """
        n_unfoldings, n_components, _, *kernel = network.analysis.shape
        shape = tuple(kernel) if len(kernel) > 1 else kernel[0]
        own = dict(atom_shape=shape, stride=network.stride, noise_std=network.noise_std)
        learner = cls(n_components, n_unfoldings=n_unfoldings, **own, **params)
        learner.network_, learner.training_noise_std_ = network, network.noise_std
        learner.n_steps_, learner.loss_curve_, learner._optimizer_state = 0, np.empty(0), None
        return learner

    def _read(self, X, **options):
        counts = {"largest": inf} if self.noise_std == "poisson" else {}
        return super()._read(X, **options, **counts)

    # ------------------------------------------------------------------ training

    @fits()
    def fit(self, X: ImagesLike, y: ImagesLike | None = None) -> Self:
        """Train a denoiser.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Clean images, signals or rows; see the notes. Noisy images if ``y`` has the clean
            images.
        y : array-like, Tensor or list of images, default=None
            Clean images of the sizes of ``X``. Anything of one dimension, such as labels, is
            ignored.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, or if training diverges; the estimator then holds
            the last finite network.
        """
        # 250 epochs: trained on sixteen pictures of 128 x 128 pixels in 31 s, a network denoises
        # photographs with noise of 20 / 255 to a peak signal-to-noise ratio of 29.8 dB. After 200
        # epochs it is 29.5 dB.
        n_epochs = 250 if self.max_iter == "auto" else self.max_iter
        training = self._prepare(X, y)
        losses, n_crops = training.losses, len(training.loader.dataset)

        def epochs(interrupts):
            # A check whether training has stalled needs the mean loss of at least 256 crops.
            stopping = Stopping(self.tol, self.n_iter_no_change, n_judged=256)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, n_epochs)
            for epoch in range(1, n_epochs + 1):
                training.run_epoch(interrupts)
                schedule.step()
                stalled = stopping.check(n_crops * losses[-1], n_crops, training.n_steps)
                known = dict(note=f"epoch {epoch}/{n_epochs}  loss {losses[-1]:.6g}")
                known |= dict(ended_by="tol" if stalled else "max_iter")
                is_done = stalled or epoch == n_epochs
                yield Epoch(attributes=training.attributes, is_done=is_done, **known)

        self._follow(epochs, {"estimator": self, "X": X, "y": y}, n_epochs)
        if training.unchanged:  # the loss of returning the input is 0 if noisy equals clean
            warn_of_rise(self, 2 * losses[0], losses[-1], training.unchanged)
        # no warning with max_iter="auto", where the limit is the expected end of training
        warn_of_early_end(self, self.ended_by_)
        return self

    @fits()
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train by one random crop of each image.

        The state of the optimiser persists between calls, also through pickling, and after `fit`;
        parameters such as ``batch_size`` may change in between.

        Parameters
        ----------
        X, y
            As in `fit`.

        Returns
        -------
        self
            The estimator.
        """
        training = self._prepare(X, y, known=hasattr(self, "network_"))
        with Interrupts() as interrupts:
            try:
                training.run_epoch(interrupts)
            finally:  # the network is finite, also if training diverged
                take(self, training.attributes())
        return self

    def _noise_of(self, images, targets):  # -> noise_std
        """Return the noise to train for; "auto" follows from the images and, of pairs, targets."""
        if self.noise_std != "auto":
            return self.noise_std
        # Pixels of photographs have standard deviations of about 55 / 255; 0.45 of it is 25 / 255,
        # the usual noise in papers.
        parts = [0.45 * x for x in images.tensors]
        if targets is not None:
            pairs = zip(images.singles(), targets, strict=True)
            parts = [noisy - clean for noisy, clean in pairs]
        return float(torch.cat([x.double().flatten() for x in parts]).std(correction=0))

    def _prepare(self, X, y, known=False):  # -> Training
        """Read images, and make what their training needs; fitted attributes stay as they are.

        With ``known`` training goes on with a copy of ``network_``, the state of the optimiser and
        the number of steps of the last call. Otherwise it begins with a new network.
        """
        images = (self._read_known if known else self._read_training)(X)
        if known:
            images = images.map(lambda x: x.to(self.network_.analysis.dtype))
        targets, generator = read_targets(y, images, self._read), make_generator(self.random_state)
        if known:
            network, inputs, past = deepcopy(self.network_), {}, self._optimizer_state
            n_steps, losses = self.n_steps_, list(self.loss_curve_)
            generator.manual_seed(generator.initial_seed() + n_steps)  # new crops
        else:
            shape = (self.n_unfoldings, self.n_components, images.n_channels, *self._kernel)
            how = dict(noise_std=self._noise_of(images, targets), peak=0.0)
            network = DenoisingNetwork(shape, geometry_of(self)[1], **how)
            network.noise.warn_of_units(images.tensors)
            inputs = input_attributes(X if images.kind == "rows" else None)
            n_steps, losses, past = 0, [], None
        network, enter = network.to(images.tensors[0]), network.noise.enter
        singles, targets = images.map(enter).singles(), targets and list(map(enter, targets))
        check_range(sum(float(x.square().mean()) for x in singles) / len(singles), singles)
        peaks = [float(x.abs().max()) for x in targets or singles]
        network.peak = max(network.peak, *peaks) or 1.0
        if not known:
            initialise(network, self.alpha, singles, generator)
        if targets is not None:
            singles = [torch.cat(pair) for pair in zip(singles, targets, strict=True)]
        shape = crop_shape(singles, network, self.crop_size)

        def collate(images):
            return torch.stack([draw_crop(image, shape, generator) for image in images])

        # At most 4 images in an update. Updates from 2 images with twice the learning rate destroy
        # the network.
        size = min(len(singles), 4 if self.batch_size == "auto" else int(self.batch_size))
        loader = DataLoader(singles, size, shuffle=True, generator=generator, collate_fn=collate)
        make = torch.optim.Adam if self.optimizer == "adam" else self.optimizer
        optimizer = make(list(network.parameters()), lr=self.learning_rate)
        if past and past["name"] == str(type(optimizer)):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": unpack(past["state"])})
        return Training(network, loader, optimizer, targets is not None, n_steps, losses, inputs)

    # ------------------------------------------------------------------ denoising

    @torch.no_grad()
    def denoise(
        self, X: ImagesLike, *, noise_std: float | ArrayLike | None = None
    ) -> np.ndarray | Tensor | list:
        """Denoise images, and keep their size.

        A network for grey images denoises three channels by their mean and two differences.

        The result is the network's output, or a mix with the input if the mix has a smaller
        error by Stein's unbiased risk estimate (S. Ramani, T. Blu and M. Unser, IEEE
        Transactions on Image Processing, 2008). This helps with less noise than in training, and
        with texture that the network does not know. An image without noise is returned unchanged.

        Borders are extended by reflection. Large images are cut into tiles that overlap by the
        reach of the encoder: memory is bounded, and the result the same.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Noisy images, signals or rows. Also a single picture, of shape (height, width) or
            (height, width, 3).
        noise_std : float or array-like of shape (n_images,), default=None
            Standard deviation of the noise of the images, in the units of the images (for unsigned
            integers a fraction of their largest value, as 25 / 255), which thresholds follow within
            the levels of training; 0 is no noise. The default is
            ``training_noise_std_`` if that is one number. Otherwise the noise of each image is
            estimated with care: details that could be texture do not count as noise. The noise of
            photons follows from their counts.

        Returns
        -------
        ndarray, Tensor or list of them
            Denoised images, of the shape and dtype of the input: unsigned integers are rounded and
            clipped. For photons, expected counts in float32 or float64.

        Raises
        ------
        ValueError
            If ``noise_std`` is negative or not finite, or not one number for each image; if the
            network was not trained for any noise, or for photons; or if counts are negative.
        """
        check_is_fitted(self)
        of_rows = getattr(self, "n_features_in_", None) is not None
        if not (of_rows or self.channels_first) and is_one_image(X, len(self._kernel)):
            return self.denoise([X], noise_std=noise_std)[0]
        noise = self.network_.noise
        # A network of one channel denoises colours by their differences. Differences of photon
        # counts are no counts, so that photon images with colours are refused.
        images = self._read_known(X, colours=not noise.of_photons)
        levels = noise.levels(noise_std, images)
        if levels is not None or not noise.is_range:  # else the noise is estimated
            noise.warn_of_units(images.tensors, levels)
        # photon counts are read as they are, and not returned as pixels of unsigned integers
        options = dict(pixels=not noise.of_photons, channels_first=self.channels_first)
        return images.hand_back(self._denoised(images, levels), **options)

    def _denoised(self, images, levels=None):  # -> list of (n, n_channels, *size)
        """Denoise `Images`, some at a time; print a line for each tile if verbose.

        ``levels`` (n,) is the noise of each image, None to estimate it. A tile may be denoised
        several times: for colours, on several grids, and for the estimate of the error.
        """
        network, done = deepcopy(self.network_).to(images.tensors[0]), []
        parts, tiles = [part for x in images.tensors for part in parts_of_images(x)], count(1)

        def tell():
            print(f"denoising, part {len(done) + 1}/{len(parts)}, tile {next(tiles)}", flush=True)

        network.tell = tell if self.verbose else network.tell
        sigmas = [None] * len(parts) if levels is None else levels.split(list(map(len, parts)))
        for part, sigma in zip(parts, sigmas, strict=True):
            found = network(network.noise.enter(part), sigma, shift_average=self.shift_average)
            done.append(network.noise.leave(found))
        return done if images.kind == "list" else [torch.cat(done)]

    @torch.no_grad()
    def score(self, X: ImagesLike, y: ImagesLike | None = None, *, peak: float = 1.0) -> float:
        """Return the peak signal-to-noise ratio of denoised images.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images; noisy images if ``y`` has the clean images.
        y : array-like, Tensor or list of images, default=None
            Clean images; anything of one dimension, such as labels, is ignored. Without it the
            input is the clean image, and gets the noise of training, the same in every call.
        peak : float, default=1.0
            The largest value that pixels may have.

        Returns
        -------
        float
            The mean over images of ``10 log10(peak^2 / mean squared error)``, in dB.

        Raises
        ------
        ValueError
            If there are neither clean images nor noise.
        """
        check_is_fitted(self)
        noise = self.network_.noise
        images = self._read_known(X, colours=not noise.of_photons)
        targets = read_targets(y, images, self._read)
        if targets is None and not noise.high:
            raise ValueError(
                "There is nothing to remove: the noise of training is 0, and no clean images are "
                "given. Pass them as y, or train with a positive noise_std."
            )
        if targets is None:
            targets, images = images.singles(), images.map(noise.typically_added_to)
        pairs = zip(chain(*self._denoised(images)), targets, strict=True)
        errors = [float((found - target).double().square().mean()) for found, target in pairs]
        return float(np.mean([10 * log10(peak**2 / error) if error else inf for error in errors]))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.noise_std == "poisson"
        return tags
