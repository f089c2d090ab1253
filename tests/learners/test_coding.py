"""The penalty of codes, and the bias to remove, come from the data."""

import pickle
from itertools import count

import numpy as np
import pytest
import torch

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle._learners import coding
from skpudle._learners.online import held_back
from skpudle.lasso import solve_lasso
from skpudle.operators import ConvDictionary
from skpudle.search import (
    ConvProblem,
    Problem,
    conv_codes,
    conv_path,
    group_features,
    match_equal_rows,
    search,
)


def noisy_sums(level, n=400, m=20, p=25, k=2):
    """Return clean and noisy sums of two of 25 atoms, and the atoms."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((p, m))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((n, p))
    for row in codes:
        row[rng.choice(p, k, replace=False)] = rng.uniform(0.5, 1.5, k) * rng.choice([-1, 1], k)
    clean = codes @ atoms
    return clean, clean + level * clean.std() * rng.standard_normal(clean.shape), atoms


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
    assert learner.noise_std_ == pytest.approx((X - clean).std(), rel=0.3)  # atoms fit some


@pytest.mark.parametrize("loud", [0, 1])
@pytest.mark.parametrize("period", [2, 4])
def test_a_number_of_codes_is_met_where_channels_are_interleaved(period, loud):
    _, X, atoms = noisy_sums(0.1, n=8000)
    X[np.arange(8000) % period != loud] *= 0.01
    learner = PUDLEDictionaryLearning.from_components(atoms, alpha=0.1).set_params(alpha="auto")
    for l0 in (0.5, 2):
        found = np.count_nonzero(learner.choose_alpha(X, l0=l0).transform(X)) / len(X)
        assert found == pytest.approx(l0, rel=0.1)  # codes of 2000 rows are counted


def test_a_number_of_codes_that_is_not_met_is_told():
    """Rows of one entry have one code or none, all at the same penalty."""
    X = np.tile(np.eye(8), (25, 1))
    learner = PUDLEDictionaryLearning.from_components(np.eye(8), alpha=0.1)
    with pytest.warns(UserWarning, match="Rows have 1 codes on average instead of l0=0.5: their"):
        learner.choose_alpha(X, l0=0.5)
    X *= np.linspace(1, 2, 200)[:, None]
    found = np.count_nonzero(learner.choose_alpha(X, l0=0.5).transform(X)) / 200
    assert found == pytest.approx(0.5, abs=1 / 200)


@pytest.mark.parametrize("copies", [1, 2, 30])
@pytest.mark.parametrize("gaps", [False, True])
def test_atoms_that_predict_rows_have_not_seen_copies_of_them(copies, gaps, monkeypatch):
    _, X, atoms = noisy_sums(0.1, n=300)
    x = torch.from_numpy(np.tile(X, (copies, 1)))
    mask = None
    if gaps:
        mask = torch.rand(300, 20, generator=torch.Generator().manual_seed(0)) < 0.9
        mask = mask.double().tile(copies, 1)
    problem, seen = Problem(x, 0.1, mask=mask), []
    state = search(problem, torch.from_numpy(atoms))

    def without(problem, atoms, codes, kept, *, unbiased):
        seen.append(problem.of_rows(kept).x)
        return atoms

    monkeypatch.setattr(coding, "without_rows", without)
    rows = coding.hidden_entries(problem)
    folds = rows.unseen(problem, state.stride, *state.found, unbiased=True)
    assert len(seen) == len(folds)
    for i, there in enumerate(seen):
        both = torch.cat([rows.x[i :: len(folds)], there])
        first = match_equal_rows(both)[len(both) - len(there) :]
        assert (first >= len(both) - len(there)).all()
        assert 0.3 * len(problem.x) <= len(there) * state.stride < len(problem.x)


@pytest.mark.parametrize("copies", [1, 3, 20])
def test_rows_that_are_held_back_have_no_copies_among_the_rest(copies):
    x = torch.from_numpy(np.repeat(noisy_sums(0.1, n=120)[1], copies, axis=0))
    rest, judges = held_back(Problem(x, 0.1))
    assert len(judges.x) == 12
    assert len(rest.x) == 108 * copies
    assert len(match_equal_rows(torch.cat([judges.x, rest.x])).unique()) == 120


@pytest.mark.parametrize("gaps", [False, True])
def test_codes_of_features_with_copies_are_as_sparse_as_without(noisy, gaps):
    """Visible copies tell the noise, and codes of that have eight times as many entries."""
    _, X, atoms = noisy
    x, atoms, mask = torch.from_numpy(X[:100]), torch.from_numpy(atoms), None  # all are judges
    if gaps:
        mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.9
        mask = mask.double()
    one = coding.choose_coding(Problem(x, 0.1, mask=mask), atoms).chosen
    mask = None if mask is None else mask.tile(4)
    four = coding.choose_coding(Problem(x.tile(4), 0.2, mask=mask), atoms.tile(4) / 2).chosen
    assert four.n_entries < 2 * one.n_entries


def test_nothing_predicts_a_feature_from_its_copies():
    """Of copies of one feature the penalty is the search's."""
    x = np.random.default_rng(0).standard_normal((100, 1)).repeat(5, axis=1)
    learner = PUDLEDictionaryLearning(3, random_state=0).fit(x)
    assert learner.alpha_ == learner.search_alpha_


