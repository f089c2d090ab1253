"""Train networks of convolutions that remove noise from images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, log10
from numbers import Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import Tensor

from skpudle._data.arrays import resolve_device, to_tensor
from skpudle._data.images import is_one_image, read_targets
from skpudle._data.names import explain_names, fit_context
from skpudle._data.noise import Noise, deviation_of, with_noise
from skpudle._data.training_images import Cropping, TrainingImages
from skpudle._learners.base import GradientLearner
from skpudle._learners.convolutional.denoising import DenoiserModule, denoise_images
from skpudle._learners.convolutional.learner import ConvLearner, parts_of_images
from skpudle._learners.convolutional.model import DenoiserModel
from skpudle._learners.convolutional.parameters import COUNT, SHARED, ConvPlan, given_of
from skpudle._learners.convolutional.values import (
    auto_penalty,
    initial_atoms,
    initial_parameters,
)
from skpudle._learners.record import Fitted
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle._precision import training_mode
from skpudle._shrinkage import SHRINKAGES
from skpudle.encoding._unfold import default_step

# noise_std="auto" of clean images, in standard deviations of their pixels: sigma 25 of 255 for
# photographs, whose pixels have about 55.
_NOISE = 0.45


@dataclass(frozen=True, kw_only=True)
class DenoiserPlan(ConvPlan):
    """The plan of training a denoiser."""

    kind = DenoiserModel

    @classmethod
    def of(cls, learner):
        """Return the plan for the parameters of a learner.

        Raises
        ------
        ValueError
            If parameters contradict each other.
        """
        given = given_of(learner)
        gradient = "ae-ls" if given.gradient == "auto" else given.gradient
        _check(given, gradient)
        phases = dict(searches=False, trains=True)
        return cls.of_network(given, given.n_unfoldings, gradient, **phases)

    def without_effect(self, data):  # yields names, setting
        """Yield parameters that have no effect in this fit, and a setting that would use them."""
        yield from super().without_effect(data)
        given = self.given
        if len(self.kernel) == 1:
            yield ("flip",), "two numbers for atom_shape"
        if given.shrinkage == "hard":
            yield ("lambda_decay",), "shrinkage='soft'"
        elif given.alpha == 0 and not given.learn_threshold:
            yield ("lambda_decay",), "a positive alpha"
        if max(self.stride) == 1:
            yield ("shift_average",), "a stride of more than 1"


def _check(given, gradient):
    """Raise ValueError if parameters contradict each other."""
    if (given.learn_threshold or given.separate_atoms) and gradient == "dec":
        raise ValueError(
            "gradient='dec' does not go through the encoder, so that it cannot learn "
            "thresholds or atoms of analysis; pass gradient='ae-ls'."
        )
    if given.learn_threshold and given.shrinkage == "hard":
        raise ValueError(
            "A hard threshold has derivative 0 and cannot be learned; pass shrinkage='soft' or "
            "learn_threshold=None."
        )
    if given.separate_atoms == "unfolding" and given.atom_norm is not None:
        raise ValueError(
            "With separate_atoms='unfolding' the step is a part of the atoms, and their norms are "
            "free; pass atom_norm=None."
        )
    follows = given.noise_std != "auto" and Noise.of(given.noise_std).is_range
    if follows and given.learn_threshold is None:
        raise ValueError(
            "Thresholds follow the noise where noise_std is a pair, and have to be learned; "
            "pass learn_threshold='unfolding', for example."
        )


def _in_parts(network, x, noise_std, shift_average):  # (n, ...), (n,) or None -> (n, ...)
    """Denoise some images at a time."""
    parts = parts_of_images(x)
    levels = [None] * len(parts) if noise_std is None else noise_std.split(len(parts[0]))
    pairs = zip(parts, levels, strict=True)
    options = dict(shift_average=shift_average)
    return torch.cat([denoise_images(network, x, noise_std=s, **options) for x, s in pairs])


def _found_noise(images, targets):  # -> float
    """Return the noise of pairs, or noise for clean images."""
    if targets is None:
        return _NOISE * deviation_of(images.tensors)
    pairs = zip(images.singles(), targets, strict=True)
    return deviation_of([noisy - clean for noisy, clean in pairs])


class ConvDenoiser(ConvLearner):
    r"""Denoising network of convolutions, trained by backpropagation through its encoder.

    By default `fit` trains 64 random atoms of 9 x 9 pixels on clean images, to which every update
    adds noise; it takes pairs of noisy and clean images, too. `denoise` removes noise from images
    of any size. The network unfolds a sparse convolutional encoder and decodes the codes.
    `skpudle.pretrained.load_denoiser` returns trained networks.

    Parameters
    ----------
    n_components : int, default=64
        Number of atoms.

    atom_shape : int or tuple of int, default=(9, 9)
        Size of an atom: two numbers for pictures, one for signals.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies of an atom along each axis. "auto" is 1 for signals and 4
        for pictures, or the size of an atom if that is smaller.

    noise_std : float, tuple (low, high), "poisson" or "auto", default="auto"
        Standard deviation of Gaussian noise that every update adds to clean images, in their units
        (25 / 255 for "sigma 25" and images from 0 to 1). With a pair every crop gets noise of a
        level between low and high, and learned thresholds follow the level [3]_: one network serves
        all levels. "poisson": images are photons, counted or expected (unsigned integers are then
        not taken as fractions), and every update draws counts from clean images. The network sees
        roots of both, by Anscombe's transform, with noise of about 1; choose ``alpha`` in
        proportion. "auto" is 0.45 times the standard deviation of the pixels of clean images, and
        of noisy and clean images that of their differences. To pairs of noisy and clean images no
        noise is added; the number is then the noise that they have.

    alpha : float or "auto", default="auto"
        Soft shrinkage: the penalty of the lasso, in the units of the data. Hard shrinkage: the
        threshold of the codes. "auto" is 1.6 times the noise (times the step for hard shrinkage),
        and without noise a tenth of the median over images of the largest correlation with an
        initial atom. Learned thresholds start at it.

    gradient : {"auto", "ae-ls", "ae-lasso", "dec"}, default="auto"
        The gradient to train by; see `PUDLEDictionaryLearning`. "auto" is "ae-ls".

    n_unfoldings : int, default=15
        Number of iterations of the encoder.

    step_size : float or "auto", default="auto"
        Step of an iteration. "auto" is 1 over a bound of the squared spectral norm of the current
        dictionary, for images of any size.

    lambda_decay : float or tuple (first, last), default=1.0
        Iteration t of soft shrinkage has the penalty ``alpha * lambda_decay**t``; a pair is
        annealed over training.

    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    atom_norm : {"unit", "ball", None}, default="unit"
        Whether atoms have norm 1, at most 1, or any.

    learn_threshold : {"one", "atom", "unfolding"} or None, default=None
        Thresholds to learn, starting at ``alpha`` (soft shrinkage): one number, one for each atom,
        or one for each atom and iteration.

    separate_atoms : {"unfolding"} or None, default=None
        "unfolding": every unfolding has its own atoms of analysis and synthesis, of any norm
        (``atom_norm=None``), which start as the dictionary and include its step [3]_. The loss then
        leaves out the pixels of a crop that some atoms do not reach.

    crop_size : int or "auto", default="auto"
        Size of the random crops to train on, one of each image an epoch. "auto" is the smallest
        image, and at most 129 (rows are taken whole). Any size is rounded down to one that copies
        of an atom cover.

    flip : bool, default=True
        Whether crops of pictures are mirrored and transposed at random.

    shift_average : bool, default=False
        Whether `denoise` averages over all grids of positions [2]_, ``prod(stride)`` of them.

    channels_first : bool, default=False
        Whether channels are the first axis of a signal or image, (n, n_channels, length).

    optimizer : {"adam", "sgd"} or callable, default="adam"
        How the gradient changes the atoms; a callable takes parameters and ``lr`` and returns an
        optimiser of torch, such as ``partial(torch.optim.Adam, betas=(0.5, 0.9))``.

    learning_rate : float, default=1e-3
        Learning rate.

    batch_size : int or "auto", default="auto"
        Images in an update; "auto" is ``min(16, n_images)``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training; "auto" is 100.

    tol, n_iter_no_change
        As in `PUDLEDictionaryLearning`; checks are at least 256 crops apart, as fewer are noisy.

    dict_init : {"random", "data", "dct"}, array-like or learner, default="random"
        Initial dictionary: random directions, a constant atom and random patches without their
        mean, the slowest cosines of an atom's size, an array of the shape of ``components_``, or a
        fitted learner, such as `ConvPUDLEDictionaryLearning`.

    device : str, default="auto"
        A torch device, or "auto": the device of a tensor input, else CUDA if present, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial dictionary, the crops and the noise.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, [height,] width[, n_channels])
        The atoms, with an axis of channels if images have one.

    analysis_components_ : ndarray of shape (n_unfoldings, n_components, ...)
        If every unfolding has its own atoms, the atoms of analysis.

    synthesis_components_ : ndarray of shape (n_unfoldings - 1, n_components, ...)
        If every unfolding has its own atoms, the atoms of the reconstructions that the encoder
        subtracts from the data; the last unfolding reconstructs with ``components_``.

    alpha_ : float or ndarray of shape ([n_unfoldings,] n_components)
        Penalty or threshold in use.

    alpha_slope_ : float or ndarray of the shape of ``alpha_``
        Increase of ``alpha_`` for each unit of noise, if ``noise_std`` is a pair.

    step_size_ : float
        The step in use.

    training_noise_std_ : float, tuple or "poisson"
        The noise of training.

    peak_ : float
        Largest magnitude of a pixel in training, without the noise that training added and, with
        ``noise_std="poisson"``, of the root: `denoise` scales images with larger pixels.

    n_components_, lambda_decay_, device_
        As in `PUDLEDictionaryLearning`.

    n_iter_, n_steps_, loss_curve_, ended_by_, phases_, fit_seconds_
        As in `PUDLEDictionaryLearning`; the loss is a sum over the pixels of a crop.

    n_features_in_ : int
        Number of features, if it was fitted on rows.

    See Also
    --------
    skpudle.pretrained.load_denoiser : Trained denoisers.
    skpudle.images.denoise_patches : Denoising with a dictionary of patches.
    ConvPUDLEDictionaryLearning : Sparse convolutional dictionaries.

    Notes
    -----
    Input is an array (n_images, height, width[, n_channels]) or, where ``atom_shape`` is one
    number, (n_signals, length[, n_channels]); or a list of images of different sizes; or rows.
    Two-dimensional input means rows, unless ``channels_first``; a row is one signal, or an image of
    one line. Unsigned integers become fractions of their largest value, except in rows. If atoms do
    not cover an image exactly, `transform` and training extend it by zeros at its ends, `denoise`
    by reflection.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit Acceleration of Dictionary Learning by
       Backpropagation", arXiv:2106.00058, 2021.
    .. [2] D. Simon and M. Elad, "Rethinking the CSC Model for Natural Images", NeurIPS 2019.
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
    >>> from skpudle import ConvDenoiser
    >>> images = [image.mean(axis=2) / 255 for image in load_sample_images().images]
    >>> learner = ConvDenoiser(8, noise_std=0.1, crop_size=65, max_iter=2, tol=None, random_state=0)
    >>> learner.fit(images).components_.shape
    (8, 9, 9)
    >>> learner.denoise([image[:65, :97] for image in images])[0].shape
    (65, 97)
    """

    components_: np.ndarray
    analysis_components_: np.ndarray
    synthesis_components_: np.ndarray
    alpha_: float | np.ndarray
    alpha_slope_: float | np.ndarray
    step_size_: float
    training_noise_std_: float | tuple[float, float] | str
    peak_: float
    n_components_: int
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
        n_components: int = 64,
        *,
        atom_shape: int | tuple[int, ...] = (9, 9),
        stride: int | tuple[int, ...] | Literal["auto"] = "auto",
        noise_std: float | tuple[float, float] | Literal["poisson", "auto"] = "auto",
        alpha: float | Literal["auto"] = "auto",
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        n_unfoldings: int = 15,
        step_size: float | Literal["auto"] = "auto",
        lambda_decay: float | tuple[float, float] = 1.0,
        shrinkage: Literal["soft", "hard"] = "soft",
        positive_code: bool = False,
        atom_norm: Literal["unit", "ball", None] = "unit",
        learn_threshold: Literal["one", "atom", "unfolding"] | None = None,
        separate_atoms: Literal["unfolding"] | None = None,
        crop_size: int | Literal["auto"] = "auto",
        flip: bool = True,
        shift_average: bool = False,
        channels_first: bool = False,
        optimizer: Literal["adam", "sgd"] | Callable = "adam",
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        n_iter_no_change: int = 5,
        dict_init: Literal["random", "data", "dct"] | ArrayLike | Any = "random",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.atom_shape = atom_shape
        self.stride = stride
        self.noise_std = noise_std
        self.alpha = alpha
        self.gradient = gradient
        self.n_unfoldings = n_unfoldings
        self.step_size = step_size
        self.lambda_decay = lambda_decay
        self.shrinkage = shrinkage
        self.positive_code = positive_code
        self.atom_norm = atom_norm
        self.learn_threshold = learn_threshold
        self.separate_atoms = separate_atoms
        self.crop_size = crop_size
        self.flip = flip
        self.shift_average = shift_average
        self.channels_first = channels_first
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

    _parameter_constraints = (
        SHARED
        | {
            name: GradientLearner._parameter_constraints[name]
            for name in ("step_size", "learning_rate", "n_iter_no_change", "device")
        }
        | {
            "n_components": [COUNT],
            "noise_std": [
                Interval(Real, 0, None, closed="left"),
                tuple,
                StrOptions({"poisson", "auto"}),
            ],
            "n_unfoldings": [COUNT],
            "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
            "shrinkage": [StrOptions(set(SHRINKAGES))],
            "atom_norm": [StrOptions({"unit", "ball"}), None],
            "learn_threshold": [StrOptions({"one", "atom", "unfolding"}), None],
            "separate_atoms": [StrOptions({"unfolding"}), None],
            "crop_size": [COUNT, StrOptions({"auto"})],
            "flip": ["boolean"],
            "shift_average": ["boolean"],
            "dict_init": [StrOptions({"random", "data", "dct"}), "array-like", HasMethods("fit")],
        }
    )

    # ------------------------------------------------------------------ training

    def _plan(self):
        return DenoiserPlan.of(self)

    _allows_nan = False

    @property
    def _noise(self):
        """The noise of the parameter, or of training if the parameter is "auto"."""
        return Noise.of(self.training_noise_std_ if self.noise_std == "auto" else self.noise_std)

    def _reading(self):
        counts = {"largest": inf} if self.noise_std == "poisson" else {}
        return super()._reading() | counts

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(
        self,
        X: ArrayLike | Tensor | Sequence[ArrayLike],
        y: ArrayLike | Tensor | Sequence[ArrayLike] | None = None,
    ) -> Self:
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
            If the data or parameters are unfit, or if training diverges twice; the estimator then
            holds the last finite network.
        """
        return self._fit(X, y)

    def _training_images(self, plan, images, y, geometry, *, known):  # -> TrainingImages
        targets = read_targets(y, images, **self._reading())
        given = self.noise_std
        if given == "auto":
            chosen = known and not self._training_state["is_open"]  # earlier data were not all zero
            given = self.training_noise_std_ if chosen else _found_noise(images, targets)
        noise = Noise.of(given)
        if not known:
            images = images.map(noise.enter)
            noise.warn_of_units(images.tensors)
        cropping = Cropping(
            plan.kernel,
            plan.stride,
            self.crop_size,
            whole=images.kind == "rows" and self.crop_size == "auto",
            margin=self.separate_atoms == "unfolding",
        )
        targets = targets and list(map(noise.enter, targets))
        options = dict(noise_std=given, flip=self.flip and len(plan.kernel) == 2)
        return TrainingImages(images.singles(), targets, geometry, cropping, **options)

    def _find(self, plan, data, run):  # -> Fitted
        begun, recorder = self._begin(plan, data, run.generator), run.recorder
        if recorder.has_record:
            return recorder.restore(begun, run.generator)
        return run.end_search(begun)

    def _begin(self, plan, data, generator):  # -> Fitted
        images = data.samples
        shape = self.n_components, len(images.images[0]), *plan.kernel
        atoms = initial_atoms(images, self.dict_init, shape, generator)
        atoms = project_atoms(atoms.contiguous(), atom_norm=self.atom_norm)
        noise, alpha = Noise.of(images.noise_std), self.alpha
        if alpha == "auto":
            alpha = auto_penalty(images, atoms, noise.unit or noise.high)
            if self.shrinkage == "hard":
                step = default_step(ConvDictionary(atoms, plan.stride))
                alpha = alpha * float(step if plan.step_size is None else plan.step_size)
        parameters = initial_parameters(plan, atoms, alpha, noise_unit=noise.unit)
        own = dict(alpha=parameters.alpha, peak=images.peak())
        model, rows = plan.model(parameters, images, images.geometry, **own)
        return Fitted(model=model, rows=rows)

    def _known_choices(self, plan, images, alpha):  # -> ConvParameters, dict, dict
        in_layers = self.separate_atoms == "unfolding"
        if alpha is not None and (self.learn_threshold is not None or in_layers):
            raise ValueError(
                f"alpha={alpha} was set after fit, which learned thresholds, or steps in the "
                f"atoms, have replaced. Set alpha={self._training_state['given']['alpha']!r} "
                "again, or fit again."
            )
        parameters = self._parameters(plan, images.images[0])
        if not in_layers:
            parameters = parameters._replace(step=plan.step_size)
        if alpha is not None:
            parameters = parameters._replace(alpha=alpha)
        return parameters, dict(peak=max(images.peak(), self.peak_)), {}

    # ------------------------------------------------------------------ denoising

    def _to_network(self, images):
        return images.map(self._noise.enter)

    def _to_images(self, x):
        return self._noise.leave(x)

    def _network(self, plan, like):
        return replace(super()._network(plan, like), noise=self._noise, peak=self.peak_)

    def _read_and_build(self, X, *, colours=False, **checks):
        # colours are denoised by differences, and differences of photon counts are no counts
        colours = colours and not self._noise.of_photons
        return super()._read_and_build(X, colours=colours, **checks)

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
            Standard deviation of the noise of the images, in the units of the images (for unsigned
            integers a fraction of their largest value, as 25 / 255), which learned thresholds
            follow within the levels of training; 0 is no noise. The default is
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
        self._check_known()
        of_rows = getattr(self, "n_features_in_", None) is not None
        if not (of_rows or self.channels_first) and is_one_image(X, len(self._kernel)):
            return self.denoise([X], noise_std=noise_std)[0]
        images, network = self._read_and_build(X, colours=True)
        levels = self._noise.levels(noise_std, images)
        self._noise.warn_of_units(images.tensors, levels)
        denoised = [
            self._to_images(_in_parts(network, x, level, self.shift_average))
            for x, level in zip(images.tensors, levels, strict=True)
        ]
        pixels = not self._noise.of_photons  # counts are not fractions
        options = dict(pixels=pixels, channels_first=self.channels_first)
        return images.hand_back(denoised, **options)

    def to_module(self) -> torch.nn.Module:
        """Return the denoiser as a module of torch: channels first, differentiable in the images.

        Returns
        -------
        torch.nn.Module
            ``module(x, sigma)`` denoises a batch (n, n_channels, height, width).

        Raises
        ------
        ValueError
            If the learner is for counts: the network takes stabilised counts.
        """
        self._check_known()
        if self._noise.of_photons:
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
        if not isinstance(peak, Real) or not 0 < peak < inf:
            raise ValueError(
                f"peak={peak!r:.50} is no largest value of pixels; pass a positive number, such as "
                "1.0 or 255."
            )
        images, network = self._read_and_build(X, colours=True)
        noise, inputs = self._noise, images.singles()
        targets = read_targets(y, images, **self._reading())
        if targets is not None:
            targets = list(map(noise.enter, targets))
        elif noise.high:
            targets, inputs = inputs, [with_noise(x, noise) for x in inputs]
        else:
            raise ValueError(
                "There is nothing to remove: the noise of training is 0, and no clean images are "
                "given. Pass them as y, or train with a positive noise_std."
            )
        total, options = 0.0, dict(shift_average=self.shift_average)
        for image, target in zip(inputs, targets, strict=True):
            denoised = denoise_images(network, image[None], **options)[0]
            error = float(
                (self._to_images(denoised) - self._to_images(target)).double().square().mean()
            )
            total += 20 * log10(peak) - 10 * log10(error) if error else inf
        return total / len(images)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.noise_std == "poisson"
        return tags
