"""The search in batched torch is the oracle of the compiled one, and what a GPU runs."""

from dataclasses import replace

import pytest
import torch
from planted import gaps_in, planted, share_found

from skpudle.search import Problem, search
from skpudle.search import _device_epoch as device_module
from skpudle.search import _epoch as rules
from skpudle.search._device_epoch import DeviceEpoch
from skpudle.search._epoch import Epoch
from skpudle.search.descend import refit_atoms


def make_problem(
    n=300,
    m=16,
    p=24,
    *,
    dtype=torch.float64,
    positive=False,
    masked=False,
    weighted=False,
):
    """Return a problem with three of the planted atoms in each row, and these atoms."""
    x, truth = planted(n, m, p, positive=positive, seed=1)
    given = dict(positive_code=positive, positive_atoms=positive)
    if masked:
        given["mask"] = gaps_in(x).to(dtype)
    if weighted:
        given["weight"] = (
            torch.rand(n, generator=torch.Generator().manual_seed(2)).double() * 2
        )
    return Problem(x.to(dtype), 0.1, **given), truth


def first_rows(problem, p):
    return problem.project(problem.x[:p].double())


def dense(codes, p):
    return codes.dense(p).cpu().double()


@pytest.fixture
def on_device(monkeypatch):
    """Search as on a GPU."""
    monkeypatch.setattr(
        Problem,
        "epoch",
        lambda problem, *given, turn=None, **how: DeviceEpoch(problem, *given, **how),
    )


# ---------------------------------------------------------------------------- agreement

KINDS = [
    dict(),
    dict(dtype=torch.float32),
    dict(positive=True),
    dict(masked=True),
    dict(positive=True, masked=True, dtype=torch.float32),
    dict(weighted=True),
    dict(weighted=True, masked=True, dtype=torch.float32),
]


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_epochs_are_those_of_the_compiled_loops(kind, refit, device, monkeypatch):
    monkeypatch.setattr(rules, "TOLERANCE", 0.0)  # compiled loops end sweeps early
    # atoms improve one by one
    monkeypatch.setattr(device_module, "_ATOMS_PER_ROW", 0.0)
    problem, truth = make_problem(**kind)
    there = replace(problem, x=problem.x.to(device))
    p, atoms, codes = len(truth), first_rows(problem, len(truth)), problem.no_codes()
    digits = 1e-5 if problem.x.dtype == torch.float32 else 1e-9
    close = dict(rtol=digits, atol=digits)
    for _ in range(3):
        compiled = Epoch(problem, atoms, codes, refit=refit)
        found = DeviceEpoch(there, atoms, codes, refit=refit)
        codes, atoms = compiled.codes, compiled.improved_atoms()
        assert found.objective == pytest.approx(compiled.objective, rel=digits)
        assert found.loss == pytest.approx(compiled.loss, rel=digits)
        assert found.n_entries == pytest.approx(compiled.n_entries, rel=digits)
        torch.testing.assert_close(dense(found.codes, p), dense(codes, p), **close)
        if refit:
            assert found.unbiased_loss == pytest.approx(
                compiled.unbiased_loss, rel=1e-5
            )
        if refit and (
            problem.positive_code or problem.mask is not None or digits > 1e-9
        ):
            continue  # rows that descend to least squares end at a tolerance, or at seven digits
        torch.testing.assert_close(found.improved_atoms(), atoms, **close)
        torch.testing.assert_close(found.uses, compiled.uses, **close)
        torch.testing.assert_close(found.energies(), compiled.energies(), **close)
        energy, direction = found.common_directions(3)
        expected = compiled.common_directions(3)  # residuals in single precision
        torch.testing.assert_close(energy, expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(direction, expected[1], rtol=0, atol=1e-3)
        if (
            problem.mask is None
        ):  # with gaps compiled loops take the slopes of whole atoms
            (cost, heirs), expected = found.costs(), compiled.costs()
            torch.testing.assert_close(cost, expected[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(heirs, expected[1].long())


def test_rows_without_room_take_the_best_atoms(monkeypatch):
    monkeypatch.setattr(rules, "ROOM", 4 - 16)
    monkeypatch.setattr(rules, "MIN_FRACTION", 0.01)
    problem, atoms = make_problem(50)
    codes = DeviceEpoch(problem, atoms, problem.no_codes()).codes
    assert 0 < codes.longest <= 4
    best = (problem.x @ atoms.mT).abs().topk(4).indices
    for i, wanted in enumerate(best):
        assert set(codes.of_row(i)[0].tolist()) <= set(wanted.tolist())


# ---------------------------------------------------------------------------- identities


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("others", [0.5, 100.0])  # all atoms in one block
def test_improved_atoms_never_raise_the_objective(others, positive, monkeypatch):
    monkeypatch.setattr(device_module, "_ATOMS_PER_ROW", others)
    problem, truth = make_problem(positive=positive)
    epoch = DeviceEpoch(problem, first_rows(problem, len(truth)), problem.no_codes())
    z, losses = dense(epoch.codes, len(truth)), []
    for n_sweeps in range(5):
        monkeypatch.setattr(device_module, "_SWEEPS", n_sweeps)
        atoms = epoch.improved_atoms()
        torch.testing.assert_close(
            atoms.norm(dim=1), torch.ones(len(atoms), dtype=torch.float64)
        )
        assert not positive or atoms.min() >= 0
        losses.append(float((problem.x - z @ atoms).square().sum()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_costs_with_gaps_are_those_of_the_compiled_loops_where_all_atoms_enter(
    monkeypatch,
):
    """Else compiled loops take the slopes of whole atoms."""
    monkeypatch.setattr(rules, "TOLERANCE", 1e-9 - 1)
    monkeypatch.setattr(rules, "MIN_FRACTION", 0.0)
    monkeypatch.setattr(rules, "SWEEPS_OF_COSTS", 300)
    problem, atoms = make_problem(30, 12, 10, masked=True)
    codes = problem.no_codes()
    for _ in range(60):
        codes = Epoch(problem, atoms, codes).codes
    expected, found = (
        kind(problem, atoms, codes).costs() for kind in (Epoch, DeviceEpoch)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-6)
    assert torch.equal(found[1].sort().values, expected[1].sort().values)


def test_a_process_without_rows_has_the_sums_of_others():
    problem, atoms = make_problem()
    nothing, sent = problem.of_rows(torch.zeros(len(problem.x), dtype=torch.bool)), []

    def send(*sums):
        sent.append(sums)
        return sums

    def receive(*sums):
        return [own + other for own, other in zip(sums, sent.pop(0), strict=True)]

    found = []
    for part, total in ((problem, send), (nothing, receive)):
        epoch = DeviceEpoch(replace(part, total=total), atoms, part.no_codes())
        found.append((epoch.objective, epoch.improved_atoms(), *epoch.costs()))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert not sent


# ---------------------------------------------------------------------------- searches


@pytest.mark.parametrize("kind", [dict(), KINDS[4]], ids=str)
def test_a_search_finds_all_planted_atoms(kind, on_device):
    problem, truth = make_problem(**dict(n=600) | kind)
    found = search(problem, first_rows(problem, len(truth)))
    for atoms in (found.atoms, refit_atoms(problem, found.atoms, found.coded.codes)):
        assert share_found(atoms, truth) == 1
