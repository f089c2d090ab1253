"""What a convolutional learner makes of its parameters and images: data, and a model."""

from dataclasses import replace
from functools import partial
from math import prod
from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted

from skpudle._data.arrays import input_attributes, make_generator, resolve_device, to_tensor
from skpudle._data.images import (
    check_gaps,
    check_sizes,
    covering_positions,
    sizes,
    warn_of_lines,
)
from skpudle._data.noise import Noise
from skpudle._data.training_images import Geometry, TrainingImages
from skpudle._learners.base import Data, GradientLearner
from skpudle._learners.coder import DictionaryTransformer
from skpudle._learners.conv_model import (
    ConvModel,
    initial_parameters,
    known_parameters,
)
from skpudle._learners.encoder import Decay, Encoder
from skpudle._learners.given_images import images_of, targets_of
from skpudle._learners.network import ConvNetwork, RowLayout, all_shifts
from skpudle._training.team import current_team
from skpudle.gradients import GRADIENT_RULES
from skpudle.losses import LOSSES, Gaussian, loss_named
from skpudle.shrinkage import SHRINKAGES

__all__ = ["ConvLearner"]

# Pixels of a batch, counted once for each grid, that are trained on at a time: enough for products
# of large matrices, and few enough for the codes of all unfoldings to take little memory.
_PIXELS = 2**16


def _first(X):  # what says where images are
    return X[0] if isinstance(X, list) and len(X) else X


