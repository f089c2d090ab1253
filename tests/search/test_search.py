import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from two_processes import in_two_processes

from skpudle._initialization import initial_atoms
from skpudle._operators._atoms import project_atoms
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, _epoch, auto_alpha, search
from skpudle.search._compiled import loops
from skpudle.search._descent import descend, refit_atoms, solve_codes
from skpudle.search._epoch import Codes, Epoch
from skpudle.search._held_out import hide_in_turn, match_equal_rows
from skpudle.search._search import is_done
from skpudle.search._stream import Memory


def make_problem(n=600, m=16, p=20, n_nonzero=3, *, positive=False, noise=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed)
    options = dict(generator=generator, dtype=torch.float64)
    truth = torch.randn(p, m, **options)
    truth = project_atoms(truth.abs() if positive else truth)
    supports = torch.rand(n, p, generator=generator).argsort(1)[:, :n_nonzero]
    values = torch.rand(n, n_nonzero, **options) + 0.5
    if not positive:
        values *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    codes = torch.zeros(n, p, dtype=torch.float64).scatter(1, supports, values)
    return codes @ truth + noise * torch.randn(n, m, **options), truth


def start(x, p, seed=0):
    return initial_atoms(x, p, "data", torch.Generator().manual_seed(seed))


def n_found(atoms, truth):
    return int(((atoms @ truth.mT).abs().amax(0) > 0.95).sum())


def dense(codes, p):
    n, longest = codes.index.shape
    result = torch.zeros(n, p + 1, dtype=torch.float64)
    used = torch.arange(longest) < codes.count[:, None]
    result.scatter_(1, torch.where(used, codes.index, p).long(), codes.value)
    return result[:, :p]


def solved(atoms, x, alpha, *, positive=False, mask=None, banned=None, gram=True):
    """Return the codes and objectives of `solve_rows`, solved to rounding."""
    n, p = len(x), len(atoms)
    codes = np.zeros(n, np.int64), np.zeros((n, p), np.int32), np.zeros((n, p))
    known = torch.ones_like(x) if mask is None else mask
    arrays = np.zeros(n), np.zeros(n)
    gram = (atoms @ atoms.mT if gram and mask is None else atoms[:0]).numpy()
    for _ in range(60):
        residual = known * (x - dense(Codes(*map(torch.from_numpy, codes)), p) @ atoms)
        slope = (residual @ atoms.mT).numpy()
        if banned is not None:
            slope[:, banned] = 0
        loops().solve_rows(
            atoms.numpy(), gram, np.empty((1, 0)) if mask is None else mask.numpy(), slope, alpha,
            positive, 1e-13 * alpha, 0.6, 10_000, *codes, residual.numpy(), *arrays
        )  # fmt: skip
    loss, size = map(torch.from_numpy, arrays)
    return Codes(*map(torch.from_numpy, codes)), loss + alpha * size


def objective(z, atoms, x, alpha, mask=1.0):
    return 0.5 * (mask * (x - z @ atoms)).square().sum() + alpha * z.abs().sum()


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("gram", [False, True])
def test_rows_are_solved_as_the_lasso_is(positive, gram):
    x, atoms = make_problem(n=100)
    codes, found = solved(atoms, x, 0.1, positive=positive, gram=gram)
    z = dense(codes, len(atoms))
    expected = solve_lasso(atoms, x, 0.1, positive=positive)[0]
    torch.testing.assert_close(z, expected, atol=1e-6, rtol=0)
    value = objective(z, atoms, x, 0.1)
    torch.testing.assert_close(found.sum(), value)


