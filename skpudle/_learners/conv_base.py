"""What training a convolutional learner takes: images in, rows of parameters, fitted attributes."""

from functools import partial
from math import ceil, prod
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, check_is_fitted, validate_data

from skpudle._data.arrays import (
    input_attributes,
    make_generator,
    resolve_device,
    tensors_of,
    to_numpy,
    to_tensor,
)
from skpudle._data.foreign import dictionary_of
from skpudle._data.images import check_sizes, read_images, read_targets, sizes
from skpudle._data.training_images import TrainingImages, initial_kernels, warn_of_units
from skpudle._learners.base import AUTO_ALPHA, BaseDictionaryLearner
from skpudle._learners.network import ConvNetwork, ConvParameters, RowLayout, all_shifts
from skpudle._learners.notices import warn_of_step
from skpudle._training.choose_optimizer import make_optimizer
from skpudle._training.team import current_team
from skpudle.encoding import default_step
from skpudle.gradients import GRADIENT_RULES
from skpudle.operators import ConvDictionary, project_atoms
from skpudle.shrinkage import SHRINKAGES

__all__ = ["BaseConvLearner"]

# Pixels of a batch, counted once for each grid, that are trained on at a time: enough for products
# of large matrices, and few enough for the codes of all unfoldings to take little memory.
_PIXELS = 2**16


def _encode(network, x, *, lambda_decay=1.0, mask=None):
    return network.encode(x, lambda_decay=lambda_decay)


