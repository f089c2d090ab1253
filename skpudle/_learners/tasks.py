r"""Classification and regression on sparse codes: the task, and the plan that trains for it.

A task, `Classification` or `Regression`, knows its targets, its loss, and the linear model of
scikit-learn whose solution training begins with. The *head* is the linear model on the codes:
weights and intercepts. A *decision* is an output of the head: the prediction of a regression, or
the logit of a class. In training, targets and decisions have ``task.mean`` subtracted and are
divided by ``task.scale``; the fitted attributes ``coef_`` and ``intercept_`` are in the units of
``y``.

Training updates one tensor, as for any dictionary, with a row for each atom: the atom, its weights
in the head, and a copy of the intercepts. The intercepts of the head are the mean of all copies.

A head sees codes as they are or, with ``split_sign``, the positive and the negative part of each
code as two features, the two *sides* of an atom. In training all codes are divided by one number,
`TaskPlan.unit`: the root of the mean squared norm of a sample over the number of atoms. If each
feature were divided by its own standard deviation instead, rare features would weigh too much: with
two sides digits had 0.8 % more errors.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import LabelEncoder
from torch.nn.functional import cross_entropy

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._fit.plan import Plan
from skpudle._gradients import Evaluation, average
from skpudle._precision import in_own_precision


def class_decisions(decisions):  # (n, n_outputs) -> (n, n_classes)
    """Return a logit for each class from the outputs of a head; softmax gives the probabilities.

    A head for two classes has one output, the logit of the second class against the first. The
    logit of the first class is then 0.
    """
    if decisions.shape[1] > 1:
        return decisions
    return torch.cat([torch.zeros_like(decisions), decisions], dim=1)


@dataclass(frozen=True, eq=False)
class Classification:
    """The task of a classifier, with cross-entropy for loss; a target is the index of a class.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Sorted labels.
    total_weight : float, default=0.0
        The sum of the weights of all samples so far, over all calls of `partial_fit`.
    """

    classes: np.ndarray
    total_weight: float = 0.0

    # what `Regression` has, with values that change nothing
    mean, scale, n_terms, penalty, is_flat = np.zeros(1), np.ones(1), 1, 1, False

    @property
    def n_outputs(self):
        """Number of outputs of the head: one per class, or 1 for two classes."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def encode(self, y):  # (n,) -> (n, 1)
        """Return the indices of labels in ``classes``, as floats in a column.

        Raises
        ------
        ValueError
            If a label is unknown.
        """
        return LabelEncoder().fit(self.classes).transform(y)[:, None].astype(float)

    def losses(self, decisions, target):  # (n, n_outputs), (n, 1) -> (n,)
        """Return the cross-entropy of every sample."""
        return cross_entropy(class_decisions(decisions), target[:, 0].long(), reduction="none")

    def linear_model(self, C):
        """Return scikit-learn's model, not fitted, that minimises the loss of this task."""
        return LogisticRegression(C=C, max_iter=1000)


@dataclass(frozen=True, eq=False)
class Regression:
    r"""The task of a regressor, with squared errors of standardised targets for loss.

    The loss is half the unexplained share of the variance of ``y``, averaged over outputs. It is
    independent of the units of ``y`` and of the number of outputs.

    Parameters
    ----------
    mean, scale : ndarray of shape (n_outputs,)
        Means and standard deviations of ``y``.
    is_flat : bool
        Whether ``y`` has one dimension, so that ``coef_`` and predictions have one less, too.
    total_weight : float, default=0.0
        The sum of the weights of all samples so far, over all calls of `partial_fit`.
    """

    mean: np.ndarray
    scale: np.ndarray
    is_flat: bool
    total_weight: float = 0.0

    @property
    def n_outputs(self):
        """Number of outputs of the head: the number of columns of ``y``."""
        return len(self.mean)

    n_terms = n_outputs  # the loss of a sample is the mean of this number of squared errors
    penalty = 10  # ``alpha`` of scikit-learn's Ridge for C=1

    def encode(self, y):  # (n,) or (n, n_outputs) -> (n, n_outputs)
        """Return standardised targets in columns."""
        return (y.reshape(len(y), -1) - self.mean) / self.scale

    def losses(self, decisions, target):  # (n, n_outputs) twice -> (n,)
        """Return half the mean squared error of every sample."""
        return 0.5 * (decisions - target).square().mean(1)

    def linear_model(self, C):
        """Return scikit-learn's model, not fitted, that minimises the loss of this task."""
        return Ridge(alpha=self.penalty / C)


