"""One score, one comparison: hidden entries, and data that a search does not see."""

from functools import partial
from math import ceil

import pytest
import torch
from planted import gaps_in, planted

from skpudle._compilation import blocks_of_rows
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, auto_alpha
from skpudle.search import held_out as held_out_module
from skpudle.search._conv_epoch import ConvProblem, conv_codes
from skpudle.search.find import find_atoms, goes_on, walk
from skpudle.search.held_out import (
    HeldOut,
    Prediction,
    best_shares,
    hide_in_turn,
    hold_out,
    match_equal_rows,
    worse,
)

planted = partial(planted, noise=0.1)
AS_IS = Prediction(
    torch.empty(0), 0.0, 0, 1.0
)  # the penalty of the data, least squares


# ---------------------------------------------------------------------------- hidden entries


def naive_sums(problem, n_codings, atoms, alpha):
    """Return the sums of `HeldOut`, by a loop over rows of which one group is hidden."""
    x, known = problem.x, problem.mask
    known = torch.ones_like(x) if known is None else known
    turns = hide_in_turn(match_equal_rows(x.mT, known.mT))
    n_turns = max(1, min(len(turns), ceil(n_codings / len(x))))
    sums, n_hidden = torch.zeros(len(x), 3).double(), 0.0
    for i, (_, hidden) in enumerate(turns):
        seen = [j for j in range(x.shape[1]) if j not in hidden]
        for k, (row, there) in enumerate(zip(x, known, strict=True)):
            if (k + i) % len(turns) >= n_turns:
                continue
            options = dict(
                positive=problem.positive_code, mask=there[seen][None], certify=False
            )
            lasso, refit = (
                solve_lasso(
                    atoms[:, seen], row[seen][None], alpha, debias=debias, **options
                )[0][0]
                for debias in (0, 1)
            )
            error = there[hidden] * (row[hidden] - lasso @ atoms[:, hidden])
            step = there[hidden] * ((refit - lasso) @ atoms[:, hidden])
            sums[k] += torch.stack([error @ error, error @ step, step @ step])
            n_hidden += float(there[hidden].sum())
    return sums, n_hidden


@pytest.mark.parametrize("n_codings", [20, 70, 1000])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
def test_sums_are_those_of_rows_and_groups_one_by_one(gaps, positive, n_codings):
    """Also of features with copies, which are hidden together."""
    x, truth = planted(30, positive=positive)
    of_copies = torch.tensor([*range(16), 3, 3, 7])
    x, atoms = x[:, of_copies], truth[:, of_copies]
    mask = gaps_in(x[:, :16])[:, of_copies] if gaps else None
    problem = Problem(x, 0.2, positive_code=positive, mask=mask)
    held_out, places = HeldOut(problem, n_codings=n_codings), [2, -2]
    for place, sums in zip(places, held_out.sums(atoms, places), strict=True):
        expected, n_hidden = naive_sums(
            problem, n_codings, atoms, 0.2 * 2 ** (place / 2)
        )
        torch.testing.assert_close(sums, expected, rtol=1e-7, atol=1e-9)
        assert held_out.n_hidden == n_hidden


@pytest.mark.parametrize("n_entries", [1, 100])
def test_few_entries_at_a_time_and_entries_that_are_remembered_change_nothing(
    n_entries, monkeypatch
):
    x, truth = planted(60)
    held_out = HeldOut(Problem(x, 0.2))
    expected = held_out.sums(truth, [1, 0, -1])
    other = held_out.sums(-truth, [0])
    torch.testing.assert_close(other[0], expected[1], rtol=1e-9, atol=1e-12)
    blocks = lambda n, width, most: blocks_of_rows(n, width, n_entries)  # noqa: E731
    monkeypatch.setattr(held_out_module, "blocks_of_rows", blocks)
    for found, sums in zip(held_out.sums(truth, [1, 0, -1]), expected, strict=True):
        torch.testing.assert_close(found, sums, rtol=1e-9, atol=1e-12)
    again = held_out.sums(truth, [0, -1])
    assert again[0] is held_out.sums(truth.clone(), [0])[0]