@pytest.mark.uncompiled
@pytest.mark.parametrize("positive", [False, True])
def test_masked_rows_are_the_lasso_on_what_is_known(positive):
    x, atoms = make_problem(n=30)
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.7).double()
    codes, found = solved(atoms, x, 0.1, positive=positive, mask=mask)
    z = dense(codes, len(atoms))
    for row, known, code in zip(x, mask.bool(), z, strict=True):
        options = dict(positive=positive, certify=False)
        expected = solve_lasso(atoms[:, known].contiguous(), row[known][None], 0.1, **options)[0]
        torch.testing.assert_close(code, expected[0], atol=1e-6, rtol=0)
    value = objective(z, atoms, x, 0.1, mask)
    torch.testing.assert_close(found.sum(), value)


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
    """Of all rows, and with a part of them in earlier sums."""
    monkeypatch.setattr(_epoch, "MANY", 0 if many else 10**6)
    monkeypatch.setattr(_epoch, "_ATOMS", 8)
    x, atoms = make_problem()
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < (0.8 if masked else 1)
    problem = Problem(x, 0.1, mask=known.double() if masked else None)
    sweeps = 1 if many else 2

    def expected(z):
        return improved_in_turn(torch.where(known, x, z @ atoms), z, atoms.clone(), sweeps)

    epoch = problem.epoch(atoms, Codes.none(len(x)))
    first, last = (
        problem.of_rows(rows).epoch(atoms, epoch.codes.of_rows(rows))
        for rows in (torch.arange(len(x)) < 400, torch.arange(len(x)) >= 400)
    )
    torch.testing.assert_close(epoch.improved_atoms(), expected(dense(epoch.codes, 20)))
    earlier = Memory.none(atoms).add_block(first, 400)
    z = torch.cat([dense(first.codes, 20), dense(last.codes, 20)])
    torch.testing.assert_close(last.improved_atoms(earlier), expected(z))


def test_many_atoms_have_the_epoch_of_few(monkeypatch):
    """Descent on residuals and among products of atoms are the same iteration."""
    monkeypatch.setattr(_epoch, "_has_bfloat16", lambda: False)
    x, atoms = make_problem()
    epochs = []
    for many in (10**6, 0):
        monkeypatch.setattr(_epoch, "MANY", many)
        epochs.append(Problem(x, 0.1).epoch(atoms, Codes.none(len(x)), refit=True))
    few, many = epochs
    torch.testing.assert_close(dense(many.codes, 20), dense(few.codes, 20))
    torch.testing.assert_close(many.b, few.b)
    for name in ("objective", "loss", "unbiased_loss", "n_entries"):
        assert getattr(many, name) == pytest.approx(getattr(few, name), rel=1e-12)
    for found, expected in zip(many.costs(), few.costs(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
def test_cost_of_a_removal_is_the_objective_without_the_atom(masked, monkeypatch):
    # all atoms but the one left out enter, and descent goes on
    monkeypatch.setattr(_epoch, "TOLERANCE", 1e-12 - 1)
    monkeypatch.setattr(_epoch, "SHARE", 0.0)
    monkeypatch.setattr(_epoch, "SWEEPS_OF_COSTS", 2000)
    x, atoms = make_problem(n=20)
    mask = None
    if masked:
        mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.8).double()
    codes, objectives = solved(atoms, x, 0.1, mask=mask)
    epoch = Problem(x, 0.1, mask=mask).epoch(atoms, codes)
    cost, heirs = epoch.costs()
    z = dense(codes, p := len(atoms))
    for j in range(p):
        without, others = solved(atoms, x, 0.1, banned=j, mask=mask)
        torch.testing.assert_close((others - objectives).sum(), cost[j])
        users = z[:, j] != 0
        change = (dense(without, p).abs() - z.abs())[users].sum(0)
        change[j] = -torch.inf
        torch.testing.assert_close(change[heirs[j]], change.topk(heirs.shape[1]).values)


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
def test_an_epoch_has_the_moments_of_its_codes_and_the_objective(masked):
    x, atoms = make_problem()
    mask = None
    if masked:
        mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.8).double()
    problem = Problem(x, 0.1, mask=mask)
    epoch = Epoch(problem, atoms, Codes.none(len(x)))
    z = dense(epoch.codes, len(atoms))
    completed = x if mask is None else torch.where(mask > 0, x, z @ atoms)
    torch.testing.assert_close(torch.as_tensor(epoch.products(0, len(atoms))), z.mT @ z)
    torch.testing.assert_close(epoch.b, z.mT @ completed)
    value = float(objective(z, atoms, x, 0.1, 1.0 if mask is None else mask))
    assert epoch.objective == pytest.approx(value, rel=1e-12)
    # the completed sums touch the objective from above: better atoms lower both
    better = epoch.improved_atoms()
    assert objective(z, better, x, 0.1, 1.0 if mask is None else mask) < value