# ------------------------------------------------------------------ the plan and model


class TaskPlan(Plan):
    """The plan of a learner for a task: a search as without the task, then joint training.

    Joint training updates atoms and head (see the module) together. `TaskLearner._read` sets the
    attribute ``task``, a `Classification` or `Regression`, when it has read the targets. A record
    has the head in ``more``, of shape (n_components, n_sides * n_outputs + n_outputs); `with_head`
    and `head` convert weights and intercepts to this form and back.
    """

    # With alpha="auto" the penalty of codes is half of the search's, since a task needs less sparse
    # codes. Of the factors 1, 1/2 and 1/4 the factor 1/2 had the smallest errors in
    # cross-validation (128 atoms, benchmarks/bench_classifiers.py).
    alpha_share = 0.5
    name_of_baseline = "baseline_"  # `intercept_` has the intercepts of the head
    axis = 1  # the head is in columns beside the atoms

    def __init__(self, learner):
        b = self.supervision = float(learner.supervision)
        most = {"max_iter": 100} if b and learner.max_iter == "auto" else {}
        super().__init__(learner, **most)
        # Noise of features is not learned: a feature that is nearly a sum of other features has a
        # noise near zero, so in units of the noise it would dominate the atoms. Nor do held-out
        # features choose the penalty of codes, since predicting features is not the task.
        self.noise = "outliers" if self.learns_noise else self.noise
        self.codes_follow_data, self.trains = False, self.trains or b > 0
        self.alternates = False  # the head needs gradients
        self.name = "supervised" if b else self.gradient
        self.C, self.n_sides = float(learner.C), 1 + learner.split_sign

    @in_own_precision
    def rule(self, fitted, dictionary, batch, *, encoder, penalty):
        r"""Evaluate the gradient rule of joint training: reconstruction and task, through encoder.

        With the supervision :math:`b` and the mean squared norm of a sample :math:`E`, which makes
        :math:`b` independent of units, atoms descend

        .. math:: (1 - b) \tfrac12 \|x - D z\|^2 + b\, E\, \ell(W z, y),

        and the head descends :math:`E (\ell(W z, y) + \frac\rho2 \|W\|^2)` whatever :math:`b`.
        ``fitted`` is the record with the head; for the other arguments, and for the `Evaluation`
        that is returned, see `skpudle._gradients`.
        """
        b, task, (weights, intercept) = self.supervision, self.task, self.head(fitted.more)
        z = encoder(dictionary, batch.x, mask=batch.mask)
        # If training began with samples as atoms, only a gradient through the decoder alone finds a
        # dictionary, so codes are then constants in the reconstruction.
        residual = dictionary.synthesis(z.detach() if fitted.from_samples else z) - batch.x
        residual = residual if batch.mask is None else residual * batch.mask
        losses = 0.5 * residual.square().sum(1)
        features = self.features(fitted, b * z + (1 - b) * z.detach())
        of_task = task.losses(features @ weights.mT + intercept, batch.target)
        ridge = task.penalty / (self.C * task.total_weight * task.n_terms)
        ridge = 0.5 * ridge * weights.square().sum()
        unit = fitted.data_scale or 1.0
        surrogate = average((1 - b) * losses + unit * of_task, batch.weight) + unit * ridge
        return Evaluation(surrogate, surrogate.detach(), losses.detach(), z.detach())

    def unit(self, fitted):  # -> float
        """Return the number by which codes are divided for the head, the same for all codes.

        Weights of the head in a record belong to the divided codes, ``coef_`` to codes themselves.
        """
        return ((fitted.data_scale or 0.0) / len(fitted.atoms)) ** 0.5 or 1.0

    def features(self, fitted, z):  # (n, n_components) -> (n, n_sides * n_components)
        """Return what the head sees: divided codes, or their positive and then negative parts."""
        z = z / self.unit(fitted)
        return z if self.n_sides == 1 else torch.cat([z.clamp_min(0), z.neg().clamp_min(0)], dim=1)

    def with_head(self, fitted, weights, intercept):  # -> Fitted
        """Return the record with a head in ``more``; undoes `head`.

        ``weights`` are (n_outputs, n_sides * n_components) and ``intercept`` is (n_outputs,).
        """
        n = len(fitted.atoms)
        weights = weights.unflatten(1, (self.n_sides, n)).movedim(2, 0).flatten(1)
        return replace(fitted, more=torch.cat([weights, intercept.expand(n, -1)], dim=1))

    def head(self, more):  # -> (n_outputs, n_sides * n_components), (n_outputs,)
        """Return the weights and intercepts in ``fitted.more``, as differentiable tensors."""
        n = self.task.n_outputs
        weights = more[:, :-n].unflatten(1, (n, self.n_sides))
        return weights.movedim(0, 2).flatten(1), more[:, -n:].mean(0)

    def network(self, fitted, update=0):
        """Return the rule, the dictionary, and a dict of encoder and penalty, as `Plan.network`.

        The rule is that of joint training, `rule`, if the record has a head.
        """
        rule, dictionary, options = super().network(fitted, update)
        rule = rule if fitted.more is None else partial(self.rule, fitted)
        return rule, dictionary, options

    def replacements(self, fitted, samples):
        """Return rows of parameters for samples that become atoms.

        ``samples`` are (n, n_features). New atoms have zero weights in the head and the head's
        intercepts, so that the decisions do not jump.
        """
        atoms, more = super().replacements(fitted, samples), fitted.more
        if more is None:
            return atoms
        new, n = more.mean(0).expand(len(atoms), -1).clone(), self.task.n_outputs
        new[:, :-n] = 0
        return torch.cat([atoms, new], dim=1)

    @torch.no_grad()
    def solve(self, fitted, samples):  # -> Fitted
        """Return the record with the best head for its atoms, found by scikit-learn.

        ``samples`` are rows in units of their noise, with targets.
        """
        _, dictionary, options = super().network(fitted)
        codes = options["encoder"](dictionary, samples.x, mask=samples.mask)
        features = self.features(fitted, codes)
        model = self.task.linear_model(self.C * self.task.total_weight / samples.total_weight)
        weight = None if samples.weight is None else to_numpy(samples.weight.double())
        target = to_numpy(samples.target.squeeze(1))
        model.fit(to_numpy(features.double()), target, sample_weight=weight)
        head = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
        return self.with_head(fitted, *(to_tensor(part).to(features) for part in head))

    def attributes(self, fitted):
        """Return the fitted attributes of the dictionary and of the head, as `Plan.attributes`.

        Weights and intercepts are in the units of ``y`` and of the codes of `transform`.
        """
        (weights, intercept), task = self.head(fitted.more), self.task
        mean, scale = (to_tensor(part).to(weights) for part in (task.mean, task.scale))
        coef = weights * (scale[:, None] / self.unit(fitted))
        coef, intercept = to_numpy(coef), to_numpy(mean + scale * intercept)
        if task.is_flat:
            coef, intercept = coef[0], float(intercept[0])
        decisions = {"coef_": coef, "intercept_": intercept, "_fitted_task": task}
        return super().attributes(fitted) | decisions | {"classes_": getattr(task, "classes", None)}
