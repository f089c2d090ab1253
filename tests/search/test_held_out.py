"""Rows and pixels that are hidden, and rows that a search does not see."""

from math import ceil

import pytest
import torch
from two_processes import in_two_processes

from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, auto_alpha
from skpudle.search._conv_epoch import ConvProblem, conv_codes
from skpudle.search._held_out import (
    HeldOut,
    HiddenPixels,
    best_shares,
    hide_in_turn,
    hold_out,
    match_equal_rows,
)


def planted(n, m=16, p=20, n_nonzero=3, *, noise=0.1, positive=False, seed=0):
    """Return rows of few atoms with noise, and the atoms."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(generator=generator, dtype=torch.float64)
    truth = torch.randn(p, m, **options)
    truth = project_atoms(truth.abs() if positive else truth)
    values = torch.rand(n, n_nonzero, **options) + 0.5
    if not positive:
        values *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    supports = torch.rand(n, p, generator=generator).topk(n_nonzero).indices
    codes = torch.zeros(n, p, dtype=torch.float64).scatter_(1, supports, values)
    return codes @ truth + noise * torch.randn(n, m, **options), truth


def gaps_in(x, share=0.2):
    return (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= share).double()


# ---------------------------------------------------------------------------- hidden entries


def naive_sums(problem, n_codings, atoms, alpha):
    """Return what `HeldOut.sums` does, by a loop over rows of which one group is hidden."""
    x, known = problem.x, problem.mask
    known = torch.ones_like(x) if known is None else known
    turns = hide_in_turn(match_equal_rows(x.mT, known.mT))
    n_turns = max(1, min(len(turns), ceil(n_codings / len(x))))
    sums, entries, n_hidden, n = torch.zeros(len(x), 3).double(), torch.zeros(2), 0.0, 0
    for i, (_, hidden) in enumerate(turns):
        seen = [j for j in range(x.shape[1]) if j not in hidden]
        for k, (row, there) in enumerate(zip(x, known, strict=True)):
            if (k + i) % len(turns) >= n_turns:
                continue
            options = dict(positive=problem.positive_code, mask=there[seen][None], certify=False)
            lasso, refit = (
                solve_lasso(atoms[:, seen], row[seen][None], alpha, debias=debias, **options)[0][0]
                for debias in (0, 1)
            )
            error = there[hidden] * (row[hidden] - lasso @ atoms[:, hidden])
            step = there[hidden] * ((refit - lasso) @ atoms[:, hidden])
            sums[k] += torch.stack([error @ error, error @ step, step @ step])
            entries += torch.tensor([(lasso != 0).sum(), (refit != 0).sum()])
            n_hidden, n = n_hidden + float(there[hidden].sum()), n + 1
    return sums, entries / n, n_hidden


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
    held_out, alphas = HeldOut(problem, n_codings=n_codings), [0.4, 0.1]
    sums, entries, n_hidden = held_out.sums(atoms, alphas)
    for i, alpha in enumerate(alphas):
        expected = naive_sums(problem, n_codings, atoms, alpha)
        torch.testing.assert_close(sums[i], expected[0], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(entries[i].float(), expected[1])
        assert n_hidden == expected[2]


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
@pytest.mark.parametrize("place", [None, -9, 0, 3])
def test_a_prediction_is_the_best_of_all_penalties(place, noise):
    x, truth = planted(100, noise=noise)
    held_out = HeldOut(Problem(x, auto_alpha(x)))
    found = held_out.predict(truth, place)
    places = range(held_out.places[1], held_out.places[0] - 1, -1)
    alphas = [held_out.alpha * 2 ** (0.5 * i) for i in places]
    errors, shares = best_shares(held_out.sums(truth, alphas)[0].sum(1))
    best = int(errors.argmin())
    assert found.place == places[best]
    assert found.total == pytest.approx(float(errors[best]), rel=1e-9)
    assert found.share == pytest.approx(float(shares[best]), abs=1e-6)
    assert found.total == pytest.approx(float(found.errors.sum()), rel=1e-9)


@pytest.mark.parametrize("gaps", [False, True])
def test_the_noise_is_that_of_rows_whose_atoms_are_known(gaps):
    x, truth = planted(2000, 40, 12, noise=0.05)
    held_out = HeldOut(Problem(x, 0.2, mask=gaps_in(x, 0.1) if gaps else None))
    assert held_out.noise(truth, 0.2, 1.0) == pytest.approx(0.0025, rel=0.1)


@pytest.mark.parametrize("n_first", [0, 30])
def test_two_processes_have_the_sums_of_one(n_first):
    """One of them may have no rows."""
    x, truth = planted(80)
    whole = HeldOut(Problem(x, 0.2), n_codings=200)
    expected = whole.sums(truth, [0.3, 0.2]), whole.predict(truth)

    def run(rank, total):
        held_out = HeldOut(Problem((x[:n_first], x[n_first:])[rank], 0.2, total=total))
        held_out = HeldOut(held_out.problem, n_codings=200)
        numbers = held_out.n_rows, held_out.n_known, held_out.mean_square
        noise = held_out.noise(truth, 0.2, 1.0)
        return held_out.sums(truth, [0.3, 0.2]), held_out.predict(truth), numbers, noise

    found = in_two_processes(run)
    sums = torch.cat([one[0][0] for one in found], 1)
    torch.testing.assert_close(sums, expected[0][0], rtol=1e-9, atol=1e-12)
    errors = torch.cat([one[1].errors for one in found])
    torch.testing.assert_close(errors, expected[1].errors)
    for (_, entries, n_hidden), prediction, numbers, noise in found:
        torch.testing.assert_close(entries, expected[0][1])
        assert n_hidden == expected[0][2]
        assert prediction[1:] == pytest.approx(expected[1][1:])
        assert numbers == pytest.approx((whole.n_rows, whole.n_known, whole.mean_square))
        assert noise == pytest.approx(whole.noise(truth, 0.2, 1.0))


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
    return ConvProblem(x, (3, 3), (1, 1), 0.3, positive, mask=mask), atoms


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_sums_of_pixels_are_those_of_turns_one_by_one(masked, positive):
    """Codes along the path end at a thousandth of the penalty."""
    problem, atoms = pictures(masked=masked, positive=positive)
    held_out, alphas = HiddenPixels(problem), [0.4, 0.2]
    sums, entries, n_hidden = held_out.sums(atoms, alphas)
    x, known = held_out.x, held_out.known
    turns = held_out._hidden
    assert n_hidden == sum(float(hidden.sum()) for hidden in turns)
    assert float(sum(turns).max()) == 1  # a pixel is hidden in one turn
    assert all(0.05 < float(hidden.sum() / known.sum()) < 0.15 for hidden in turns)
    for found, n_entries, alpha in zip(sums, entries, alphas, strict=True):
        expected, n_expected = torch.zeros(3).double(), torch.zeros(2).double()
        for hidden in turns:
            options = dict(alpha=alpha, positive_code=positive, mask=known - hidden)
            codes = [
                conv_codes(ConvDictionary(atoms, 1), x, debias=d, **options)[0] for d in (0, 1)
            ]
            lasso, refit = (ConvDictionary(atoms, 1).synthesis(z) * hidden for z in codes)
            error, step = x * hidden - lasso, refit - lasso
            pairs = (error, error), (error, step), (step, step)
            expected += torch.stack([(a * b).sum() for a, b in pairs])
            n_expected += torch.stack([(z != 0).sum() for z in codes]) / len(x) / len(turns)
        torch.testing.assert_close(found.sum(0), expected, rtol=0.03, atol=1e-3)
        torch.testing.assert_close(n_entries, n_expected, rtol=0.1, atol=0.0)


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
        len(problem.held_out.x) == int(problem.held_rows.sum()) == max(n // 10, n // 4 * (n < 400))
    )


@pytest.mark.parametrize("kind", ["zeros", "few rows", "unknown"])
def test_of_few_rows_with_copies_none_is_held_out(kind):
    x = planted(40)[0]
    x = torch.zeros_like(x) if kind == "zeros" else x
    x = x[:19].repeat(20, 1) if kind == "few rows" else x
    mask = torch.zeros_like(x) if kind == "unknown" else None
    assert hold_out(Problem(x, 0.1, mask=mask)).held_out is None