@pytest.mark.parametrize("gaps", [False, True])
def test_descent_lowers_the_objective_and_sums_of_no_rows_change_nothing(gaps):
    x, truth = make_problem(n=200)
    mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.9).double()
    epoch = solve_codes(Problem(x, 0.1, mask=mask if gaps else None), start(x, len(truth)), 3)
    curve = [descend(epoch, n).objective for n in (0, 1, 4, 12)]
    assert curve[0] == epoch.objective
    assert curve == sorted(curve, reverse=True)
    alone, with_none = descend(epoch, 4), descend(epoch, 4, Memory.none(epoch.atoms))
    assert torch.equal(alone.atoms, with_none.atoms)
    stalled = descend(epoch, 10**6)  # ends by itself
    assert stalled.objective <= curve[-1]


def test_codes_alone_converge_to_the_lasso():
    x, truth = make_problem(n=100)
    objectives = [solve_codes(Problem(x, 0.1), truth, n).objective for n in (1, 3, 20)]
    z, _ = solve_lasso(truth, x, 0.1)
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] == pytest.approx(float(objective(z, truth, x, 0.1)), rel=1e-4)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dictionary_is_found_from_samples(positive, dtype):
    x, truth = make_problem(positive=positive)
    problem = Problem(x.to(dtype), 0.1, positive_code=positive, positive_atoms=positive)
    atoms = search(problem, start(x, len(truth))).best_atoms
    assert n_found(atoms, truth) == len(truth)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(len(atoms), dtype=torch.float64))
    assert not positive or atoms.min() >= 0


def test_the_dictionary_is_found_from_what_is_known():
    x, truth = make_problem(n=1000)
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    problem = Problem(torch.where(known, x, torch.nan), 0.1, mask=known)
    assert n_found(search(problem, start(x, len(truth))).best_atoms, truth) == len(truth)


def test_the_best_objective_never_rises_and_is_that_of_the_best_atoms():
    x, _ = make_problem()
    problem, best = Problem(x, 0.1), []
    state = search(problem, start(x, 24), on_epoch=lambda s: best.append(s.best_objective))
    assert all(later <= earlier for earlier, later in pairwise(best))
    assert np.isfinite(best[-1])
    z = dense(solved(state.best_atoms, x, 0.1)[0], 24)
    value = float(objective(z, state.best_atoms, x, 0.1))
    assert state.best_objective == pytest.approx(value, rel=1e-4)


def test_scaling_data_and_penalty_by_a_power_of_two_changes_no_bit():
    x, truth = make_problem()
    atoms = start(x, len(truth))
    expected = search(Problem(x, 0.1), atoms).best_atoms
    assert torch.equal(search(Problem(64 * x, 6.4), atoms).best_atoms, expected)


@pytest.mark.parametrize("many", [False, True])
def test_threads_change_no_bit(many, monkeypatch):
    monkeypatch.setattr(_epoch, "MANY", 0 if many else 10**6)
    monkeypatch.setattr(_epoch, "_least", lambda *work: 1)
    x, _ = make_problem(3001, 40, 60)
    problem, atoms, found = Problem(x, 0.1), start(x, 60), []
    before = torch.get_num_threads()
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        state = search(problem, atoms)
        found.append(refit_atoms(problem, *state.found))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_float32_is_searched_as_what_it_is_in_float64():
    x, _ = make_problem()
    x, atoms = x.float(), start(x, 20)
    expected = search(Problem(x.double(), 0.1), atoms).best_atoms
    torch.testing.assert_close(search(Problem(x, 0.1), atoms).best_atoms, expected)