def test_energies_are_the_errors_of_zeros():
    x, truth = planted(50)
    held_out = HeldOut(Problem(x, 0.2, mask=gaps_in(x)), n_codings=120)
    (sums,) = held_out.sums(truth, [20])
    torch.testing.assert_close(held_out.zeros.errors, sums[:, 0])


def test_the_share_of_the_bias_is_the_best_of_a_line():
    generator = torch.Generator().manual_seed(0)
    error, step = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64)
    step[0] = 0
    pairs = (error, error), (error, step), (step, step)
    errors, shares = best_shares(torch.stack([(a * b).sum(1) for a, b in pairs], 1))
    torch.testing.assert_close(errors, (error - shares[:, None] * step).square().sum(1))
    for share in torch.linspace(0, 1, 21):
        assert (errors <= (error - share * step).square().sum(1) + 1e-12).all()
    assert set(shares.tolist()) >= {0.0, 1.0}
    assert ((shares > 0) & (shares < 1)).any()


@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.parametrize("place", [-20, -5, 0, 3])
def test_a_prediction_is_the_best_of_all_penalties(place, noise):
    x, truth = planted(100, noise=noise)
    held_out = HeldOut(Problem(x, auto_alpha(x)))
    found = held_out.predict(truth, place)
    places = range(held_out.places[1], held_out.places[0] - 1, -1)
    sums = torch.stack([sums.sum(0) for sums in held_out.sums(truth, places)])
    errors, shares = best_shares(sums)
    best = int(errors.argmin())
    assert found.place == places[best]
    assert found.total == pytest.approx(float(errors[best]), rel=1e-9)
    assert found.share == pytest.approx(float(shares[best]), abs=1e-6)
    assert found.total == pytest.approx(float(found.errors.sum()), rel=1e-9)


@pytest.mark.parametrize("gaps", [False, True])
def test_the_noise_is_that_of_rows_whose_atoms_are_known(gaps):
    x, truth = planted(2000, 40, 12, noise=0.05)
    held_out = HeldOut(Problem(x, 0.2, mask=gaps_in(x, 0.1) if gaps else None))
    assert held_out.noise(truth, AS_IS) == pytest.approx(0.0025, rel=0.1)


# ---------------------------------------------------------------------------- the comparison


def prediction(errors):
    errors = torch.as_tensor(errors, dtype=torch.float64)
    return Prediction(errors, float(errors.sum()))


def test_a_difference_is_chance_within_its_standard_errors():
    noise = torch.randn(
        400, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    noise = (noise - noise.mean()) / noise.std(correction=0)
    flat = prediction(torch.ones(400))
    for mean, n_errors in (
        (0.04, 0.8),
        (0.06, 1.2),
        (-0.04, 0.0),
    ):  # a standard error is 1 / 20
        one = prediction(1.0 + mean + noise)
        assert not worse(flat, one)
        assert worse(one, flat, 0.99 * n_errors) == (mean > 0)
        assert not worse(one, flat, 1.01 * n_errors)
    assert not worse(flat, flat, 0.0)


def test_a_walk_ends_after_predictions_that_fail_in_a_row():
    errors = [3.0, 2.0, 2.5, 1.0, 1.0, 2.0, 2.0, 0.0]
    spread = torch.linspace(0.5, 1.5, 100, dtype=torch.float64)

    def walked(**rule):
        def step(i):
            return i + 1 if i + 1 < len(errors) else None

        trials = walk(0, step, lambda i: prediction(errors[i] * spread), **rule)
        return [i for i, _ in trials]

    assert walked() == [0, 1, 2]  # 2.5 is worse than 2
    assert walked(patience=2) == [0, 1, 2, 3, 4, 5, 6]
    assert walked(patience=2, gains=True) == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]  # an equal one is no gain
    assert walked(patience=3) == list(range(8))
    assert walked(errors=1e9) == list(range(8))
    assert goes_on([prediction(spread)])


