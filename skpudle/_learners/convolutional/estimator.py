"""Sparse convolutional dictionaries of images and signals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, prod
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import input_attributes, make_generator, to_tensor, wide
from skpudle._data.batches import Samples
from skpudle._data.images import check_sizes, sizes
from skpudle._data.names import explain_names, fit_context
from skpudle._fit.encoders import Codes, refuse
from skpudle._fit.estimator import Data, GradientLearner
from skpudle._fit.messages import nothing_known, warn_of_l0
from skpudle._fit.plan import Plan
from skpudle._fit.team import refuse_several
from skpudle._learners.convolutional.crops import Geometry, TrainingImages
from skpudle._learners.convolutional.model import ConvModel, ConvNetwork, atoms_inside
from skpudle._learners.convolutional.start import (
    ATOMS,
    ImagePhases,
    first_atoms,
    given_channel_noise,
    problem_of,
    record_of,
)
from skpudle._learners.convolutional.transformer import (
    ConvTransformer,
    covered,
    parts_of_images,
    stride_of,
)
from skpudle._losses import FromMeans
from skpudle._operators._conv import ConvDictionary
from skpudle._precision import training_mode
from skpudle.search._conv_epoch import as_pictures
from skpudle.search._maps import combine_channels
from skpudle.search.choose import best_coding, coding_of_l0, judged

COUNT = Interval(Integral, 1, None, closed="left")

# Pixels of a part of a batch: large enough for efficient products, small enough for the codes of
# all unfoldings.
_PIXELS = 2**16

# Turns in which pixels are hidden for a score.
_TURNS = 10

# The number of n_unfoldings="auto" if codes are unfolded, as in the paper.
_UNFOLDINGS = 15


@dataclass(frozen=True, kw_only=True)
class ConvPlan(Plan):
    """The plan of a fit of a sparse convolutional dictionary.

    Parameters
    ----------
    kernel, stride : tuple of int
        Size of an atom, and the distance of its copies.
    start : str or array-like
        ``dict_init``; "auto" is "search" for codes of the lasso, and else "random".
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    start: object

    auto_batch_size = 16

    @classmethod
    def of(cls, learner):
        """Return the plan for the parameters of a learner.

        Raises
        ------
        ValueError
            If parameters contradict each other.
        """
        codes = Codes.of(learner, learning_rate=None, rank=learner.rank)
        given, start = codes.given, codes.given.dict_init
        if isinstance(start, str) and start == "auto":
            start = "search" if codes.of_lasso else "random"
        searches = isinstance(start, str) and start == "search"
        # for codes of the lasso the search needs no training
        trains = given.gradient != "auto" or not (codes.of_lasso and searches)
        depth, gradient = given.n_unfoldings, given.gradient
        if depth == "auto":
            depth = _UNFOLDINGS if trains else None
        if gradient == "auto":  # converged codes are not differentiated
            gradient = "dec" if depth is None else "ae-ls"
        refuse(
            depth is None and gradient != "dec",
            "Codes that are solved for (n_unfoldings=None) are not differentiated here, but "
            f"gradient={gradient!r}. Pass gradient='dec' or 'auto', or a number of unfoldings.",
        )
        refuse(
            given.n_components == "auto" and not searches,
            "n_components='auto' is chosen by a search, which these parameters do without. Pass "
            "dict_init='search', or a number of atoms.",
        )
        kernel, stride = sizes(learner.atom_shape, 1), stride_of(learner)
        check_sizes(kernel, stride)
        return cls(
            **vars(codes) | {"encoder": replace(codes.encoder, n_unfoldings=depth)},
            kernel=kernel,
            stride=stride,
            gradient=gradient,
            start=start,
            searches=searches,
            trains=trains,
            codes_follow_data=given.alpha == "auto" and depth is None,
        )

    def model(self, atoms, alpha, images, geometry):  # -> ConvModel, rows
        """Return the model of atoms (n_components, n_channels, *kernel), and its rows."""
        model = ConvModel(
            rule=self.rule(self.gradient),
            encoder=self.encoder,
            rank=self.given.rank,
            images=images,
            geometry=geometry,
            decay=self.decay.at_last,
            alpha=alpha,
            data_scale=images.mean_square(),
            part_size=max(1, _PIXELS // prod(images.crop)),
        )
        return model, atoms.flatten(1)

    def without_effect(self, data):  # yields names, setting
        """Yield parameters that have no effect in this fit, and a setting that would use them."""
        yield from super().without_effect(data)
        if self.encoder.n_unfoldings is not None and self.given.debias not in ("auto", 0):
            yield ("debias",), "codes of the lasso, n_unfoldings=None"
        if len(data.samples.images[0]) == 1:
            yield ("rank",), "signals with more than one channel"


def _error_of_pixels(network, x, known):
    """Return the squared error of all pixels of images, each held out once.

    Parameters
    ----------
    network : ConvNetwork
        Encoder and decoder, on one grid.
    x : Tensor of shape (n, n_channels, *size)
        Images.
    known : Tensor of shape size
        1 for pixels, 0 beyond the border.
    """
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(_TURNS, known.shape, generator=generator, device="cpu").to(x.device)
    total = 0.0
    for i in range(_TURNS):
        seen, hidden = (known * part.to(x.dtype) for part in (group != i, group == i))
        predicted = network.synthesis(network.encode(x, mask=seen.expand_as(x)))
        total = total + ((wide(x) - wide(predicted)).square() * hidden).sum()
    return float(total)


class ConvPUDLEDictionaryLearning(GradientLearner, ConvTransformer):
    r"""Sparse convolutional dictionary learning, by a search or through an unfolded encoder.

    By default `fit` searches for atoms that make the lasso objective small, and `transform` solves
    the lasso: codes are converged. Atoms are small images or short signals, and their copies at
    every ``stride``-th pixel add up to the image. Encoder, gradients and training are as in
    `PUDLEDictionaryLearning`, with a convolution for the dictionary. `ConvDenoiser` removes noise
    from images.

    Parameters
    ----------
    n_components : int or "auto", default=64
        Number of atoms. "auto" is the smallest number whose atoms predict hidden pixels as well as
        any other number does, as in `PUDLEDictionaryLearning`, with a search; in `partial_fit` it
        is 64.

    atom_shape : int or tuple of int, default=(9, 9)
        Size of an atom: two numbers for pictures, one for signals.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies of an atom along each axis. "auto" is 1 for signals and 4
        for pictures, or the size of an atom if that is smaller.

    alpha : float or "auto", default="auto"
        Penalty of the lasso, in the units of the data. "auto" is a tenth of the median over images
        of the largest correlation with an initial atom. For codes of the lasso it is at least
        ``sigma * sqrt(2 log n)``, with the estimated noise ``sigma`` and the number ``n`` of
        places of an atom; signals estimate ``sigma`` again after the search, from correlations of
        atoms and residual, and search again if it is larger. Held-out images choose between it and
        the next larger one, by a factor of 1.4, for the search, and choose the penalty of codes,
        ``alpha_``, as in `PUDLEDictionaryLearning`. Codes of signals are as sparse as predicts
        hidden pixels within 2 % of the best.

    gradient : {"auto", "ae-ls", "ae-lasso", "dec"}, default="auto"
        The gradient to train by; see `PUDLEDictionaryLearning`. Naming one requests training.
        "auto" is "ae-ls", and "dec" for converged codes.

    n_unfoldings : int, None or "auto", default="auto"
        Number of iterations of the encoder. None: converged codes of the lasso, by coordinate
        descent, which training does not differentiate (its gradient is then "dec"). "auto" is None
        after a search without training, and 15 otherwise.

    debias : float or "auto", default="auto"
        Share of the lasso's bias to remove from codes, as in `PUDLEDictionaryLearning`; "auto" is
        chosen together with ``alpha="auto"``, and 0 with a number for ``alpha``.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    rank : {1, None}, default=None
        1: an atom is a map over the channels times one waveform, ``spatial_components_`` and
        ``temporal_components_``, as the sources of MEG and EEG are. A search then looks at one
        combination of channels for each atom, and finds atoms in more noise. None: each channel of
        an atom has its own waveform.

    channels_first : bool, default=False
        Whether channels are the first axis of a signal or image, (n, n_channels, length) as in
        recordings of EEG; (n_channels, length) is then one recording. Reconstructions have the same
        axes. In ``components_`` channels stay the last axis, and in codes atoms.

    channel_noise : {"equal", "auto"} or array-like of shape (n_channels,), default="equal"
        Standard deviation of the noise of each channel. The fit is in units of it, and so are
        ``alpha_``, ``noise_std_`` and the norms of atoms; ``components_``, maps and reconstructions
        are in the units of the data. "auto" estimates it from differences of neighbours. "equal":
        all channels have the same units.

    optimizer : {"adam", "sgd"} or callable, default="adam"
        How the gradient changes the atoms, with a learning rate of 1e-3. A callable takes
        parameters and ``lr`` and returns an optimiser of torch, such as
        ``partial(torch.optim.Adam, lr=0.01)``.

    batch_size : int or "auto", default="auto"
        Images in an update; "auto" is ``min(16, n_images)``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training (see the notes); "auto" is 100.

    tol : float or None, default=1e-4
        As in `PUDLEDictionaryLearning`: training ends after 5 checks in a row without progress.
        Checks are at least 256 images apart, as fewer are noisy.

    dict_init : {"auto", "search", "random", "data", "dct"} or array-like, default="auto"
        Initial dictionary: random directions, random patches, the slowest cosines of an atom's
        size, or an array of the shape of ``components_``. "search" minimises the lasso objective
        over atoms of norm 1, from patches of much energy,
        and leaves local minima by moving, splitting and removing atoms (``skpudle.search``). "auto"
        is "search" for the codes of a lasso, and "random" if ``n_unfoldings`` is a number or
        ``alpha=0``.

    random_state : int, RandomState instance or None, default=None
        Seed of the initial dictionary, and of the crops that training sees.

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

    alpha_ : float
        Penalty in use.

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

    n_components_, size_path_, penalty_path_, device_
        As in `PUDLEDictionaryLearning`.

    n_iter_, n_steps_, loss_curve_, ended_by_, phases_, fit_seconds_
        As in `PUDLEDictionaryLearning`; the loss is a sum over the pixels of a crop.

    n_features_in_ : int
        Number of features, if it was fitted on rows.

    See Also
    --------
    PUDLEDictionaryLearning : The same for rows, without convolution.
    ConvDenoiser : Networks of convolutions that remove noise from images.
    skpudle.events.find_events : A table of the events of signals.

    Notes
    -----
    The parameters that you set decide the phases of `fit`:

    .. list-table::
       :header-rows: 1

       * - parameters set
         - phases of `fit`
       * - none
         - search; codes are converged, and need no training
       * - ``gradient``
         - search, then training by it
       * - ``n_unfoldings`` (a number), ``alpha=0``
         - training through that encoder from random directions; with ``dict_init="search"`` from
           the atoms of a search
       * - another ``dict_init``
         - training from there
       * - ``max_iter``
         - at most this number of epochs of training, if there is any
       * - a parameter without effect in this fit, such as ``tol`` without training
         - as without it, and a UserWarning that names it and the setting that would use it

    Input is an array (n_images, height, width[, n_channels]) or, where ``atom_shape`` is one
    number, (n_signals, length[, n_channels]); or a list of images of different sizes; or rows.
    Two-dimensional input means rows, unless ``channels_first``; a row is one signal, or an image of
    one line. Unsigned integers become fractions of their largest value, except in rows. If atoms do
    not cover an image exactly, `transform` and training extend it by zeros at its ends. Training
    sees crops of at most 129 pixels along each axis, and rows whole.

    NaN, or a masked value of a masked array, is a missing pixel of `fit`, `partial_fit` and
    `transform`, which is ignored; `inverse_transform` fills it.

    Training and codes are computed where a tensor is; other input is brought to CUDA if present.
    The search runs on the CPU.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit Acceleration of Dictionary Learning by
       Backpropagation", arXiv:2106.00058, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import ConvPUDLEDictionaryLearning
    >>> rng = np.random.default_rng(0)
    >>> signals = 0.05 * rng.standard_normal((10, 200))
    >>> for signal, start in zip(signals, rng.integers(180, size=10)):
    ...     signal[start : start + 20] += np.hanning(20)
    >>> learner = ConvPUDLEDictionaryLearning(1, atom_shape=20, random_state=0).fit(signals)
    >>> learner.components_.shape, learner.transform(signals).shape
    ((1, 20), (10, 181))
    """

    @explain_names
    def __init__(
        self,
        n_components: int | Literal["auto"] = 64,
        *,
        atom_shape: int | tuple[int, ...] = (9, 9),
        stride: int | tuple[int, ...] | Literal["auto"] = "auto",
        alpha: float | Literal["auto"] = "auto",
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        n_unfoldings: int | Literal["auto"] | None = "auto",
        debias: float | Literal["auto"] = "auto",
        positive_code: bool = False,
        rank: Literal[1] | None = None,
        channels_first: bool = False,
        channel_noise: Literal["equal", "auto"] | ArrayLike = "equal",
        optimizer: Literal["adam", "sgd"] | Callable = "adam",
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        dict_init: Literal["auto", "search", "random", "data", "dct"] | ArrayLike = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Set the parameters."""

    _parameter_constraints = {
        name: GradientLearner._parameter_constraints[name]
        for name in ("batch_size", "tol", "random_state", "verbose")
    } | {
        "atom_shape": [COUNT, tuple, list],
        "stride": [COUNT, tuple, list, StrOptions({"auto"})],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "gradient": [StrOptions({"auto", "dec", "ae-lasso", "ae-ls"})],
        "positive_code": ["boolean"],
        "channels_first": ["boolean"],
        "optimizer": [StrOptions({"adam", "sgd"}), callable],
        "max_iter": [COUNT, StrOptions({"auto"})],
        "n_components": [COUNT, StrOptions({"auto"})],
        "n_unfoldings": [COUNT, StrOptions({"auto"}), None],
        "debias": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"}), "boolean"],
        "rank": [Options(Integral, {1}), None],
        "channel_noise": [StrOptions({"equal", "auto"}), "array-like"],
        "dict_init": [StrOptions({"auto", "search", "random", "data", "dct"}), "array-like"],
    }

    n_iter_no_change = 5  # of training

    # ------------------------------------------------------------------ training

    def _plan(self):
        return ConvPlan.of(self)

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X: ArrayLike | Tensor | Sequence[ArrayLike], y: None = None) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images, signals or rows; see the notes.
        y : None
            Ignored.

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
        return self._fit(X, y)

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
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
        return self._partial_fit(X, y)

    def _read(self, plan, X, y, *, known=False, part=False):  # -> Data
        refuse_several(type(self).__name__)
        if known:
            self._check_known()
        images = self._read_training(X, known=known)
        same = images.kind != "list"
        image_size = tuple(images.tensors[0].shape[2:]) if same else None
        geometry = Geometry(image_size, images.channel_axis)
        if known:
            geometry = geometry._replace(channel_noise=self._noise)
        elif not np.array_equal(self.channel_noise, "equal"):
            noise = given_channel_noise(self.channel_noise, images)
            geometry = geometry._replace(channel_noise=noise)
            images = images.map(lambda x: x / self._units(noise, x))
        whole, device = images.kind == "rows", images.tensors[0].device
        sample = TrainingImages(images.singles(), geometry, plan.kernel, plan.stride, whole=whole)
        if known:
            return Data(sample, sample, device, {})
        if sample.masks and not any(mask.any() for mask in sample.masks):
            raise nothing_known(self)
        inputs = input_attributes(X if images.kind == "rows" else None)
        return Data(sample, sample, device, inputs)

    def _has_codes(self, data):
        pictures = [data.samples.covered(image)[None] for image in data.samples.images]
        if all((x == x.flatten()[0]).all() for x in pictures):
            return True  # a baseline explains constant pictures
        plan = self._plan()
        network = self._coder(pictures[0])
        if plan.encoder.n_unfoldings is not None:
            return any(network.encode(x).any() for x in pictures)
        # codes of the lasso are zero where no correlation is above the penalty
        dictionary = ConvDictionary(network.atoms, stride_of(self))
        found = (dictionary.analysis(x) for x in pictures)
        found = (z if self.positive_code else z.abs() for z in found)
        return any((z > self.alpha_).any() for z in found)

    def _resume(self, plan, data):  # -> Fitted, generator
        generator = make_generator(self.random_state)
        generator.manual_seed(generator.initial_seed() + self.n_steps_)  # new crops
        images, kept, given = data.samples, self._fitted, plan.given.alpha
        is_new = given not in ("auto", self._fit_given["alpha"])  # set after the fit
        alpha = float(given) if is_new else kept.model["alpha"]
        coding = None if is_new else kept.coding  # codes may have another penalty than training
        if coding is not None and plan.debias is not None:
            coding = coding[0], plan.debias, coding[2]
        geometry = images.geometry._replace(image_size=self._image_size)
        model, rows = plan.model(self._atoms(images.images[0]), alpha, images, geometry)
        model = replace(model, data_scale=kept.model["data_scale"] or model.data_scale)
        return replace(kept, model=model, rows=rows, coding=coding, training={}), generator

    def _phases(self, plan, data, run):  # -> ImagePhases
        return ImagePhases(self, plan, data, run)

    def _begin(self, plan, data, generator):  # -> Fitted
        images, decides = data.samples, isinstance(self.n_components, str)
        n_components = ATOMS if decides else self.n_components
        atoms, alpha = first_atoms(plan, images, images, n_components, generator)
        return record_of(plan, images, atoms, alpha)

    # ------------------------------------------------------------------ using the dictionary

    _image_size = None  # of images of one size in `fit`

    @property
    def _noise(self):  # -> (n_channels,) or None
        noise = getattr(self, "channel_noise_", None)
        return None if noise is None else to_tensor(noise)

    def _units(self, noise, x):  # (n_channels,), (..., n_channels, *size) -> to divide images by
        return noise.to(x).reshape(-1, *[1] * len(self._kernel))

    def _to_coder(self, images):
        noise = self._noise
        return images if noise is None else images.map(lambda x: x / self._units(noise, x))

    def _to_images(self, x):
        return x if self._noise is None else x * self._units(self._noise, x)

    def _check_known(self):  # -> Plan
        """Raise an error unless it is fitted, with atoms of the present parameters."""
        check_is_fitted(self)
        self._validate_params()  # they may have been set since `fit`
        plan = self._plan()
        found = self.components_.shape[1 : 1 + len(self._kernel)]
        if found != self._kernel:
            raise ValueError(
                f"atom_shape={self.atom_shape!r:.80}, but the atoms in components_ have the shape "
                f"{found}. Set the parameter as it was, or fit again."
            )
        return plan

    def _atoms(self, like):  # -> (n_components, n_channels, *kernel)
        channel_axis = self.components_.ndim == 2 + len(self._kernel)
        geometry = Geometry(None, channel_axis, self._noise)
        return atoms_inside(self.components_, geometry, like)

    def _coder(self, like):
        encoder = self._plan().encoder
        if self.debias == "auto":
            encoder = replace(encoder, debias=self.debias_)
        encoder = encoder.at(self.alpha_, step_size=getattr(self, "step_size_", None))
        return ConvNetwork(self._atoms(like), stride_of(self), encoder)

    def _encode_complete(self, coder, x):
        directions = None
        if self.rank is not None:
            coder, directions = coder.of_maps()
        x = x if directions is None else combine_channels(x, directions)
        return super()._encode_complete(coder, x)

    @torch.no_grad()
    def score(self, X: ArrayLike | Tensor | Sequence[ArrayLike], y: None = None) -> float:
        """Return the explained share of hidden pixels.

        A tenth of the pixels at a time is hidden and predicted from the codes of the visible ones:
        a penalty that is too small follows noise and predicts badly.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images.
        y : None
            Ignored.

        Returns
        -------
        float
            The explained share of the squared error of hidden pixels, against the mean of each
            channel; at most 1.
        """
        images, network = self._read_and_build(X)
        error = 0.0
        cover = partial(covered, kernel=self._kernel, stride=stride_of(self))
        for x in images.tensors:
            known = cover(torch.ones_like(x[0, 0]))
            for part in parts_of_images(cover(x)):
                error += _error_of_pixels(network, part, known)
        pixels = torch.cat([x.transpose(0, 1).flatten(1).mT for x in images.tensors])
        total = FromMeans.of(Samples(wide(pixels))).total()
        return 1 - error / total if total else 0.0

    @torch.no_grad()
    def choose_alpha(
        self, X: ArrayLike | Tensor | Sequence[ArrayLike], *, l0: float | None = None
    ) -> Self:
        """Choose the penalty of codes, ``alpha_``, for the present atoms.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images or signals, if possible independent of the training data.
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
            ``l0`` codes.
        """
        plan = self._check_known()
        images = self._read(plan, X, None, known=True).samples
        if plan.encoder.n_unfoldings is not None:
            raise ValueError(
                "The penalty is chosen for codes of the lasso, and this learner has others. Pass "
                "n_unfoldings=None, or alpha as a number."
            )
        if l0 is not None and not (isinstance(l0, Real) and 0 < l0 < inf):
            raise ValueError(f"l0={l0!r:.50} is no number of codes. Pass a positive number.")
        atoms = as_pictures(self._atoms(images.images[0])).double()
        problem = problem_of(plan, images, float(getattr(self, "search_alpha_", self.alpha_)))
        if l0 is None:
            coding = best_coding(judged(problem), atoms, debias=plan.debias)
        else:
            area = sum(image[0].numel() for image in images.images)
            n_images = len(images.images) * problem.x[:, 0].numel() / area
            options = dict(debias=plan.debias, n_images=n_images)
            coding, is_met = coding_of_l0(problem, atoms, float(l0), **options)
            if not is_met:
                warn_of_l0(coding.n_entries, l0)
        return self._take_coding(coding, problem.unit)