def test_a_search_goes_on_from_a_pickled_state_to_the_same_bits():
    x, _ = make_problem()
    problem, states = Problem(x, 0.1), []
    last = search(problem, start(x, 24), on_epoch=lambda state: states.append(pickle.dumps(state)))
    for content in states[:: len(states) // 4]:
        resumed = pickle.loads(content)
        again = resumed if is_done(resumed) else search(problem, None, state=resumed)
        assert torch.equal(again.best_atoms, last.best_atoms)
        assert again.epoch == last.epoch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gaps", [False, True])
def test_rows_are_equal_where_their_known_entries_are(gaps, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (500, 5), generator=generator).to(dtype) * 0.1
    x[::7] *= -0.0
    mask = (torch.rand(500, 5, generator=generator) < 0.7).to(dtype) if gaps else None
    rows = [
        tuple((v + 0.0) if known else None for v, known in zip(row, there, strict=True))
        for row, there in zip(
            x.tolist(), (torch.ones(500, 5) if mask is None else mask).tolist(), strict=True
        )
    ]
    first = match_equal_rows(x, mask)
    assert first.tolist() == [rows.index(row) for row in rows]
    assert len(first.unique()) < 400  # some are equal
    assert torch.equal(match_equal_rows(x[:, :, None, None], mask), first)


def test_rows_that_differ_by_rounding_are_not_equal():
    x = torch.randn(1, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = torch.cat([x, x * (1 + 2**-52), -x, x.flip(1), x])
    assert match_equal_rows(near).tolist() == [0, 1, 2, 3, 0]
    assert match_equal_rows(near[:0]).tolist() == []


@pytest.mark.parametrize("n_groups", [1, 4, 10, 50])
@pytest.mark.parametrize("n_copies", [0, 20, 60])
def test_copies_of_features_are_in_one_group(n_groups, n_copies):
    generator = torch.Generator().manual_seed(0)
    copies = torch.randint(23, (n_copies,), generator=generator)
    original = torch.cat([torch.arange(23), copies])
    x = torch.randn(30, 23, generator=generator, dtype=torch.float64)[:, original]
    turns = hide_in_turn(match_equal_rows(x.mT), n_groups)
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


def repeated(problem, often):
    """Return the problem with copies of rows, which all count once."""
    return replace(problem.of_rows(torch.arange(len(often)).repeat_interleave(often)), weight=None)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("refit", [False, True])
def test_weights_of_an_epoch_are_repetitions(many, masked, refit, monkeypatch):
    monkeypatch.setattr(_epoch, "MANY", 1 if many else 10**6)
    problem = Problem(make_problem(90, 8, 12)[0], 0.1)
    generator = torch.Generator().manual_seed(1)
    often = torch.randint(0, 4, (90,), generator=generator)
    if masked:
        known = torch.rand(problem.x.shape, generator=generator) < 0.8
        problem = replace(problem, mask=known.double())
    whole, weighted = repeated(problem, often), replace(problem, weight=often.double())
    atoms, codes = start(problem.x, 12), [whole.no_codes(), weighted.no_codes()]
    close = dict(rtol=1e-9, atol=1e-9)
    for _ in range(3):
        one, other = (
            Epoch(each, atoms, z, refit=refit) for each, z in zip((whole, weighted), codes)
        )
        atoms, codes = one.improved_atoms(), [one.codes, other.codes]
        torch.testing.assert_close(other.improved_atoms(), atoms, **close)
        for name in ("objective", "loss", "unbiased_loss", "n_entries"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)
        one, other = (Epoch(each, atoms, z) for each, z in zip((whole, weighted), codes))
        for name in ("uses", "b"):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), **close)
        torch.testing.assert_close(other.energies(), one.energies(), **close)
        np.testing.assert_allclose(other.products(2, 7), one.products(2, 7), **close)
        torch.testing.assert_close(other.common_directions(0), one.common_directions(0), **close)
    monkeypatch.setattr(_epoch, "USERS", 10**3)  # of few of them, others would be asked
    torch.testing.assert_close(other.costs()[0], one.costs()[0], **close)


def test_processes_with_their_own_samples_end_with_the_same_bits():
    x, truth = make_problem()
    atoms = start(x, len(truth))

    def run(rank, total):
        problem = Problem(x[rank * 240 :][: (240, 360)[rank]], 0.1, total=total)
        return search(problem, atoms).best_atoms

    results = in_two_processes(run)
    assert torch.equal(*results)
    assert n_found(results[0], truth) == len(truth)
    alone = search(Problem(x, 0.1), atoms).best_atoms  # begins with other rows: in another order
    cosines = (results[0] @ alone.mT).abs().amax(1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-5, rtol=0)


def awkward_data():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    return {
        "zeros": torch.zeros(20, 8, dtype=torch.float64),
        "some zeros": torch.cat([noise, torch.zeros(20, 8, dtype=torch.float64)]),
        "constant rows": torch.ones(20, 8, dtype=torch.float64) * noise[:20, :1],
        "fewer samples than atoms": noise[:5],
        "copies": noise[:3].repeat(20, 1),
        "noise": noise,
        "one feature": noise[:, :1].contiguous(),
        "one sample": noise[:1],
    }


