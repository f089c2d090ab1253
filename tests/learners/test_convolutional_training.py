"""Training of convolutional dictionaries: through the encoder that `transform` unfolds."""

import numpy as np
import pytest
import torch
from naive import torch_encode
from sklearn.exceptions import ConvergenceWarning

from skpudle import ConvPUDLEDictionaryLearning
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding import encode

ALPHA, DEPTH = 0.4, 4
SMALL = dict(
    atom_shape=(5, 4), stride=(2, 3), n_unfoldings=DEPTH, tol=None, random_state=0
)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(5, 13, 16))


def learner_of(**options):
    options = dict(gradient="ae-ls", alpha=ALPHA, dict_init="random") | options
    return ConvPUDLEDictionaryLearning(6, **SMALL | options)


def inside(components):  # components_ -> ConvDictionary whose atoms have a gradient
    return ConvDictionary(
        torch.tensor(components[:, None]).requires_grad_(), SMALL["stride"]
    )


def naive(dictionary, x, **_):
    step = 1 / dictionary.squared_norm_bound()
    alpha = torch.tensor(ALPHA, dtype=torch.float64)
    how = dict(alpha=alpha, step_size=step, n_unfoldings=DEPTH)
    return torch_encode(dictionary.atoms, x, stride=SMALL["stride"], **how)


def objective_of(gradient, dictionary, x, encoder=encode):
    z = encoder(dictionary, x, alpha=ALPHA, n_unfoldings=DEPTH)
    error = 0.5 * (dictionary.synthesis(z) - x).square().sum()
    return (error + (ALPHA * z.abs().sum() if gradient == "ae-lasso" else 0)) / len(x)


@pytest.mark.parametrize("gradient", ["ae-ls", "ae-lasso", "dec"])
def test_training_lowers_the_objective_of_its_encoder(gradient, images):
    x = torch.tensor(images)[:, None]
    first, last = (
        inside(learner_of(gradient=gradient, max_iter=n).fit(images).components_)
        for n in (1, 60)
    )
    assert objective_of(gradient, last, x) < 0.98 * objective_of(gradient, first, x)


def test_an_update_is_the_derivative_through_all_unfoldings(images):
    rate, optimizer, before = 1e-3, torch.optim.SGD, {}

    def recording(parameters, lr):
        before.setdefault("atoms", parameters[0].detach().clone())
        return optimizer(parameters, lr=rate)

    found = learner_of(optimizer=recording, max_iter=1).fit(images).components_
    dictionary = inside(before["atoms"][:, 0].numpy())
    objective_of("ae-ls", dictionary, torch.tensor(images)[:, None], naive).backward()
    atoms = dictionary.atoms.detach() - rate * dictionary.atoms.grad
    atoms = atoms / atoms.flatten(1).norm(dim=1)[:, None, None, None]
    np.testing.assert_allclose(found, atoms[:, 0].numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("start", ["search", "random"])
def test_transform_unfolds_the_encoder(start, images):
    learner = learner_of(dict_init=start, max_iter=2).fit(images)
    x = torch.tensor(images)[:, None]
    expected = naive(inside(learner.components_), x).movedim(1, -1)
    np.testing.assert_allclose(learner.transform(images), expected.detach(), atol=1e-12)


@pytest.mark.parametrize("start", ["search", "random"])
def test_atoms_of_rank_one_stay_of_rank_one(start):
    signals = np.random.default_rng(3).normal(size=(4, 60, 3))
    options = dict(
        atom_shape=7, rank=1, max_iter=5, tol=None, random_state=0, dict_init=start
    )
    learner = ConvPUDLEDictionaryLearning(2, gradient="ae-ls", **options).fit(signals)
    assert np.linalg.svd(learner.components_, compute_uv=False)[:, 1:].max() < 1e-12
    assert learner.loss_curve_[-1] < learner.loss_curve_[-5]


def test_training_ends_by_its_objective_or_warns(images):
    """Also where pixels are missing."""
    images[np.random.default_rng(1).random(images.shape) < 0.2] = np.nan
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        assert learner_of(max_iter=2, tol=1e-4).fit(images).ended_by_ == "max_iter"
    assert learner_of(max_iter=500, tol=0.5).fit(images).ended_by_ == "tol"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_unfoldings=None), "are not differentiated"),
        (dict(gradient="auto", n_unfoldings=None), "are not differentiated"),
        (dict(dict_init=np.ones((6, 5, 5))), r"Pass atoms of shape \(6, 5, 4\)"),
    ],
    ids=["lasso", "lasso from random atoms", "shape"],
)
def test_contradictions_are_named(options, message, images):
    with pytest.raises(ValueError, match=message):
        learner_of(**options).fit(images)


def test_a_number_of_unfoldings_trains_and_codes_of_the_lasso_do_not(images):
    named, found = (
        learner_of(gradient=gradient, dict_init="search", max_iter=2).fit(images)
        for gradient in ("ae-ls", "auto")
    )
    np.testing.assert_array_equal(found.components_, named.components_)
    assert found.phases_.keys() == {"search", "ae-ls"}
    solves = ConvPUDLEDictionaryLearning(2, atom_shape=(5, 4), random_state=0)
    assert solves.fit(images).phases_.keys() == {"search"}


def test_the_learning_rate_is_that_of_the_optimizer(images):
    rates = []

    def recording(parameters, lr):
        rates.append(lr)
        return torch.optim.SGD(parameters, lr)

    for learning_rate in (1e-3, 0.1):
        learner_of(optimizer=recording, learning_rate=learning_rate, max_iter=1).fit(
            images
        )
    assert rates == [1e-3, 0.1]


def test_a_training_that_diverges_leaves_the_last_finite_atoms(images):
    class Breaks(torch.optim.SGD):
        n_steps = 0

        def step(self, *args):
            self.n_steps += 1
            if self.n_steps == 8:
                self.param_groups[0]["lr"] = np.inf
            return super().step(*args)

    learner = learner_of(optimizer=Breaks, batch_size=1, max_iter=5)
    with pytest.raises(ValueError, match="diverged: .* at update 9"):
        learner.fit(images)
    assert learner.ended_by_ == "divergence"
    assert np.isfinite(learner.components_).all()
    assert np.isfinite(learner.transform(images)).all()
    assert len(learner.loss_curve_) == 1