def test_errors_along_a_path_are_errors_of_predictions_one_by_one(noisy):
    """The same by a loop over groups, rows and penalties."""
    _, X, atoms = noisy
    atoms, x = torch.from_numpy(atoms), torch.from_numpy(X)
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.9).double()
    problem = Problem(x, 0.1, mask=mask)
    rows = coding._Rows(problem.x, problem.mask, positive=False, total=problem.total)
    path = coding._path(atoms, rows, 0.1, None)
    for found in path.codings[::4]:
        error = 0.0
        for hidden in group_features(rows.copies, 10):
            seen = np.setdiff1d(np.arange(x.shape[1]), hidden)
            for row, known in zip(rows.x, rows.known, strict=True):
                options = dict(debias=found.debias, mask=known[seen][None], certify=False)
                z, _ = solve_lasso(atoms[:, seen], row[seen][None], found.alpha, **options)
                left = (row[hidden] - z[0] @ atoms[:, hidden]) * known[hidden]
                error += float(left.square().sum())
        assert found.error == pytest.approx(error / float(rows.known.sum()), rel=1e-9)
    assert path.chosen.error <= path.limit
    assert all(c.error > path.limit for c in path.codings if c.alpha > path.chosen.alpha)


def test_rows_of_wide_data_have_some_groups_held_out():
    """400 features: of each of 100 rows two fifths, which make up for the others."""
    _, X, atoms = noisy_sums(0.1, n=100, m=400, p=12)
    x, atoms = torch.from_numpy(X), torch.from_numpy(atoms)
    rows = coding.hidden_entries(Problem(x, 0.2))
    ((sums, entries),) = rows.hidden_sums(atoms, [0.2])
    error, n_hidden, n_codes = 0.0, 0, 0
    for i, hidden in enumerate(group_features(rows.copies, 5)):
        seen = np.setdiff1d(np.arange(400), hidden)
        chosen = x[(torch.arange(100) + i) % 5 < 2]
        z, _ = solve_lasso(atoms[:, seen], chosen[:, seen], 0.2, certify=False)
        error += float((chosen[:, hidden] - z @ atoms[:, hidden]).square().sum())
        n_hidden += len(chosen) * len(hidden)
        n_codes += int((z != 0).sum())
    assert n_hidden == 0.4 * x.numel()
    assert float(sums[0]) / rows.n_known == pytest.approx(error / n_hidden, rel=1e-9)
    assert float(entries[0]) / rows.n_rows == pytest.approx(n_codes / 200)