@pytest.mark.parametrize("name", awkward_data())
@pytest.mark.parametrize("alpha", [0.0, 100.0])
def test_awkward_data_give_unit_atoms(name, alpha):
    x = awkward_data()[name]
    state = search(Problem(x, alpha), start(x, 12))
    assert state.best_atoms.shape == (12, x.shape[1])
    ones = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(state.best_atoms.norm(dim=1), ones)


def test_auto_alpha_scales_with_the_data_and_ignores_zero_and_missing_ones():
    x, _ = make_problem()
    alpha = auto_alpha(x)
    assert auto_alpha(4 * x) == 4 * alpha
    assert auto_alpha(3 * x) == pytest.approx(3 * alpha)
    assert auto_alpha(torch.cat([x, torch.zeros_like(x)])) == pytest.approx(alpha)
    known = torch.cat([torch.ones_like(x), torch.zeros_like(x)])
    assert auto_alpha(torch.cat([x, 100 * x]), mask=known) == pytest.approx(alpha)
    assert auto_alpha(torch.zeros_like(x)) == 1.0


def test_auto_alpha_is_that_of_all_processes():
    x, _ = make_problem()

    def run(rank, total):
        return auto_alpha(x[rank * 250 :][: (250, 350)[rank]], total=total)

    first, second = in_two_processes(run)
    assert first == second == pytest.approx(auto_alpha(x))


@pytest.mark.uncompiled
@pytest.mark.parametrize("masked", [False, True])
def test_moments_without_bias_are_those_of_least_squares_on_the_supports(masked):
    x, atoms = make_problem(n=50)
    mask = torch.ones_like(x)
    if masked:
        mask = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.8).double()
    problem = Problem(x, 0.1, mask=mask if masked else None)
    epoch = Epoch(problem, atoms, Codes.none(len(x)), refit=True)
    z = dense(epoch.codes, len(atoms))
    for row, known, code in zip(x, mask.bool(), z, strict=True):
        support = code.nonzero()[:, 0]
        code[support] = torch.linalg.lstsq(atoms[support][:, known].mT, row[known]).solution
    products = torch.as_tensor(epoch.products(0, len(atoms)))
    torch.testing.assert_close(products, z.mT @ z, rtol=0, atol=1e-9)
    completed = torch.where(mask > 0, x, z @ atoms)
    torch.testing.assert_close(epoch.b, z.mT @ completed, rtol=0, atol=1e-9)
    loss = 0.5 * (mask * (x - z @ atoms)).square().sum() / len(x)
    assert epoch.unbiased_loss == pytest.approx(float(loss), rel=1e-9)
    assert epoch.unbiased_loss < epoch.loss


@pytest.mark.uncompiled
def test_moments_without_bias_of_non_negative_codes_are_those_of_non_negative_least_squares():
    x, atoms = make_problem(n=50, positive=True, noise=0.3)
    problem = Problem(x, 0.1, positive_code=True)
    epoch = Epoch(problem, atoms, Codes.none(len(x)), refit=True)
    z, n_turned = dense(epoch.codes, len(atoms)), 0
    for row, code in zip(x, z, strict=True):
        support = code.nonzero()[:, 0]
        free = torch.linalg.lstsq(atoms[support].mT, row).solution
        n_turned += bool((free < 0).any())
        code[support] = torch.from_numpy(nnls(atoms[support].mT.numpy(), row.numpy())[0])
    assert 0 < n_turned < len(x)  # directly, and by descent
    products = torch.as_tensor(epoch.products(0, len(atoms)))
    torch.testing.assert_close(products, z.mT @ z, rtol=0, atol=2e-2)


def test_without_noise_and_bias_the_dictionary_is_exact():
    x, truth = make_problem(noise=0)
    problem = Problem(x, 0.1)
    state = search(problem, start(x, len(truth)))
    before = (state.best_atoms @ truth.mT).abs().amax(1).min()
    found = refit_atoms(problem, *state.found, 20)
    after = (found @ truth.mT).abs().amax(1).min()
    assert before < 0.9999
    assert after > 1 - 1e-6
