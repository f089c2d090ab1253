"""Sparse convolutional dictionaries of images and signals."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import (
    input_attributes,
    make_generator,
    split_missing,
    to_numpy,
    wide,
)
from skpudle._data.images import covered, covering_positions, read_images
from skpudle._fit import messages
from skpudle._fit.encoders import fixed
from skpudle._fit.run import EpochRecord
from skpudle._learners.convolutional import base, learn
from skpudle._learners.parameters import POSITIVE, fits, sets_parameters
from skpudle._operators._atoms import atom_norms, factor_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.search._conv_epoch import SOLVED_OF_PATH

# `score` cuts the pixels at random into this number of groups. It hides one group after the other,
# and predicts it from the others.
_TURNS = 10


@sets_parameters(alpha=[POSITIVE], dict_init=["array-like", HasMethods("fit")])
class ConvPUDLEDictionaryLearning(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, base.ImageEstimator
):
    r"""Sparse convolutional dictionary learning.

    By default `fit` searches for atoms, short signals or small images, whose copies at every
    ``stride``-th position add up to the data, and `transform` solves the lasso. A ``gradient``
    trains atoms through an unfolded encoder. See :doc:`/guide/signals` and :doc:`/guide/images`.

    Parameters
    ----------
    n_components : int or "auto", default=64
        Number of atoms. "auto": the smallest that predicts hidden pixels as well as any.

    atom_shape : int or tuple of int, default=(9, 9)
        Size of an atom: two numbers for pictures, one for signals.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies in pixels. "auto": 1 for signals, for pictures 4 or a
        smaller atom's size.

    alpha : float or "auto", default="auto"
        Penalty of the lasso, in units of the data. "auto": by predictions of hidden pixels.

    gradient : {"ae-ls", "ae-lasso", "dec"}, default=None
        Trains the atoms of the search. None: no training.

    n_unfoldings : int, None or "auto", default="auto"
        Iterations of the encoder. None: solutions of the lasso. "auto" is 15 with a ``gradient``,
        else None.

    debias : float or "auto", default="auto"
        Share of the lasso's bias to remove from codes, 0 to 1. "auto": as ``alpha``.

    positive_code : bool, default=False
        Whether codes are non-negative.

    rank : {1, None}, default=None
        1: an atom is a map, one number per channel, times a waveform.

    channels_first : bool, default=False
        Whether data are (n, n_channels, length), or one recording (n_channels, length).

    channel_noise : {"equal", "auto"}, default="equal"
        "auto" divides channels by their estimated noise.

    detrend : {"auto", "constant", "slow"} or None, default="auto"
        What to subtract from each channel: "constant", its median; "slow", also drift slower than
        atoms, which reconstructions lack; "auto", either if it saves a third of the codes, "slow"
        for signals alone. None: nothing, as for events that overlap everywhere.

    optimizer : {"adam", "sgd"} or callable, default="adam"
        Its learning rate is 1e-3. A callable takes parameters and ``lr``.

    batch_size : int or "auto", default="auto"
        Images, or pieces of images, in an update.

    max_iter : int, default=100
        Largest number of epochs.

    tol : float or None, default=1e-4
        Least relative improvement that counts. None: ``max_iter`` epochs.

    dict_init : {"search", "random"}, array-like or learner, default="search"
        Initial atoms: random patches, an array like ``components_``, or a fitted learner. "random":
        noise, without a search.

    random_state : int, RandomState instance or None, default=None
        Determines initial atoms and order of training.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, [height,] width[, n_channels])
        The atoms.

    spatial_components_, temporal_components_ : ndarray
        With ``rank=1``, maps (n_components, n_channels), and waveforms (n_components, length).

    alpha_, debias_, search_alpha_, noise_std_ : float
        Penalty of codes, share of bias removed, penalty of the search, standard deviation of the
        noise.

    intercept_ : ndarray of shape (n_channels,)
        The baseline of each channel, which `inverse_transform` adds.

    detrend_ : str
        "slow" if drift is subtracted.

    channel_noise_ : ndarray of shape (n_channels,)
        Noise of each channel, unless ``channel_noise="equal"``.

    n_components_, size_path_, penalty_path_, n_iter_, loss_curve_, ended_by_, n_features_in_
        See `PUDLEDictionaryLearning`.

    See Also
    --------
    PUDLEDictionaryLearning : The same for rows.
    ConvDenoiser : Networks that denoise images.
    skpudle.events.find_events : Events of signals.

    Notes
    -----
    Input is an array (n_images, height, width[, n_channels]) or (n_signals, length[, n_channels]),
    a list of images, or rows, each a signal. Unsigned integers become fractions of their largest
    value, except in rows. NaN marks missing pixels.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import ConvPUDLEDictionaryLearning
    >>> rng = np.random.default_rng(0)
    >>> signals = 0.05 * rng.standard_normal((10, 200))
    >>> for signal, start in zip(signals, rng.integers(180, size=10)):
    ...     signal[start : start + 20] += np.hanning(20)
    >>> learner = ConvPUDLEDictionaryLearning(1, atom_shape=20, random_state=0).fit(
    ...     signals
    ... )
    >>> learner.components_.shape, learner.transform(signals).shape
    ((1, 20), (10, 181))
    """

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
        detrend: Literal["auto", "constant", "slow"] | None = "auto",
        optimizer: Literal["adam", "sgd"] | Callable = "adam",
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 100,
        tol: float | None = 1e-4,
        dict_init: Literal["search", "random"] | ArrayLike = "search",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    # ------------------------------------------------------------------ a fit

    @fits()
    def fit(self, X: ArrayLike | Tensor | Sequence[ArrayLike], y: None = None) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images, signals or rows of pixels, see the notes.
        y : None
            Ignored.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data are of another form, or smaller than an atom, or if parameters contradict.
        """
        images = self._read_training(X, allow_nan=True)
        inputs = input_attributes(X if images.kind == "rows" else None)
        messages.warn_of_unused(self, self._without_effect(images.n_channels))
        channels = learn.choose_channels(images, self)
        noise, intercept = (
            to_numpy(x.flatten()) for x in (channels.noise, channels.intercept)
        )
        size = None if images.kind == "list" else tuple(images.tensors[0].shape[2:])
        inputs["channel_noise_"] = noise if (noise != 1).any() else None
        inputs |= dict(intercept_=intercept, detrend_=channels.kernel and "slow")
        inputs |= dict(
            _channels=channels, _channel_axis=images.channel_axis, _image_size=size
        )
        images = images.map(channels.enter)
        generator = make_generator(self.random_state)
        start = None
        if not isinstance(self.dict_init, str):
            atoms = self._given_atoms(self.n_components, images)
            start = atoms / channels.noise.to(atoms)
        pieces = learn.read_pieces(images, self)
        messages.refuse_unknown(self, pieces.mask is None or pieces.mask.any())
        learns = learn.learn if self.gradient is None else learn.train

        def epochs(interrupts):
            for one in learns(pieces, self, generator, start):
                known = dict(note=one.note, ended_by=one.ended_by, is_done=one.is_done)
                yield EpochRecord(
                    attributes=partial(self._attributes_of, one, inputs), **known
                )

        self._follow(epochs, X, y)
        if self.verbose:
            print(self.summary())
        messages.warn_of_early_end(self, self.ended_by_)
        dictionary = self._dictionary(pieces.x)
        one_by_one = pieces.x.split(1)
        found = (
            learn.largest_correlations(x, dictionary) > self.alpha_ for x in one_by_one
        )
        # All codes are zero if no correlation of the data with an atom exceeds the penalty. That
        # deserves no warning if the baseline alone explains the data: ``pieces.x`` is then zero.
        if pieces.x.any() and not any(found):
            messages.warn_of_zero_codes(self)
        return self

    def _without_effect(self, n_channels):  # yields names, setting
        """Yield names of parameters without effect, with what would use them, for a warning.

        Raises
        ------
        ValueError
            If parameters contradict each other.
        """
        trains = self.gradient is not None
        unfolds = learn.unfoldings_of(self) is not None
        messages.refuse(
            self.gradient in ("ae-ls", "ae-lasso") and not unfolds,
            "Codes of the lasso are not differentiated. Pass gradient='dec', or n_unfoldings=15.",
        )
        start = self.dict_init if isinstance(self.dict_init, str) else "an array"
        takes_start = self.n_components != "auto" and (trains or start != "random")
        messages.refuse(
            start != "search" and not takes_start,
            f"dict_init is {start}: given atoms need a number, and random ones a gradient. "
            "Pass dict_init='search', or n_components=64 with gradient='ae-ls'.",
        )
        if not trains:
            yield (
                ("optimizer", "batch_size", "max_iter", "tol"),
                "a gradient, such as 'ae-ls'",
            )
        if unfolds and self.debias != 0:
            yield ("debias",), "codes of the lasso, n_unfoldings=None"
        if n_channels == 1:
            yield ("rank", "channel_noise"), "signals with more than one channel"

    def _attributes_of(self, fitted, inputs):
        """Return a dict of fitted attributes, with None for missing ones, after an epoch of a fit.

        ``fitted`` is a `Fitted` that `learn` yields, with atoms (n, n_channels, *kernel) in units
        of the noise of channels. ``inputs`` has the attributes that follow from the data alone.
        """
        atoms = fitted.atoms
        losses = [*fitted.losses, *fitted.loss_curve]
        atoms = atoms * inputs["_channels"].noise.to(atoms)
        maps, waveforms = (
            map(to_numpy, factor_atoms(atoms)) if self.rank else (None, None)
        )
        atoms = atoms.movedim(1, -1) if inputs["_channel_axis"] else atoms[:, 0]
        found = inputs | {
            "spatial_components_": maps,
            "temporal_components_": waveforms,
        }
        found |= {"components_": to_numpy(atoms), "n_components_": len(atoms)}
        found |= {
            "n_iter_": max(len(losses), 1),
            "loss_curve_": np.array(losses, np.float64),
        }
        return found | fitted.penalties(fixed(self.debias))

    def summary(self) -> str:
        """Describe in a few lines what `fit` has decided.

        Returns
        -------
        str
            Lines: atoms, baselines and drift, noise, penalties, and the end of the fit.
        """
        check_is_fitted(self)
        how = "chosen by hidden pixels" if hasattr(self, "size_path_") else "as named"
        baseline = np.array2string(self.intercept_, precision=3, threshold=9)
        drift = (
            "slower than two atoms, taken off" if hasattr(self, "detrend_") else "kept"
        )
        noise = getattr(self, "noise_std_", np.nan)
        debias = float(self.debias_)
        lines = (
            f"{type(self).__name__}: {len(self.components_)} atoms of {self._kernel}, {how}",
            f"baseline of channels: {baseline}; drift: {drift}",
            f"noise of a pixel: {'not estimated' if np.isnan(noise) else f'{noise:.3g}'}",
            f"penalty of the search: {self.search_alpha_:.3g}; of codes: {self.alpha_:.3g}, with "
            f"{debias:.0%} of its bias removed",
            f"ended by {self.ended_by_} after {self.n_iter_} epochs",
        )
        return "\n  ".join(lines)

    # ------------------------------------------------------------------ using the dictionary

    # _image_size: the size of the images of the fit, a tuple; None if the fit had a list of images,
    # whose sizes may differ. n_iter_no_change: checks without improvement that end training.
    _image_size = None
    n_iter_no_change = 5

    @property
    def _n_channels(self):
        return (
            1
            if self.components_.ndim == 1 + len(self._kernel)
            else self.components_.shape[-1]
        )

    def _dictionary(self, like):  # -> ConvDictionary
        """Return the operator of ``components_``, for data in units of the noise of channels.

        Its atoms have the dtype and the device of the tensor ``like``.

        Raises
        ------
        ValueError
            If ``atom_shape`` was changed after the fit.
        """
        found = self.components_.shape[1 : 1 + len(self._kernel)]
        messages.refuse(
            found != self._kernel,
            f"atom_shape={self.atom_shape!r:.60}, but atoms have {found}. Set it back, or refit.",
        )
        atoms = base.atoms_inside(self.components_, len(self._kernel), like)
        return ConvDictionary(
            atoms / self._channels.noise.to(atoms), base.geometry_of(self)[1]
        )

    def _read_known(
        self, X, **options
    ):  # -> Images, detrended, in units of the noise of channels
        check_is_fitted(self)
        self._validate_params()  # a user may have set parameters since `fit`
        return super()._read_known(X, **options).map(self._channels.enter)

    def _cover(self, x):  # (..., *size) -> extended by zeros until atoms cover it
        return covered(x, *base.geometry_of(self))

    def _encode(
        self, dictionary, x, mask=None, **effort
    ):  # -> (n, n_components, *positions)
        """Return code maps of images (n, n_channels, *size) that copies of atoms cover exactly.

        ``mask``, of the same shape, is 0 at missing pixels. ``effort`` may have the tolerance of
        `conv_codes`.
        """
        # Codes depend on data only by correlations with atoms. An atom of rank one is a map (one
        # number per channel) times a waveform, so a few combinations of channels, which the maps
        # span, give the same correlations as all channels, in less time.
        if self.rank is not None and mask is None:
            directions = learn.span_of_maps(dictionary.atoms)
            atoms = learn.combine_channels(dictionary.atoms, directions)
            # The combinations keep the norms of all atoms only if each atom is of rank one. The
            # user may have edited the atoms.
            if torch.allclose(atom_norms(atoms), atom_norms(dictionary.atoms)):
                x = learn.combine_channels(x, directions)
                dictionary = ConvDictionary(atoms, dictionary.stride)
        debias = self.debias_ if self.debias == "auto" else float(self.debias)
        options = dict(learner=self, alpha=self.alpha_, debias=debias) | effort
        return learn.code_images(dictionary, x, mask, **options)

    # ------------------------------------------------------------------ codes

    @torch.no_grad()
    def transform(
        self, X: ArrayLike | Tensor | Sequence[ArrayLike]
    ) -> np.ndarray | Tensor | list:
        """Encode images: return code maps, the code of each atom at each of its positions.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images, signals or rows of pixels. Images that copies of an atom do not cover exactly
            are extended by zeros at their ends. NaN is a missing pixel.

        Returns
        -------
        ndarray, Tensor or list of them
            Codes of shape (n_images, [rows,] columns, n_components), with the numbers of positions
            along the axes as rows and columns; for rows of pixels flattened to (n_images,
            n_features_out), for a list a list of maps.

        Raises
        ------
        ValueError
            If the channels or features differ from the fit.
        """
        images = self._read_known(X, allow_nan=True)
        dictionary = self._dictionary(images.tensors[0])
        codes = []
        for x in images.tensors:
            parts = base.parts_of_images(self._cover(x))
            parts = (split_missing(part, len(self._kernel)) for part in parts)
            codes.append(torch.cat([self._encode(dictionary, *part) for part in parts]))
        return images.hand_back(codes, channels=True)

    @torch.no_grad()
    def inverse_transform(
        self, X: ArrayLike | Tensor | list
    ) -> np.ndarray | Tensor | list:
        """Reconstruct images from code maps: the sum of all copies of atoms, plus the baseline.

        Parameters
        ----------
        X : array-like, Tensor or list of them
            Codes, of the shape that `transform` returns.

        Returns
        -------
        ndarray, Tensor or list of them
            Images (n_images, [height,] width[, n_channels]), rows of pixels or a list, as the data
            of `transform`. Images have the size seen in `fit` if the codes have the positions of
            this size, and else the size that the copies of the atoms cover.
        """
        check_is_fitted(self)
        of_images = getattr(self, "n_features_in_", None) is None
        # The codes of one image lack the axis of images, which is added and taken off again.
        if of_images and len(getattr(X, "shape", ())) == 1 + len(self._kernel):
            return self.inverse_transform(X[None])[0]
        size = self._image_size
        positions = self._positions
        n_components = len(self.components_)
        shape = (*positions, n_components) if size else None
        codes = read_images(
            X, len(self._kernel), image_shape=shape, n_channels=n_components
        )
        dictionary = self._dictionary(codes.tensors[0])
        images = []
        for z in codes.tensors:
            x = [dictionary.synthesis(part) for part in base.parts_of_images(z)]
            x = self._channels.leave(torch.cat(x))
            is_whole = size and tuple(z.shape[2:]) == positions
            images.append(x[(..., *map(slice, size))] if is_whole else x)
        options = dict(channels=self._channel_axis, channels_first=self.channels_first)
        return codes.hand_back(images, **options)

    @torch.no_grad()
    def score(
        self, X: ArrayLike | Tensor | Sequence[ArrayLike], y: None = None
    ) -> float:
        """Score how well codes predict hidden pixels, for a choice of parameters.

        A tenth of the pixels at a time is hidden and predicted from the codes of the visible
        pixels. Codes at too small a penalty follow the noise, and predict badly.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Images, signals or rows of pixels, without NaN.
        y : None
            Ignored.

        Returns
        -------
        float
            1 minus a quotient: the squared error of the predictions of all pixels, divided by the
            sum of the squared distances of pixels from the mean of their channel. At most 1.
        """
        images = self._read_known(X)
        dictionary = self._dictionary(images.tensors[0])
        error = 0.0
        generator = torch.Generator()
        for x in images.tensors:
            # 1 for pixels of an image, 0 where the image is extended until atoms cover it
            known = self._cover(torch.ones_like(x[0, 0]))
            options = dict(generator=generator.manual_seed(0), device="cpu")
            turn = torch.randint(_TURNS, known.shape, **options).to(x.device)
            for part in base.parts_of_images(self._cover(x)):
                for i in range(_TURNS):
                    hidden = known * (turn == i)
                    mask = (known - hidden).expand_as(part)
                    codes = self._encode(
                        dictionary, part, mask, tolerance=SOLVED_OF_PATH
                    )
                    predicted = dictionary.synthesis(codes)
                    error += float(
                        ((wide(part) - wide(predicted)).square() * hidden).sum()
                    )
        pixels = wide(
            torch.cat([x.transpose(0, 1).flatten(1) for x in images.tensors], 1)
        )
        total = float((pixels - pixels.mean(1, keepdim=True)).square().sum())
        return 1 - error / total if total else 0.0

    # The numbers of positions of an atom along the axes of an image of the fit, a tuple of int;
    # empty if the fit had a list of images. `inverse_transform` recognises whole images by them.
    @property
    def _positions(self):
        size = self._image_size
        return covering_positions(size, *base.geometry_of(self)) if size else ()

    @property
    def _n_features_out(self):
        return len(self.components_) * prod(self._positions)