class BaseConvLearner(BaseDictionaryLearner):
    """A convolutional learner; `ConvPUDLEDictionaryLearning` adds what users see."""

    _parameter_constraints = {
        name: constraint
        for name, constraint in BaseDictionaryLearner._parameter_constraints.items()
        if name not in ("n_components", "optimizer", "dict_init")
    } | {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "atom_shape": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "stride": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "gradient": [StrOptions({"dec", "ae-lasso", "ae-ls"})],
        "n_unfoldings": [Interval(Integral, 1, None, closed="left")],
        "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
        "shrinkage": [StrOptions(set(SHRINKAGES))],
        "positive_code": ["boolean"],
        "atom_norm": [StrOptions({"unit", "ball"}), None],
        "learn_threshold": [StrOptions({"one", "atom", "unfolding"}), None],
        "learn_step": ["boolean"],
        "separate_atoms": [StrOptions({"analysis", "decoder", "both"}), None],
        "noise_std": [Interval(Real, 0, None, closed="left")],
        "crop_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "flip": ["boolean"],
        "n_train_shifts": [Interval(Integral, 1, None, closed="left")],
        "shift_average": ["boolean"],
        "image_shape": [tuple, list, None],
        "optimizer": [StrOptions({"adam", "sgd"}), type],
        "dict_init": [StrOptions({"random", "data", "dct"}), "array-like"],
    }

    _n_wrappers = 1

    # ------------------------------------------------------------------ parameters

    def _allows_nan(self):
        return False  # a crop has no mask

    @property
    def _kernel(self):
        return sizes(self.atom_shape, 1)

    @property
    def _stride(self):
        return sizes(self.stride, len(self._kernel))

    def _check_parameters(self):
        self._check_lambda_decay()
        stride = self._stride
        check_sizes(self._kernel, stride, self.image_shape)
        own_analysis = self.separate_atoms in ("analysis", "both")
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
        n_grids = len(all_shifts(stride))
        if self.n_train_shifts > n_grids:
            raise ValueError(
                f"n_train_shifts={self.n_train_shifts}, but stride={self.stride!r} has {n_grids} "
                "grids of positions; pass at most that."
            )

    def _rule(self):
        return GRADIENT_RULES[self.gradient]

    def _encoder(self, alpha, lambda_decay, step_size):  # the network knows alpha and the step
        return partial(_encode, lambda_decay=lambda_decay)

    def _penalty(self, alpha, lambda_decay):
        if self.shrinkage == "hard":
            return 0.0
        # the mean over grids, as the reconstruction is
        return alpha * lambda_decay ** (self.n_unfoldings - 1) / self.n_train_shifts

    def _batch_size(self):
        return 16 if self.batch_size == "auto" else int(self.batch_size)

    # ------------------------------------------------------------------ images

    def _read(self, X, *, reset=False):  # -> Images on the device
        first = X[0] if isinstance(X, list) and len(X) else X
        device = resolve_device(self.device, first) if reset else self._transform_device(first)
        if not reset:
            _check_feature_names(self, X, reset=False)
        options = dict(image_shape=self.image_shape, device=device, estimator=self)
        images = read_images(X, len(self._kernel), **options)
        if reset:
            return images
        if images.kind == "rows":
            if getattr(self, "n_features_in_", None) is None:  # callbacks see what fit leaves out
                raise ValueError(
                    "Two-dimensional input means rows of pixels, but this "
                    f"{type(self).__name__} was fitted on images. Pass one image as [image], or as "
                    "image[np.newaxis]."
                )
            validate_data(self, X, reset=False, skip_check_array=True)
        grey = self.components_.ndim == 1 + len(self._kernel)
        n_channels = 1 if grey else self.components_.shape[-1]
        if images.n_channels != n_channels:
            raise ValueError(
                f"Images have {images.n_channels} channels, but {type(self).__name__} was fitted "
                f"on {n_channels}; the last axis is that of channels. Where that is 1, pass the "
                "channels of an image as a list of grey ones, list(np.moveaxis(image, -1, 0))."
            )
        return images

    def _read_targets(self, y, images):  # -> list of (n_channels, *size), or None
        return read_targets(y, images, image_shape=self.image_shape, estimator=self)

    def _read_and_build(self, X):  # -> Images, ConvNetwork
        check_is_fitted(self)
        images = self._read(X)
        return images, self._network(self._fitted_parameters(images.tensors[0]))

    def _check_gaps(self, images):
        for axis, (k, s) in enumerate(zip(self._kernel, self._stride, strict=True), start=2):
            if s > k and any(x.shape[axis] > k for x in images.tensors):
                raise ValueError(
                    f"stride={self.stride!r} leaves gaps between atoms of {self.atom_shape!r} "
                    "pixels; pass a stride of at most the atom's size along each axis."
                )

    def _positions(self, size):  # -> as many as reach every pixel
        axes = zip(size, self._kernel, self._stride, strict=True)
        return tuple(1 + max(0, ceil((n - k) / s)) for n, k, s in axes)

    def _fitted_size(self):
        check_is_fitted(self)
        return self._training_state["image_size"]

    @property
    def _n_features_out(self):
        size = self._fitted_size()
        return self.n_components_ * (prod(self._positions(size)) if size else 1)

    # ------------------------------------------------------------------ training

    def _start_training(self, X, y, *, go_on=False, recorder=None):  # -> x, trainer, start
        if current_team() is not None:
            raise ValueError(
                f"{type(self).__name__} trains in one process, and this is inside of data_parallel "
                "with several; call fit outside of it."
            )
        self._check_parameters()
        images = self._read(X, reset=not go_on)
        if go_on:
            images = images.to(to_tensor(self.components_).dtype)
        targets = self._read_targets(y, images)
        self._check_gaps(images)
        generator = make_generator(self.random_state)
        if recorder is not None:
            recorder.open(generator)
        x = TrainingImages(
            images.singles(),
            targets,
            self._kernel,
            self._stride,
            crop_size=self.crop_size,
            whole=images.kind == "rows" and self.crop_size == "auto",
            shifted=self.n_train_shifts > 1,
            generator=generator,
        )
        if go_on:
            state = self._training_state
            start = {name: state[name] for name in ("alpha", "data_scale", "image_size")}
            start |= {"loss_curve": self.loss_curve_, "n_steps": self.n_steps_}
            start["input"] = {}  # what it was
            generator.manual_seed(generator.initial_seed() + self.n_steps_)  # other crops and noise
            parameters = self._fitted_parameters(images.tensors[0])
            if not self.learn_step:
                step = None if self.step_size == "auto" else float(self.step_size)
                parameters = parameters._replace(step=step)
        else:
            parameters = self._initial_parameters(x, images)
            start = {"loss_curve": [], "n_steps": 0, "alpha": float(parameters.alpha)}
            start["data_scale"] = x.mean_square()
            start["input"] = input_attributes(X if images.kind == "rows" else None)
            same = images.kind != "list"
            start["image_size"] = tuple(images.tensors[0].shape[2:]) if same else None
        layout = self._layout(parameters)
        start |= {"generator": generator, "layout": layout, "channel_axis": images.channel_axis}
        start |= {"seed": generator.initial_seed(), "data": {"sample": x}}
        start["device"] = images.tensors[0].device
        optimizer = make_optimizer(
            self.optimizer,
            layout.pack(parameters),
            layout.project,
            learning_rate=self.learning_rate,
            data_scale=start["data_scale"],
            params=self.optimizer_params,
        )
        if go_on:
            moments = tensors_of(self._moments(), start["device"])
            optimizer.resume(layout.pack(parameters), moments)
        else:
            self._warn_of_large_step(parameters, stacklevel=7)
            warn_of_units(self.noise_std, images.tensors, stacklevel=6)
        make_network = partial(self._training_network, layout, x)
        trainer = self._trainer(make_network, optimizer, start)
        trainer.new_rows = layout.replacements
        trainer.part_size = max(1, _PIXELS // (prod(x.crop) * self.n_train_shifts))
        return x, trainer, start

    def _initial_parameters(self, x, images):  # -> ConvParameters
        shape = (images.n_channels, *self._kernel)
        if isinstance(self.dict_init, str):
            atoms = initial_kernels(x.images, shape, self.n_components, self.dict_init, x.generator)
        else:
            options = dict(dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="dict_init")
            atoms = check_array(dictionary_of(self.dict_init), **options)
            expected = (self.n_components, *self._kernel, *shape[:1][: images.channel_axis])
            if atoms.shape != expected:
                raise ValueError(
                    f"dict_init has shape {atoms.shape}, expected (n_components, *atom_shape"
                    f"{', n_channels' if images.channel_axis else ''}) = {expected}."
                )
            atoms = to_tensor(atoms).to(images.tensors[0])
            atoms = atoms.movedim(-1, 1) if images.channel_axis else atoms[:, None]
        atoms = project_atoms(atoms.contiguous(), atom_norm=self.atom_norm)
        dictionary = ConvDictionary(atoms, self._stride)
        step = float(default_step(dictionary)) if self.step_size == "auto" else self.step_size
        alpha = self.alpha
        if alpha == "auto":
            covered = [x.covered(image)[None] for image in x.images]
            largest = torch.stack([dictionary.analysis(part).abs().max() for part in covered])
            largest = largest[largest > 0]
            alpha = AUTO_ALPHA * (float(largest.median()) if len(largest) else 1.0)
            alpha = alpha * step if self.shrinkage == "hard" else alpha
        follows = self.step_size == "auto" and not self.learn_step
        return ConvParameters(atoms, alpha=float(alpha), step=None if follows else step)

    def _layout(self, parameters):
        n_thresholds = {None: 0, "unfolding": self.n_unfoldings}.get(self.learn_threshold, 1)
        return RowLayout(
            tuple(parameters.atoms.shape[1:]),
            separate_analysis=self.separate_atoms in ("analysis", "both"),
            separate_decoder=self.separate_atoms in ("decoder", "both"),
            n_thresholds=n_thresholds,
            shared_threshold=self.learn_threshold == "one",
            learn_step=self.learn_step,
            atom_norm=self.atom_norm,
            fixed_alpha=parameters.alpha,
            fixed_step=parameters.step,
        )

    def _network(self, parameters):
        return ConvNetwork(
            parameters,
            self._stride,
            n_unfoldings=self.n_unfoldings,
            shrinkage=self.shrinkage,
            positive_code=self.positive_code,
        )

    def _training_network(self, layout, x, rows):
        """Return the network of an update, with grids drawn at random where there are several."""
        network = self._network(layout.unpack(rows))
        if self.n_train_shifts == 1:
            return network
        grids = all_shifts(self._stride)
        order = torch.randperm(len(grids), generator=x.generator, device="cpu")
        chosen = order[: self.n_train_shifts].tolist()
        return network.with_grids([grids[i] for i in chosen], x.room)

    def _source(self, x, start, *, shuffle):
        return x.crops(
            self._batch_size(),
            shuffle=shuffle,
            noise_std=self.noise_std,
            flip=self.flip and self.noise_std > 0 and len(self._kernel) == 2,
        )

    def _fitted_attributes(self, trainer, start, decay_at, loss_curve):
        layout = start["layout"]
        atoms, analysis, decoder, alpha, step = layout.unpack(trainer.optimizer.atoms.detach())
        if step is None:
            step = default_step(ConvDictionary(atoms, self._stride))

        def outside(atoms):  # channels last, or none
            if atoms is None:
                return None
            return to_numpy(atoms.movedim(1, -1) if start["channel_axis"] else atoms[:, 0])

        attributes = {
            "components_": outside(atoms),
            "analysis_components_": outside(analysis),
            "decoder_components_": outside(decoder),
        }
        if isinstance(alpha, torch.Tensor):
            alpha = to_numpy(alpha[0] if len(alpha) == 1 else alpha)
            alpha = float(alpha[0]) if self.learn_threshold == "one" else alpha
        course = self._course_of_training(trainer, start, decay_at, loss_curve)
        course["_training_state"]["image_size"] = start["image_size"]
        return (
            course
            | attributes
            | {"n_components_": len(atoms), "alpha_": alpha, "step_size_": float(step)}
        )

    def _restore(self, values):
        """Take over attributes of a fitted learner, given by name as arrays."""
        for name in ("components_", "analysis_components_", "decoder_components_"):
            if name in values:
                setattr(self, name, values[name])
        self.alpha_ = values["alpha_"] if values["alpha_"].ndim else float(values["alpha_"])
        self.step_size_ = float(values["step_size_"])
        self.lambda_decay_ = float(values["lambda_decay_"])
        self.n_components_ = len(self.components_)
        self.device_ = str(self._transform_device(None))
        self.n_iter_, self.n_steps_, self.loss_curve_ = 1, 0, np.zeros(0)
        self._training_state = {
            "alpha": float(np.mean(self.alpha_)),
            "data_scale": 1.0,
            "image_size": None,
            "optimizer_name": self._optimizer_name(),
            "optimizer": {},
        }
        return self

    def _fitted_parameters(self, like):  # a tensor -> ConvParameters of its dtype, on its device
        check_is_fitted(self)

        def inside(atoms):
            if atoms is None:
                return None
            atoms = to_tensor(atoms).to(like)
            channels = atoms.ndim == len(self._kernel) + 2
            return (atoms.movedim(-1, 1) if channels else atoms[:, None]).contiguous()

        names = ("components_", "analysis_components_", "decoder_components_")
        alpha = self.alpha_
        if np.ndim(alpha) == 2 and len(alpha) != self.n_unfoldings:
            raise ValueError(
                f"Thresholds were learned for {len(alpha)} unfoldings, one each, and n_unfoldings "
                f"is {self.n_unfoldings} now. Set it back, or fit again."
            )
        if np.ndim(alpha):
            alpha = to_tensor(alpha).to(like).reshape(-1, len(self.components_))
        atoms = (inside(getattr(self, name, None)) for name in names)
        return ConvParameters(*atoms, alpha=alpha, step=self.step_size_)

    def _warn_of_step(self, atoms, *, stacklevel):
        parameters = self._fitted_parameters(torch.zeros((), device="cpu"))
        self._warn_of_large_step(parameters, stacklevel=stacklevel + 2)

    def _warn_of_large_step(self, parameters, *, stacklevel):
        if parameters.step is None or self.learn_step or parameters.analysis_atoms is not None:
            return
        dictionary = ConvDictionary(parameters.atoms, self._stride)
        warn_of_step(parameters.step, dictionary, stacklevel=stacklevel)