# ---------------------------------------------------------------------------- hidden pixels


def pictures(n=4, size=(14, 12), *, masked=False, positive=False):
    """Return a problem of small pictures, and its two atoms."""
    generator = torch.Generator().manual_seed(0)
    options = dict(generator=generator, dtype=torch.float64)
    atoms = project_atoms(torch.randn(2, 1, 3, 3, **options))
    maps = torch.rand(n, 2, size[0] - 2, size[1] - 2, **options)
    z = torch.where(maps > 0.9, 0.5 + maps, 0.0)
    x = ConvDictionary(atoms, 1).synthesis(z)
    x = x + 0.05 * torch.randn(x.shape, **options)
    mask = gaps_in(x, 0.1) if masked else None
    return ConvProblem(x, 0.3, positive, mask=mask, kernel=(3, 3)), atoms


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_sums_of_pixels_are_those_of_turns_one_by_one(masked, positive):
    """Codes along the path end at a thousandth of the penalty."""
    problem, atoms = pictures(masked=masked, positive=positive)
    held_out, places = HeldOut(problem), [1, -1]
    x, known = held_out.x, held_out.known
    turns = held_out._hidden
    assert held_out.n_hidden == sum(float(hidden.sum()) for hidden in turns)
    assert float(sum(turns).max()) == 1  # a pixel is hidden in one turn
    assert all(0.05 < float(hidden.sum() / known.sum()) < 0.15 for hidden in turns)
    for place, found in zip(places, held_out.sums(atoms, places), strict=True):
        alpha = problem.alpha * 2 ** (place / 2)
        expected = torch.zeros(3).double()
        for hidden in turns:
            options = dict(alpha=alpha, positive_code=positive, mask=known - hidden)
            codes = [
                conv_codes(ConvDictionary(atoms, 1), x, debias=d, **options)[0]
                for d in (0, 1)
            ]
            lasso, refit = (
                ConvDictionary(atoms, 1).synthesis(z) * hidden for z in codes
            )
            error, step = x * hidden - lasso, refit - lasso
            pairs = (error, error), (error, step), (step, step)
            expected += torch.stack([(a * b).sum() for a, b in pairs])
        torch.testing.assert_close(found.sum(0), expected, rtol=0.03, atol=1e-3)


def test_pixels_that_a_tile_hides_are_in_its_sum():
    problem, atoms = pictures()
    held_out = HeldOut(problem)
    hidden = sum(held_out._hidden)
    tiles = [
        (held_out.x * hidden)[i, :, row : row + 3, column : column + 3].square().sum()
        for i in range(4)
        for row in range(0, 14, 3)
        for column in range(0, 12, 3)
    ]
    torch.testing.assert_close(held_out.zeros.errors, torch.stack(tiles))
    (sums,) = held_out.sums(atoms, [20])
    torch.testing.assert_close(sums[:, 0], held_out.zeros.errors)


@pytest.mark.parametrize("n", [1, 3, 4, 40])
def test_images_are_held_out_where_there_are_four(n):
    problem = hold_out(pictures(n)[0])
    if n < 4:
        assert problem.held_rows is None
        assert len(problem.held_out.x) == n
        return
    n_held = int(problem.held_rows.sum())
    assert 1 <= n_held <= n / 4
    rest = problem.thinned(1, whole=False).x
    assert len(rest) == n - n_held
    first = match_equal_rows(torch.cat([rest, problem.x[problem.held_rows]]))
    assert torch.equal(first, torch.arange(n))


