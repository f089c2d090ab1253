"""`ConvDenoiser`: train a convolutional network that removes noise from images, and apply it.

A torch optimiser trains a `DenoisingNetwork` on random crops of images, by updates from a few crops
each. If the user passes clean images only, every update adds new noise to its crops, as strong as
``noise_std`` says, and the network learns to remove it. If the user passes pairs of a noisy and a
clean image, the noisy image is the input of the network and the clean image its target. Terms such
as *unfolding* are those of `skpudle._denoiser.network`.

Shapes of tensors are (n, n_channels, *size), where ``size`` is (length,) for signals and (height,
width) for pictures; both are called images. ``kernel`` is the size of an atom, and ``stride`` the
distance of neighbouring copies of an atom, each with one number per axis.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
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
from skpudle._fit.messages import warn_of_early_end, warn_of_rise
from skpudle._fit.run import EpochRecord, FollowedFit, Interrupts, pack, take, unpack
from skpudle._fit.train import Diverged, Stopping
from skpudle._image_noise import parts_of_images, penalty_of_correlations
from skpudle._learners.convolutional.base import ImageEstimator, geometry_of
from skpudle._learners.parameters import fits, sets_parameters
from skpudle._learners.summary import describe_denoiser
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding._unfold import default_step

ImagesLike = ArrayLike | Tensor | Sequence[ArrayLike]


# ---------------------------------------------------------------- training


def draw_cosines(shape, generator):  # (n, n_channels, *kernel) -> Tensor of the shape
    """Return the initial atoms of a network: separable cosines of low frequency, of norm 1.

    ``shape`` is that of the result. An atom is a product of one cosine per axis, with channels as
    an axis; low frequencies come first. If ``n`` exceeds the number of such products, the remaining
    atoms are random, drawn by the torch ``generator``. If training starts from random or from
    orthogonal atoms, the denoised images are 1 dB worse after 120 epochs.
    """
    atoms = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    sizes = atoms.new_tensor(shape[1:])
    axes = (torch.arange(n, dtype=atoms.dtype, device="cpu") for n in shape[1:])
    pixels = torch.cartesian_prod(*axes)
    # An atom has a frequency for each axis: the number of half waves along the axis.
    frequencies = pixels[(pixels / sizes).sum(1).argsort(stable=True)][: shape[0]]
    cosines = torch.cos(pi * frequencies[:, None] * (pixels + 0.5) / sizes).prod(2)
    atoms[: len(cosines)] = cosines.unflatten(1, shape[1:])
    return project_atoms(atoms)


def crop_shape(images, network, size):  # -> list of int, one for each axis
    """Return the size of the random crops that a `DenoisingNetwork` trains on.

    ``images`` is a list of tensors (n_channels, *size). ``size`` is the user's ``crop_size``: a
    number, or "auto" for the smallest image along each axis, at most 49 pixels for pictures, 25 for
    volumes and 129 samples for signals. Each side is rounded down to the kernel plus a multiple of
    the stride, so that copies of atoms cover the crop exactly. A side is never smaller than twice
    the kernel minus 1, since the loss leaves out a margin of kernel - 1 pixels
    (`Training._update`).
    """
    shape = []
    for axis, (k, s) in enumerate(
        zip(network.kernel, network.stride, strict=True), start=1
    ):
        n = min(image.shape[axis] for image in images)
        n = min(n, (129, 49, 25)[len(network.kernel) - 1]) if size == "auto" else size
        shape.append(k + s * max((n - k) // s, -(-(k - 1) // s)))
    return shape


def draw_crop(image, shape, generator):  # (n_channels, *size) -> (n_channels, *shape)
    """Return a random crop of a training image; crops of pictures are also flipped at random.

    Crops of pictures are flipped along each axis with probability 1/2, and square crops are
    transposed with probability 1/2. An image that is smaller than ``shape`` is first extended by
    reflection at its borders. ``generator`` is a torch generator on the CPU.
    """
    missing = [max(k - n, 0) for n, k in zip(image.shape[1:], shape, strict=True)]
    if any(missing):
        before = [m // 2 for m in missing]
        after = [m - m // 2 for m in missing]
        image = extend(image[None], before, after)[0]

    def draw(n, size):  # -> Tensor of integers below n
        return torch.randint(n, size, generator=generator, device="cpu")

    for axis, (n, k) in enumerate(zip(image.shape[1:], shape, strict=True), start=1):
        if n > k:
            image = image.narrow(axis, int(draw(n - k + 1, ())), k)
    if len(shape) == 2:  # pictures
        flips_rows, flips_columns, transposes = draw(2, (3,)).tolist()
        if flips_rows:
            image = image.flip(-1)
        if flips_columns:
            image = image.flip(-2)
        if transposes and shape[0] == shape[1]:
            image = image.mT
    return image.contiguous()


def prepare_images(network, images, targets):
    """Return training images and targets as the network's input; raise its ``peak`` to theirs.

    The network's input are images or, for photons, roots of counts. ``peak`` is the largest
    magnitude of a clean pixel. ``images`` are `Images`, and ``targets`` a list of clean images
    (n_channels, *size), or None. Return the images as a list of tensors (n_channels, *size), and
    the targets in the same form, or None.

    Raises
    ------
    ValueError
        If squares of the images would leave the range of their dtype.
    """
    enter = network.noise.enter
    singles = images.map(enter).singles()
    if targets is not None:
        targets = [enter(x) for x in targets]
    check_range(sum(float(x.square().mean()) for x in singles) / len(singles), singles)
    peaks = [float(x.abs().max()) for x in targets or singles]
    network.peak = max(network.peak, *peaks) or 1.0
    return singles, targets


@torch.no_grad()
def initialise(network, alpha, images, generator):
    """Set the parameters of a new `DenoisingNetwork` before training, in place.

    The network then is the sparse encoder of a single dictionary, with equal unfoldings: each has
    the atoms of `draw_cosines`, and the threshold that belongs to the penalty ``alpha``, a number
    or "auto". If the network is for a range of noise, ``alpha`` sets the slopes instead, and the
    thresholds stay 0. ``images`` are the training images, a list of (n_channels, *size).

    The network has no parameter for the step size of the encoder. Instead the atoms of analysis and
    synthesis are both multiplied by the root of the step. This divides codes by the root, so the
    thresholds, step times alpha, become alpha times the root.
    """
    atoms = draw_cosines(network.analysis.shape[1:], generator).to(images[0])
    step = float(default_step(ConvDictionary(atoms, network.stride)))
    noise = network.noise
    if alpha == "auto":
        # The denoiser of the PUDLE paper has alpha = 0.16 for a noise of 25 / 255, 1.6 times the
        # standard deviation. Without noise the penalty follows from correlations of the images.
        alpha = 1.6 * noise.typical
        alpha = alpha or penalty_of_correlations(
            [x[None] for x in images], atoms, network.stride
        )
    for layers in (network.analysis, network.synthesis):
        layers.copy_(atoms * step**0.5)
    # ``levels`` are the thresholds and, for a range of noise, the slopes after them.
    network.levels[-1].fill_(alpha * step**0.5)


@dataclass(eq=False)
class Training:
    """The state of a training of a `DenoisingNetwork`, which `ConvDenoiser` runs epoch by epoch.

    Images are divided by ``unit`` while the network trains, so that one learning rate suits images
    in all units. `attributes` returns a copy of the network in the units of the images.

    Attributes
    ----------
    network : DenoisingNetwork
        The network. Updates change its parameters in place; its thresholds are divided by ``unit``.
    loader : DataLoader
        Yields batches of random crops, (n, n_channels, *size), or (n, 2 * n_channels, *size) with
        ``pairs``.
    optimizer : Optimizer
        The torch optimiser of the network's parameters.
    pairs : bool
        Whether crops hold a noisy image in the first half of their channels and the clean image in
        the second half. Otherwise crops are clean, and each update adds noise.
    inputs : dict
        Fitted attributes that describe the input: number and names of features.
    n_steps : int, default=0
        Number of updates so far.
    losses : list of float, default=[]
        Mean loss of a crop in each epoch so far: half the sum of squared errors of its pixels, in
        squared units of the network's input.
    unit : float
        The number that divides images: the smallest power of two that is at least the peak of the
        network.
    unchanged : float
        The mean loss, over the crops of the last epoch, of a denoiser that returned its noisy input
        unchanged: `fit` compares with it. Set by `run_epoch`.
    """

    network: DenoisingNetwork
    loader: DataLoader
    optimizer: torch.optim.Optimizer
    pairs: bool
    inputs: dict
    n_steps: int = 0
    losses: list = field(default_factory=list)

    # Convert the thresholds to the units of images divided by ``unit``.
    def __post_init__(self):
        self.unit = 2.0 ** ceil(log2(self.network.peak))
        self.network.adjust_levels(1 / self.unit)

    def attributes(self):
        """Return the fitted attributes of `ConvDenoiser`, as a dict from name to value.

        Tensors are on the CPU, so that a pickled estimator loads on machines without a GPU. The
        network is a copy, which later updates do not change.
        """
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
        """Take one step of the optimiser on ``images``, a batch of crops from ``loader``.

        The loss of a crop is half the sum of squared errors of its pixels, divided by ``unit**2``.

        Returns
        -------
        ndarray of shape (2,)
            Sums over the crops of the batch: the loss of the network before the step, and the loss
            of a denoiser that returned its noisy input unchanged.
        """
        network = self.network
        targets = images
        if self.pairs:
            images, targets = images.chunk(2, dim=1)
            sigma = network.noise_of(images)
        else:
            images, sigma = network.noise.added_to(images, self.loader.generator)
        # The loss leaves out pixels near the border of a crop, which fewer atoms cover than pixels
        # inside. `ConvDenoiser.denoise` has no such pixels, since it extends images first.
        inside = (..., *(slice(k - 1, 1 - k or None) for k in network.kernel))
        x = images / self.unit
        target = (targets / self.unit)[inside]
        self.optimizer.zero_grad()
        with threads_for(network.analysis[0], x, network.stride):
            denoised = network.decode(network.encode(x, sigma))
            loss = 0.5 * (denoised[inside] - target).square().sum()
            (loss / len(x)).backward()
        self.optimizer.step()
        network.adjust_levels()
        self.n_steps += 1
        unchanged = 0.5 * (x[inside] - target).square().sum()
        return np.array([loss.item(), unchanged.item()])

    def run_epoch(self, interrupts):
        """Train for one epoch, by one random crop of each image; append the loss to ``losses``.

        ``interrupts`` is an `Interrupts`: after Ctrl-C the epoch ends with the present update.

        Raises
        ------
        Diverged
            If a loss or a parameter is not finite. The network then has its parameters from before
            the epoch.
        """
        before = deepcopy(self.network.state_dict())
        total = np.zeros(2)
        n_crops = 0
        # The loader shuffles images by a generator on the CPU. Torch raises an error for such a
        # generator if the user has set another default device, so the default is the CPU here.
        with torch.enable_grad(), torch.device("cpu"):
            for images in self.loader:
                total = total + self._update(images)
                n_crops = n_crops + len(images)
                if interrupts.pending or not np.isfinite(total).all():
                    break
        numbers = torch.tensor(total), *self.network.parameters()
        if not all(value.isfinite().all() for value in numbers):
            self.network.load_state_dict(before)
            raise Diverged(self.n_steps, EpochRecord(attributes=self.attributes))
        loss, self.unchanged = total * self.unit**2 / n_crops
        self.losses.append(loss)


# ---------------------------------------------------------------- the estimator


@sets_parameters()
class ConvDenoiser(FollowedFit, ImageEstimator):
    """Denoising network of convolutions, trained by backpropagation through its encoder.

    By default `fit` trains 64 atoms of 7 x 7 pixels on clean images, to which every update adds
    noise; it also takes pairs of noisy and clean images. `denoise` removes noise from images of any
    size. The network computes sparse codes of an image by ``n_unfoldings`` iterations of a sparse
    encoder, each with atoms and thresholds of its own, and makes the denoised image from the codes
    [1]_. See :doc:`/guide/images`.

    Parameters
    ----------
    n_components : int, default=64
        Number of atoms.

    atom_shape : int or tuple of int, default=(7, 7)
        Size of an atom: two numbers for pictures, one for signals.

    stride : int, tuple of int or "auto", default="auto"
        Distance of neighbouring copies of an atom along an axis. "auto" is 1 for signals and 2 for
        pictures, or the size of an atom if this size is smaller.

    noise_std : float, tuple (low, high), "poisson" or "auto", default="auto"
        Standard deviation of the Gaussian noise that `fit` adds to clean images, in their units,
        or of the noise of the noisy images if `fit` gets pairs. With (low, high) one network serves
        all levels from low to high. "poisson": clean images are expected photon counts, from which
        `fit` draws counts; the network gets their roots (Anscombe's transform), whose noise is
        about 1. "auto" is a range, from 0.02 to 0.5 times the range of the clean pixels (the
        largest minus the smallest), or for pairs the standard deviation of noisy minus clean
        pixels.

    alpha : float or "auto", default="auto"
        Penalty that sets the thresholds before training, in the units of the images. "auto" is 1.6
        times the noise (of a range the geometric mean of its ends). For a noise of 0, "auto" is a
        tenth of an image's largest correlation with an initial atom, in the median over images.

    n_unfoldings : int, default=8
        Number of iterations of the encoder.

    crop_size : int or "auto", default="auto"
        Side of the random crops to train on, in pixels or samples, rounded down to the size of an
        atom plus a multiple of the stride. "auto" is the smallest image, and at most 49 for
        pictures or 129 for signals.

    shift_average : bool, default=False
        Whether `denoise` and `score` average the results for all shifts of the grid of positions
        of atoms. There are ``stride`` shifts along each axis, and the time grows with their number.

    channels_first : bool, default=False
        Whether channels are the first axis of a signal or image, (n, n_channels, length).

    optimizer : "adam" or callable, default="adam"
        Optimiser of the training. A callable is called as ``optimizer(parameters, lr=...)`` and
        returns a torch optimiser.

    learning_rate : float, default=1e-3
        The first learning rate, which falls to 0 along a cosine over ``max_iter`` epochs.

    batch_size : int or "auto", default="auto"
        Number of crops in an update; "auto" is 4, or the number of images if there are fewer.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training; "auto" is 250.

    tol : float or None, default=1e-4
        Training ends after five checks in a row in which the smoothed loss did not fall by more
        than this share. A check takes the mean loss of at least 256 crops. None: training takes
        ``max_iter`` epochs.

    device : str, default="auto"
        A torch device; "auto" is that of a tensor input, else CUDA if present, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Determines the initial atoms, the crops and the noise.

    verbose : int, default=0
        Whether to print a line for each epoch of `fit`, and for each tile that `denoise` finishes.

    Attributes
    ----------
    network_ : torch.nn.Module
        The network, on the device of its training. Its parameters are ``analysis``, ``synthesis``,
        ``thresholds`` and ``slopes``, with the unfoldings on the first axis. ``peak`` is the
        largest magnitude of a clean pixel (for "poisson" of the root of a clean pixel).
        ``network_(x, sigma)`` denoises a batch of shape (n, n_channels, height, width), and is
        differentiable in ``x``.

    training_noise_std_ : float, tuple or "poisson"
        The noise of training: ``noise_std``, or what "auto" stands for.

    n_iter_, n_steps_ : int
        Numbers of epochs and of updates, over all calls of `partial_fit`.

    loss_curve_ : ndarray of shape (n_epochs,)
        For each epoch the mean over crops of half the sum of squared errors, in squared units of
        the network's input: of images, or of the roots of counts.

    ended_by_ : str
        What ended `fit`: "tol", "max_iter", "callback", "divergence" or "interrupt".

    n_features_in_ : int
        Number of pixels of a row, if `fit` got rows of pixels.

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
    >>> learner = ConvDenoiser(
    ...     8, noise_std=0.1, crop_size=65, max_iter=2, tol=None, random_state=0
    ... )
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
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    # Settings of the base class `ImageEstimator`: X must not have NaN, and with stride="auto"
    # copies of an atom are 2 pixels apart in pictures.
    _allows_nan = False
    _stride_of_pictures = 2
    # Number of checks in a row without progress that end training, see ``tol``.
    n_iter_no_change = 5

    @property
    def _n_channels(self):
        return self.network_.analysis.shape[2]

    @classmethod
    def from_network(cls, network: DenoisingNetwork, **params: Any) -> Self:
        """Return a fitted estimator that denoises by a network which is trained already.

        Parameters
        ----------
        network : torch.nn.Module
            A `DenoisingNetwork`, such as ``network_`` of another estimator. It is not copied.
        **params : dict
            Parameters of the estimator, without the ones that the network determines:
            ``n_components``, ``atom_shape``, ``stride``, ``noise_std`` and ``n_unfoldings``.

        Returns
        -------
        ConvDenoiser
            The fitted estimator. `partial_fit` trains a copy of the network further.
        """
        n_unfoldings, n_components, _, *kernel = network.analysis.shape
        shape = tuple(kernel) if len(kernel) > 1 else kernel[0]
        learner = cls(
            n_components,
            atom_shape=shape,
            stride=network.stride,
            noise_std=network.noise_std,
            n_unfoldings=n_unfoldings,
            **params,
        )
        learner.network_ = network
        learner.training_noise_std_ = network.noise_std
        learner.n_iter_ = 0
        learner.n_steps_ = 0
        learner.loss_curve_ = np.empty(0)
        learner.ended_by_ = None
        learner._optimizer_state = None
        return learner

    def _read(self, X, *, n_channels=1, allow_nan=False):  # -> Images
        # For photons ``largest`` makes `read_images` read counts: negative numbers are refused, and
        # unsigned integers are not divided by their largest value.
        largest = inf if self.noise_std == "poisson" else None
        return super()._read(
            X, n_channels=n_channels, allow_nan=allow_nan, largest=largest
        )

    # ------------------------------------------------------------------ training

    @fits()
    def fit(self, X: ImagesLike, y: ImagesLike | None = None) -> Self:
        """Train a denoiser on clean images, or on pairs of noisy and clean images.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Clean images, signals or rows of pixels, in the forms that
            `ConvPUDLEDictionaryLearning` takes; noisy images if ``y`` has the clean images.
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
        # Why 250: a network trained on sixteen pictures of 128 x 128 pixels denoises photographs
        # with noise of 20 / 255 to a peak signal-to-noise ratio of 29.8 dB after 250 epochs, which
        # take 31 s, and of 29.5 dB after 200 epochs.
        n_epochs = 250 if self.max_iter == "auto" else self.max_iter
        training = self._begin(X, y)
        losses = training.losses
        n_crops = len(training.loader.dataset)

        def epochs(
            interrupts,
        ):  # yields an `EpochRecord` for each epoch; `_follow` runs it
            # A check for stalled training takes the mean loss of 256 crops or more, because the
            # losses of fewer crops vary by chance; epochs of few images have fewer crops.
            stopping = Stopping(self.tol, self.n_iter_no_change, n_judged=256)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
                training.optimizer, n_epochs
            )
            for epoch in range(1, n_epochs + 1):
                training.run_epoch(interrupts)
                schedule.step()
                stalled = stopping.check(
                    n_crops * losses[-1], n_crops, training.n_steps
                )
                yield EpochRecord(
                    attributes=training.attributes,
                    is_done=stalled or epoch == n_epochs,
                    ended_by="tol" if stalled else "max_iter",
                    note=f"epoch {epoch}/{n_epochs}  loss {losses[-1]:.6g}",
                )

        self._follow(epochs, X, y, n_epochs)
        if (
            training.unchanged
        ):  # 0 if noisy images equal clean images: nothing to compare with
            # Warns if the loss is above that of unchanged images, and above twice its start: losses
            # of epochs vary with the random crops and noise.
            warn_of_rise(self, 2 * losses[0], losses[-1], training.unchanged)
        # Warns if max_iter ended the training, but not for max_iter="auto", whose end is expected.
        warn_of_early_end(self, self.ended_by_)
        return self

    @fits()
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Train for one more epoch: update the network by one random crop of each image.

        The state of the optimiser persists between calls, also through pickling, and after `fit`.
        Parameters such as ``batch_size`` may change between calls.

        Parameters
        ----------
        X, y : array-like, Tensor or list of images
            Training images as in `fit`, with the number of channels of the first call.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            As in `fit`.
        """
        goes_on = hasattr(self, "network_")
        training = self._go_on(X, y) if goes_on else self._begin(X, y)
        with Interrupts() as interrupts:
            try:
                training.run_epoch(interrupts)
            finally:  # also if the epoch diverged: `run_epoch` has then restored the finite network
                take(self, training.attributes())
        return self

    def _noise_of(
        self, images, targets
    ):  # Images, list of targets or None -> noise_std
        """Return the noise to train for: ``noise_std``, with "auto" replaced by what it means.

        ``targets`` are the clean images of pairs, (n_channels, *size) each, else None.
        """
        if self.noise_std != "auto":
            return self.noise_std
        if targets is None:
            # On parts of pictures that were not trained on, with noise of 0.03, 0.1 and 0.2, the
            # network is at most 1.4 dB below the packaged one, which has seen 432 photographs: for
            # a microscope's cell 44.2, 39.3 and 34.9 dB (packaged 45.4, 39.7, 36.3), for a made
            # picture of standard deviation 0.03 42.5, 37.4 and 32.7 dB (42.7, 36.6, 33.7). With
            # noise up to 0.3 instead of 0.5 times the range the picture has 31.2 dB at a noise of
            # 0.2.
            highest = max(float(x.max()) for x in images.tensors)
            extent = highest - min(float(x.min()) for x in images.tensors)
            return (0.02 * extent, 0.5 * extent) if extent else 0.0
        pairs = zip(images.singles(), targets, strict=True)
        errors = [(noisy - clean).double().flatten() for noisy, clean in pairs]
        return float(torch.cat(errors).std(correction=0))

    def _begin(self, X, y):  # -> Training
        """Return the `Training` of a new network for images ``X`` and targets ``y``.

        Fitted attributes of the estimator must not change here, so that an error leaves the
        estimator as it was.
        """
        images = self._read_training(X)
        targets = read_targets(y, images, self._read)
        noise_std = self._noise_of(images, targets)
        shape = self.n_components, images.n_channels, *self._kernel
        _, stride = geometry_of(self)
        network = DenoisingNetwork(
            (self.n_unfoldings, *shape), stride, noise_std, peak=0.0
        )
        network.noise.warn_of_units(images.tensors)
        network = network.to(images.tensors[0])
        singles, targets = prepare_images(network, images, targets)
        generator = make_generator(self.random_state)
        initialise(network, self.alpha, singles, generator)
        inputs = input_attributes(X if images.kind == "rows" else None)
        return self._training(network, singles, targets, generator, inputs)

    def _go_on(self, X, y):  # -> Training
        """Return the `Training` that goes on from a copy of ``network_``, for `partial_fit`.

        The optimiser has its state after the last call. Fitted attributes must not change here.
        """
        images = self._read_known(X)
        images = images.map(lambda x: x.to(self.network_.analysis.dtype))
        targets = read_targets(y, images, self._read)
        network = deepcopy(self.network_).to(images.tensors[0])
        singles, targets = prepare_images(network, images, targets)
        # Each call needs a new seed, or it would draw the crops and noise of the first call.
        generator = make_generator(self.random_state)
        generator.manual_seed(generator.initial_seed() + self.n_steps_)
        training = self._training(network, singles, targets, generator, {})
        training.n_steps = self.n_steps_
        training.losses = list(self.loss_curve_)
        earlier = self._optimizer_state
        optimizer = training.optimizer
        if earlier and earlier["name"] == str(type(optimizer)):
            state = optimizer.state_dict() | {"state": unpack(earlier["state"])}
            optimizer.load_state_dict(state)
        return training

    def _training(
        self,
        network,
        singles,
        targets,
        generator,
        inputs,
    ):  # -> Training
        """Return a `Training` of the network, with a loader of crops and a new optimiser.

        ``singles`` are the training images as the network's input, a list of (n_channels, *size).
        ``targets`` are their clean images in the same form, or None. ``inputs`` are the fitted
        attributes of the input: number and names of features.
        """
        has_pairs = targets is not None
        if has_pairs:
            singles = [torch.cat(pair) for pair in zip(singles, targets, strict=True)]
        shape = crop_shape(singles, network, self.crop_size)

        def collate(images):
            return torch.stack([draw_crop(image, shape, generator) for image in images])

        # By default an update has 4 crops. Updates from 2 crops with twice the learning rate
        # destroyed the network.
        batch_size = 4 if self.batch_size == "auto" else int(self.batch_size)
        loader = DataLoader(
            singles,
            min(len(singles), batch_size),
            shuffle=True,
            generator=generator,
            collate_fn=collate,
        )
        make = torch.optim.Adam if self.optimizer == "adam" else self.optimizer
        optimizer = make(list(network.parameters()), lr=self.learning_rate)
        return Training(network, loader, optimizer, has_pairs, inputs)

    # ------------------------------------------------------------------ denoising

    @torch.no_grad()
    def denoise(
        self, X: ImagesLike, *, noise_std: float | ArrayLike | None = None
    ) -> np.ndarray | Tensor | list:
        """Denoise images, and keep their size.

        A network for grey images denoises three channels by their mean and two differences.

        The result is the network's output, or a weighted mean of output and input if the mean has
        a smaller error by Stein's unbiased risk estimate (S. Ramani, T. Blu and M. Unser, IEEE
        Transactions on Image Processing, 2008). The mean is better for images with less noise than
        in training, and for texture that the network does not know. An image without noise is
        returned unchanged.

        Borders are extended by reflection. Large images are cut into tiles that overlap by the
        distance over which pixels affect each other: memory is bounded, and the result the same.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Noisy images, signals or rows. Also a single picture, of shape (height, width) or
            (height, width, 3).
        noise_std : float or array-like of shape (n_images,), default=None
            Standard deviation of the noise of the images, in the units of the images (for unsigned
            integers a fraction of their largest value, as 25 / 255); 0 is no noise. The default is
            ``training_noise_std_`` if the network was trained for one level. If it was trained for
            a range of levels, the noise of each image is estimated, and details that could be
            texture do not count as noise. The noise of photon counts follows from the counts, and
            cannot be passed.

        Returns
        -------
        ndarray, Tensor or list of them
            Denoised images, of the shape and dtype of the input: unsigned integers are rounded and
            clipped. For photon counts the result is expected counts in float32 or float64.

        Raises
        ------
        ValueError
            If ``noise_std`` is negative, not finite, or not one number for each image; if
            ``noise_std`` is passed to a network that was trained for a noise of 0 or for photons;
            or if counts are negative.
        NotFittedError
            If the estimator is not fitted.

        Warns
        -----
        UserWarning
            If an image seems to have more than twice the noise of a training for one level.
        """
        check_is_fitted(self)
        of_rows = getattr(self, "n_features_in_", None) is not None
        if not (of_rows or self.channels_first) and is_one_image(X, len(self._kernel)):
            return self.denoise([X], noise_std=noise_std)[0]
        noise = self.network_.noise
        # A network of one channel denoises colours by their differences. Differences of photon
        # counts are no counts, so a network of one channel for photons refuses colours.
        images = self._read_known(X, colours=not noise.of_photons)
        levels = noise.levels(noise_std, images)
        # If the noise is estimated from the images, it has their unit, and no warning is needed.
        if levels is not None or not noise.is_range:
            noise.warn_of_units(images.tensors, levels)
        if levels is None:
            noise.warn_of_more(images)
        # With ``pixels`` results are multiplied by the largest value of unsigned integers, by which
        # `read_images` has divided. It does not divide photon counts, so ``pixels`` is then False.
        return images.hand_back(
            self._denoised(images, levels),
            pixels=not noise.of_photons,
            channels_first=self.channels_first,
        )

    def _denoised(self, images, levels=None):  # -> list of (n, n_channels, *size)
        """Denoise `Images` for `denoise` and `score`, a few images at a time to bound memory.

        Return one tensor for an array of images, and one per image for a list. ``levels`` (n,) is
        the noise of each image; None takes the noise of training or, for a range, an estimate. With
        ``verbose`` a line is printed whenever the network has finished a tile. The network computes
        a tile several times: for each colour, for each shift, and for the estimate of the error.
        """
        network = deepcopy(self.network_).to(images.tensors[0])
        done = []
        parts = [part for x in images.tensors for part in parts_of_images(x)]
        tiles = count(1)

        def tell():
            print(
                f"denoising, part {len(done) + 1}/{len(parts)}, tile {next(tiles)}",
                flush=True,
            )

        network.tell = tell if self.verbose else network.tell
        sigmas = [None] * len(parts)
        if levels is not None:
            sigmas = levels.split(list(map(len, parts)))
        for part, sigma in zip(parts, sigmas, strict=True):
            noisy = network.noise.enter(part)
            denoised = network(noisy, sigma, shift_average=self.shift_average)
            done.append(network.noise.leave(denoised))
        return done if images.kind == "list" else [torch.cat(done)]

    @torch.no_grad()
    def score(
        self, X: ImagesLike, y: ImagesLike | None = None, *, peak: float = 1.0
    ) -> float:
        """Return the peak signal-to-noise ratio of denoised images against clean images.

        Parameters
        ----------
        X : array-like, Tensor or list of images
            Noisy images if ``y`` has the clean images, else clean images. Clean images get the
            noise of training before they are denoised, the same noise in every call.
        y : array-like, Tensor or list of images, default=None
            Clean images of the sizes of ``X``. Anything of one dimension, such as labels, is
            ignored.
        peak : float, default=1.0
            The largest value that pixels may have, in the units of the images.

        Returns
        -------
        float
            The mean over images of ``10 log10(peak^2 / mean squared error)``, in dB; larger is
            better, and inf for an image without any error.

        Raises
        ------
        ValueError
            If ``y`` is None and the noise of training is 0, so that there is nothing to remove.
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
            targets = images.singles()
            images = images.map(noise.typically_added_to)
        pairs = zip(chain(*self._denoised(images)), targets, strict=True)
        errors = [float((x - clean).double().square().mean()) for x, clean in pairs]
        decibels = [10 * log10(peak**2 / e) if e else inf for e in errors]
        return float(np.mean(decibels))

    def summary(self, X: ImagesLike | None = None, y: ImagesLike | None = None) -> str:
        """Describe in a few lines the network and its training.

        Parameters
        ----------
        X, y : array-like, Tensor or list of images, default=None
            Images for `score`, whose result the summary then also has.

        Returns
        -------
        str
            Lines: atoms and unfoldings, the noise of training, epochs, updates and the end.
        """
        check_is_fitted(self)
        return describe_denoiser(self, None if X is None else self.score(X, y))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.noise_std == "poisson"
        return tags
