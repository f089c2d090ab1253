"""Convolutional dictionaries of images and signals, and denoising by them."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, log10, prod
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils import Bunch
from torch import Tensor

from skpudle._data.arrays import resolve_device, to_tensor
from skpudle._data.batches import Samples
from skpudle._data.images import covering_positions, is_one_image, read_images, split_gaps
from skpudle._data.names import explain_names
from skpudle._data.noise import Noise, with_noise
from skpudle._learners.coder import decode_sparse
from skpudle._learners.convolutional.denoising import DenoiserModule, denoise_images
from skpudle._learners.convolutional.learner import ConvLearner
from skpudle._learners.convolutional.parameters import (
    as_images,
    depth_of,
    largest_of,
    targets_of,
)
from skpudle._learners.score import deviance_of_pixels, sums_of
from skpudle._training.messages import warn_of_l0
from skpudle.search._coding import choose_coding, coding_of_l0, judged_rows
from skpudle.search._maps import combine_channels

__all__ = ["ConvPUDLEDictionaryLearning"]

# pixels encoded at a time: few enough for their codes to stay in a cache
_PIXELS = 2**17


def _parts(x):  # (n, ...) -> tensors of some images each
    return x.split(max(1, _PIXELS // prod(x.shape[2:])))


def _covered(x, kernel, stride, end=0.0):  # (..., *size) -> extended to a size that atoms cover
    size = x.shape[-len(kernel) :]
    positions = covering_positions(size, kernel, stride)
    axes = zip(size, kernel, stride, positions, strict=True)
    missing = [k + s * (h - 1) - n for n, k, s, h in axes]
    ends = [n for m in reversed(missing) for n in (0, m)]
    return torch.nn.functional.pad(x, ends, value=end) if any(ends) else x


class ConvPUDLEDictionaryLearning(ConvLearner):
    r"""Convolutional dictionary learning and denoising, by backpropagation through the encoder.

    Atoms are small images, and their copies at every ``stride``-th pixel add up to the image. The
    encoder, the gradients and the training are those of `PUDLEDictionaryLearning`, with a
    convolution for the dictionary. Trained on pairs of noisy and clean images, or on clean ones
    with ``noise_std``, it denoises. By default it learns from the data alone: atoms that minimise
    the lasso objective, and converged codes.

    Parameters
    ----------
    n_components : int or "auto", default=64
        Number of atoms. "auto" is the smallest number whose atoms predict hidden pixels as well as
        those of any other, as of `PUDLEDictionaryLearning`, with a search; in `partial_fit` it is
        64.

    atom_shape : int or tuple of int, default=(9, 9)
        Size of an atom: two numbers for pictures, one for signals.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies of an atom along each axis. "auto" is 1 for signals and 4
        for pictures, or the size of an atom if that is smaller.

    alpha : float or "auto", default="auto"
        Soft shrinkage: the penalty of the lasso, in the units of the data. Hard shrinkage: the
        threshold of the codes. "auto" is 1.6 times ``noise_std``, if given. Otherwise it is a
        tenth of the median over images of the largest correlation with an initial atom (for hard
        shrinkage times the step); for other losses it is at least twice the standard deviation of
        the noise of a correlation. Learned thresholds start at it. For codes of the lasso it is at
        least ``sigma * sqrt(2 log n)``, with the estimated noise ``sigma`` and the number ``n`` of
        places of an atom; signals estimate ``sigma`` again after the search, from correlations of
        atoms and residual, and search again if it is larger. Held-out images choose between it and
        the next larger one, by a factor of 1.4, for the search, and choose the penalty of codes,
        ``alpha_``, as in `PUDLEDictionaryLearning`. Codes of signals are as sparse as predicts
        hidden pixels within 2 % of the best.

    gradient : {"auto", "ae-ls", "ae-lasso", "dec"}, default="auto"
        The gradient to train by; see `PUDLEDictionaryLearning`. Naming one requests training.
        "auto" is "ae-ls", and "dec" for converged codes.

    loss : {"gaussian", "poisson", "binomial"}, default="gaussian"
        Distribution of the data, as in `PUDLEDictionaryLearning`: numbers, counts, or successes of
        ``n_trials`` (unsigned integers are then not taken as fractions). The baseline,
        ``intercept_``, is a number for each channel. The search works on stabilised counts, as for
        rows; converged codes need "gaussian".

    n_trials : float, default=1
        Number of trials of the binomial loss; with 1, data are binary or fractions.

    n_unfoldings : int, None or "auto", default="auto"
        Number of iterations of the encoder. None: converged codes of the lasso, by coordinate
        descent, which training does not differentiate (its gradient is then "dec"). "auto" is None
        after a search without training (15 with other losses), and 15 otherwise.

    step_size : float or "auto", default="auto"
        Step of an iteration. "auto" is 1 over a bound of the squared spectral norm of the current
        dictionary (times the largest curvature of the loss), for images of any size. With Poisson's
        loss every image searches for its own, at which the penalised loss never rises.

    lambda_decay : float or tuple (first, last), default=1.0
        Iteration t of soft shrinkage has the penalty ``alpha * lambda_decay**t``; a pair is
        annealed over training.

    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage.

    debias : float or "auto", default="auto"
        Share of the lasso's bias to remove from codes, as in `PUDLEDictionaryLearning`; "auto" is
        chosen together with ``alpha="auto"``, and 0 with a number for ``alpha``.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    rank : {1, None}, default=None
        1: an atom is a map over the channels times one waveform, ``spatial_components_`` and
        ``temporal_components_``, as the sources of MEG and EEG are. A search then looks at as many
        combinations of channels as there are atoms, and noise hides atoms later. None: each
        channel of an atom has its own waveform.

    atom_norm : {"unit", "ball", None}, default="unit"
        Whether atoms have norm 1, at most 1, or any.

    learn_threshold : {"one", "atom", "unfolding"} or None, default=None
        Thresholds to learn, starting at ``alpha`` (soft shrinkage): one number, one for each atom,
        or one for each atom and iteration.

    learn_step : bool, default=False
        Whether ``step_size`` is learned.

    separate_atoms : {"analysis", "decoder", "both", "unfolding"} or None, default=None
        Which of encoder ("analysis") and decoder have their own atoms, which start as the
        dictionary and are free of constraints. "unfolding": every unfolding has its own atoms for
        both, of any norm (``atom_norm=None``), which include its step [3]_. The loss then leaves
        out the pixels of a crop that some atoms do not reach.

    noise_std : float, tuple (low, high) or "poisson", default=0.0
        Standard deviation of Gaussian noise that every update adds to clean images, in their units
        (25 / 255 for "sigma 25" and images from 0 to 1). With a pair every crop gets noise between
        both, and learned thresholds follow it [3]_: one network serves all levels. With noisy and
        clean images it only tells the noise they have. "poisson": images are photons, counted or
        expected (unsigned integers are then not taken as fractions), and every update draws counts
        from clean images. The network sees roots of both, by Anscombe's transform,
        with noise of about 1; choose ``alpha`` in proportion.

    crop_size : int or "auto", default="auto"
        Size of the random crops to train on, one of each image an epoch. "auto" is the smallest
        image, and at most 129 (rows are taken whole). Any size is rounded down to one that copies
        of an atom cover.

    flip : bool, default=True
        With ``noise_std``: whether crops of pictures are mirrored and transposed at random.

    n_train_shifts : int, default=1
        More than 1: train on the mean of the reconstructions from this number of grids of
        positions, drawn for every update, for denoising with ``shift_average``.

    shift_average : bool, default=False
        Whether `denoise` averages over all grids of positions, ``prod(stride)`` of them.

    image_shape : tuple of int, default=None
        Shape of the image in a row of two-dimensional input, with channels last if there are any;
        by default a row is a line.

    channels_first : bool, default=False
        Whether channels are the first axis of a signal or image, (n, n_channels, length) as in
        recordings of EEG; (n_channels, length) is then one recording. Reconstructions have them
        there, too, and channels stay the last axis of ``components_``, atoms the last of codes.

    channel_noise : {"equal", "auto"} or array-like of shape (n_channels,), default="equal"
        Standard deviation of the noise of each channel. The fit is in units of it, and so are
        ``alpha_``, ``noise_std_`` and the norms of atoms; ``components_``, maps and reconstructions
        are in the units of the data. "auto" estimates it from differences of neighbours. "equal":
        all channels have the same units. Learners of counts, and denoisers, have equal channels.

    optimizer : {"adam", "sgd"} or callable, default="adam"
        How the gradient changes the atoms; a callable takes parameters and ``lr`` and returns an
        optimiser of torch, such as ``partial(torch.optim.Adam, betas=(0.5, 0.9))``.

    learning_rate : float, default=1e-3
        Learning rate.

    batch_size : int or "auto", default="auto"
        Images in an update; "auto" is ``min(16, n_images)``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training (see the notes); "auto" is 100.

    tol, n_iter_no_change
        As in `PUDLEDictionaryLearning`; checks are at least 256 crops apart, as fewer are noisy.

    dict_init : {"auto", "search", "random", "data", "dct"} or array-like, default="auto"
        Initial dictionary: random directions, a constant atom and random patches without their
        mean, the slowest cosines of an atom's size, or an array of the shape of ``components_``.
        "search" minimises the lasso objective over atoms of norm 1, from patches of much energy,
        and leaves local minima by moving, splitting and removing atoms (``skpudle.search``). It
        takes the clean images of pairs. "auto" is "search" for the codes of a lasso unless a
        parameter asks for others (``n_unfoldings``, ``noise_std``, ``n_train_shifts``, learned
        parameters other than atoms), and otherwise "random".

    device : str, default="auto"
        A torch device, or "auto": the device of a tensor input, else CUDA if present, else the CPU.
        The search runs on the CPU; training, codes and scores on the device.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial dictionary, the crops and the noise.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, [height,] width[, n_channels])
        The atoms, with an axis of channels if images have one.

    spatial_components_ : ndarray of shape (n_components, n_channels)
        With ``rank=1``, the maps over the channels, with the norms of the atoms.

    temporal_components_ : ndarray of shape (n_components, length)
        With ``rank=1``, the waveforms, of norm 1, whose largest excursion is positive. For pictures
        their shape is (n_components, height, width).

    analysis_components_, decoder_components_ : ndarray of that shape
        Separate atoms, if ``separate_atoms`` asks for them. If every unfolding has its own,
        ``analysis_components_`` has the shape (n_unfoldings, n_components, ...).

    synthesis_components_ : ndarray of shape (n_unfoldings - 1, n_components, ...)
        If every unfolding has its own atoms, those of the reconstructions that the encoder
        subtracts from the data; the last unfolding reconstructs with ``components_``.

    alpha_ : float or ndarray of shape ([n_unfoldings,] n_components)
        Penalty or threshold in use.

    alpha_slope_ : float or ndarray of that shape
        Increase of ``alpha_`` for each unit of noise, if ``noise_std`` is a pair.

    debias_ : float
        The share of the lasso's bias that `transform` removes.

    noise_std_ : float
        Estimated standard deviation of the noise of a pixel, present if the penalty of codes was
        chosen from the data.

    search_alpha_ : float
        The penalty of the search, if there was one.

    step_size_ : float
        The step in use, unless every image searches for its own.

    channel_noise_ : ndarray of shape (n_channels,)
        Standard deviation of the noise of each channel, unless ``channel_noise="equal"``.

    peak_ : float
        Largest magnitude of a pixel in training, without the noise that training added and, with
        ``noise_std="poisson"``, of the root: `denoise` scales images with larger ones.

    intercept_ : ndarray of shape (n_channels,)
        The baseline, for losses other than "gaussian".

    n_components_, size_path_, penalty_path_, lambda_decay_, device_
        As in `PUDLEDictionaryLearning`.

    n_iter_, n_steps_, loss_curve_, ended_by_, phases_, fit_seconds_
        As in `PUDLEDictionaryLearning`; the loss is a sum over the pixels of a crop.

    n_features_in_ : int
        Number of features, if it was fitted on rows.

    See Also
    --------
    PUDLEDictionaryLearning : The same for rows, without convolution.
    skpudle.images.denoise_patches : Denoising with a dictionary of patches.

    Notes
    -----
    The parameters that you set decide the phases of `fit`:

    .. list-table::
       :header-rows: 1

       * - parameters set
         - phases of `fit`
       * - none
         - search; codes are converged, and nothing is left to train
       * - ``gradient``
         - search, then training by it
       * - ``n_unfoldings`` (a number), ``shrinkage="hard"``, ``lambda_decay``, ``alpha=0``,
           ``learn_threshold``, ``learn_step``, ``separate_atoms``, ``noise_std``,
           ``n_train_shifts``
         - training through that encoder from random directions; with ``dict_init="search"`` from
           the atoms of a search
       * - another ``dict_init``
         - training from there
       * - ``max_iter``
         - at most this number of epochs of training, if there is any
       * - a parameter without effect in this fit, such as ``crop_size`` without training
         - as without it, and a UserWarning that names it and the setting that would use it

    Input is an array (n_images, height, width[, n_channels]) or, where ``atom_shape`` is one
    number, (n_signals, length[, n_channels]); or a list of images of different sizes; or rows.
    Two-dimensional input means rows, unless ``channels_first``. Unsigned integers become fractions
    of their largest value, except in rows. If atoms do not cover an image exactly, `transform` and
    training extend it by zeros at its ends, `denoise` by reflection.

    NaN, or a masked value of a masked array, is a missing pixel of `fit`, `partial_fit` and
    `transform`, which is ignored; `inverse_transform` fills it. Several grids, atoms of each
    unfolding and `denoise` need complete images.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit Acceleration of Dictionary Learning by
       Backpropagation", arXiv:2106.00058, 2021.
    .. [2] D. Simon and M. Elad, "Rethinking the CSC Model for Natural Images", NeurIPS 2019, for
       the average over shifts.
    .. [3] N. Janjusevic, A. Khalilian-Gourtani and Y. Wang, "CDLNet: Noise-Adaptive Convolutional
       Dictionary Learning Network for Blind Denoising and Demosaicing", IEEE Open Journal of
       Signal Processing, 2022.
    .. [4] S. Ramani, T. Blu and M. Unser, "Monte-Carlo SURE: A black-box optimization of
       regularization parameters for general denoising algorithms", IEEE Transactions on Image
       Processing, 2008.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_sample_images
    >>> from skpudle import ConvPUDLEDictionaryLearning
    >>> images = [image.mean(axis=2) / 255 for image in load_sample_images().images]
    >>> learner = ConvPUDLEDictionaryLearning(
    ...     8, noise_std=0.1, crop_size=65, max_iter=2, tol=None, random_state=0
    ... )
    >>> learner.fit(images).components_.shape
    (8, 9, 9)
    >>> learner.transform([image[:65, :97] for image in images])[0].shape
    (15, 23, 8)
    """

    spatial_components_: np.ndarray
    temporal_components_: np.ndarray
    channel_noise_: np.ndarray

    components_: np.ndarray
    analysis_components_: np.ndarray
    decoder_components_: np.ndarray
    synthesis_components_: np.ndarray
    alpha_: float | np.ndarray
    alpha_slope_: float | np.ndarray
    debias_: float
    noise_std_: float
    search_alpha_: float
    step_size_: float
    peak_: float
    intercept_: np.ndarray
    n_components_: int
    size_path_: Bunch
    penalty_path_: Bunch
    lambda_decay_: float | tuple[float, float]
    device_: torch.device
    n_iter_: int
    n_steps_: int
    loss_curve_: np.ndarray
    ended_by_: str
    phases_: dict[str, int]
    fit_seconds_: dict[str, float]
    n_features_in_: int

    @explain_names
    def __init__(
        self,
        n_components: int | Literal["auto"] = 64,
        *,
        atom_shape: int | tuple[int, ...] = (9, 9),
        stride: int | tuple[int, ...] | Literal["auto"] = "auto",
        alpha: float | Literal["auto"] = "auto",
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        loss: Literal["gaussian", "poisson", "binomial"] = "gaussian",
        n_trials: float = 1,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        step_size: float | Literal["auto"] = "auto",
        lambda_decay: float | tuple[float, float] = 1.0,
        shrinkage: Literal["soft", "hard"] = "soft",
        debias: float | Literal["auto"] = "auto",
        positive_code: bool = False,
        rank: Literal[1] | None = None,
        atom_norm: Literal["unit", "ball", None] = "unit",
        learn_threshold: Literal["one", "atom", "unfolding"] | None = None,
        learn_step: bool = False,
        separate_atoms: Literal["analysis", "decoder", "both", "unfolding"] | None = None,
        noise_std: float | tuple[float, float] | Literal["poisson"] = 0.0,
        crop_size: int | Literal["auto"] = "auto",
        flip: bool = True,
        n_train_shifts: int = 1,
        shift_average: bool = False,
        image_shape: tuple[int, ...] | None = None,
        channels_first: bool = False,
        channel_noise: Literal["equal", "auto"] | ArrayLike = "equal",
        optimizer: Literal["adam", "sgd"] | Callable = "adam",
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        n_iter_no_change: int = 5,
        dict_init: Literal["auto", "search", "random", "data", "dct"] | ArrayLike = "auto",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.atom_shape = atom_shape
        self.stride = stride
        self.alpha = alpha
        self.gradient = gradient
        self.loss = loss
        self.n_trials = n_trials
        self.n_unfoldings = n_unfoldings
        self.step_size = step_size
        self.lambda_decay = lambda_decay
        self.shrinkage = shrinkage
        self.debias = debias
        self.positive_code = positive_code
        self.rank = rank
        self.atom_norm = atom_norm
        self.learn_threshold = learn_threshold
        self.learn_step = learn_step
        self.separate_atoms = separate_atoms
        self.noise_std = noise_std
        self.crop_size = crop_size
        self.flip = flip
        self.n_train_shifts = n_train_shifts
        self.shift_average = shift_average
        self.image_shape = image_shape
        self.channels_first = channels_first
        self.channel_noise = channel_noise
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.dict_init = dict_init
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # ------------------------------------------------------------------ training

    def _allows_nan(self):  # margins and several grids have no masks
        return self.n_train_shifts == 1 and self.separate_atoms != "unfolding"

    def fit(
        self,
        X: ArrayLike | Tensor | Sequence[ArrayLike],
        y: ArrayLike | Tensor | Sequence[ArrayLike] | None = None,
    ) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images, signals or rows; see the notes. Noisy ones if ``y`` is given.
        y : array-like, Tensor or list of images, default=None
            Clean images to reconstruct, of the sizes of ``X``. Anything of one dimension, such as
            labels, is ignored.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, or if training diverges twice; the estimator then
            holds the last finite dictionary.
        """
        return super().fit(X, y)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Update the dictionary by one random crop of each image.

        The state of the optimiser persists between calls, also through pickling, and after `fit`;
        parameters such as ``learning_rate`` and ``n_train_shifts`` may change in between.

        Parameters
        ----------
        X, y
            As in `fit`.

        Returns
        -------
        self
            The estimator.
        """
        return super().partial_fit(X, y)

    # ------------------------------------------------------------------ using the dictionary

    @torch.no_grad()
    def transform(self, X: ArrayLike | Tensor | Sequence[ArrayLike]) -> np.ndarray | Tensor | list:
        """Return code maps.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images, signals or rows. Images that copies of an atom do not cover exactly are extended
            by zeros at their ends.

        Returns
        -------
        ndarray, Tensor or list of them
            Codes of shape (n_images, [rows,] columns, n_components), flat ones (n_images,
            n_features_out) for rows, a list of maps for a list.
        """
        images, network = self._read_and_build(X, allow_nan=self._allows_nan())
        codes = [self._encode(network, x) for x in images.tensors]
        return images.hand_back(codes, channels=True)

    def _encode(self, network, x):  # (n, n_channels, *size) -> (n, n_components, *positions)
        cover = partial(_covered, kernel=self._kernel, stride=self._stride)
        x, mask = split_gaps(x, len(self._kernel))
        if mask is not None:
            pairs = zip(_parts(cover(x)), _parts(cover(mask, end=1.0)), strict=True)
            return torch.cat([network.encode(part, mask=known) for part, known in pairs])
        directions, short = None, network
        if self.rank is not None and network.parameters.intercept is None:
            short, directions = network.of_maps()
        codes = []
        for part in _parts(x):
            noise_std = network.noise_of(part)
            part = part if directions is None else combine_channels(part, directions)
            codes.append(short.encode(cover(part), noise_std=noise_std))
        return torch.cat(codes)

    @torch.no_grad()
    def inverse_transform(self, X: ArrayLike | Tensor | list) -> np.ndarray | Tensor | list:
        """Return images from code maps; for losses other than "gaussian", their expectations.

        Parameters
        ----------
        X : array-like, Tensor or list of them
            Codes, as `transform` returns them, or a sparse array of `transform_sparse`.

        Returns
        -------
        ndarray, Tensor or list of them
            Images, of the size seen in `fit` if their codes have as many positions, and else of the
            size that the copies of the atoms cover.
        """
        plan = self._check_known()
        if sparse.issparse(X):
            return decode_sparse(self, X)
        first = X[0] if isinstance(X, list) and len(X) else X
        device, size = self._transform_device(first), self._training_state["image_size"]
        positions = covering_positions(size, self._kernel, self._stride) if size else None
        n_components = len(self.components_)
        shape = (*positions, n_components) if size else None
        known = dict(image_shape=shape, n_channels=n_components)
        codes = read_images(X, len(self._kernel), **known, device=device)
        if codes.n_channels != n_components:
            raise ValueError(
                f"Codes have {codes.n_channels} maps, but {type(self).__name__} has "
                f"{n_components} components; pass codes as transform returns them."
            )
        network = self._network(plan, codes.tensors[0])
        images = []
        for z in codes.tensors:
            x = torch.cat([network.synthesis(part) for part in _parts(z)])
            if size and tuple(z.shape[2:]) == positions:
                x = x[(..., *(slice(n) for n in size))]
            images.append(as_images(self, x))
        channels = self.components_.ndim == len(self._kernel) + 2
        first = self.channels_first
        return codes.hand_back(images, channels=channels, channels_first=first)

    @torch.no_grad()
    def denoise(
        self,
        X: ArrayLike | Tensor | Sequence[ArrayLike],
        *,
        noise_std: float | ArrayLike | None = None,
    ) -> np.ndarray | Tensor | list:
        """Denoise images, and keep their size.

        A network for grey images denoises three channels by their mean and two differences.

        The result is the network's output, or a mix with the input if the mix has a smaller
        error by Stein's unbiased risk estimate (reference 4 of the class). This helps with less
        noise than in training, and with texture that the network does not know. An image
        without noise is returned unchanged.

        Borders are extended by reflection. Large images are cut into tiles that overlap by the
        reach of the encoder: memory is bounded, and the result the same.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Noisy images, signals or rows. Also a single picture, of shape (height, width) or
            (height, width, 3).
        noise_std : float or array-like of shape (n_images,), default=None
            Standard deviation of their noise, in their units (for unsigned integers a fraction of
            their largest value, as 25 / 255), which learned thresholds follow
            within the levels of training; 0 is no noise. The default is the parameter
            ``noise_std`` if that is one number. Otherwise the noise of each image is estimated
            with care: details that could be texture do not count as noise. The noise of photons
            follows from their counts.

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
        self._check_known()
        of_rows = getattr(self, "n_features_in_", None) is not None
        if not (of_rows or self.channels_first) and is_one_image(X, len(self._kernel)):
            return self.denoise([X], noise_std=noise_std)[0]
        images, network = self._read_and_build(X, colours=True)
        levels = Noise.of(self.noise_std).levels(noise_std, images)
        Noise.of(self.noise_std).warn_of_units(images.tensors, levels)
        denoised = [
            torch.cat(list(self._denoise(network, x, level)))
            for x, level in zip(images.tensors, levels, strict=True)
        ]
        pixels = largest_of(self) is None  # counts are none
        options = dict(pixels=pixels, channels_first=self.channels_first)
        return images.hand_back([as_images(self, x) for x in denoised], **options)

    def _denoise(self, network, x, noise_std):
        parts = _parts(x)
        levels = [None] * len(parts) if noise_std is None else noise_std.split(len(parts[0]))
        for part, level in zip(parts, levels, strict=True):
            options = dict(noise_std=level, shift_average=self.shift_average)
            yield denoise_images(network, part, **options)

    def to_module(self) -> torch.nn.Module:
        """Return the denoiser as a module of torch: channels first, differentiable in the images.

        Returns
        -------
        torch.nn.Module
            ``module(x, sigma)`` denoises a batch (n, n_channels, height, width).

        Raises
        ------
        ValueError
            If the learner is for counts, whose values are not the network's.
        """
        self._check_known()
        if largest_of(self) is not None:
            raise ValueError(
                "A denoiser of counts has no noise level that a module would take. Call denoise."
            )
        like = to_tensor(self.components_, resolve_device(self.device, None))
        return DenoiserModule(self._network(self._plan(), like), self.shift_average)

    @torch.no_grad()
    def score(
        self,
        X: ArrayLike | Tensor | Sequence[ArrayLike],
        y: ArrayLike | Tensor | Sequence[ArrayLike] | None = None,
        *,
        peak: float = 1.0,
    ) -> float:
        """Return the explained share of hidden pixels, or the noise left in denoised images.

        A tenth of the pixels at a time is hidden and predicted from the codes of the visible ones:
        a penalty that is too small follows noise and predicts badly. With clean images, or a
        learner that trains with ``noise_std``, the score is a peak signal-to-noise ratio instead.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images; noisy ones if ``y`` has clean ones.
        y : array-like, Tensor or list of images, default=None
            Clean images; anything of one dimension, such as labels, is ignored. Without it, and
            with a ``noise_std``, the input is the clean image, and gets this noise, the same in
            every call.
        peak : float, default=1.0
            The largest value that pixels may have, for the ratio alone.

        Returns
        -------
        float
            The explained share of the deviance (for ``loss="gaussian"`` of the squared error) of
            hidden pixels, against the mean of each channel; at most 1. With clean images or a
            ``noise_std``, for ``loss="gaussian"``, the mean over images of
            ``10 log10(peak^2 / mean squared error)``, in dB.

        Raises
        ------
        ValueError
            If ``peak`` is no positive number, or given for a share.
        """
        if not isinstance(peak, Real) or not 0 < peak < inf:
            raise ValueError(
                f"peak={peak!r:.50} is no largest value of pixels; pass a positive number, such as "
                "1.0 or 255."
            )
        images, network = self._read_and_build(X, colours=True)
        targets = targets_of(self, y, images) if self._loss().is_quadratic else None
        if targets is None and Noise.of(self.noise_std).high == 0:
            if peak != 1:
                raise ValueError(
                    f"peak={peak!r:.50}, but the score without clean images is a share of the "
                    "deviance of hidden pixels, which has no peak. Leave it out, or pass clean "
                    "images as y."
                )
            return self._explained(images, network)
        inputs = images.singles()
        if targets is None:
            targets, inputs = inputs, [with_noise(x, Noise.of(self.noise_std)) for x in inputs]
        options = dict(shift_average=self.shift_average)
        total = 0.0
        for image, target in zip(inputs, targets, strict=True):
            denoised = denoise_images(network, image[None], **options)[0]
            error = as_images(self, denoised) - as_images(self, target)
            error = float(error.double().square().mean())
            total += 20 * log10(peak) - 10 * log10(error) if error else inf
        return total / len(images)

    @torch.no_grad()
    def choose_alpha(
        self, X: ArrayLike | Tensor | Sequence[ArrayLike], *, l0: float | None = None
    ) -> Self:
        """Choose the penalty of codes, ``alpha_``, for the present atoms.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images or signals, best other than those that the atoms were learned from.
        l0 : float, default=None
            Mean number of nonzero codes of an image or signal, over all its places. None takes the
            sparsest codes that predict hidden pixels nearly best, as `fit` does.

        Returns
        -------
        self
            With new ``alpha_`` and, if ``debias="auto"``, new ``debias_``.

        Raises
        ------
        ValueError
            If codes are not those of the lasso, if ``l0`` is not positive, or if no penalty gives
            as many codes.
        """
        plan = self._check_known()
        images = self._read(plan, X, None, known=True).samples
        if not plan.codes_follow_data and not (depth_of(self) is None and self.loss == "gaussian"):
            raise ValueError(
                "The penalty is chosen for codes of the lasso, and this learner has others. Pass "
                "n_unfoldings=None, or alpha as a number."
            )
        if l0 is not None and not (isinstance(l0, Real) and 0 < l0 < inf):
            raise ValueError(f"l0={l0!r:.50} is no number of codes. Pass a positive number.")
        atoms = self._known_pictures(images).double()
        problem = self._problem(images, float(getattr(self, "search_alpha_", self.alpha_)))
        if l0 is None:
            coding = choose_coding(judged_rows(problem), atoms, debias=plan.debias).chosen
        else:
            area = sum(image[0].numel() for image in images.images)
            n_images = len(images.images) * problem.x[:, 0].numel() / area
            options = dict(debias=plan.debias, n_images=n_images)
            coding, is_met = coding_of_l0(problem, atoms, float(l0), **options)
            if not is_met:
                warn_of_l0(coding.n_entries, l0)
        self.alpha_, self.debias_ = coding.alpha * problem.unit, coding.debias
        chosen = self.alpha_, self.debias_, getattr(self, "noise_std_", None)
        self._training_state = self._training_state | {"coding": chosen, "is_open": False}
        return self

    @torch.no_grad()
    def _explained(self, images, network):
        loss, deviance = self._loss(), 0.0
        cover = partial(_covered, kernel=self._kernel, stride=self._stride)
        n_channels = network.atoms.shape[1]
        for x in images.tensors:
            known = cover(torch.ones_like(x[0, 0]))
            x = x.reshape(-1, n_channels, *x.shape[2:])  # channels are images of grey atoms
            for part in _parts(cover(x)):
                deviance += deviance_of_pixels(loss, network, part, known)
        pixels = torch.cat([x.transpose(0, 1).flatten(1).mT for x in images.tensors])
        total = sums_of(loss, Samples(pixels)).deviance(loss)
        return 1 - deviance / total if total else 0.0

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.positive_only = largest_of(self) is not None
        return tags
