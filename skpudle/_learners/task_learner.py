"""Learners of a dictionary for a task: what they read, and the model that they make of it."""

from dataclasses import fields
from math import sqrt

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.batches import Rows
from skpudle._data.sources import is_stream
from skpudle._learners.labels import distinct, hold_out, targets_of
from skpudle._learners.models import DenseModel
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._learners.task import Head, TaskLayout, TaskModel, joint
from skpudle._training.team import current_team

__all__ = ["TaskLearner"]

_AUTO_EPOCHS = 100


def _logistic(features, target, C):  # Tensors (n, n_sides * p), (n, n_classes) -> Head
    """Return the head that logistic regression gives features of codes."""
    labels, weights = to_numpy(target.argmax(1)), to_numpy(target.sum(1))
    rows = to_numpy(features).astype(np.float64)
    found = LogisticRegression(C=C, max_iter=1000).fit(rows, labels, sample_weight=weights)
    return Head(*(to_tensor(part).to(features) for part in (found.coef_, found.intercept_)))


class TaskLearner(PUDLEDictionaryLearning):
    """A learner for classification; `PUDLEClassifier` adds what users see."""

    # the rest of a dictionary learner's parameters, which have one value here
    gradient, lambda_decay, shrinkage, step_size = "ae-ls", 1.0, "soft", "auto"
    positive_dict, atom_norm = False, "unit"
    optimizer, optimizer_params = "adam", None
    transform_algorithm, transform_alpha = "unfolded", None
    transform_n_nonzero_coefs = transform_tol = None

    def _read(self, X, y, *, known=False, classes=None, sample_weight=None):  # -> Data
        name = type(self).__name__
        if y is None:
            raise ValueError(f"{name} requires y to be passed, but the target y is None.")
        if is_stream(X) or current_team() is not None:
            raise TypeError(
                f"{name} learns from arrays and tensors in one process; pass parts of the data to "
                "partial_fit."
            )
        data = super()._read(np.asarray(X) if isinstance(X, np.memmap) else X, None, known=known)
        x, mask, fits = data.source.x, data.source.mask, classes is None
        if known and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"classes={classes!r:.80} are not those of the calls before, {self.classes_!r:.80}."
            )
        weights = {"class_weight": self.class_weight, "sample_weight": sample_weight}
        classes, target = targets_of(y, x, classes=classes, estimator=self, **weights)
        if self.supervision or sample_weight is not None:
            x, mask, target = distinct(x, mask, target)
        if fits and (target.sum(0) > 0).sum() < 2:
            raise ValueError(
                f"{name} separates classes, and all samples with a weight are of one class, "
                f"{classes[int(target.sum(0).argmax())]}; pass samples of two or more."
            )
        held_out = None
        if fits and self.early_stopping and self.supervision:
            random_state = check_random_state(self.random_state)
            parts = hold_out(x, mask, target, self.validation_fraction, random_state)
            x, mask, target, held_out = parts
        trained = self.supervision or not fits
        return data._replace(
            source=Rows(x, mask=mask, target=target if trained else None),
            sample=x,
            mask=mask,
            inputs=data.inputs | ({} if known else {"classes_": classes}),
            target=target,
            held_out=held_out,
        )

    def _new_model(self, data, generator, course=None):  # -> model, rows
        model, atoms = super()._new_model(data, generator, course)
        if not self.supervision and course is not None:
            return model, atoms  # the head is found at the end
        model = self._task_model(model, atoms, data)
        n_outputs, p = model.layout.n_outputs, len(atoms) * model.layout.n_sides
        if course is None:  # some classes may be still to come
            head = Head(atoms.new_zeros(n_outputs, p), atoms.new_zeros(n_outputs))
        else:
            head = _logistic(self._features(model, atoms, data), data.target, self.C)
        return model, model.layout.pack(atoms, head)

    def _known_model(self, data, generator):  # -> model, rows
        model, atoms = super()._known_model(data, generator)
        state = self._training_state
        model = self._task_model(model, atoms, data, state["mean_weight"], state["total_weight"])
        coef, intercept = (to_tensor(a).to(atoms) for a in (self.coef_, self.intercept_))
        return model, model.layout.pack(atoms, Head(coef * model.layout.unit, intercept))

    def _layout(self, model, atoms, data):
        return TaskLayout(
            atoms.shape[1],
            1 if data.target.shape[1] == 2 else data.target.shape[1],
            2 if self.split_sign else 1,
            sqrt(model.data_scale / len(atoms)) or 1.0,
        )

    def _task_model(self, model, atoms, data, mean_weight=None, total_weight=0.0):
        here = float(data.target.sum())
        return TaskModel(
            **{field.name: getattr(model, field.name) for field in fields(model)} | {"rule": joint},
            layout=self._layout(model, atoms, data),
            supervision=float(self.supervision),
            mean_weight=here / len(data.target) if mean_weight is None else mean_weight,
            total_weight=total_weight + here,
            strength=float(self.C),
        )

    @torch.no_grad()
    def _features(self, model, atoms, data):  # -> (n, n_sides * n_components)
        dense = DenseModel.network(model, atoms, 0)
        codes = dense.encode(data.sample, mask=data.mask)
        return self._layout(model, atoms, data).features(codes)

    def _n_updates(self, n_batches, batch_size, data):
        if self.max_iter == "auto" and self.supervision:
            return _AUTO_EPOCHS * n_batches
        return super()._n_updates(n_batches, batch_size, data)

    def _attributes(self, trainer, data, idle=None):
        attributes = super()._attributes(trainer, data, idle)
        model, rows = trainer.model, trainer.optimizer.atoms.detach()
        if not isinstance(model, TaskModel):
            head = _logistic(self._features(model, rows, data), data.target, self.C)
            task = self._task_model(model, rows, data)
            attributes |= task.attributes(task.layout.pack(rows, head))
            attributes["_training_state"] |= task.memory()
        scores = None if data.held_out is None else np.array(trainer.state.stopping[3])
        return attributes | {"validation_scores_": scores}
