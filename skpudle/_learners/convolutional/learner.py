"""The convolutional learner: it reads images, and builds their model and its parameters."""

from dataclasses import replace
from functools import partial
from math import frexp, prod

import numpy as np
import torch
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted

from skpudle._data.arrays import (
    input_attributes,
    make_generator,
    resolve_device,
    to_tensor,
    unit_of,
)
from skpudle._data.images import (
    check_atoms_fit,
    check_gaps,
    covering_positions,
    sizes,
)
from skpudle._data.noise import Noise
from skpudle._data.training_images import Cropping, Geometry, TrainingImages
from skpudle._learners.base import Data, GradientLearner
from skpudle._learners.coder import DictionaryTransformer, check_loss
from skpudle._learners.convolutional.model import ConvModel, ConvNetwork, RowLayout
from skpudle._learners.convolutional.parameters import (
    CONSTRAINTS,
    ConvPlan,
    channel_noise_of,
    depth_of,
    images_of,
    in_units_of,
    start_of,
    stride_of,
    targets_of,
)
from skpudle._learners.convolutional.search import (
    Pieces,
    as_pictures,
    products_of,
    search_problem,
    windows_of,
)
from skpudle._learners.convolutional.values import (
    auto_penalty,
    baseline,
    initial_atoms,
    initial_parameters,
    known_parameters,
    noise_of,
    responses,
    universal_threshold,
)
from skpudle._learners.counts import settled_baseline
from skpudle._operators import ConvDictionary, project_atoms
from skpudle._training.messages import nothing_known
from skpudle._training.team import current_team
from skpudle.encoding._unfold import default_step
from skpudle.search._coding import choose_coding
from skpudle.search._descent import refit_atoms
from skpudle.search._held_out import hold_out
from skpudle.search._level import search_above_noise
from skpudle.search._maps import combine_channels, spread_channels
from skpudle.search._penalty import penalty_path
from skpudle.search._search import is_done, searched
from skpudle.search._size import try_sizes

__all__ = ["ConvLearner"]

# pixels of a batch, counted once for each grid, to train on at a time: products of large matrices,
# and little memory for the codes of all unfoldings
_PIXELS = 2**16
# Root mean squares of pixels from 1 / (2 * _MIDDLE) to 1 / _MIDDLE have the unit 1.
_MIDDLE = 2**0.5
# Atoms of a first part of the data, from which no number is chosen: as many as by default.
_ATOMS = 64


def _known(learner):  # -> fitted attributes, and how many unfoldings they are for
    return vars(learner) | {"n_unfoldings": depth_of(learner)}


def _first(X):  # X or its first image, which tells the device
    return X[0] if isinstance(X, list) and len(X) else X