def test_folds_are_judged_by_their_own_atoms(noisy):
    _, X, atoms = noisy
    atoms = torch.from_numpy(atoms)
    folds = torch.stack([atoms, atoms.flip(1), atoms.roll(1, 1)])
    options = dict(positive=False, total=Problem(atoms, 1.0).total)
    rows = coding._Rows(torch.from_numpy(X), None, **options)
    together = [sums for sums, _ in rows.hidden_sums(folds, [0.4, 0.2])]
    apart = torch.zeros(2, 3, dtype=torch.float64)
    for i, fold in enumerate(folds):
        part = coding._Rows(rows.x[i::3], None, **options)
        apart += torch.stack([sums for sums, _ in part.hidden_sums(fold, [0.4, 0.2])])
    torch.testing.assert_close(torch.stack(together), apart)


def test_a_path_may_end_where_it_would_choose_far_less():
    """And then it is the beginning of the whole one."""
    _, X, atoms = noisy_sums(0.01)
    problem, atoms = Problem(torch.from_numpy(X), 1.0), torch.from_numpy(atoms)
    rows = coding._Rows(problem.x, None, positive=False, total=problem.total)
    whole = coding._path(atoms, rows, 1.0, None)
    part = coding._path(atoms, rows, 1.0, None, far=0.5)
    assert whole.chosen.alpha < 0.5
    assert part.chosen.alpha < 0.5
    assert part.noise_std is None
    assert set(part.codings) < set(whole.codings)


def test_atoms_that_judge_have_not_seen_what_they_judge():
    """Of noise alone, atoms that were fitted to its rows predict what they hide; others do not."""
    X = np.random.default_rng(0).standard_normal((150, 20))
    learner = PUDLEDictionaryLearning(30, alpha=0.5, random_state=0).fit(X)
    problem = Problem(torch.from_numpy(X), 0.5)
    atoms = torch.from_numpy(learner.components_)
    rows = coding.hidden_entries(problem)
    codes = problem.epoch(atoms, problem.no_codes()).codes
    unseen = rows.unseen(problem, 1, atoms, codes, unbiased=False)
    assert len(unseen) == 3  # folds, as all rows judge
    options = dict(alphas=[0.5], debias=0.0)
    (seen,), (honest,) = (list(coding._codings(a, rows, **options)) for a in (atoms, unseen))
    assert seen.error < 0.9 * rows.mean_square
    assert honest.error > 0.97 * rows.mean_square


def test_much_noise_wants_a_larger_penalty_than_the_search():
    clean, X, _ = noisy_sums(0.6)
    learner = PUDLEDictionaryLearning(25, random_state=0).fit(X)
    lasso = PUDLEDictionaryLearning(25, alpha=learner.search_alpha_, random_state=0).fit(X)
    errors = [
        np.square(m.inverse_transform(m.transform(X)) - clean).sum() for m in (learner, lasso)
    ]
    assert learner.alpha_ > 1.4 * learner.search_alpha_
    assert errors[0] < 0.9 * errors[1]


def test_no_other_share_of_the_bias_predicts_better(noisy):
    _, X, atoms = noisy
    problem = Problem(torch.from_numpy(X), 0.1)
    free = coding.choose_coding(problem, torch.from_numpy(atoms))
    for debias in (0.0, 0.5, 1.0):
        fixed = coding.choose_coding(problem, torch.from_numpy(atoms), debias=debias)
        errors = {found.alpha: found.error for found in fixed.codings}
        for found in free.codings:
            assert found.error <= errors.get(found.alpha, np.inf) * (1 + 1e-9)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_the_unit_of_the_data_is_the_unit_of_penalty_and_noise(scale):
    _, X, _ = noisy_sums(0.1)
    one, other = (PUDLEDictionaryLearning(25, random_state=0).fit(c * X) for c in (1.0, scale))
    for name in ("alpha_", "noise_std_", "search_alpha_"):
        assert getattr(other, name) == pytest.approx(scale * getattr(one, name), rel=1e-9)
    assert other.debias_ == pytest.approx(one.debias_, rel=1e-9)


