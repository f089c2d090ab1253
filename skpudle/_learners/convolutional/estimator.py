"""Sparse convolutional dictionaries of images and signals."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from numbers import Integral, Real
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch
from sklearn.utils._param_validation import HasMethods, Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import input_attributes, make_generator, to_numpy, to_tensor, wide
from skpudle._data.batches import Samples
from skpudle._data.images import covered, covering_positions, read_images, split_gaps
from skpudle._data.names import explain_names, fit_context
from skpudle._fit.messages import nothing_known, warn, warn_of_unused, warn_of_zero_codes
from skpudle._fit.team import refuse_several
from skpudle._learners.convolutional.base import (
    COUNT,
    ImageEstimator,
    atoms_inside,
    parts_of_images,
    stride_of,
)
from skpudle._learners.convolutional.learn import (
    TrainingImages,
    largest_correlation,
    learn,
    noise_of_channels,
    unfoldings_of,
)
from skpudle._learners.convolutional.train import code_images, train
from skpudle._losses import FromMeans
from skpudle._operators._atoms import atom_norms, factor_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle._precision import training_mode
from skpudle.search._maps import combine_channels, map_directions


def _as_arrays(path):  # -> Bunch of ndarray, None for None
    return path and Bunch(**{name: to_numpy(values) for name, values in path._asdict().items()})


class ConvPUDLEDictionaryLearning(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ImageEstimator
):
    r"""Sparse convolutional dictionary learning.

    By default `fit` searches for short signals or small images, whose copies at every ``stride``-th
    place add up to the data, and `transform` solves the lasso. A ``gradient`` trains them through
    an unfolded encoder. See :doc:`/guide/signals` and :doc:`/guide/images`.

    Parameters
    ----------
    n_components : int or "auto", default=64
        Number of atoms. "auto" is the smallest number that predicts hidden pixels as well as any.

    atom_shape : int or tuple of int, default=(9, 9)
        Size of an atom: two numbers for pictures, one for signals.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies. "auto" is 1 for signals, and 4 for pictures or the size of
        a smaller atom.

    alpha : float or "auto", default="auto"
        Penalty of the lasso, in the units of the data. "auto" lets the noise and predictions of
        hidden pixels choose ``search_alpha_`` and ``alpha_``.

    gradient : {"ae-ls", "ae-lasso", "dec"}, default=None
        Trains the atoms of the search. None: no training.

    n_unfoldings : int, None or "auto", default="auto"
        Depth of the encoder. None: codes of the lasso, for "dec" alone. "auto" is 15 with a
        ``gradient``, else None.

    debias : float or "auto", default="auto"
        Share of the lasso's bias to remove from codes; unfolded codes keep it.

    positive_code : bool, default=False
        Whether codes are non-negative.

    rank : {1, None}, default=None
        1: an atom is a map over the channels times one waveform, as a source of EEG.

    channels_first : bool, default=False
        Whether data are (n, n_channels, length), or one recording (n_channels, length).
        ``components_`` have channels last.

    channel_noise : {"equal", "auto"}, default="equal"
        "auto" fits in units of the estimated noise of each channel; ``components_`` are in the
        units of the data.

    optimizer : {"adam", "sgd"} or callable, default="adam"
        Its rate is 1e-3. A callable takes parameters and ``lr``, as
        ``partial(torch.optim.Adam, lr=0.01)``.

    batch_size : int or "auto", default="auto"
        Images, or pieces of large images, in an update.

    max_iter : int, default=100
        Largest number of epochs of training.

    tol : float or None, default=1e-4
        Relative progress that counts. None: ``max_iter`` epochs.

    dict_init : {"search", "random"}, array-like or learner, default="search"
        First atoms of the search: patches, an array, or a fitted learner. "random": training from
        random directions, without a search.

    random_state : int, RandomState instance or None, default=None
        Determines the first atoms, and the order of training.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, [height,] width[, n_channels])
        The atoms.

    spatial_components_, temporal_components_ : ndarray
        With ``rank=1``, maps (n_components, n_channels), and waveforms (n_components, length) of
        norm 1.

    alpha_, debias_, search_alpha_, noise_std_ : float
        Penalty of codes, share of bias removed, penalty of the search, and noise of a pixel if the
        data chose the penalty of codes.

    channel_noise_ : ndarray of shape (n_channels,)
        Noise of each channel, unless ``channel_noise="equal"``.

    n_components_, size_path_, penalty_path_, n_iter_, loss_curve_, ended_by_, n_features_in_
        As in `PUDLEDictionaryLearning`.

    See Also
    --------
    PUDLEDictionaryLearning : The same for rows.
    ConvDenoiser : Networks that remove noise from images.
    skpudle.events.find_events : Events of signals.

    Notes
    -----
    Input is an array (n_images, height, width[, n_channels]) or (n_signals, length[, n_channels]),
    a list of images, or rows (a row is a signal, or an image of one line). Unsigned integers become
    fractions of their largest value, except in rows. NaN is a missing pixel. It runs on the CPU.

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
        gradient: Literal["ae-ls", "ae-lasso", "dec"] | None = None,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        debias: float | Literal["auto"] = "auto",
        positive_code: bool = False,
        rank: Literal[1] | None = None,
        channels_first: bool = False,
        channel_noise: Literal["equal", "auto"] = "equal",
        optimizer: Literal["adam", "sgd"] | Callable = "adam",
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 100,
        tol: float | None = 1e-4,
        dict_init: Literal["search", "random"] | ArrayLike = "search",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Set the parameters."""

    _parameter_constraints = {
        "n_components": [COUNT, StrOptions({"auto"})],
        "atom_shape": [COUNT, tuple, list],
        "stride": [COUNT, tuple, list, StrOptions({"auto"})],
        "alpha": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
        "gradient": [StrOptions({"ae-ls", "ae-lasso", "dec"}), None],
        "n_unfoldings": [COUNT, StrOptions({"auto"}), None],
        "optimizer": [StrOptions({"adam", "sgd"}), callable],
        "batch_size": [COUNT, StrOptions({"auto"})],
        "max_iter": [COUNT],
        "tol": [Interval(Real, 0, None, closed="left"), None],
        "debias": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"}), "boolean"],
        "positive_code": ["boolean"],
        "rank": [Options(Integral, {1}), None],
        "channels_first": ["boolean"],
        "channel_noise": [StrOptions({"equal", "auto"})],
        "dict_init": [StrOptions({"search", "random"}), "array-like", HasMethods("fit")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # ------------------------------------------------------------------ a fit

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
            If the data or parameters are unfit.
        """
        refuse_several(type(self).__name__)
        images, start, noise = self._read_training(X, allow_nan=True), None, None
        inputs = input_attributes(X if images.kind == "rows" else None)
        inputs["_channel_axis"], same = images.channel_axis, images.kind != "list"
        inputs["_image_size"] = tuple(images.tensors[0].shape[2:]) if same else None
        unused, unfolds = [], unfoldings_of(self) is not None
        if self.gradient is None:
            training = "optimizer", "batch_size", "max_iter", "tol"
            unused.append((training, "a gradient, such as gradient='ae-ls'"))
        elif self.gradient != "dec" and not unfolds:
            raise ValueError(
                "Codes of the lasso (n_unfoldings=None) are not differentiated here, but "
                f"gradient={self.gradient!r}. Pass gradient='dec', or a number of unfoldings."
            )
        if self.gradient is None and isinstance(self.dict_init, str) and self.dict_init == "random":
            raise ValueError(
                "dict_init='random' begins training, but there is no gradient. Pass a gradient, "
                "such as gradient='ae-ls', or dict_init='search'."
            )
        if unfolds and self.debias != 0:
            unused.append((("debias",), "codes of the lasso, n_unfoldings=None"))
        if images.n_channels == 1:
            unused.append((("rank", "channel_noise"), "signals with more than one channel"))
        warn_of_unused(self, unused)
        if images.n_channels > 1 and self.channel_noise == "auto":
            noise = noise_of_channels(images.tensors)
            images = images.map(lambda x: x / self._units(x, noise))
        generator, is_named = make_generator(self.random_state), isinstance(self.dict_init, str)
        if not is_named or self.dict_init == "random":
            if self.n_components == "auto":
                raise ValueError(
                    "n_components='auto' begins with patches, but dict_init is given. Pass "
                    "dict_init='search', or a number of atoms."
                )
            if is_named:
                shape = self.n_components, images.n_channels, *self._kernel
                start = torch.randn(shape, generator=generator, dtype=torch.float64)
                start = start.to(images.tensors[0])
            else:
                start = self._given_atoms(self.n_components, images)
                start = start if noise is None else start / self._units(start, noise)
        data = TrainingImages.of(images, self._kernel, stride_of(self))
        if data.masks and not any(mask.any() for mask in data.masks):
            raise nothing_known(self)
        records = learn(data, self, generator, start)
        if self.gradient is not None:
            records = train(records, data, self, generator)

        def epochs(interrupts):
            for one in records:
                found = partial(self._attributes_of, one, noise, images.channel_axis)
                yield one.note, lambda found=found: inputs | found()

        self._follow(epochs, {"estimator": self, "X": X, "y": y})
        if self.ended_by_ == "max_iter" and self.tol is not None:
            warn(
                f"Training ended after max_iter={self.max_iter} epochs, before its objective had "
                "stalled. Increase max_iter, raise tol, or pass tol=None.",
                ConvergenceWarning,
            )
        dictionary = self._dictionary(data.images[0])
        if not any(largest_correlation(x, dictionary) > self.alpha_ for x in data.images) and not (
            all((x == x.flatten()[0]).all() for x in data.images)  # a baseline explains constants
        ):
            warn_of_zero_codes(self)
        return self

    def _attributes_of(self, fitted, noise, channel_axis):
        """Return the fitted attributes of a record."""
        atoms, factors = fitted.atoms, (None, None)
        atoms = atoms if noise is None else atoms * self._units(atoms, noise)
        if self.rank is not None:
            factors = map(to_numpy, factor_atoms(atoms))
        maps, waveforms = factors
        return {
            "components_": to_numpy(atoms.movedim(1, -1) if channel_axis else atoms[:, 0]),
            "spatial_components_": maps,
            "temporal_components_": waveforms,
            "channel_noise_": None if noise is None else to_numpy(noise),
            "alpha_": fitted.alpha,
            "debias_": fitted.debias,
            "noise_std_": fitted.noise_std,
            "search_alpha_": fitted.search_alpha,
            "n_components_": len(atoms),
            "size_path_": _as_arrays(fitted.size_path),
            "penalty_path_": _as_arrays(fitted.penalty_path),
            "n_iter_": max(len(fitted.losses), 1),
            "loss_curve_": np.array(fitted.losses, dtype=np.float64),
            "ended_by_": fitted.ended_by,
        }

    # ------------------------------------------------------------------ using the dictionary

    _image_size = None  # of images of several sizes

    @property
    def _n_channels(self):
        return 1 if self.components_.ndim == 1 + len(self._kernel) else self.components_.shape[-1]

    def _units(self, x, noise=None):  # (..., n_channels, *size) -> divisors
        """Return the units of channels, the noise of a fit or of attributes; 1 if equal."""
        noise = getattr(self, "channel_noise_", None) if noise is None else noise
        if noise is None:
            return x.new_ones(())
        return to_tensor(noise).to(x).reshape(-1, *[1] * len(self._kernel))

    def _dictionary(self, like):  # -> ConvDictionary in units of the noise
        """Return the dictionary, of the dtype and on the device of a tensor.

        Raises
        ------
        NotFittedError, ValueError
            Unless it is fitted, with atoms of the present parameters.
        """
        check_is_fitted(self)
        found = self.components_.shape[1 : 1 + len(self._kernel)]
        if found != self._kernel:
            raise ValueError(
                f"atom_shape={self.atom_shape!r:.80}, but the atoms in components_ have the shape "
                f"{found}. Set the parameter as it was, or fit again."
            )
        atoms = atoms_inside(self.components_, len(self._kernel), like)
        return ConvDictionary(atoms / self._units(atoms), stride_of(self))

    def _read_known(self, X, **options):  # -> Images in units of the noise
        check_is_fitted(self)
        self._validate_params()  # they may have been set since `fit`
        return super()._read_known(X, **options).map(lambda x: x / self._units(x))

    def _cover(self, x, end=0.0):  # (..., *size) -> extended until atoms cover it
        return covered(x, self._kernel, stride_of(self), end)

    def _encode(self, dictionary, x, mask=None):  # -> (n, n_components, *positions)
        """Return code maps of images that atoms cover; the ``mask`` is 0 where pixels miss.

        Atoms of rank one see complete images through combinations of channels alone.
        """
        if self.rank is not None and mask is None:
            directions = map_directions(factor_atoms(dictionary.atoms)[0])
            atoms = combine_channels(dictionary.atoms, directions)
            if torch.allclose(atom_norms(atoms), atom_norms(dictionary.atoms)):  # of rank one
                x = combine_channels(x, directions)
                dictionary = ConvDictionary(atoms, dictionary.stride)
        debias = self.debias_ if self.debias == "auto" else float(self.debias)
        options = dict(learner=self, alpha=self.alpha_, debias=debias)
        codes, solved = code_images(dictionary, x, mask, **options)
        if not solved.all():
            warn(
                f"The codes of {(~solved).sum()} of {len(solved)} images or signals have not "
                "converged. Take an offset or a slow background off first, or raise alpha, which "
                f"is {self.alpha_:.3g}.",
                ConvergenceWarning,
            )
        return codes

    # ------------------------------------------------------------------ codes

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
        images = self._read_known(X, allow_nan=True)
        dictionary, codes = self._dictionary(images.tensors[0]), []
        for x in images.tensors:
            parts = (split_gaps(part, len(self._kernel)) for part in parts_of_images(x))
            parts = (
                (self._cover(x), mask if mask is None else self._cover(mask, 1.0))
                for x, mask in parts
            )
            codes.append(torch.cat([self._encode(dictionary, *part) for part in parts]))
        return images.hand_back(codes, channels=True)

    @torch.no_grad()
    def inverse_transform(self, X: ArrayLike | Tensor | list) -> np.ndarray | Tensor | list:
        """Return images from code maps.

        Parameters
        ----------
        X : array-like, Tensor or list of them
            Codes, as `transform` returns them.

        Returns
        -------
        ndarray, Tensor or list of them
            Images, of the size seen in `fit` if the codes have the positions of this size, and else
            of the size that the copies of the atoms cover.
        """
        check_is_fitted(self)
        size, n_components = self._image_size, len(self.components_)
        positions = covering_positions(size, self._kernel, stride_of(self)) if size else None
        shape = (*positions, n_components) if size else None
        codes = read_images(X, len(self._kernel), image_shape=shape, n_channels=n_components)
        if codes.n_channels != n_components:
            raise ValueError(
                f"Codes have {codes.n_channels} maps, but {type(self).__name__} has "
                f"{n_components} components; pass codes as transform returns them."
            )
        dictionary, images = self._dictionary(codes.tensors[0]), []
        for z in codes.tensors:
            x = torch.cat([dictionary.synthesis(part) for part in parts_of_images(z)])
            x = x * self._units(x)
            is_whole = size and tuple(z.shape[2:]) == positions
            images.append(x[(..., *map(slice, size))] if is_whole else x)
        options = dict(channels=self._channel_axis, channels_first=self.channels_first)
        return codes.hand_back(images, **options)

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
        images = self._read_known(X)
        dictionary, error, generator = self._dictionary(images.tensors[0]), 0.0, torch.Generator()
        for x in images.tensors:
            known = self._cover(torch.ones_like(x[0, 0]))
            options = dict(generator=generator.manual_seed(0), device="cpu")
            turn = torch.randint(10, known.shape, **options).to(x.device)
            for part in parts_of_images(self._cover(x)):
                # turns in which pixels are hidden
                for i in range(10):
                    hidden = known * (turn == i)
                    mask = (known - hidden).expand_as(part)
                    predicted = dictionary.synthesis(self._encode(dictionary, part, mask))
                    error += float(((wide(part) - wide(predicted)).square() * hidden).sum())
        pixels = torch.cat([x.transpose(0, 1).flatten(1).mT for x in images.tensors])
        total = FromMeans.of(Samples(wide(pixels))).total()
        return 1 - error / total if total else 0.0

    @property
    def _n_features_out(self):
        check_is_fitted(self)
        size = self._image_size
        positions = covering_positions(size, self._kernel, stride_of(self)) if size else ()
        return len(self.components_) * prod(positions)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
