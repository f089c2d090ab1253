"""Parameters that both convolutional learners have, and the plan made of them."""

from dataclasses import dataclass
from math import frexp, prod
from numbers import Integral, Real
from types import SimpleNamespace

from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._data.images import check_sizes, sizes
from skpudle._data.noise import Noise
from skpudle._learners.base import GradientLearner
from skpudle._learners.convolutional.model import ConvModel, RowLayout
from skpudle._learners.models import Decay, Encoder, fixed
from skpudle._learners.plan import Plan

# Pixels between neighbouring copies of an atom in pictures.
_STRIDE = 4

# Pixels of a part of a batch: large enough for efficient products, small enough for the codes of
# all unfoldings.
_PIXELS = 2**16
# Root mean squares of pixels from 1 / (2 * _MIDDLE) to 1 / _MIDDLE keep the unit 1.
_MIDDLE = 2**0.5

COUNT = Interval(Integral, 1, None, closed="left")

_OF_TRAINING = "batch_size", "tol", "random_state", "verbose"

# Constraints of the parameters that both learners have.
SHARED = {name: GradientLearner._parameter_constraints[name] for name in _OF_TRAINING} | {
    "atom_shape": [COUNT, tuple, list],
    "stride": [COUNT, tuple, list, StrOptions({"auto"})],
    "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
    "gradient": [StrOptions({"auto", "dec", "ae-lasso", "ae-ls"})],
    "positive_code": ["boolean"],
    "channels_first": ["boolean"],
    "optimizer": [StrOptions({"adam", "sgd"}), callable],
    "max_iter": [COUNT, StrOptions({"auto"})],
}

# Values of the network's parameters that a learner lacks.
_DEFAULTS = dict(
    loss="gaussian",
    step_size="auto",
    lambda_decay=1.0,
    shrinkage="soft",
    debias=0.0,
    rank=None,
    atom_norm="unit",
    learn_threshold=None,
    separate_atoms=None,
    learning_rate=None,
    n_iter_no_change=5,
)


def given_of(learner):  # -> SimpleNamespace
    """Return the parameters of a learner, with defaults for parameters that it lacks."""
    return SimpleNamespace(**_DEFAULTS | learner.get_params(deep=False))


def stride_of(learner):  # -> tuple of int
    """Return the distance of neighbouring copies of an atom along each axis.

    Events of signals are at any sample. In pictures, copies at every pixel take 16 times as long as
    copies at every fourth pixel of both axes.
    """
    kernel = sizes(learner.atom_shape, 1)
    if isinstance(learner.stride, str):
        return (1,) if len(kernel) == 1 else tuple(min(_STRIDE, k) for k in kernel)
    return sizes(learner.stride, len(kernel))


@dataclass(frozen=True, kw_only=True)
class ConvPlan(Plan):
    """The plan of a fit of a network of convolutions.

    Parameters
    ----------
    kernel, stride : tuple of int
        Size of an atom, and the distance of its copies.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    auto_batch_size: int = 16

    kind = ConvModel  # the class of the model

    @classmethod
    def of_network(cls, given, n_unfoldings, gradient, **phases):
        """Return the plan for parameters, a number of unfoldings and the name of a gradient.

        Raises
        ------
        ValueError
            If sizes or decay are none.
        """
        kernel, stride = sizes(given.atom_shape, 1), stride_of(given)
        check_sizes(kernel, stride)
        debias = fixed(given.debias)
        return cls(
            given=given,
            kernel=kernel,
            stride=stride,
            encoder=Encoder(
                n_unfoldings, given.shrinkage, given.positive_code, debias=debias or 0.0
            ),
            gradient=gradient,
            name=gradient,
            decay=Decay.of(given.lambda_decay),
            step_size=fixed(given.step_size),
            debias=debias,
            **phases,
        )

    def layout(self, parameters, noise_unit, threshold_unit):  # -> RowLayout
        """Return the layout of rows of these parameters."""
        given, n = self.given, self.encoder.n_unfoldings or 0
        return RowLayout(
            tuple(parameters.atoms.shape[1:]),
            n_layers=n if given.separate_atoms == "unfolding" else 0,
            noise_unit=noise_unit,
            n_thresholds={None: 0, "unfolding": n}.get(given.learn_threshold, 1),
            shared_threshold=given.learn_threshold == "one",
            atom_norm=given.atom_norm,
            fixed_alpha=parameters.alpha,
            fixed_step=parameters.step,
            threshold_unit=threshold_unit,
            rank=given.rank,
        )

    def model(
        self, parameters, images, geometry, *, threshold_unit=None, **own
    ):  # -> ConvModel, rows
        """Return the model of parameters, and its rows.

        Parameters
        ----------
        parameters : ConvParameters
            Initial or fitted parameters.
        images : TrainingImages
            Images to train on.
        geometry : Geometry
            Shape of the results.
        threshold_unit : float, default=None
            Unit of learned thresholds in a row; None is that of the images.
        **own : dict
            Further fields of the model.

        Returns
        -------
        ConvModel
            The model.
        Tensor of shape (n_components, n_parameters)
            Its rows.
        """
        scale = images.mean_square()
        if threshold_unit is None:
            pixel = (scale / (len(images.images[0]) * prod(images.crop))) ** 0.5
            threshold_unit = 2.0 ** frexp(_MIDDLE * pixel)[1]
        layout = self.layout(parameters, Noise.of(images.noise_std).unit, threshold_unit)
        model = self.kind(
            rule=self.rule(self.gradient),
            encoder=self.encoder,
            layout=layout,
            images=images,
            geometry=geometry,
            decay=self.decay.at_last,
            data_scale=scale,
            part_size=max(1, _PIXELS // prod(images.crop)),
            **own,
        )
        return model, layout.pack(parameters)
