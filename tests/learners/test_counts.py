"""Learners of counts and fractions: `CountDictionaryLearning`."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from small import Batches

from skpudle import CountDictionaryLearning
from skpudle._data import sources
from skpudle._losses import Binomial, Poisson
from skpudle.datasets import make_dictionary_data
from skpudle.encoding import encode

OPTIONS = dict(n_unfoldings=10, max_iter=2, tol=None, random_state=0)
N_TRIALS = 20


def loss_of(loss):  # parameters
    return dict(loss=loss, n_trials=N_TRIALS) if loss == "binomial" else dict(loss=loss)


def make(loss, n_components=12, **options):
    return CountDictionaryLearning(n_components, **loss_of(loss), **(OPTIONS | options))


def make_counts(loss, n_samples=300, n_features=10, n_components=12, seed=0):
    """Return data, atoms and codes: one row of each the sample, atom or code."""
    how = dict(amplitude=(1.5, 3.0), random_state=seed)
    natural, atoms, codes = make_dictionary_data(
        n_samples, n_features, n_components, 2, **how
    )
    rng = np.random.default_rng(seed)
    if loss == "poisson":
        return rng.poisson(np.exp(natural + 1)).astype(float), atoms, codes
    return (
        rng.binomial(N_TRIALS, 1 / (1 + np.exp(-natural))).astype(float),
        atoms,
        codes,
    )


@pytest.fixture(params=["poisson", "binomial"])
def loss(request):
    return request.param


@pytest.fixture
def X(loss):
    return make_counts(loss)[0]


def coherences(learner, atoms):
    found = learner.components_ / np.linalg.norm(
        learner.components_, axis=1, keepdims=True
    )
    return np.abs(found @ atoms.T).max(0)


# ---------------------------------------------------------------------------- finding them


def test_the_defaults_find_the_atoms(loss):
    X, atoms, _ = make_counts(loss, 1500, 20, 24)
    learner = CountDictionaryLearning(24, **loss_of(loss), random_state=0).fit(X)
    assert (coherences(learner, atoms) > 0.95).mean() >= 0.95
    assert (learner.transform(X) != 0).mean() < 0.3
    np.testing.assert_allclose(
        learner.intercept_, float(loss == "poisson"), rtol=0, atol=0.35
    )


def test_signs_of_atoms_and_codes(loss, X):
    learner = make(loss, dict_init="data", positive_code=True, positive_dict=True).fit(
        X
    )
    codes = learner.transform(X)
    assert min(learner.components_.min(), codes.min()) >= 0
    assert 0 < (codes != 0).mean() < 1
    split = make(loss, split_sign=True).fit(X)
    parts = split.transform(X)
    assert parts.min() >= 0
    np.testing.assert_array_equal(split.fit_transform(X), parts)
    np.testing.assert_array_equal(
        parts[:, :12] - parts[:, 12:], make(loss).fit_transform(X)
    )


def test_what_is_learned_is_the_likelihood(loss, X):
    """Codes are those of the encoder, expectations those of the loss."""
    learner = make(loss, alpha=1.0, max_iter="auto").fit(X)
    family = Poisson() if loss == "poisson" else Binomial(N_TRIALS)
    atoms, offset = torch.tensor(learner.components_), torch.tensor(learner.intercept_)
    codes = encode(atoms, torch.tensor(X), alpha=learner.alpha_, n_unfoldings=10, loss=family,
                   offset=offset)  # fmt: skip
    np.testing.assert_allclose(learner.transform(X), codes.numpy(), rtol=0, atol=1e-10)
    natural = codes @ atoms + offset
    expected = family.mean(natural).numpy()
    np.testing.assert_allclose(
        learner.inverse_transform(codes.numpy()), expected, rtol=1e-10
    )
    # the curve holds half the deviance, that of the epoch before
    assert learner.loss_curve_[-1] == pytest.approx(
        float(family.half_deviance(natural, torch.tensor(X)).sum(1).mean()), rel=0.2
    )


def test_score_is_the_deviance_that_is_explained(loss, X):
    """Of one group of hidden features, written out; of all by the definition."""
    learner = make(loss).fit(X)
    family = Poisson() if loss == "poisson" else Binomial(N_TRIALS)
    atoms, offset, x = map(torch.tensor, (learner.components_, learner.intercept_, X))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    natural = torch.empty_like(x)
    for hidden in order:
        seen = torch.arange(10) != hidden
        codes = encode(atoms[:, seen], x[:, seen], alpha=learner.alpha_, n_unfoldings=10,
                       loss=family, offset=offset[seen])  # fmt: skip
        natural[:, hidden] = codes @ atoms[:, hidden] + offset[hidden]
    mean = family.natural(x.mean(0)).expand_as(x)
    explained = (
        1 - family.half_deviance(natural, x).sum() / family.half_deviance(mean, x).sum()
    )
    assert learner.score(X) == pytest.approx(float(explained), rel=1e-8)


@pytest.mark.parametrize("loss", ["poisson", "binomial"])
def test_copies_of_features_choose_no_smaller_penalty(loss):
    """A held-out feature whose copy is visible would be predicted, its noise included."""
    rng = np.random.default_rng(0)
    X = rng.poisson(3.0, (200, 8)) if loss == "poisson" else rng.random((200, 8)) < 0.4
    learner = CountDictionaryLearning(8, loss=loss, n_unfoldings=10, random_state=0)
    once, twice = (learner.fit(np.tile(X.astype(float), n)).alpha_ for n in (1, 2))
    assert twice >= once


def test_epochs_train_the_likelihood(loss, X):
    """After the same search, as many as are named."""
    short, long = (make(loss, 6, max_iter=n).fit(X[:100]) for n in (1, 20))
    searched = short.phases_["search"]
    assert short.phases_ == {"search": searched, "likelihood": 1}
    assert long.phases_ == {"search": searched, "likelihood": 20}
    np.testing.assert_array_equal(long.loss_curve_[: searched + 1], short.loss_curve_)
    assert np.abs(long.components_ - short.components_).max() > 1e-4


# ---------------------------------------------------------------------------- odd data


@pytest.mark.parametrize("mean", [0.003, 0.03])
def test_it_takes_two_events_to_say_that_features_belong_together(loss, mean):
    """Whatever the atoms: |D^T (e_j - mu)| <= |e_j - mu|, 1 for rare events, about alpha."""
    rng = np.random.default_rng(0)
    shared = np.exp(3 * rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20)) / 4)
    X = rng.poisson(shared * mean / shared.mean()).clip(0, N_TRIALS).astype(float)
    learner = make(loss, max_iter="auto").fit(X)
    assert learner._fitted.alpha == pytest.approx(1)
    # at most 1.03
    learner.alpha_ = (1 + np.square((X.sum(0) + 0.5) / 201).sum()) ** 0.5
    assert not learner.transform(np.vstack([np.eye(20), np.zeros(20)])).any()


@pytest.mark.parametrize("clip", [1e-6, 0.01])
def test_binary_data_may_be_clipped(clip):
    """What is predicted follows the data: atoms were once trained into the ends of the odds."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(6, 10))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = 2 * rng.normal(size=(400, 6)) * (rng.random((400, 6)) < 0.3)
    X = (rng.random((400, 10)) < 1 / (1 + np.exp(-codes @ atoms))).astype(float)
    learner = CountDictionaryLearning(6, loss="binomial", random_state=0)
    exact, clipped = (
        learner.fit(data).score(data) for data in (X, X.clip(clip, 1 - clip))
    )
    assert clipped > 0
    assert clipped == pytest.approx(exact, abs=0.1 * clip + 1e-4)