def test_a_number_for_alpha_is_kept_and_means_the_lasso():
    _, X, _ = noisy_sums(0.1)
    learner = PUDLEDictionaryLearning(25, alpha=0.2, random_state=0).fit(X)
    assert learner.alpha_ == learner.search_alpha_ == 0.2
    assert learner.debias_ == 0
    expected, _ = solve_lasso(torch.from_numpy(learner.components_), torch.from_numpy(X), 0.2)
    np.testing.assert_array_equal(learner.transform(X), expected)
    learner.set_params(debias=1)
    expected, _ = solve_lasso(
        torch.from_numpy(learner.components_), torch.from_numpy(X), 0.2, debias=1
    )
    np.testing.assert_array_equal(learner.transform(X), expected)


@pytest.mark.parametrize("debias", [0, 0.5, True])
def test_a_share_that_is_given_is_kept(debias):
    _, X, _ = noisy_sums(0.1)
    learner = PUDLEDictionaryLearning(25, debias=debias, random_state=0).fit(X)
    assert learner.debias_ == float(debias)
    expected, _ = solve_lasso(
        torch.from_numpy(learner.components_),
        torch.from_numpy(X),
        learner.alpha_,
        debias=float(debias),
    )
    np.testing.assert_allclose(learner.transform(X), expected, rtol=0, atol=1e-12)


def test_features_that_do_not_predict_each_other_leave_the_penalty_of_the_search():
    X = np.random.default_rng(0).standard_normal((200, 6))
    learner = PUDLEDictionaryLearning(6, random_state=0).fit(X)
    assert learner.alpha_ == learner.search_alpha_
    assert learner.debias_ == 0


def test_codes_keep_their_penalty_in_a_pickle_and_in_partial_fit():
    _, X, _ = noisy_sums(0.1)
    learner = PUDLEDictionaryLearning(25, random_state=0).fit(X)
    copy = pickle.loads(pickle.dumps(learner))
    np.testing.assert_array_equal(copy.transform(X), learner.transform(X))
    before = learner.alpha_, learner.debias_, learner.noise_std_
    learner.partial_fit(X[:50])
    assert (learner.alpha_, learner.debias_, learner.noise_std_) == before


def test_atoms_follow_codes_with_a_far_smaller_penalty():
    """Dense non-negative codes with little noise: the search's penalty bends the atoms."""
    rng = np.random.default_rng(0)
    atoms = np.abs(rng.standard_normal((4, 40)))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    clean = rng.gamma(1.0, size=(300, 4)) * (rng.uniform(size=(300, 4)) < 0.6) @ atoms
    X = clean + 0.001 * rng.standard_normal(clean.shape)
    learner = PUDLEDictionaryLearning(4, positive_code=True, random_state=0).fit(X)
    found = learner.inverse_transform(learner.transform(X))
    assert learner.alpha_ < 0.5 * learner.search_alpha_
    assert ((found - clean) ** 2).sum() < 0.5 * ((X - clean) ** 2).sum()


@pytest.mark.parametrize("denser", [1.5, 3])
def test_atoms_stay_where_a_smaller_penalty_uses_many_more_of_them(denser, monkeypatch):
    """These codes are heavy-tailed: with the better penalty they have twice the entries."""
    monkeypatch.setattr(coding, "_DENSER", denser)
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((20, 40))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    X = (rng.standard_normal((400, 20)) ** 5) @ atoms
    X += 1e-4 * np.linalg.norm(X, axis=1).mean() * rng.standard_normal(X.shape)
    learner = PUDLEDictionaryLearning(20, random_state=0).fit(X)
    plain = PUDLEDictionaryLearning(20, alpha=learner.search_alpha_, random_state=0).fit(X)
    assert learner.alpha_ < 0.5 * learner.search_alpha_
    assert np.array_equal(learner.components_, plain.components_) == (denser < 2)