class ConvLearner(GradientLearner, DictionaryTransformer):
    """A convolutional learner; `ConvPUDLEDictionaryLearning` adds the public interface."""

    _parameter_constraints = CONSTRAINTS

    # ------------------------------------------------------------------ parameters

    @property
    def _kernel(self):
        return sizes(self.atom_shape, 1)

    @property
    def _stride(self):
        return stride_of(self)

    def _plan(self):
        return ConvPlan.of(self)

    # ------------------------------------------------------------------ images

    def _read_known(self, X, *, colours=False, **checks):  # -> Images, of the fitted kind
        _check_feature_names(self, X, reset=False)
        grey = self.components_.ndim == 1 + len(self._kernel)
        n_channels = 1 if grey else self.components_.shape[-1]
        device = self._transform_device(_first(X))
        images = images_of(self, X, device, n_channels=n_channels, **checks)
        if images.kind == "rows":
            if getattr(self, "n_features_in_", None) is None:  # None during callbacks
                raise ValueError(
                    "Two-dimensional input means rows of pixels, but this "
                    f"{type(self).__name__} was fitted on images. Pass one image as [image], or as "
                    "image[np.newaxis]."
                )
            _check_n_features(self, X, reset=False)
        # differences of photon counts are not photon counts
        colours = colours and not Noise.of(self.noise_std).of_photons
        if images.n_channels != n_channels and not (colours and grey and images.n_channels == 3):
            if len(self._kernel) == 2 and n_channels in (1, 3) and images.n_channels == 4:
                raise ValueError(
                    "Images have 4 channels: colours and transparency? Pass the colours, "
                    "image[..., :3], and join the fourth channel to the result: "
                    "np.dstack([result, image[..., 3]])."
                )
            raise ValueError(
                f"Images have {images.n_channels} channels, but {type(self).__name__} was fitted "
                f"on {n_channels}; channels are the {'first' if self.channels_first else 'last'} "
                "axis of an image. Pass images with the same channels; if it was fitted on 1, the "
                "channels as a list of grey images, list(np.moveaxis(image, -1, 0))."
            )
        noise = getattr(self, "channel_noise_", None)
        return images if noise is None else images.map(lambda x: in_units_of(noise, x, self))

    def _check_known(self):  # -> Plan
        """Raise an error unless it is fitted, with atoms of the present parameters."""
        check_is_fitted(self)
        check_loss(self, self._training_state)
        self._validate_params()  # they may have been set since `fit`
        plan = self._plan()
        found = self.components_.shape[1 : 1 + len(self._kernel)]
        if found != self._kernel:
            raise ValueError(
                f"atom_shape={self.atom_shape!r:.80}, but the atoms in components_ have the shape "
                f"{found}. Set the parameter as it was, or fit again."
            )
        return plan

    def _read_and_build(self, X, *, colours=False, **checks):  # -> Images, ConvNetwork
        plan = self._check_known()
        images = self._read_known(X, colours=colours, **checks)
        return images, self._network(plan, images.tensors[0])

    def _network(self, plan, like):  # -> ConvNetwork of the dtype and on the device of a tensor
        parameters = known_parameters(_known(self), len(self._kernel), like)
        encoder = plan.encoder
        if self.debias == "auto":
            encoder = replace(encoder, debias=self.debias_)
        options = dict(noise=Noise.of(self.noise_std), lambda_decay=self.lambda_decay_)
        return ConvNetwork(parameters, self._stride, encoder, peak=self.peak_, **options)

    @property
    def _n_features_out(self):
        self._check_known()
        size = self._training_state["image_size"]
        positions = covering_positions(size, self._kernel, self._stride) if size else ()
        return len(self.components_) * prod(positions)

    # ------------------------------------------------------------------ training

    def _read(self, plan, X, y, *, known=False, part=False):  # -> Data
        if not current_team().is_alone:
            raise ValueError(
                f"{type(self).__name__} trains in one process, and this is inside of data_parallel "
                "with several; call fit outside of it."
            )
        gaps = {"allow_nan": self._allows_nan()}
        if known:
            self._check_known()
            dtype = to_tensor(self.components_).dtype
            images = self._read_known(X, **gaps).map(lambda x: x.to(dtype))
        else:
            images = images_of(self, X, resolve_device(self.device, _first(X)), **gaps)
            meaning = dict(image_shape=self.image_shape, channels_first=self.channels_first)
            check_atoms_fit(images, self._kernel, **meaning)
        targets, noise = targets_of(self, y, images), None
        if known:  # as fitted, and the images are in these units already
            noise = getattr(self, "channel_noise_", None)
            noise = None if noise is None else to_tensor(noise)
        elif not np.array_equal(self.channel_noise, "equal"):
            noise = channel_noise_of(self, images)
            images = images.map(lambda x: in_units_of(noise, x, self))
        if noise is not None:
            targets = targets and [in_units_of(noise, x, self) for x in targets]
        check_gaps(images.tensors, self._kernel, self._stride)
        same = images.kind != "list"
        image_size = tuple(images.tensors[0].shape[2:]) if same else None
        sample = TrainingImages(
            images.singles(),
            targets,
            Geometry(image_size, images.channel_axis, noise),
            Cropping(
                self._kernel,
                self._stride,
                self.crop_size,
                whole=images.kind == "rows" and self.crop_size == "auto",
                shifted=self.n_train_shifts > 1,
                margin=self.n_train_shifts > 1 or self.separate_atoms == "unfolding",
            ),
            noise_std=self.noise_std,
            flip=self.flip and Noise.of(self.noise_std).high > 0 and len(self._kernel) == 2,
        )
        device = images.tensors[0].device
        if known:
            return Data(sample, sample, device, {})
        if sample.masks and not any(mask.any() for mask in sample.masks):
            raise nothing_known(self)
        Noise.of(self.noise_std).warn_of_units(sample.images)
        inputs = input_attributes(X if images.kind == "rows" else None)
        return Data(sample, sample, device, inputs)

    def _some_samples(self, data):  # -> Samples
        own = make_generator(0)  # leave the generator of training's crops as it is
        source = data.source.for_training(self._plan().batch_size(), own, shuffle=False)
        return next(iter(source.batches(source.plan())))

    def _has_codes(self, data):
        pictures = [data.samples.covered(image)[None] for image in data.samples.images]
        if all((x == x.flatten()[0]).all() for x in pictures):
            return True  # a baseline explains constant pictures
        plan = self._plan()
        network = self._network(plan, pictures[0])
        alpha = network.parameters.alpha
        if plan.encoder.n_unfoldings is not None:
            return any(network.encode(x).any() for x in pictures)
        # codes of the lasso are zero where no correlation is above the penalty
        dictionary = ConvDictionary(network.parameters.atoms, self._stride)
        found = (dictionary.analysis(x) for x in pictures)
        return any(((z if self.positive_code else z.abs()) > alpha).any() for z in found)

    def _new_model(self, plan, data, generator, run=None):  # -> ConvModel, rows
        images, step = data.samples, plan.step_size
        decides = isinstance(self.n_components, str)
        if decides and not plan.searches:
            raise ValueError(
                "n_components='auto' is chosen by a search, which these parameters do without. "
                "Pass dict_init='search', or a number of atoms."
            )
        resumes = run is not None and run.recorder.in_training
        n_components = _ATOMS if decides else self.n_components
        if decides and resumes:
            n_components = run.recorder.n_rows
        given = self._loss(), baseline(self._loss(), images)
        directions = None
        complete = images.masks is None and given[1] is None
        if self.rank is not None and run is not None and plan.searches and complete:
            directions = self._pieces(images)[0].principal_directions(n_components)
        seen = images
        if directions is not None:
            seen = images.mapped(lambda image: combine_channels(image[None], directions)[0])
        shape = n_components, seen.images[0].shape[0], *self._kernel
        atoms = initial_atoms(seen, start_of(self), shape, generator, *given)
        atoms = project_atoms(atoms.contiguous(), atom_norm=self.atom_norm)
        noise, alpha, penalty = Noise.of(self.noise_std), self.alpha, self.alpha
        if alpha == "auto":
            alpha = penalty = auto_penalty(seen, atoms, noise.unit or noise.high, *given)
            if plan.codes_follow_data and given[1] is None and images.masks is None:
                alpha = penalty = max(penalty, universal_threshold(images, self._kernel))
        if self.shrinkage == "hard":
            bound = default_step(ConvDictionary(atoms, images.stride)) if step is None else step
            alpha = alpha * float(bound) if self.alpha == "auto" else alpha

        size_path = None

        def built(atoms, intercept=given[1]):
            if atoms.shape[1] != len(images.images[0]):
                atoms = spread_channels(atoms, directions.to(atoms))
            atoms = project_atoms(atoms, atom_norm=None, rank=self.rank)
            parameters = initial_parameters(plan, atoms, images.stride, alpha, intercept)
            searched = float(penalty) if plan.searches and run is not None else None
            options = images, images.geometry, generator, parameters.alpha
            model, rows = self._model(plan, parameters, *options)
            return replace(model, search_alpha=searched, size_path=size_path), rows

        def fitted(found, losses, path):
            model, rows = built(found.reshape(-1, *shape[1:]).to(atoms))
            return run.fitted(replace(model, size_path=path), rows, losses)

        if decides and run is not None and not resumes:
            problem = self._problem(seen, float(penalty) / noise_of(*given), given[1])

            def start(n):
                begun = initial_atoms(seen, "search", (n, *shape[1:]), generator, *given)
                return as_pictures(begun)

            def of_trial(trial):
                return fitted(trial.atoms, (), trial.path)

            trial = run.choose_size(try_sizes(problem, generator, start=start), of_trial)
            size_path = trial.path
            atoms = trial.atoms.reshape(-1, *shape[1:]).to(atoms)

        if resumes:
            model, rows = built(atoms)
            return run.recorder.restore_model(model, rows), rows
        if not plan.searches or run is None:
            return built(atoms)
        problem = self._problem(seen, float(penalty) / noise_of(*given), given[1])

        def inside(state):
            return state.found[0].reshape(atoms.shape).to(atoms)

        def of_state(state):
            return fitted(state.found[0], state.losses, size_path)

        problem = hold_out(problem, fixed=self.alpha != "auto")
        state = run.search(problem, as_pictures(atoms), of_state)
        of_noise = self.alpha == "auto" and len(self._kernel) == 1 and given[1] is None
        if of_noise and images.masks is None and is_done(state):
            level = partial(search_above_noise, problem, as_pictures(atoms), state)
            problem, state = run.make_step("level of the noise", level, partial(of_state, state))
        found = inside(state)
        if self.rank is not None:
            refine = partial(products_of, problem, state, self._pieces(images)[0], directions)
            found = run.make_step("maps and waveforms", refine, partial(of_state, state))
        elif state.is_unbiased:
            refit = partial(refit_atoms, searched(problem, state), *state.found)
            found = run.make_step("unbiased atoms", refit, partial(of_state, state))
        found = found.reshape(len(atoms), -1, *self._kernel).to(atoms)
        model, rows = built(found)
        if given[1] is not None:
            pieces, masks = self._pieces(images)
            known = pieces.stacked(), None if masks is None else pieces.stacked(masks)
            intercept = settled_baseline(model.network(rows, 0)[0], *known)
            model, rows = built(found, intercept)
        if is_done(state) and problem.held_out is not None and plan.codes_follow_data:
            unseen = project_atoms(state.unseen, rank=self.rank)
            options = dict(debias=plan.debias, place=state.trials[0].prediction.place)
            choose = partial(choose_coding, problem.held_out, unseen, **options)
            path = run.make_step("penalty of codes", choose, partial(of_state, state))
            model = replace(model, coding=path.summary(problem.unit))
        unit = problem.unit * noise_of(*given)
        path = penalty_path(problem, state.path, unit)
        model = replace(model, search_alpha=state.alpha * unit, penalty_path=path)
        return model, rows

    def _pieces(self, images):  # -> Pieces, and masks of the images
        pictures = images.targets or images.images
        masks = None if images.targets else images.masks
        return Pieces(pictures, windows_of(pictures, self._kernel, self._stride)), masks

    def _problem(self, images, alpha, intercept=None):  # -> ConvProblem
        pieces, masks = self._pieces(images)
        seen = torch.stack(responses(self._loss(), pieces, intercept))
        return search_problem(
            seen,
            None if masks is None else pieces.stacked(masks),
            self._kernel,
            self._stride,
            alpha=alpha,
            positive_code=self.positive_code,
            unit=unit_of(float(seen.double().square().mean()) * prod(self._kernel)),
        )

    def _coding_problem(self, outcome, data, run):  # -> ConvProblem, atoms
        problem = self._problem(data.samples, float(outcome.model.alpha))
        return problem, as_pictures(outcome.model.layout.unpack(outcome.rows).atoms)

    def _known_pictures(self, images):  # -> Tensor of shape (n_components, n_channels, h, w)
        known = known_parameters(_known(self), len(self._kernel), images.images[0])
        return as_pictures(known.atoms)

    def _known_model(self, plan, data):  # -> ConvModel, rows, generator
        generator = make_generator(self.random_state)
        generator.manual_seed(generator.initial_seed() + self.n_steps_)  # other crops
        images, state = data.samples, self._training_state
        parameters = known_parameters(_known(self), len(self._kernel), images.images[0])
        given, before = plan.given.alpha, state["given"]["alpha"]
        was_set = given not in ("auto", before)
        if was_set and (self.learn_threshold is not None or self.separate_atoms == "unfolding"):
            raise ValueError(
                f"alpha={given} was set after fit, which learned thresholds, or steps in the "
                f"atoms, have replaced. Set alpha={before!r} again, or fit again."
            )
        if not (self.learn_step or self.separate_atoms == "unfolding"):
            parameters = parameters._replace(step=plan.step_size)
        alpha, coding = state["alpha"], None
        if was_set:
            alpha = float(given)
        elif state.get("coding"):  # codes have another penalty than training
            debias = self.debias_ if plan.debias is None else plan.debias
            coding = self.alpha_, debias, getattr(self, "noise_std_", None)
        if was_set or coding:
            parameters = parameters._replace(alpha=alpha)
        geometry = images.geometry._replace(image_size=state["image_size"])
        unit = state["threshold_unit"] if state["data_scale"] else None  # that of zeros is open
        options = images, geometry, generator, alpha, unit
        model, rows = self._model(plan, parameters, *options)
        known = dict(
            data_scale=state["data_scale"] or model.data_scale, peak=max(model.peak, self.peak_)
        )
        known |= dict(coding=coding, search_alpha=state.get("search_alpha"))
        return replace(model, **known), rows, generator

    def _model(self, plan, parameters, images, geometry, generator, alpha, threshold_unit=None):
        n = depth_of(self) or 0
        separate = {"analysis": (1, 0, 0), "decoder": (0, 1, 0), "both": (1, 1, 0)}
        separate |= {"unfolding": (n, 0, n - 1), None: (0, 0, 0)}
        scale, counts = images.mean_square(), parameters.intercept is not None
        pixel = (scale / (len(images.images[0]) * prod(images.crop))) ** 0.5
        unit = 1.0 if counts else 2.0 ** frexp(_MIDDLE * pixel)[1]
        layout = RowLayout(
            tuple(parameters.atoms.shape[1:]),
            separate=separate[self.separate_atoms],
            noise_unit=Noise.of(self.noise_std).unit,
            n_thresholds={None: 0, "unfolding": n}.get(self.learn_threshold, 1),
            shared_threshold=self.learn_threshold == "one",
            learn_step=self.learn_step,
            atom_norm=self.atom_norm,
            fixed_alpha=parameters.alpha,
            fixed_step=parameters.step,
            n_intercepts=len(parameters.intercept) if counts else 0,
            threshold_unit=threshold_unit or unit,
            rank=self.rank,
        )
        model = ConvModel(
            plan.rule(plan.gradient),
            plan.encoder,
            layout,
            images,
            geometry,
            plan.decay.at_last,
            alpha,
            scale,
            images.peak(),
            part_size=max(1, _PIXELS // (prod(images.crop) * self.n_train_shifts)),
            n_train_shifts=self.n_train_shifts,
            generator=generator,
        )
        return model, layout.pack(parameters)