def odd_data(largest):
    """Return data at the borders of a domain, (60, 8) each."""
    rng = np.random.default_rng(0)
    end = largest or 1e5
    plain = rng.poisson(1.5, (60, 8)).clip(0, end).astype(float)
    huge_row = plain.copy()
    huge_row[3] = end
    return {
        "clipped": ((plain > 1) * end).clip(1e-3 * end, (1 - 1e-3) * end),
        "nearly at the ends": ((plain > 1) * end).clip(1e-7 * end, (1 - 1e-7) * end),
        "rare": (rng.random((60, 8)) < 0.02).astype(float),
        "rare others": end - (rng.random((60, 8)) < 0.02),
        "one event a row": np.eye(60, 8),
        "constant": np.full((60, 8), 0.5 * min(end, 2)),
        "all zero": np.zeros((60, 8)),
        "all at the end": np.full((60, 8), end),
        "features of all sizes": rng.poisson(
            10.0 ** np.linspace(-3, 3, 8), (60, 8)
        ).clip(0, end),
        "heavy tails": rng.poisson(np.exp(2 * rng.normal(size=(60, 8)))).clip(0, end),
        "one huge row": huge_row,
    }


FAMILIES = {"poisson": Poisson(), "bernoulli": Binomial(), "binomial": Binomial(7)}