def test_codes_along_a_path_of_images_are_those_of_each_penalty():
    generator = torch.Generator().manual_seed(0)
    options = dict(generator=generator, dtype=torch.float64)
    atoms = torch.nn.functional.normalize(torch.randn(2, 1, 3, 3, **options).flatten(1))
    atoms, x = atoms.view(2, 1, 3, 3), torch.randn(2, 1, 12, 12, **options)
    mask = (torch.rand(x.shape, generator=generator) < 0.8).double()
    problem = ConvProblem(x, (3, 3), (1, 1), 1.0, mask=mask)
    alphas = (2.0 * 0.5**i for i in count())  # without an end
    for alpha, (codes, refits) in zip([2.0, 1.0, 0.5], conv_path(problem, atoms, alphas)):
        for share, found in ((0.0, codes), (1.0, refits)):
            options = dict(alpha=alpha, debias=share, mask=mask)
            expected, solved = conv_codes(ConvDictionary(atoms, 1), x, **options)
            assert solved.all()
            torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * alpha)


def test_images_are_reconstructed_nearer_to_the_truth_than_they_come():
    rng = np.random.default_rng(0)
    atoms = torch.nn.functional.normalize(
        torch.from_numpy(rng.standard_normal((2, 25))), dim=1
    ).reshape(2, 1, 5, 5)
    codes = (rng.uniform(size=(4, 2, 28, 28)) < 0.01) * rng.uniform(0.5, 1.5, (4, 2, 28, 28))
    clean = ConvDictionary(atoms, 1).synthesis(torch.from_numpy(codes))[:, 0].numpy()
    X = clean + 0.1 * clean.std() * rng.standard_normal(clean.shape)
    options = dict(atom_shape=(5, 5), stride=1, random_state=0)
    learner = ConvPUDLEDictionaryLearning(2, **options).fit(X[:3])
    found = learner.inverse_transform(learner.transform(X[3:]))
    assert ((found - clean[3:]) ** 2).sum() < 0.6 * ((X[3:] - clean[3:]) ** 2).sum()
    unbiased = ConvPUDLEDictionaryLearning(2, alpha=learner.search_alpha_, debias=1.0, **options)
    unbiased.fit(X[:3])  # codes, but not atoms
    assert unbiased.search_alpha_ == learner.search_alpha_
    rebuilt = unbiased.inverse_transform(unbiased.transform(X[3:]))
    assert ((rebuilt - clean[3:]) ** 2).sum() > ((found - clean[3:]) ** 2).sum()
    lasso = learner.set_params(debias=0.0)
    biased = lasso.inverse_transform(lasso.transform(X[3:]))
    assert ((biased - clean[3:]) ** 2).sum() > ((found - clean[3:]) ** 2).sum()


def test_the_penalty_falls_while_the_deviance_does():
    deviances = {1.0: 10.0, 0.5: 8.0, 0.25: 7.95, 0.125: 1.0}
    assert coding.smaller_penalty(deviances.get, 1.0) == 0.5
    assert coding.smaller_penalty(lambda alpha: alpha, 1.0) == 2.0**-4
    assert coding.smaller_penalty(lambda alpha: 1.0, 1.0) == 1.0
    assert coding.smaller_penalty(lambda alpha: np.nan, 1.0) == 1.0


@pytest.mark.parametrize("with_exposure", [False, True])
def test_the_penalty_of_counts_is_that_with_the_better_score(with_exposure):
    """The same by the learner's score, which hides the same features."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((12, 15))
    codes = (rng.uniform(size=(180, 12)) < 0.2) * rng.uniform(1.0, 2.0, (180, 12))
    exposure = rng.uniform(1.0, 30.0, 180) if with_exposure else None
    rates = np.exp(0.5 * codes @ atoms + 1.0) * (1.0 if exposure is None else exposure[:, None])
    X, given = rng.poisson(rates).astype(float), {"exposure": exposure} if with_exposure else {}
    learner = PUDLEDictionaryLearning(12, loss="poisson", random_state=0).fit(X, **given)
    chosen, largest = learner.alpha_, learner._training_state["alpha"]
    assert chosen < largest

    def unexplained(alpha):
        learner.alpha_ = alpha
        return 1 - learner.score(X, **given)

    assert chosen == coding.smaller_penalty(unexplained, largest)
