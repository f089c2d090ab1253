from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import gaps_in, planted, share_found
from scipy.optimize import nnls

from skpudle import _rows
from skpudle._initialization import initial_atoms
from skpudle._rows import draw_rows, hide_in_turn, match_equal_rows, spread_rows
from skpudle._states import Held, Prediction
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, _epoch, auto_alpha, search
from skpudle.search._compiled import loops
from skpudle.search._epoch import Codes, Epoch
from skpudle.search.descend import (
    descend,
    exhaust,
    play_rounds,
    refit_atoms,
    settle,
    solve_codes,
)
from skpudle.search.find import find_atoms
from skpudle.search.stream import begin_stream


def start(x, p, seed=0):
    return initial_atoms(x, p, "data", torch.Generator().manual_seed(seed))


def record(steps):  # -> the result of a generator, and what it yields
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            return end.value, seen


def solved(
    atoms, x, alpha, *, positive=False, mask=None, banned=None, by_products=False
):
    """Return codes and objectives of `solve_rows`, solved to rounding."""
    n, p = len(x), len(atoms)
    codes, known = Codes.none(n), torch.ones_like(x) if mask is None else mask
    count, index, value = (
        np.zeros(n, np.int64),
        np.zeros(n * p, np.int32),
        np.zeros(n * p),
    )
    loss, size = np.zeros((2, n))
    options = alpha, positive, 1e-13 * alpha, 0.6, 10_000, False, 0.0, 0.0, 0, p
    for _ in range(60):
        results = *codes.arrays(), count, index, value, np.empty(0), loss, size
        residual = known * (x - codes.dense(p) @ atoms)
        slope = (residual @ atoms.mT).numpy()
        if banned is not None:
            slope[:, banned] = 0
        seen = np.empty((n, 0)) if mask is None else mask.numpy()
        gram = (atoms @ atoms.mT).numpy() if by_products else None
        given = atoms.numpy(), gram, seen, residual.numpy(), slope
        loops.solve_rows(*given, *options, *results)
        codes = Codes.joined(
            [(count, *(each[: count.sum()].copy() for each in (index, value)))]
        )
    return codes, torch.from_numpy(loss + alpha * size)


def objective(z, atoms, x, alpha, mask=1.0):
    return 0.5 * (mask * (x - z @ atoms)).square().sum() + alpha * z.abs().sum()


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("kind", ["residuals", "products", "masked"])
def test_rows_are_solved_as_the_lasso_is(kind, positive):
    x, atoms = planted(n=50)
    mask = gaps_in(x, 0.3) if kind == "masked" else None
    options = dict(positive=positive, mask=mask)
    codes, found = solved(atoms, x, 0.1, **options, by_products=kind == "products")
    z, expected = (
        codes.dense(20),
        solve_lasso(atoms, x, 0.1, **options, certify=False)[0],
    )
    torch.testing.assert_close(z, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.sum(), objective(z, atoms, x, 0.1, 1.0 if mask is None else mask)
    )


def improved_in_turn(x, z, atoms, sweeps):
    for _ in range(sweeps):
        for j in range(len(atoms)):
            rest = x - z @ atoms + z[:, j : j + 1] * atoms[j]
            atoms[j] = torch.nn.functional.normalize(z[:, j] @ rest, dim=0)
    return atoms


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_sweeps_make_each_atom_the_best_for_the_others(many, masked, monkeypatch):
    """Earlier rows that hold an atom are rows in which it is alone."""
    monkeypatch.setattr(_epoch, "MANY", 0 if many else 10**6)
    monkeypatch.setattr(_epoch, "_ATOMS", 8)
    x, atoms = planted()
    known = gaps_in(x, 0.2 if masked else 0) > 0
    problem = Problem(x, 0.1, mask=known.double() if masked else None)
    sweeps = 1 if many else 2

    def expected(z):
        return improved_in_turn(
            torch.where(known, x, z @ atoms), z, atoms.clone(), sweeps
        )

    epoch = problem.epoch(atoms, Codes.none(len(x)))
    z = epoch.codes.dense(20)
    torch.testing.assert_close(epoch.improved_atoms(), expected(z))
    energy, held = torch.arange(20.0, dtype=torch.float64), atoms.roll(1, dims=1)
    alone = energy.sqrt().diag()
    x = torch.cat([torch.where(known, x, z @ atoms), alone @ held])
    z = torch.cat([z, alone])
    found = epoch.improved_atoms(Held(held, energy, energy))
    torch.testing.assert_close(found, improved_in_turn(x, z, atoms.clone(), sweeps))