@pytest.mark.parametrize("kind", odd_data(None))
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("dict_init", ["search", "data"])
def test_the_objective_is_at_most_that_of_the_baseline(dict_init, family, kind):
    """Half the deviance with the penalty, against mean rates (half an event more) and no codes."""
    X = np.asarray(odd_data(getattr(family, "n_trials", None))[kind], float)
    given = dict(n_trials=family.n_trials) if isinstance(family, Binomial) else {}
    given |= dict(
        loss=type(family).__name__.lower(), max_iter=5, tol=None, dict_init=dict_init
    )
    learner = CountDictionaryLearning(5, n_unfoldings=10, random_state=0, **given).fit(
        X
    )
    codes, x = torch.tensor(learner.transform(X)), torch.tensor(X)
    natural = codes @ torch.tensor(learner.components_) + torch.tensor(
        learner.intercept_
    )
    baseline = family.natural((x.sum(0) + 0.5) / (len(x) + 1))
    objective = (
        family.half_deviance(natural, x).sum() + learner.alpha_ * codes.abs().sum()
    )
    assert objective <= family.half_deviance(baseline, x).sum() * (1 + 1e-9)


# ---------------------------------------------------------------------------- what data are


def test_data_outside_of_the_domain_are_refused(loss, X):
    learner = make(loss, dict_init="data").fit(X)
    before = learner.components_.copy()
    wrong = X.copy()
    wrong[3, 2] = -1
    for method in ("fit", "partial_fit", "transform", "score"):
        with pytest.raises(ValueError, match="Negative values in data"):
            getattr(learner, method)(wrong)
    with pytest.raises(ValueError, match=r"(?s)Negative values.*In batch 0"):
        learner.fit(Batches(wrong))
    if loss == "binomial":
        wrong[3, 2] = N_TRIALS + 1
        with pytest.raises(ValueError, match="above the 20 trials"):
            learner.fit(wrong)
    np.testing.assert_array_equal(learner.components_, before)


def test_missing_entries_count_for_nothing(loss, X):
    missing = np.random.default_rng(0).random(X.shape) < 0.1
    gaps = np.where(missing, np.nan, X)
    learner = make(loss, dict_init="data").fit(gaps)
    filled = learner.inverse_transform(learner.transform(gaps))
    assert np.isfinite(filled).all()
    assert filled.min() >= 0
    assert np.isfinite(learner.score(gaps))


# ---------------------------------------------------------------------------- sources


def test_a_large_sparse_array_is_never_dense(monkeypatch):
    """An epoch, codes and the score make arrays of some rows only."""
    rng = np.random.default_rng(0)
    X = sparse.random_array((12_000, 300), density=0.02, random_state=0, format="csr")
    X.data = rng.poisson(2, X.nnz) + 1.0
    largest = []

    class Watched(sparse.csr_array):
        def toarray(self, *args, **kwargs):
            largest.append(self.shape[0])
            return super().toarray(*args, **kwargs)

    learner = make(
        "poisson", n_components=5, n_unfoldings=2, max_iter=1, dict_init="data"
    )
    # an eighth of it
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", X.shape[0] * X.shape[1])
    monkeypatch.setattr(sparse, "csr_array", Watched)
    learner.fit(Watched(X)).transform(Watched(X))
    assert largest
    assert max(largest) <= 8192


# ---------------------------------------------------------------------------- exposure


@pytest.fixture
def counts():
    """Return counts of samples that were observed for different times, and these."""
    rng = np.random.default_rng(0)
    exposure = rng.uniform(0.3, 3, 300)
    _, atoms, codes = make_counts("poisson")
    return rng.poisson(exposure[:, None] * np.exp(codes @ atoms + 1)).astype(
        float
    ), exposure


def test_exposures_explain_what_is_proportional_to_them(counts):
    X, exposure = counts
    learner = make("poisson", max_iter=10).fit(X, exposure=exposure)
    without = make("poisson", max_iter=10).fit(X)
    assert learner.intercept_.mean() == pytest.approx(1, abs=0.3)
    codes = learner.transform(X, exposure=exposure)
    assert (codes != 0).mean() < (without.transform(X) != 0).mean()
    np.testing.assert_array_equal(
        clone(learner).fit_transform(X, exposure=exposure), codes
    )
    sparsely = sparse.csr_array(X)
    np.testing.assert_allclose(
        learner.transform(sparsely, exposure=exposure), codes, rtol=0, atol=1e-10
    )
    expected = learner.score(X, exposure=exposure)
    assert learner.score(sparsely, exposure=exposure) == pytest.approx(
        expected, rel=1e-10
    )
    again = clone(learner).fit(sparsely, exposure=exposure)
    np.testing.assert_allclose(
        again.components_, learner.components_, rtol=0, atol=1e-8
    )