class ConvLearner(GradientLearner, DictionaryTransformer):
    """A convolutional learner; `ConvPUDLEDictionaryLearning` adds what users see."""

    _parameter_constraints = {
        name: constraint
        for name, constraint in GradientLearner._parameter_constraints.items()
        if name not in ("n_components", "optimizer")
    } | {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "atom_shape": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "stride": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "gradient": [StrOptions({"dec", "ae-lasso", "ae-ls"})],
        "loss": [StrOptions(set(LOSSES))],
        "n_trials": [Interval(Real, 1, None, closed="left")],
        "n_unfoldings": [Interval(Integral, 1, None, closed="left")],
        "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
        "shrinkage": [StrOptions(set(SHRINKAGES))],
        "positive_code": ["boolean"],
        "atom_norm": [StrOptions({"unit", "ball"}), None],
        "learn_threshold": [StrOptions({"one", "atom", "unfolding"}), None],
        "learn_step": ["boolean"],
        "separate_atoms": [StrOptions({"analysis", "decoder", "both", "unfolding"}), None],
        "noise_std": [Interval(Real, 0, None, closed="left"), tuple, StrOptions({"poisson"})],
        "crop_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "flip": ["boolean"],
        "n_train_shifts": [Interval(Integral, 1, None, closed="left")],
        "shift_average": ["boolean"],
        "image_shape": [tuple, list, None],
        "optimizer": [StrOptions({"adam", "sgd"}), type],
        "dict_init": [StrOptions({"random", "data", "dct"}), "array-like"],
    }

    _default_batch_size = 16

    # ------------------------------------------------------------------ parameters

    @property
    def _kernel(self):
        return sizes(self.atom_shape, 1)

    @property
    def _stride(self):
        return sizes(self.stride, len(self._kernel))

    def _check_parameters(self):
        Decay.of(self.lambda_decay)  # raises for what is none
        stride = self._stride
        check_sizes(self._kernel, stride, self.image_shape)
        own_analysis = self.separate_atoms in ("analysis", "both", "unfolding")
        if (self.learn_threshold or self.learn_step or own_analysis) and self.gradient == "dec":
            raise ValueError(
                "gradient='dec' does not go through the encoder, so that it cannot learn "
                "thresholds, the step or atoms of analysis; pass gradient='ae-ls'."
            )
        if self.learn_threshold and self.shrinkage == "hard":
            raise ValueError(
                "A hard threshold has derivative 0 and cannot be learned; pass shrinkage='soft' or "
                "learn_threshold=None."
            )
        if self.loss != "gaussian" and (self.separate_atoms or self.noise_std != 0):
            raise ValueError(
                f"loss={self.loss!r} is for one dictionary of noisy data: pass separate_atoms=None "
                "and noise_std=0. A denoiser of photons has noise_std='poisson', and no loss."
            )
        if self.loss != "gaussian" and self.learn_step and self.step_size == "auto":
            raise ValueError(
                f"loss={self.loss!r} and learn_step=True need a number for step_size to begin with."
            )
        if self.separate_atoms == "unfolding" and (self.learn_step or self.atom_norm is not None):
            raise ValueError(
                "With separate_atoms='unfolding' the step is a part of the atoms, whose norms are "
                "free; pass learn_step=False and atom_norm=None."
            )
        if Noise.of(self.noise_std).is_range and self.learn_threshold is None:
            raise ValueError(
                "Thresholds follow the noise where noise_std is a pair, and have to be learned; "
                "pass learn_threshold='unfolding', for example."
            )
        n_grids = len(all_shifts(stride))
        if self.n_train_shifts > n_grids:
            raise ValueError(
                f"n_train_shifts={self.n_train_shifts}, but stride={self.stride!r} has {n_grids} "
                "grids of positions; pass at most that."
            )

    def _loss(self):
        return loss_named(self.loss, self.n_trials)

    def _encoder(self):
        return Encoder(self.n_unfoldings, self.shrinkage, self.positive_code, loss=self._loss())

    # ------------------------------------------------------------------ images

    def _read_known(self, X, *, colours=False):  # -> Images, of the kind that it was fitted on
        _check_feature_names(self, X, reset=False)
        grey = self.components_.ndim == 1 + len(self._kernel)
        n_channels = 1 if grey else self.components_.shape[-1]
        images = images_of(self, X, self._transform_device(_first(X)), n_channels)
        if images.kind == "rows":
            if getattr(self, "n_features_in_", None) is None:  # callbacks see what fit leaves out
                raise ValueError(
                    "Two-dimensional input means rows of pixels, but this "
                    f"{type(self).__name__} was fitted on images. Pass one image as [image], or as "
                    "image[np.newaxis]."
                )
            _check_n_features(self, X, reset=False)
        colours = (
            colours and not Noise.of(self.noise_std).of_photons
        )  # whose differences are no photons
        if images.n_channels != n_channels and not (colours and grey and images.n_channels == 3):
            raise ValueError(
                f"Images have {images.n_channels} channels, but {type(self).__name__} was fitted "
                f"on {n_channels}; the last axis is that of channels. Where that is 1, pass the "
                "channels of an image as a list of grey ones, list(np.moveaxis(image, -1, 0))."
            )
        return images

    def _read_and_build(self, X, *, colours=False):  # -> Images, ConvNetwork
        check_is_fitted(self)
        images = self._read_known(X, colours=colours)
        return images, self._network(images.tensors[0])

    def _network(self, like):  # -> ConvNetwork of the dtype and on the device of a tensor
        parameters = known_parameters(vars(self), len(self._kernel), like)
        noise = Noise.of(self.noise_std)
        return ConvNetwork(parameters, self._stride, self._encoder(), noise, self.lambda_decay_)

    def _transform_encoder(self):  # of parts of data, which `transform` encodes
        self._check_parameters()

    @property
    def _n_features_out(self):
        check_is_fitted(self)
        size = self._training_state["image_size"]
        positions = covering_positions(size, self._kernel, self._stride) if size else ()
        return self.n_components_ * prod(positions)

    # ------------------------------------------------------------------ training

    def _read(self, X, y, *, known=False):  # -> Data
        if current_team() is not None:
            raise ValueError(
                f"{type(self).__name__} trains in one process, and this is inside of data_parallel "
                "with several; call fit outside of it."
            )
        self._check_parameters()
        if known:
            dtype = to_tensor(self.components_).dtype
            images = self._read_known(X).map(lambda x: x.to(dtype))
        else:
            images = images_of(self, X, resolve_device(self.device, _first(X)))
            warn_of_lines(images, self._kernel)
        targets = targets_of(self, y, images)
        check_gaps(images.tensors, self._kernel, self._stride)
        same = images.kind != "list"
        image_size = tuple(images.tensors[0].shape[2:]) if same else None
        sample = TrainingImages(
            images.singles(),
            targets,
            self._kernel,
            self._stride,
            Geometry(image_size, images.channel_axis),
            crop_size=self.crop_size,
            whole=images.kind == "rows" and self.crop_size == "auto",
            shifted=self.n_train_shifts > 1,
            margin=self.n_train_shifts > 1 or self.separate_atoms == "unfolding",
            noise_std=self.noise_std,
            flip=self.flip and Noise.of(self.noise_std).high > 0 and len(self._kernel) == 2,
        )
        device = images.tensors[0].device
        if known:
            return Data(sample, sample, None, device, {})
        Noise.of(self.noise_std).warn_of_units(images.tensors)
        inputs = input_attributes(X if images.kind == "rows" else None)
        return Data(sample, sample, None, device, inputs)

    def _later_generator(self):
        generator = make_generator(self.random_state)
        return generator.manual_seed(generator.initial_seed() + self.n_steps_)  # other crops

    def _new_model(self, data, generator, course=None):  # -> ConvModel, rows
        images, step = data.sample, self._fixed_step()
        parameters = initial_parameters(
            images,
            self.dict_init,
            (self.n_components, images.images[0].shape[0], *self._kernel),
            self._encoder(),
            alpha=self.alpha,
            step_size=step,
            atom_norm=self.atom_norm,
            learn_step=self.learn_step,
            in_layers=self.separate_atoms == "unfolding",
            noise_unit=Noise.of(self.noise_std).unit,
            generator=generator,
        )
        return self._model(parameters, images, images.geometry, generator, parameters.alpha)

    def _known_model(self, data, generator):  # -> ConvModel, rows
        images, state = data.sample, self._training_state
        parameters = known_parameters(vars(self), len(self._kernel), images.images[0])
        if not (self.learn_step or self.separate_atoms == "unfolding"):
            parameters = parameters._replace(step=self._fixed_step())
        geometry = images.geometry._replace(image_size=state["image_size"])
        model, rows = self._model(parameters, images, geometry, generator, state["alpha"])
        return replace(model, data_scale=state["data_scale"]), rows

    def _model(self, parameters, images, geometry, generator, alpha):
        n = self.n_unfoldings
        separate = {"analysis": (1, 0, 0), "decoder": (0, 1, 0), "both": (1, 1, 0)}
        separate |= {"unfolding": (n, 0, n - 1), None: (0, 0, 0)}
        layout = RowLayout(
            tuple(parameters.atoms.shape[1:]),
            separate=separate[self.separate_atoms],
            noise_unit=Noise.of(self.noise_std).unit,
            n_thresholds={None: 0, "unfolding": self.n_unfoldings}.get(self.learn_threshold, 1),
            shared_threshold=self.learn_threshold == "one",
            learn_step=self.learn_step,
            atom_norm=self.atom_norm,
            fixed_alpha=parameters.alpha,
            fixed_step=parameters.step,
            n_intercepts=0 if parameters.intercept is None else len(parameters.intercept),
        )
        rule, encoder = GRADIENT_RULES[self.gradient], self._encoder()
        model = ConvModel(
            rule if isinstance(encoder.loss, Gaussian) else partial(rule, loss=encoder.loss),
            encoder,
            layout,
            images,
            geometry,
            Decay.of(self.lambda_decay).at_last,
            alpha,
            images.mean_square(),
            part_size=max(1, _PIXELS // (prod(images.crop) * self.n_train_shifts)),
            n_train_shifts=self.n_train_shifts,
            generator=generator,
        )
        return model, layout.pack(parameters)
