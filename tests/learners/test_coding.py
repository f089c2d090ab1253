"""The penalty of codes, and the bias to remove, come from the data."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from skpudle import (
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    PUDLEDictionaryLearning,
)
from skpudle._operators._conv import ConvDictionary
from skpudle.datasets import make_dictionary_data
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, auto_alpha
from skpudle.search.choose import best_coding
from skpudle.search.find import find_atoms
from skpudle.search.held_out import hold_out


def noisy_sums(level, n=400):
    """Return clean and noisy sums of two of 25 atoms, and the atoms."""
    how = dict(snr_db=-20 * np.log10(level), random_state=0)
    X, atoms, codes = make_dictionary_data(n, 20, 25, 2, **how)
    return codes @ atoms, X, atoms


@pytest.fixture(scope="module", params=[0.6, 0.1, 0.01], ids="{} of the signal".format)
def noisy(request):
    return noisy_sums(request.param)


def test_reconstructions_are_nearer_to_the_truth_than_the_data(noisy):
    clean, X, _ = noisy
    learner = PUDLEDictionaryLearning(25, random_state=0).fit(X[:300])
    rest = slice(300, None)
    found = learner.inverse_transform(learner.transform(X[rest]))
    noise = ((X - clean)[rest] ** 2).sum()
    assert ((found - clean[rest]) ** 2).sum() < 0.6 * noise
    # atoms fit some
    assert learner.noise_std_ == pytest.approx((X - clean).std(), rel=0.3)


@pytest.mark.parametrize("loud", [0, 1])
@pytest.mark.parametrize("period", [2, 4])
def test_a_number_of_codes_is_met_where_channels_are_interleaved(period, loud):
    _, X, atoms = noisy_sums(0.1, n=8000)
    X[np.arange(8000) % period != loud] *= 0.01
    learner = PUDLEDictionaryLearning.from_components(atoms, alpha=0.1).set_params(
        alpha="auto"
    )
    for l0 in (0.5, 2):
        found = np.count_nonzero(learner.choose_alpha(X, l0=l0).transform(X)) / len(X)
        assert found == pytest.approx(l0, rel=0.1)  # codes of 2000 rows are counted


def test_a_number_of_codes_that_is_not_met_is_told():
    """Rows of one entry have one code or none, all at the same penalty."""
    X = np.tile(np.eye(8), (25, 1))
    learner = PUDLEDictionaryLearning.from_components(np.eye(8), alpha=0.1)
    with pytest.warns(
        UserWarning, match="Rows have 1 codes on average instead of l0=0.5: their"
    ):
        learner.choose_alpha(X, l0=0.5)
    X *= np.linspace(1, 2, 200)[:, None]
    found = np.count_nonzero(learner.choose_alpha(X, l0=0.5).transform(X)) / 200
    assert found == pytest.approx(0.5, abs=1 / 200)


@pytest.mark.parametrize("gaps", [False, True])
def test_codes_of_features_with_copies_are_as_sparse_as_without(noisy, gaps):
    """Visible copies tell the noise, and codes of that have eight times as many entries."""
    _, X, atoms = noisy
    # all are judges
    x, atoms, mask = (
        torch.from_numpy(X[:100]),
        torch.from_numpy(atoms),
        None,
    )
    if gaps:
        mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.9
        mask = mask.double()
    counts = []
    for n, d in ((1, atoms), (4, atoms.tile(4) / 2)):
        rows, known = x.tile(n), None if mask is None else mask.tile(n)
        held_out = Problem(rows, 0.1 * n**0.5, mask=known).hide()
        alpha = best_coding(held_out, d).alpha
        counts.append(int((solve_lasso(d, rows, alpha, mask=known)[0] != 0).sum()))
    assert counts[1] < 2 * counts[0]


def test_atoms_that_judge_have_not_seen_what_they_judge():
    """Of noise alone, atoms that were fitted to its rows predict what they hide; others do not."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((150, 20)))
    problem = hold_out(Problem(x, 0.5))
    *_, state = find_atoms(problem, torch.nn.functional.normalize(x[:30]))
    energy = problem.held_out.zeros.total
    errors = [
        problem.held_out.predict(a).total for a in (state.atoms, state.trial.judged)
    ]
    assert errors[0] < 0.9 * energy
    assert errors[1] > 0.97 * energy


