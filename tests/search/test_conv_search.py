"""The search for atoms with positions: its codes, its statistics, its moves, what it finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import normal

from skpudle._learners.convolutional.phases import noise_level
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step
from skpudle.search.conv_problem import ConvProblem, conv_codes
from skpudle.search.find import find_atoms

SHAPES = [  # atoms (n, channels, *kernel), images (n, channels, *size), stride
    ((4, 1, 5, 4), (2, 1, 13, 16), (1, 1)),
    ((3, 2, 4, 5), (2, 2, 16, 14), (2, 3)),
    ((3, 1, 7), (3, 1, 40), (1,)),
    ((3, 2, 6), (2, 2, 36), (2,)),
    ((3, 1, 3, 4, 2), (2, 1, 8, 9, 6), (1, 1, 1)),
    ((2, 2, 2, 3, 3), (2, 2, 6, 7, 9), (2, 1, 2)),
]


def problem_of(generator, shapes, *, alpha=0.8, **options):
    atoms, images, stride = shapes
    x, d = normal(generator, *images), project_atoms(normal(generator, *atoms))
    sizes = dict(kernel=tuple(d.shape[2:]), stride=tuple(stride))
    return ConvProblem(x, alpha, **sizes, **options), d


def solved(problem, atoms):
    return problem.epoch(atoms, problem.no_codes(), effort=(100, 100), tolerance=1e-9)


@pytest.mark.uncompiled
@pytest.mark.parametrize(
    ("shapes", "positive", "masked"),
    [*zip(SHAPES, [True, False] * 3, [True, True, False] * 2)],
)
def test_codes_are_those_of_the_encoder_run_to_convergence(
    shapes, positive, masked, generator
):
    (atoms, images, stride), alpha = shapes, 1.2
    dictionary = ConvDictionary(project_atoms(normal(generator, *atoms)), stride)
    x = normal(generator, *images)
    mask = (normal(generator, *images) > -0.5).double() if masked else None
    options = dict(alpha=alpha, positive_code=positive, mask=mask)
    codes, converged = conv_codes(dictionary, x, **options)
    assert converged.all()
    step = default_step(dictionary)
    expected = encode(dictionary, x, n_unfoldings=1500, step_size=step, **options)
    torch.testing.assert_close(codes, expected, rtol=0, atol=1e-6)


@pytest.mark.uncompiled
@pytest.mark.parametrize(("shapes", "masked"), [*zip(SHAPES, [True, False] * 3)])
def test_better_atoms_lower_the_objective_of_the_same_codes(shapes, masked, generator):
    """The new atoms are unit, and by naive synthesis the error of the codes falls."""
    problem, atoms = problem_of(generator, shapes)
    mask = (normal(generator, *problem.x.shape) > -0.5).double() if masked else None
    problem = replace(problem, alpha=0.8, mask=mask)
    epoch = solved(problem, atoms)
    z = dense(problem, epoch.codes, len(atoms))

    def error(atoms):
        residual = problem.x - ConvDictionary(atoms, problem.stride).synthesis(z)
        residual = residual if mask is None else residual * mask
        return float(residual.square().sum()) / 2

    objective = error(atoms) + 0.8 * float(z.abs().sum())
    assert epoch.objective == pytest.approx(objective, rel=1e-12)
    better = epoch.improved_atoms()
    torch.testing.assert_close(
        better.flatten(1).norm(dim=1), torch.ones(len(atoms)).double()
    )
    assert error(better) < error(atoms)


def dense(problem, codes, n_atoms):
    z = codes.dense(n_atoms * problem.n_positions)
    return z.unflatten(1, (n_atoms, *problem.positions))


@pytest.mark.uncompiled
def test_an_atom_costs_what_solving_without_it_does_or_what_nothing_in_its_place_does(
    generator,
):
    """An estimate from few replacements is between these; the latter is half of the squared codes.

    Users are far apart and fewer than are asked.
    """
    atoms = project_atoms(normal(generator, 4, 1, 1, 8))
    z = torch.zeros(4, 4, 1, 53, dtype=torch.float64)
    for image in z:
        image[:, 0, 15::25] = 1 + normal(generator, 4, 2).abs()
    x = ConvDictionary(atoms).synthesis(z) + 0.01 * normal(generator, 4, 1, 1, 60)
    problem = ConvProblem(x, 0.1, kernel=(1, 8))
    epoch = solved(problem, atoms)
    before, codes = epoch._residual.copy(), dense(problem, epoch.codes, 4)
    cost, _ = epoch.costs()
    np.testing.assert_allclose(epoch._residual, before, rtol=0, atol=1e-12)
    for k in range(4):
        kept = torch.arange(4) != k
        without = solved(problem, atoms[kept]).objective - epoch.objective
        nothing = 0.5 * float(codes[:, k].square().sum())
        assert without * 0.9 < float(cost[k]) < nothing * (1 + 1e-6)


# ---------------------------------------------------------------- the level of the noise


def test_a_search_below_slow_noise_begins_again_at_its_level(generator):
    slow = normal(generator, 12, 1, 1, 120)
    for t in range(1, 120):  # an autoregression
        slow[..., t] += 0.9 * slow[..., t - 1]
    atoms = project_atoms(normal(generator, 2, 1, 1, 12))
    problem = ConvProblem(slow, 5.0, positive_code=True, kernel=(1, 12))
    *_, found = find_atoms(problem, atoms, level=noise_level)
    assert found.alpha == found.problem.alpha > 1.25 * problem.alpha
    enough = ConvProblem(slow, 1e3, kernel=(1, 12))
    assert [*find_atoms(enough, atoms, level=noise_level)][-1].problem is enough
