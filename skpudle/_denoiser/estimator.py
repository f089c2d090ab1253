"""Train networks of convolutions that remove noise from images."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import count
from math import inf, log10
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.utils.data import DataLoader

from skpudle._data.arrays import check_range, input_attributes, make_generator
from skpudle._data.images import is_one_image, read_targets
from skpudle._denoiser.network import DenoisingNetwork
from skpudle._denoiser.noise import Noise, deviation_of
from skpudle._denoiser.train import Crops, Training, crop_shape, initialise, make_optimizer
from skpudle._fit.messages import warn_of_early_end, warn_of_rise
from skpudle._fit.run import Interrupts
from skpudle._fit.train import Stopping
from skpudle._learners.convolutional.base import ImageEstimator, parts_of_images, stride_of
from skpudle._learners.parameters import fits, sets_parameters

ImagesLike = ArrayLike | Tensor | Sequence[ArrayLike]


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
        Whether to print a line per epoch.

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
        # A network of sixteen pictures of 128 x 128 pixels denoises other photographs, with noise
        # of 20 / 255, to 29.8 dB after 250 epochs, which take 31 s, and to 29.5 dB after 200.
        n_epochs = 250 if self.max_iter == "auto" else self.max_iter
        training = self._begin(X, y)
        losses, n_crops = training.losses, len(training.loader.dataset)

        def epochs(interrupts):
            stopping, began = Stopping(self.tol, self.n_iter_no_change), time.perf_counter()
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, n_epochs)
            ended_by = None
            while ended_by is None:
                self._run_epoch(training, interrupts)
                schedule.step()
                left = (time.perf_counter() - began) * (n_epochs / len(losses) - 1)
                note = f"epoch {len(losses)}/{n_epochs}  loss {losses[-1]:.6g}"
                judged = n_crops * losses[-1], n_crops, training.n_steps
                # crops whose mean loss decides if training has stalled
                if stopping.check(*judged, n_judged=256):
                    ended_by = "tol"
                elif len(losses) == n_epochs:
                    ended_by = "max_iter"
                yield f"{note}  at most {left:.0f} s left", partial(training.attributes, ended_by)

        self._follow(epochs, {"estimator": self, "X": X, "y": y}, n_epochs)
        if training.unchanged:  # pairs may be equal
            warn_of_rise(self, 2 * losses[0], losses[-1], training.unchanged)
        # with "auto" the limit is the expected end
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
        training = self._begin(X, y, known=hasattr(self, "network_"))
        with Interrupts() as interrupts:
            self._run_epoch(training, interrupts)
            self._take(training.attributes())
        return self

    def _run_epoch(self, training, interrupts):
        if not training.run_epoch(interrupts):
            self._take(training.attributes("divergence"))
            raise ValueError(
                f"Training of {type(self).__name__} stopped being finite at update "
                f"{training.n_steps}; the estimator holds the last finite network. Try a smaller "
                f"learning_rate (now {self.learning_rate}), or scale the data."
            )

    def _read_pairs(self, X, y, known):  # -> Images, targets, both of the network, noise_std
        if known:
            images = self._read_known(X).map(lambda x: x.to(self.network_.analysis.dtype))
        else:
            images = self._read_training(X)
        targets, noise_std = read_targets(y, images, self._read), self.noise_std
        if noise_std == "auto" and known:
            noise_std = self.training_noise_std_
        elif noise_std == "auto" and targets is None:
            # sigma 25 of 255 for photographs, whose pixels have deviations of about 55
            noise_std = 0.45 * deviation_of(images.tensors)
        elif noise_std == "auto":
            pairs = zip(images.singles(), targets, strict=True)
            noise_std = deviation_of([noisy - clean for noisy, clean in pairs])
        noise = Noise.of(noise_std)
        if not known:
            noise.warn_of_units(images.tensors)
        return images.map(noise.enter), targets and list(map(noise.enter, targets)), noise_std

    def _begin(self, X, y, known=False):  # -> Training
        images, targets, noise_std = self._read_pairs(X, y, known)
        singles, generator = images.singles(), make_generator(self.random_state)
        peak = max(float(x.abs().max()) for x in targets or singles) or 1.0
        check_range(sum(float(x.square().mean()) for x in singles) / len(singles), singles)
        if known:
            generator.manual_seed(generator.initial_seed() + self.n_steps_)  # new crops
            network = deepcopy(self.network_).to(singles[0])
            network.peak = max(peak, network.peak)
            past = {}, self.n_steps_, list(self.loss_curve_)
        else:
            shape = (self.n_unfoldings, self.n_components, images.n_channels, *self._kernel)
            network = DenoisingNetwork(shape, stride_of(self), noise_std, peak=peak)
            network = network.to(singles[0])
            initialise(network, self.alpha, singles, generator)
            past = input_attributes(X if images.kind == "rows" else None), 0, []
        shape = crop_shape(singles, network.kernel, network.stride, self.crop_size)
        if targets is not None:
            singles = [torch.cat(pair) for pair in zip(singles, targets, strict=True)]
        crops = Crops(singles, shape, network.kernel, generator)
        # images in an update: updates of twice the rate from 2 images destroy the network
        size = min(len(crops), 4 if self.batch_size == "auto" else int(self.batch_size))
        loader = DataLoader(crops, size, shuffle=True, generator=generator)
        state = self._optimizer_state if known else None
        optimizer = make_optimizer(self.optimizer, network, self.learning_rate, state)
        return Training(network, loader, optimizer, targets is not None, *past)

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
        # colours are denoised by differences, and differences of photon counts are no counts
        images = self._read_known(X, colours=not noise.of_photons)
        levels = noise.levels(noise_std, images)
        noise.warn_of_units(images.tensors, levels)
        denoised = list(self._denoised(images.map(noise.enter).tensors, levels))
        # counts are not fractions
        options = dict(pixels=not noise.of_photons, channels_first=self.channels_first)
        return images.hand_back([noise.leave(x) for x in denoised], **options)

    def _denoised(self, tensors, levels):  # yields (n, n_channels, *size)
        """Denoise some images at a time, and tell of every tile."""
        network, average = deepcopy(self.network_).to(tensors[0]), self.shift_average
        parts = [parts_of_images(x) for x in tensors]
        n_tiles = sum(network.n_tiles(part, average) for many in parts for part in many)
        done, began = count(1), time.perf_counter()

        def tell():
            if self.verbose:
                left = (time.perf_counter() - began) * (n_tiles / (n_done := next(done)) - 1)
                print(f"denoising, tile {n_done}/{n_tiles}  {left:.0f} s left", flush=True)

        options = dict(shift_average=average, tell=tell)
        for many, level in zip(parts, levels, strict=True):
            sigmas = [None] * len(many) if level is None else level.split(len(many[0]))
            pairs = zip(many, sigmas, strict=True)
            yield torch.cat([network(x, sigma, **options) for x, sigma in pairs])

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
            If ``peak`` is no positive number; or if there are neither clean images nor noise.
        """
        if not (isinstance(peak, Real) and 0 < peak < inf):
            raise ValueError(f"peak={peak!r:.50} is no largest value of pixels. Pass 1.0 or 255.")
        check_is_fitted(self)
        noise = self.network_.noise
        images = self._read_known(X, colours=not noise.of_photons)
        targets, images = read_targets(y, images, self._read), images.map(noise.enter)
        if targets is None and not noise.high:
            raise ValueError(
                "There is nothing to remove: the noise of training is 0, and no clean images are "
                "given. Pass them as y, or train with a positive noise_std."
            )
        if targets is None:
            targets = list(map(noise.leave, images.singles()))
            images = images.map(noise.typically_added_to)
        decibels = []
        for x in self._denoised(images.tensors, [None] * len(images.tensors)):
            for found in noise.leave(x):
                error = float((found - targets[len(decibels)]).double().square().mean())
                decibels.append(10 * log10(peak**2 / error) if error else inf)
        return float(np.mean(decibels))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.noise_std == "poisson"
        return tags