def test_much_noise_wants_a_larger_penalty_than_the_search():
    clean, X, _ = noisy_sums(0.6)
    learner = PUDLEDictionaryLearning(25, random_state=0).fit(X)
    lasso = PUDLEDictionaryLearning(
        25, alpha=learner.search_alpha_, random_state=0
    ).fit(X)
    errors = [
        np.square(m.inverse_transform(m.transform(X)) - clean).sum()
        for m in (learner, lasso)
    ]
    assert learner.alpha_ > 1.4 * learner.search_alpha_
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize(
    ("alpha", "debias"),
    [(0.2, "auto"), (0.2, 1), ("auto", 0), ("auto", 0.5), ("auto", True)],
)
def test_a_penalty_and_a_share_that_are_given_are_kept(alpha, debias):
    """A number for alpha alone means the lasso."""
    _, X, _ = noisy_sums(0.1)
    learner = PUDLEDictionaryLearning(
        25, alpha=alpha, debias=debias, random_state=0
    ).fit(X)
    if alpha != "auto":
        assert learner.alpha_ == learner.search_alpha_ == alpha
        assert learner.penalty_path_.alpha.tolist() == [alpha]
    assert learner.debias_ == (0 if debias == "auto" else float(debias))
    given = torch.from_numpy(learner.components_), torch.from_numpy(X), learner.alpha_
    expected, _ = solve_lasso(*given, debias=learner.debias_)
    np.testing.assert_allclose(learner.transform(X), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_atoms_follow_codes_with_a_far_smaller_penalty(noise):
    """Dense non-negative codes with little noise: the usual penalty bends the atoms."""
    rng = np.random.default_rng(0)
    atoms = np.abs(rng.standard_normal((4, 40)))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    clean = rng.gamma(1.0, size=(300, 4)) * (rng.uniform(size=(300, 4)) < 0.6) @ atoms
    X = clean + noise * rng.standard_normal(clean.shape)
    learner = PUDLEDictionaryLearning(4, positive_code=True, random_state=0).fit(X)
    found = learner.inverse_transform(learner.transform(X))
    assert learner.search_alpha_ <= 0.25 * auto_alpha(torch.from_numpy(X))
    assert ((found - clean) ** 2).sum() < 0.25 * ((X - clean) ** 2).sum()


def test_images_are_reconstructed_nearer_to_the_truth_than_they_come():
    rng = np.random.default_rng(0)
    atoms = torch.nn.functional.normalize(
        torch.from_numpy(rng.standard_normal((2, 25))), dim=1
    ).reshape(2, 1, 5, 5)
    codes = (rng.uniform(size=(4, 2, 28, 28)) < 0.01) * rng.uniform(
        0.5, 1.5, (4, 2, 28, 28)
    )
    clean = ConvDictionary(atoms, 1).synthesis(torch.from_numpy(codes))[:, 0].numpy()
    X = clean + 0.1 * clean.std() * rng.standard_normal(clean.shape)
    options = dict(atom_shape=(5, 5), stride=1, random_state=0)
    learner = ConvPUDLEDictionaryLearning(2, **options).fit(X[:3])
    found = learner.inverse_transform(learner.transform(X[3:]))
    assert ((found - clean[3:]) ** 2).sum() < 0.6 * ((X[3:] - clean[3:]) ** 2).sum()
    unbiased = ConvPUDLEDictionaryLearning(
        2, alpha=learner.search_alpha_, debias=1.0, **options
    )
    unbiased.fit(X[:3])  # codes, but not atoms
    assert unbiased.search_alpha_ == learner.search_alpha_
    rebuilt = unbiased.inverse_transform(unbiased.transform(X[3:]))
    assert ((rebuilt - clean[3:]) ** 2).sum() > ((found - clean[3:]) ** 2).sum()
    lasso = learner.set_params(debias=0.0)
    biased = lasso.inverse_transform(lasso.transform(X[3:]))
    assert ((biased - clean[3:]) ** 2).sum() > ((found - clean[3:]) ** 2).sum()


@pytest.mark.parametrize("with_exposure", [False, True])
def test_the_penalty_of_counts_is_that_with_the_better_score(with_exposure):
    """By the learner's score, which hides the same features, halves of it gain until the last."""
    rng = np.random.default_rng(1)
    atoms = rng.standard_normal((12, 15))
    codes = (rng.uniform(size=(100, 12)) < 0.2) * rng.uniform(1.0, 2.0, (100, 12))
    exposure = rng.uniform(1.0, 30.0, 100) if with_exposure else None
    rates = np.exp(0.5 * codes @ atoms + 1.0) * (
        1.0 if exposure is None else exposure[:, None]
    )
    X, given = (
        rng.poisson(rates).astype(float),
        {"exposure": exposure} if with_exposure else {},
    )
    learner = CountDictionaryLearning(12, n_unfoldings=10, random_state=0).fit(
        X, **given
    )
    chosen, largest = learner.alpha_, learner._fitted.alpha
    assert chosen < largest

    def unexplained(alpha):
        learner.alpha_ = alpha
        return 1 - learner.score(X, **given)

    errors = [unexplained(0.5**i * largest) for i in range(6)]
    gains = [after < 0.99 * before for before, after in pairwise(errors)]
    assert chosen == 0.5 ** gains.index(False) * largest
