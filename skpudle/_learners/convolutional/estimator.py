"""Sparse convolutional dictionaries of signals, images and volumes."""

import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import input_attributes, split_missing, to_numpy, wide
from skpudle._data.images import covered, covering_positions, read_images
from skpudle._fit import messages
from skpudle._fit.encoders import fixed
from skpudle._fit.estimator import Data
from skpudle._image_noise import largest_correlations, parts_of_images
from skpudle._learners.convolutional import phases
from skpudle._learners.convolutional.base import (
    ImageEstimator,
    atoms_inside,
    geometry_of,
)
from skpudle._learners.parameters import POSITIVE, fits, sets_parameters
from skpudle._learners.summary import describe_images
from skpudle._operators._atoms import atom_norms, factor_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.search._conv_epoch import SOLVED_OF_PATH

# `score` cuts the pixels at random into this number of groups. It hides one group after the other,
# and predicts it from the others.
_TURNS = 10


@sets_parameters(alpha=[POSITIVE], dict_init=["array-like", HasMethods("fit")])
class ConvPUDLEDictionaryLearning(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, ImageEstimator
):
    r"""Sparse convolutional dictionary learning.

    By default `fit` searches for atoms, short signals, small images or volumes, whose copies at
    every ``stride``-th position add up to the data, and `transform` solves the lasso. A
    ``gradient`` trains atoms through an unfolded encoder. See :doc:`/guide/signals` and
    :doc:`/guide/images`.

    Parameters
    ----------
    n_components : int or "auto", default=64
        Number of atoms. "auto": the smallest that predicts hidden pixels as well as any.

    atom_shape : int or tuple of int, default=(9, 9)
        Size of an atom: one number for signals, two for pictures, three for volumes and films.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies in pixels. "auto": 1 for signals, otherwise 4 or a smaller
        atom's size.

    alpha : float or "auto", default="auto"
        Penalty of the lasso, in units of the data. "auto": by predictions of hidden pixels.

    gradient : {"auto", "ae-ls", "ae-lasso", "dec"}, default="auto"
        Trains atoms by squared error through decoder and encoder ("ae-ls"), plus penalty
        ("ae-lasso"), or through the decoder ("dec"). "auto": "ae-ls" with a number of
        ``n_unfoldings`` or ``dict_init="random"``, else none.

    n_unfoldings : int, None or "auto", default="auto"
        Iterations of the encoder. None: solutions of the lasso. "auto" is 15 if a gradient trains,
        else None.

    debias : float or "auto", default="auto"
        Share of the lasso's bias to remove from codes, 0 to 1. "auto": as ``alpha``.

    positive_code : bool, default=False
        Whether codes are non-negative.

    rank : {1, None}, default=None
        For data with several channels. 1: an atom is a map, one number per channel, times a
        waveform, in the whole fit. None: each channel of an atom has a waveform of its own.

    channels_first : bool, default=False
        Whether data are (n, n_channels, length), or one recording (n_channels, length).

    channel_noise : {"equal", "auto"}, default="equal"
        For data with several channels. "auto" divides each channel by its white noise, which is
        estimated before the search, in `fit` and `transform`. "equal" leaves channels as they are.

    detrend : {"auto", "constant", "slow"} or None, default="auto"
        What `fit` and `transform` subtract from each channel. None: nothing, as for events that
        overlap everywhere. "constant": its median. "slow": also drift slower than two atoms, by
        running medians, which reconstructions lack. "auto": the median, and of signals then the
        drift, each if it saves a third of the codes of a brief search.

    optimizer : {"adam", "sgd"} or callable, default="adam"
        A callable takes parameters and ``lr``.

    learning_rate : float, default=1e-3
        Learning rate of the optimizer.

    batch_size : int or "auto", default="auto"
        Images, or pieces of images, in an update. "auto" is at most 16 pieces.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training; "auto" is 100.

    tol : float or None, default=1e-4
        Least relative improvement that counts. None: ``max_iter`` epochs.

    dict_init : {"search", "random"}, array-like or learner, default="search"
        Initial atoms: random patches, an array like ``components_``, or a fitted learner. "random":
        noise, without a search.

    device : str, default="auto"
        A torch device; "auto" is that of a tensor input, else CUDA if present, else the CPU.
        Training and unfolded encoders compute there. Searches and codes of the lasso always
        compute on the CPU.

    random_state : int, RandomState instance or None, default=None
        Determines initial atoms and order of training.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, ...[, n_channels])
        The atoms.

    spatial_components_, temporal_components_ : ndarray or None
        With ``rank=1``, maps (n_components, n_channels), and waveforms (n_components, length).

    alpha_, debias_, search_alpha_ : float
        Penalty of codes, share of bias removed, and penalty of the search.

    noise_std_ : float or None
        Standard deviation of the noise, if hidden pixels have chosen the penalty of codes.

    intercept_ : ndarray of shape (n_channels,)
        The baseline of each channel, which `inverse_transform` adds.

    detrend_ : str or None
        "slow" if drift is subtracted.

    channel_noise_ : ndarray of shape (n_channels,) or None
        Noise of each channel, if channels are divided by it.

    n_components_, size_path_, penalty_path_, n_iter_, loss_curve_, ended_by_, n_features_in_
        See `PUDLEDictionaryLearning`.

    phases_, fit_seconds_, device_
        See `PUDLEDictionaryLearning`.

    See Also
    --------
    PUDLEDictionaryLearning : The same for rows.
    ConvDenoiser : Networks that denoise images.
    skpudle.events.find_events : Events of signals.

    Notes
    -----
    Input is an array (n_signals, length[, n_channels]), (n_images, height, width[, n_channels]) or
    (n_images, depth, height, width[, n_channels]), a list of such images, or rows, each a signal.
    ``atom_shape`` tells volumes from images with channels. The depth of a film is time, and an
    array (frames, height, width) is one film. Unsigned integers become fractions of their largest
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
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        n_unfoldings: int | Literal["auto"] | None = "auto",
        debias: float | Literal["auto"] = "auto",
        positive_code: bool = False,
        rank: Literal[1] | None = None,
        channels_first: bool = False,
        channel_noise: Literal["equal", "auto"] = "equal",
        detrend: Literal["auto", "constant", "slow"] | None = "auto",
        optimizer: Literal["adam", "sgd"] | Callable = "adam",
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        dict_init: Literal["search", "random"] | ArrayLike = "search",
        device: str = "auto",
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
            If the data are of another form, or smaller than an atom, or if parameters contradict;
            or if training diverges: the estimator then holds the last finite dictionary.
        """
        began = time.perf_counter()
        messages.refuse_several(type(self).__name__)
        data = self._read_pieces(X)
        with self._phases(self, X, y, began, None, data) as run:
            fitted = run.make_phases()
        self.fit_seconds_ = run.seconds
        if self.verbose:
            print(self.summary())
        messages.warn_of_early_end(self, fitted.ended_by)
        # All codes are zero if no correlation of the data with an atom exceeds the penalty. That
        # deserves no warning if the baseline alone explains the data, which are then zero.
        x = data.samples.x
        dictionary = self._dictionary(x)
        has_codes = (
            largest_correlations(part, dictionary) > self.alpha_ for part in x.split(1)
        )
        if x.any() and not any(has_codes):
            messages.warn_of_zero_codes(self)
        return self

    def _read_pieces(self, X):  # -> Data
        """Read the user's images, choose the units of their channels, and cut them into pieces.

        ``samples`` of the result are the pieces, and ``inputs`` the fitted attributes that follow
        from the data alone.
        """
        images = self._read_training(X, allow_nan=True)
        messages.warn_of_unused(self, self._without_effect(images.n_channels))
        channels = phases.choose_channels(images, self)
        noise = to_numpy(channels.noise.flatten())
        size = None if images.kind == "list" else tuple(images.tensors[0].shape[2:])
        pieces = phases.read_pieces(images.map(channels.enter), self)
        messages.refuse_unknown(self, pieces.mask is None or pieces.mask.any())
        inputs = input_attributes(X if images.kind == "rows" else None)
        inputs |= {
            "channel_noise_": noise if (noise != 1).any() else None,
            "intercept_": to_numpy(channels.intercept.flatten()),
            # ``channels.kernel`` is None unless drift is subtracted
            "detrend_": channels.kernel and "slow",
            "device_": str(pieces.x.device),
            "_channels": channels,
            "_channel_axis": images.channel_axis,  # whether images have an axis of channels
            "_image_size": size,
        }
        return Data(pieces, pieces, inputs)

    def _without_effect(self, n_channels):  # yields names, setting
        """Yield names of parameters without effect, with what would use them, for a warning.

        Raises
        ------
        ValueError
            If parameters contradict each other.
        """
        # "ae-ls" and "ae-lasso" differentiate through decoder and encoder, "dec" through the
        # decoder alone. Codes are unfolded, or solve the lasso.
        gradient = phases.gradient_of(self)
        unfolds = phases.unfoldings_of(self) is not None
        messages.refuse(
            gradient in ("ae-ls", "ae-lasso") and not unfolds,
            "Codes of the lasso are not differentiated. Pass gradient='dec', or n_unfoldings=15.",
        )
        start = self.dict_init if isinstance(self.dict_init, str) else "an array"
        messages.refuse(
            start != "search" and self.n_components == "auto",
            f"n_components='auto' finds atoms itself, but dict_init is {start}. Pass "
            "dict_init='search', or a number, such as n_components=64.",
        )
        if gradient is None:
            yield (
                ("optimizer", "learning_rate", "batch_size", "max_iter", "tol"),
                "a setting that trains after the search, such as gradient='ae-ls'",
            )
        if unfolds and self.debias != 0:
            yield ("debias",), "codes of the lasso, n_unfoldings=None"
        if n_channels == 1:
            yield ("rank", "channel_noise"), "signals with more than one channel"

    def _attributes(self, plan, data, fitted):  # -> dict
        """Return all fitted attributes, after an epoch of a fit or at its end.

        ``fitted`` is a `Fitted` of `ImagePhases`, with atoms (n, n_channels, *kernel) in units of
        the noise of channels. `fixed` returns the user's number for ``debias``, or None for "auto".
        """
        inputs = data.inputs
        losses = [*fitted.losses, *fitted.loss_curve]
        atoms = fitted.atoms * inputs["_channels"].noise.to(fitted.atoms)
        maps = waveforms = None
        if self.rank is not None:
            maps, waveforms = map(to_numpy, factor_atoms(atoms))
        atoms = atoms.movedim(1, -1) if inputs["_channel_axis"] else atoms[:, 0]
        epochs = {
            "search": len(fitted.losses),
            phases.gradient_of(self): len(fitted.loss_curve),
        }
        return (
            inputs
            | fitted.penalties(fixed(self.debias))
            | {
                "spatial_components_": maps,
                "temporal_components_": waveforms,
                "components_": to_numpy(atoms),
                "n_components_": len(atoms),
                "n_iter_": max(len(losses), 1),
                "loss_curve_": np.array(losses, np.float64),
                "ended_by_": fitted.ended_by,
                "phases_": {name: n for name, n in epochs.items() if n},
                "fit_seconds_": None,  # `fit` sets it when all callbacks have run
            }
        )

    def summary(self, X: ArrayLike | Tensor | Sequence[ArrayLike] | None = None) -> str:
        """Describe in a few lines what `fit` has decided.

        Parameters
        ----------
        X : array-like, Tensor or list of images, default=None
            Images or signals to encode. The summary then also has the fraction of their energy
            around the baseline that codes explain, and the mean number of nonzero codes.

        Returns
        -------
        str
            Lines: atoms, baselines and drift, noise, penalties, and the end of the fit.
        """
        check_is_fitted(self)
        explained = None if X is None else self._explained(X)
        return describe_images(self, explained)

    @torch.no_grad()
    def _explained(self, X):  # -> float, float
        """Return the fraction of energy that codes explain, and the mean number of codes."""
        images = self._read_known(X, allow_nan=True)
        dictionary = self._dictionary(images.tensors[0])
        left = 0.0
        total = 0.0
        n_codes = 0
        for x in images.tensors:
            for part, mask, codes in self._coded_parts(x, dictionary):
                observed = 1.0 if mask is None else mask
                residual = part - dictionary.synthesis(codes)
                left += float((wide(residual) * observed).square().sum())
                total += float((wide(part) * observed).square().sum())
                n_codes += int(codes.count_nonzero())
        return 1 - left / (total or 1.0), n_codes / len(images)

    # ------------------------------------------------------------------ using the dictionary

    # _image_size: the size of the images of the fit, a tuple; None if the fit had a list of images,
    # whose sizes may differ. n_iter_no_change: checks without improvement that end training.
    _image_size = None
    n_iter_no_change = 5
    _phases = phases.ImagePhases

    @property
    def _n_channels(self):
        has_axis = self.components_.ndim > 1 + len(self._kernel)
        return self.components_.shape[-1] if has_axis else 1

    def _dictionary(self, like):  # -> ConvDictionary
        """Return the operator of ``components_``, for data in units of the noise of channels.

        Its atoms have the dtype and the device of the tensor ``like``.

        Raises
        ------
        ValueError
            If ``atom_shape`` was changed after the fit.
        """
        kernel, stride = geometry_of(self)
        actual = self.components_.shape[1 : 1 + len(kernel)]
        messages.refuse(
            actual != kernel,
            f"atom_shape={self.atom_shape!r:.60}, but atoms have {actual}. Set it back, or fit.",
        )
        atoms = atoms_inside(self.components_, len(kernel), like)
        return ConvDictionary(atoms / self._channels.noise.to(atoms), stride)

    # -> Images, detrended, in units of the noise of channels
    def _read_known(self, X, *, allow_nan=False):
        check_is_fitted(self)
        self._validate_params()  # a user may have set parameters since `fit`
        images = super()._read_known(X, allow_nan=allow_nan)
        return images.map(self._channels.enter)

    def _cover(self, x):  # (..., *size) -> extended by zeros until atoms cover it
        kernel, stride = geometry_of(self)
        return covered(x, kernel, stride)

    def _coded_parts(self, x, dictionary):  # yields images, mask or None, codes
        """Encode images (n, n_channels, *size), with NaN at missing pixels, a few at a time."""
        for part in parts_of_images(self._cover(x)):
            part, mask = split_missing(part, len(self._kernel))
            yield part, mask, self._encode(dictionary, part, mask)

    def _encode(
        self,
        dictionary,
        x,
        mask=None,
        tolerance=1e-8,
    ):
        """Return code maps of images (n, n_channels, *size) that copies of atoms cover exactly.

        ``mask``, of the same shape, is 0 at missing pixels. ``tolerance`` is how far codes of the
        lasso may violate its optimality conditions, as a fraction of the penalty. Code maps have
        the shape (n, n_components, *positions): a code for each atom at each of its positions.
        """
        # Codes depend on data only by correlations with atoms. An atom of rank one is a map (one
        # number per channel) times a waveform, so a few combinations of channels, which the maps
        # span, give the same correlations as all channels, in less time.
        if self.rank is not None and mask is None:
            directions = phases.span_of_maps(dictionary.atoms)
            atoms = phases.combine_channels(dictionary.atoms, directions)
            # The combinations keep the norms of all atoms only if each atom is of rank one. The
            # user may have edited the atoms.
            if torch.allclose(atom_norms(atoms), atom_norms(dictionary.atoms)):
                x = phases.combine_channels(x, directions)
                dictionary = ConvDictionary(atoms, dictionary.stride)
        return phases.code_images(
            dictionary,
            x,
            mask,
            learner=self,
            alpha=self.alpha_,
            debias=self.debias_ if self.debias == "auto" else float(self.debias),
            tolerance=tolerance,
        )

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
            Codes of shape (n_images, ..., n_components), with the number of positions along each
            axis in the place of the dots; for rows of pixels flattened to
            (n_images, n_features_out), for a list a list of maps.

        Raises
        ------
        ValueError
            If the channels or features differ from the fit.
        """
        images = self._read_known(X, allow_nan=True)
        dictionary = self._dictionary(images.tensors[0])
        maps = [
            torch.cat([codes for _, _, codes in self._coded_parts(x, dictionary)])
            for x in images.tensors
        ]
        return images.hand_back(maps, channels=True)

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
            Images (n_images, ...[, n_channels]), rows of pixels or a list, as the data of
            `transform`. Images have the size seen in `fit` if the codes have the positions of
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
        codes = read_images(
            X,
            len(self._kernel),
            image_shape=(*positions, n_components) if size else None,
            n_channels=n_components,
        )
        dictionary = self._dictionary(codes.tensors[0])
        images = []
        for z in codes.tensors:
            x = [dictionary.synthesis(part) for part in parts_of_images(z)]
            x = self._channels.leave(torch.cat(x))
            # codes of an image of the fit's size: what extended it to be covered is cut off
            is_whole = size and tuple(z.shape[2:]) == positions
            images.append(x[(..., *map(slice, size))] if is_whole else x)
        return codes.hand_back(
            images, channels=self._channel_axis, channels_first=self.channels_first
        )

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
            inside = self._cover(torch.ones_like(x[0, 0]))
            # each pixel gets a group at random, the same in every call
            generator.manual_seed(0)
            group = torch.randint(
                _TURNS, inside.shape, generator=generator, device="cpu"
            ).to(x.device)
            for part in parts_of_images(self._cover(x)):
                for i in range(_TURNS):
                    hidden = inside * (group == i)
                    mask = (inside - hidden).expand_as(part)
                    # with the coarser tolerance 1e-3, which is exact enough to predict pixels
                    codes = self._encode(dictionary, part, mask, SOLVED_OF_PATH)
                    residual = wide(part) - wide(dictionary.synthesis(codes))
                    error += float((residual.square() * hidden).sum())
        pixels = [x.transpose(0, 1).flatten(1) for x in images.tensors]
        pixels = wide(torch.cat(pixels, 1))
        total = float((pixels - pixels.mean(1, keepdim=True)).square().sum())
        return 1 - error / total if total else 0.0

    # The numbers of positions of an atom along the axes of an image of the fit, a tuple of int;
    # empty if the fit had a list of images. `inverse_transform` recognises whole images by them.
    @property
    def _positions(self):
        kernel, stride = geometry_of(self)
        size = self._image_size
        return covering_positions(size, kernel, stride) if size else ()

    @property
    def _n_features_out(self):
        return len(self.components_) * prod(self._positions)