def test_many_atoms_have_the_epoch_of_few(monkeypatch):
    """Descent on residuals and among products of atoms are the same iteration."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    x, atoms = planted()
    epochs = []
    for many in (10**6, 0):
        monkeypatch.setattr(_epoch, "MANY", many)
        epochs.append(Problem(x, 0.1).epoch(atoms, Codes.none(len(x)), refit=True))
    few, many = epochs
    torch.testing.assert_close(many.codes.dense(20), few.codes.dense(20))
    for name in ("objective", "loss", "unbiased_loss", "n_entries"):
        assert getattr(many, name) == pytest.approx(getattr(few, name), rel=1e-12)
    for found, expected in zip(many.costs(), few.costs(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
def test_cost_of_a_removal_is_the_objective_without_the_atom(masked, monkeypatch):
    # all atoms but the one left out enter, and descent goes on
    monkeypatch.setattr(_epoch, "TOLERANCE", 1e-12 - 1)
    monkeypatch.setattr(_epoch, "MIN_FRACTION", 0.0)
    monkeypatch.setattr(_epoch, "SWEEPS_OF_COSTS", 300)
    x, atoms = planted(8, 10, 12, seed=2)
    mask = gaps_in(x) if masked else None
    codes, objectives = solved(atoms, x, 0.1, mask=mask)
    epoch = Problem(x, 0.1, mask=mask).epoch(atoms, codes)
    cost, heirs = epoch.costs()
    z = codes.dense(p := len(atoms))
    for j in range(p):
        without, others = solved(atoms, x, 0.1, banned=j, mask=mask)
        torch.testing.assert_close((others - objectives).sum(), cost[j])
        users = z[:, j] != 0
        change = (without.dense(p).abs() - z.abs())[users].sum(0)
        change[j] = -torch.inf
        torch.testing.assert_close(change[heirs[j]], change.topk(heirs.shape[1]).values)


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_has_the_sums_of_its_codes(
    weighted, masked, refit, positive, monkeypatch
):
    """Refits are (non-negative) least squares on the supports."""
    monkeypatch.setattr(_epoch, "_REFIT_TOLERANCE", 1e-12)
    monkeypatch.setattr(_epoch, "SWEEPS_OF_REFITS", 10_000)
    x, atoms = planted(n=50, positive=positive, noise=0.3 if positive else 0.02)
    known, weight = (
        gaps_in(x, 0.2 if masked else 0),
        torch.ones(50, dtype=torch.float64),
    )
    if weighted:
        weight = weight.mul(2).sub(gaps_in(weight, 0.5)).mul(0.7)
    given = dict(mask=known if masked else None, weight=weight if weighted else None)
    epoch = Epoch(
        Problem(x, 0.1, positive, **given), atoms, Codes.none(50), refit=refit
    )
    z = epoch.codes.dense(len(atoms))

    def losses(atoms):
        return 0.5 * (known * (x - z @ atoms)).square().sum(1)

    expected = float(weight @ (losses(atoms) + 0.1 * z.abs().sum(1)))
    assert epoch.objective == pytest.approx(expected, rel=1e-9)
    assert epoch.loss == pytest.approx(
        float(weight @ losses(atoms) / weight.sum()), rel=1e-9
    )
    assert epoch.n_entries == pytest.approx(float(weight @ (z != 0).double().sum(1)))
    if not refit:
        torch.testing.assert_close(epoch.uses, weight @ (z != 0).double())
    for row, at, code in zip(x.numpy(), known.bool(), z.numpy()) if refit else ():
        on = code.nonzero()[0]
        seen = atoms[on][:, at].T.numpy(), row[at]
        code[on] = nnls(*seen)[0] if positive else np.linalg.lstsq(*seen, rcond=None)[0]
    if refit:
        unbiased = float(weight @ losses(atoms) / weight.sum())
        assert epoch.unbiased_loss == pytest.approx(unbiased, rel=1e-9)
        assert unbiased < epoch.loss
    close, products = dict(rtol=0, atol=1e-7), (weight[:, None] * z).mT @ z
    if not masked:
        expected = products, (weight[:, None] * z).mT @ x
        torch.testing.assert_close(epoch.statistics, expected, **close)
    torch.testing.assert_close(
        torch.as_tensor(epoch.products(0, 20)), products, **close
    )
    torch.testing.assert_close(epoch.energies(), products.diagonal(), **close)
    # sums whose gaps the dictionary fills touch the objective from above: better atoms lower both
    assert weight @ losses(epoch.improved_atoms()) < weight @ losses(atoms)


@pytest.mark.parametrize("gaps", [False, True])
def test_descent_lowers_the_objective_and_sums_of_no_rows_change_nothing(gaps):
    x, truth = planted(n=200)
    problem = Problem(x, 0.1, mask=gaps_in(x, 0.1) if gaps else None)
    begun = solve_codes(problem, start(x, len(truth)), 3)

    def descended(most, **earlier):
        return exhaust(descend(problem, begun.atoms, begun.codes, most, **earlier))

    # the last ends by itself
    curve = [descended(n).objective for n in (1, 5, 12, 10**6)]
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < begun.objective
    assert torch.equal(
        descended(4).atoms, descended(4, earlier=begin_stream(begun.atoms).held).atoms
    )


def test_rounds_leave_a_local_minimum_and_return_the_best():
    x, truth = planted(seed=2)
    begun, stride = exhaust(settle(Problem(x, 0.1), start(x, len(truth)), 1, 100))
    best, tried = record(play_rounds(begun))
    assert stride == 1
    assert best in tried
    ends = [coded.objective for coded in tried if len(coded.atoms) == len(truth)]
    assert best.objective < begun.objective
    assert best.objective <= 1.001 * min(ends)
    assert share_found(begun.atoms, truth) < share_found(best.atoms, truth) == 1


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dictionary_is_found_from_samples(positive, dtype):
    x, truth = planted(positive=positive)
    problem = Problem(x.to(dtype), 0.1, positive_code=positive, positive_atoms=positive)
    atoms = search(problem, start(x, len(truth))).atoms
    assert share_found(atoms, truth) == 1
    torch.testing.assert_close(
        atoms.norm(dim=1), torch.ones(len(atoms), dtype=torch.float64)
    )
    assert not positive or atoms.min() >= 0


def test_in_turns_new_atoms_enter_every_second_block_of_rows():
    """100 rows are a single block, which has no turns."""
    x, atoms = planted(6000, 16, 24)
    for turn, n in (0, 6000), (1, 6000), (1, 100):
        epochs = (
            Problem(x[:n], 0.1).epoch(atoms, Codes.none(n), turn=t)
            for t in (None, turn)
        )
        whole, found = (epoch.codes.start.diff() for epoch in epochs)
        enter = n == 100 or torch.arange(n) // (2**16 // 24) % 2 == turn
        assert torch.equal(found, whole * enter)


def test_each_epoch_of_a_search_is_a_record_and_the_last_is_the_result():
    x, _ = planted()
    problem = Problem(x, 0.1)
    _, records = record(find_atoms(problem, start(x, 24)))
    stages = ["settle", "split and remove", "polish", "done"]
    assert list(dict.fromkeys(found.stage for found in records)) == stages
    for n, found in enumerate(records, 1):
        assert len(found.losses) == n
        assert found.atoms.shape == (24, 16)
        assert found.alpha == 0.1
    last = records[-1]
    value = float(objective(last.coded.codes.dense(24), last.atoms, x, 0.1))
    assert last.coded.objective == pytest.approx(value, rel=1e-9)
    z = solved(last.atoms, x, 0.1)[0].dense(24)
    assert value == pytest.approx(float(objective(z, last.atoms, x, 0.1)), rel=2e-4)


@pytest.mark.parametrize("many", [False, True])
def test_threads_change_no_bit(many, monkeypatch):
    monkeypatch.setattr(_epoch, "MANY", 0 if many else 10**6)
    monkeypatch.setattr(_epoch, "_least", lambda *work: 1)
    x, _ = planted(3001, 40, 60)
    problem, atoms, found = Problem(x, 0.1), start(x, 60), []
    before = torch.get_num_threads()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        state = search(problem, atoms)
        found.append(refit_atoms(problem, state.atoms, state.coded.codes))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gaps", [False, True])
def test_rows_are_equal_where_their_known_entries_are(gaps, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (500, 5), generator=generator).to(dtype) * 0.1
    x[::7] *= -0.0
    mask = (torch.rand(500, 5, generator=generator) < 0.7).to(dtype) if gaps else None
    known = x + 0.0 if mask is None else torch.where(mask > 0, x + 0.0, 9.0)
    rows = known.tolist()
    first = match_equal_rows(x, mask)
    assert first.tolist() == [rows.index(row) for row in rows]
    assert len(first.unique()) < 400  # some are equal
    assert torch.equal(match_equal_rows(x[:, :, None, None], mask), first)


def test_rows_that_differ_by_rounding_are_not_equal():
    x = torch.randn(
        1, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    near = torch.cat([x, x * (1 + 2**-52), -x, x.flip(1), x])
    assert match_equal_rows(near).tolist() == [0, 1, 2, 3, 0]
    assert match_equal_rows(near[:0]).tolist() == []


@pytest.mark.parametrize("n_groups", [1, 4, 10, 50])
@pytest.mark.parametrize("n_copies", [0, 20, 60])
def test_copies_of_features_are_in_one_group(n_groups, n_copies, monkeypatch):
    monkeypatch.setattr(_rows, "N_GROUPS", n_groups)
    generator = torch.Generator().manual_seed(0)
    copies = torch.randint(23, (n_copies,), generator=generator)
    original = torch.cat([torch.arange(23), copies])
    x = torch.randn(30, 23, generator=generator, dtype=torch.float64)[:, original]
    turns = hide_in_turn(match_equal_rows(x.mT))
    groups = [hidden for _, hidden in turns]
    for seen, hidden in turns:
        others = set(range(23 + n_copies)) - set(hidden.tolist())
        assert seen.tolist() == sorted(others or hidden.tolist())
    assert torch.cat(groups).sort().values.tolist() == list(range(23 + n_copies))
    assert sum(len(original[part].unique()) for part in groups) == 23
    if not n_copies:
        sizes = {len(part) for part in groups}
        assert len(groups) == min(n_groups, 23)
        assert max(sizes) - min(sizes) <= 1


def repeated(problem, weights):
    """Return the problem with copies of rows, which all count once."""
    return replace(
        problem.of_rows(torch.arange(len(weights)).repeat_interleave(weights)),
        weight=None,
    )


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("refit", [False, True])
def test_weights_of_an_epoch_are_repetitions(many, masked, refit, monkeypatch):
    monkeypatch.setattr(_epoch, "MANY", 1 if many else 10**6)
    x = planted(90, 8, 12)[0]
    problem = Problem(x, 0.1, mask=gaps_in(x) if masked else None)
    weights = torch.randint(0, 4, (90,), generator=torch.Generator().manual_seed(1))
    whole, weighted = (
        repeated(problem, weights),
        replace(problem, weight=weights.double()),
    )
    atoms, codes = start(problem.x, 12), [whole.no_codes(), weighted.no_codes()]
    close = dict(rtol=1e-9, atol=1e-9)
    for _ in range(3):
        one, other = (
            Epoch(each, atoms, z, refit=refit)
            for each, z in zip((whole, weighted), codes)
        )
        atoms, codes = one.improved_atoms(), [one.codes, other.codes]
        torch.testing.assert_close(other.improved_atoms(), atoms, **close)
        for name in ("objective", "loss", "unbiased_loss", "n_entries"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)
        one, other = (
            Epoch(each, atoms, z) for each, z in zip((whole, weighted), codes)
        )
        for name in ("uses", "statistics"):
            torch.testing.assert_close(
                getattr(other, name), getattr(one, name), **close
            )
        torch.testing.assert_close(other.energies(), one.energies(), **close)
        np.testing.assert_allclose(other.products(2, 7), one.products(2, 7), **close)
        torch.testing.assert_close(
            other.common_directions(0), one.common_directions(0), **close
        )
    monkeypatch.setattr(_epoch, "USERS", 10**3)  # of few of them, others would be asked
    torch.testing.assert_close(other.costs()[0], one.costs()[0], **close)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_held_out_rows_are_repetitions(masked):
    x, truth = planted(60, 12, 16)
    problem = Problem(x, 0.1, mask=gaps_in(x) if masked else None)
    weights = torch.randint(1, 4, (60,), generator=torch.Generator().manual_seed(1))
    # all groups of all rows are hidden
    weighted = replace(problem, weight=weights.double()).hide(10**6)
    whole = repeated(problem, weights).hide(10**6)
    pairs = zip(
        *(held_out.sums(truth, [3, 0, -3]) for held_out in (weighted, whole)),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found.sum(0), expected.sum(0))
    assert weighted.n_hidden == whole.n_hidden
    assert weighted.mean_square == pytest.approx(whole.mean_square)
    assert weighted.zeros.total == pytest.approx(whole.zeros.total)
    half = Prediction(torch.empty(0), 0.0, 0, 0.5)
    assert weighted.noise(truth, half) == pytest.approx(whole.noise(truth, half))


@pytest.mark.parametrize("n_places", [1, 7, 40])
def test_rows_are_drawn_by_their_weight(n_places):
    """A row is drawn as often as it fills parts of the weight, up to one."""
    weight = (
        torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ** 4
    )
    weight[::5] = 0.0
    rows, counts = draw_rows(50, n_places, weight)
    assert counts.sum() == n_places
    assert (rows.diff() > 0).all()
    assert (weight[rows] > 0).all()
    drawn = torch.zeros_like(weight).index_add_(0, rows, counts)
    assert ((drawn - weight / weight.sum() * n_places).abs() < 2).all()
    equal, none = draw_rows(50, n_places)
    assert none is None
    assert torch.equal(equal, spread_rows(50, n_places))


def test_auto_alpha_scales_with_the_data_and_ignores_zero_and_missing_ones():
    x, _ = planted()
    alpha = auto_alpha(x)
    assert auto_alpha(4 * x) == 4 * alpha
    assert auto_alpha(3 * x) == pytest.approx(3 * alpha)
    assert auto_alpha(torch.cat([x, torch.zeros_like(x)])) == pytest.approx(alpha)
    known = torch.cat([torch.ones_like(x), torch.zeros_like(x)])
    assert auto_alpha(torch.cat([x, 100 * x]), mask=known) == pytest.approx(alpha)
    assert auto_alpha(torch.zeros_like(x)) == 1.0