# ---------------------------------------------------------------------------- rows held out


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("copies", [1, 3, 20])
def test_no_copy_of_a_row_that_is_held_out_is_searched_in(copies, gaps, learn):
    x = planted(120)[0]
    mask = gaps_in(x).repeat(copies, 1) if gaps else None
    whole = Problem(x.repeat(copies, 1), 0.1, mask=mask)
    problem = hold_out(whole, learn=learn)
    rest = problem.thinned(1, whole=False)
    held = problem.held_out.problem
    assert len(rest.x) + len(held.x) == 120 * copies
    parts = torch.cat([rest.x, held.x])
    masks = torch.cat([rest.mask, held.mask]) if gaps else None
    first = match_equal_rows(parts, masks)
    assert (first[len(rest.x) :] >= len(rest.x)).all()
    assert len(first.unique()) == 120
    assert len(held.x) == 30 * copies
    assert (problem.thinned(1) is problem) or not learn
    assert len(problem.x) == (120 * copies if learn else len(rest.x))


@pytest.mark.parametrize("n", [0, 1, 19, 20, 100, 1000])
def test_a_tenth_of_the_rows_is_held_out_and_of_few_a_quarter(n):
    problem = hold_out(Problem(planted(1000)[0][:n], 0.1))
    if n < 20:
        assert problem.held_out is None
        return
    assert (
        len(problem.held_out.x)
        == int(problem.held_rows.sum())
        == max(n // 10, n // 4 * (n < 400))
    )


def test_rows_with_one_feature_predict_nothing():
    assert hold_out(Problem(planted(100)[0][:, :1], 0.1)).held_out is None


def test_all_rows_are_searched_in_at_last_and_the_rest_before():
    x, truth = planted(300, noise=0.5)
    problem = hold_out(Problem(x, auto_alpha(x)))
    rest = problem.x[~problem.held_rows]
    records = list(find_atoms(problem, truth))
    for found in records:
        searched = problem.x if found.stage in ("polish", "done") else rest
        assert torch.equal(found.coded.problem.x, searched)
    assert {"penalty", "polish"} <= {found.stage for found in records}


@pytest.mark.parametrize("kind", ["zeros", "few rows", "unknown"])
def test_of_few_rows_with_copies_none_is_held_out(kind):
    x = planted(40)[0]
    x = torch.zeros_like(x) if kind == "zeros" else x
    x = x[:19].repeat(20, 1) if kind == "few rows" else x
    mask = torch.zeros_like(x) if kind == "unknown" else None
    assert hold_out(Problem(x, 0.1, mask=mask)).held_out is None


@pytest.mark.parametrize("copies", [1, 3])
def test_folds_hold_out_different_rows(copies):
    x = planted(200)[0].repeat(copies, 1)
    problem = hold_out(Problem(x, 0.1))
    folds = [problem.held_rows, *(fold.held_rows for fold in problem.folds)]
    assert len(folds) == 3
    assert [int(rows.sum()) for rows in folds] == [50 * copies] * 3
    assert int(torch.stack(folds).sum(0).max()) == 1
    assert len(problem.held_out.zeros.errors) == 150 * copies


def test_each_fold_is_predicted_by_its_atoms():
    x, truth = planted(200)
    problem = hold_out(Problem(x, 0.1))
    parts = [truth, truth.flip(0), -truth]
    together = problem.held_out.at(problem.held_out.join(parts), 0, 0.0)
    pairs = zip(problem.held_out.folds, parts, strict=True)
    alone = [fold.at(atoms, 0, 0.0).errors for fold, atoms in pairs]
    torch.testing.assert_close(together.errors, torch.cat(alone))


@pytest.mark.parametrize(("n", "n_folds"), [(20, 3), (1000, 3), (1999, 2), (2500, 1)])
def test_many_rows_have_a_single_fold(n, n_folds):
    problem = hold_out(Problem(planted(2500)[0][:n], 0.1))
    assert 1 + len(problem.folds) == n_folds
    assert hold_out(Problem(planted(200)[0], 0.1), fixed=True).folds == ()