def test_exposures_have_a_unit(counts):
    """Twice all of them is another baseline, and nothing else."""
    X, exposure = counts
    learner = make("poisson", dict_init="data").fit(X, exposure=exposure)
    double = make("poisson", dict_init="data").fit(X, exposure=2 * exposure)
    np.testing.assert_allclose(
        double.components_, learner.components_, rtol=0, atol=1e-2
    )
    np.testing.assert_allclose(
        double.intercept_, learner.intercept_ - np.log(2), rtol=0, atol=2e-2
    )
    learner.intercept_ = learner.intercept_ - np.log(2)
    codes = learner.transform(X, exposure=2 * exposure)
    learner.intercept_ = learner.intercept_ + np.log(2)
    np.testing.assert_allclose(
        codes, learner.transform(X, exposure=exposure), rtol=0, atol=1e-10
    )


@pytest.mark.filterwarnings("ignore:All codes of .* are zero:UserWarning")
def test_null_deviance_is_of_rates(counts):
    X, exposure = counts
    learner = make("poisson", alpha=1e6, dict_init="data", max_iter=1).fit(
        X, exposure=exposure
    )
    rates = X.sum(0) / exposure.sum()
    learner.intercept_ = np.log(rates)
    assert learner.score(X, exposure=exposure) == pytest.approx(0, abs=1e-12)


def test_exposures_are_positive_numbers_one_for_each_sample(counts):
    X, exposure = counts
    learner = make("poisson", max_iter=1, dict_init="data").fit(X, exposure=exposure)
    new = make("poisson", dict_init="data")
    values = [
        np.ones(5),
        np.zeros(300),
        np.full(300, np.nan),
        np.ones((300, 1)),
        2.0,
        ["a"] * 300,
    ]
    calls = (
        new.fit,
        new.partial_fit,
        learner.transform,
        learner.score,
        learner.transform_sparse,
    )
    for use, wrong in product(calls, values):
        words = "each of the 300 rows|contains NaN|at least 1 dimension|convert string"
        with pytest.raises((TypeError, ValueError), match=words):
            use(X, exposure=wrong)


def test_exposures_are_for_counts_without_a_limit(counts):
    X, exposure = np.minimum(counts[0], N_TRIALS), counts[1]
    learner = make("binomial", max_iter=1).fit(X)
    new, of_codes = (
        make("binomial"),
        (learner.transform, learner.score, learner.transform_sparse),
    )
    for use in (new.fit, new.partial_fit, new.fit_transform, *of_codes):
        with pytest.raises(ValueError, match="exposure is for counts without a limit"):
            use(X, exposure=exposure)


# ---------------------------------------------------------------------------- a life


def test_given_atoms_have_a_baseline(X):
    with pytest.raises(
        ValueError, match="Counts have a baseline.*pass it as intercept"
    ):
        CountDictionaryLearning.from_components(np.eye(10), alpha=1.0)
    for wrong in (np.zeros(9), np.zeros((2, 10)), np.full(10, np.nan), "text"):
        with pytest.raises(ValueError, match="intercept|'text'"):
            CountDictionaryLearning.from_components(
                np.eye(10), alpha=1.0, intercept=wrong
            )


def test_partial_fit_goes_on(loss, X):
    learner = make(loss, dict_init="data")
    for _ in range(6):
        for rows in (X[:150], X[150:]):
            learner.partial_fit(rows)
    assert learner.loss_curve_[-1] < learner.loss_curve_[0]


@pytest.mark.parametrize("n_samples", [40, 77, 200])
def test_the_score_of_constant_counts_is_zero(n_samples):
    """Nothing is left to predict; the deviance from the means is their sums' rounding."""
    X = np.tile([3.0, 2.0, 1.0, 2.0, 1.0], (n_samples, 1))
    learner = CountDictionaryLearning(3, alpha=1.0, random_state=0).fit(X)
    assert learner.score(X) == 0


def test_all_of_many_atoms_are_within_the_constraints():
    """Also where the optimiser takes several blocks of atoms, and the baseline is in the last."""
    X = np.random.default_rng(0).poisson(2.0, size=(130, 10))
    how = dict(
        dict_init="random", positive_dict=True, max_iter=1, tol=None, random_state=0
    )
    atoms = CountDictionaryLearning(130, **how).fit(X).components_
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    assert atoms.min() >= 0
