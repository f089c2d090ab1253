"""Working sets change the speed of the encoder and nothing else.

The oracle is the dense path of the same encoder, which has its own tests.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding._unfold import default_step, threshold_levels, unfold
from skpudle.encoding._working_sets import Run

CASES = st.fixed_dictionaries(
    dict(
        n_samples=st.integers(1, 6),
        n_features=st.integers(2, 48),
        n_components=st.integers(2, 64),
        n_nonzero=st.integers(1, 5),
        n_unfoldings=st.sampled_from([1, 2, 17, 60, 200]),
        alpha=st.sampled_from([1e-3, 1e-2, 0.1, 0.3, 0.8]),
        lambda_decay=st.sampled_from([1.0, 1.0, 0.98, 0.9]),
        shrinkage=st.sampled_from(["soft", "soft", "hard"]),
        positive=st.booleans(),
        per_atom=st.booleans(),
        repeated=st.booleans(),
        scale=st.sampled_from([1e-3, 1.0, 1e3]),
        seed=st.integers(0, 2**16),
    )
)
LONG = dict(n_samples=4, n_features=48, n_components=60, n_unfoldings=1000, alpha=1e-3)


class Problem:
    """Sparse combinations of unit atoms, the last of them zero, and levels for them."""

    def __init__(
        self, *, n_samples, n_features, n_components, n_unfoldings, alpha, n_nonzero=3,
        lambda_decay=1.0, shrinkage="soft", positive=False, per_atom=False, repeated=False,
        scale=1.0, seed=0,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.options = dict(shrinkage=shrinkage, positive_code=positive)
        atoms = torch.nn.functional.normalize(normal(n_components, n_features))
        if repeated:
            atoms[n_components // 2] = atoms[0]
        chosen = torch.rand(n_samples, n_components, generator=generator, dtype=torch.float64)
        codes = (normal(n_samples, n_components) + 1) * (chosen < n_nonzero / n_components)
        x = scale * codes @ atoms
        x[-1] = 0
        self.weights = normal(n_samples, n_components)
        step = default_step(DenseDictionary(atoms))
        largest = (x @ atoms.T).abs().max() + 1e-10
        alpha = alpha * largest * (step if shrinkage == "hard" else 1)
        if per_atom:
            alpha = alpha * (0.5 + torch.rand(n_components, generator=generator).double())
        how = dict(lambda_decay=lambda_decay, shrinkage=shrinkage)
        levels = threshold_levels(DenseDictionary(atoms), alpha, n_unfoldings, step, **how)
        self.inputs = [atoms, x, levels.clone(), step]

    def without_ties(self, tolerance):
        """Leave out samples with an entry so close to its level that rounding decides on it.

        There a hard threshold jumps, and a soft one has no derivative.
        """
        atoms, x, levels, step = self.inputs
        z, tied = torch.zeros(len(x), len(atoms), dtype=x.dtype), torch.zeros(len(x), dtype=bool)
        for level in levels:
            v = z + step * (x - z @ atoms) @ atoms.T
            near = (v.abs() - level).abs() < tolerance * (level + v.abs().amax(1, keepdim=True))
            tied |= near.any(1)
            alone = DenseDictionary(torch.eye(len(atoms), dtype=x.dtype)), v, level[None]
            z = unfold(*alone, torch.ones_like(step), path="dense", **self.options)
        self.inputs[1], self.weights = x[~tied], self.weights[~tied]
        return self

    def outcome(self, path, dtype=torch.float64):
        """Return codes and their derivatives in atoms, data, levels and step.

        The last with a number of the size of the terms that it is the sum of: codes that have
        converged do not depend on the step, and then these cancel.
        """
        inputs = [t.to(dtype).clone().requires_grad_() for t in self.inputs]
        atoms, x, levels, step = inputs
        z = unfold(DenseDictionary(atoms), x, levels, step, path=path, **self.options)
        z.backward(self.weights.to(dtype) * z.detach().abs().mean())
        by_step = torch.stack([step.grad * step.detach(), x.grad.norm() * x.detach().norm()])
        return [z.detach(), atoms.grad, x.grad, levels.grad, by_step]

    def working_sets(self, path):
        """Return how often a forward pass iterates inside working sets."""
        atoms, x, levels, step = (t.clone().requires_grad_() for t in self.inputs)
        z = unfold(DenseDictionary(atoms), x, levels, step, path=path, **self.options)
        return sum(isinstance(record, Run) for record in getattr(z.grad_fn, "records", []))


def distances(actual, expected):
    return [
        float((one.double() - other).norm() / other.norm().clamp_min(1e-300))
        for one, other in zip(actual, expected, strict=True)
    ]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(CASES)
@example(LONG)
@example(LONG | dict(alpha=0.1, lambda_decay=0.995, n_components=64, positive=True))
@example(LONG | dict(shrinkage="hard", alpha=0.2, repeated=True))
def test_active_is_dense(case):
    """Codes and all derivatives, to rounding."""
    problem = Problem(**case).without_ties(1e-12)
    if len(problem.inputs[1]):
        assert max(distances(problem.outcome("active"), problem.outcome("dense"))) < 1e-12


@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
@pytest.mark.parametrize("lambda_decay", [1.0, 0.98])
@pytest.mark.parametrize("n_features", [96, 256])
@pytest.mark.parametrize("n_nonzero", [4, 40])
def test_a_plan_changes_nothing(shrinkage, lambda_decay, n_features, n_nonzero):
    """Where working sets are planned: for all samples, for some, later or never."""
    sizes = dict(n_samples=64, n_features=n_features, n_components=512, n_unfoldings=100)
    options = dict(n_nonzero=n_nonzero, shrinkage=shrinkage, lambda_decay=lambda_decay)
    problem = Problem(alpha=0.1, **sizes, **options)
    assert max(distances(problem.outcome("auto"), problem.outcome("dense"))) < 1e-12


@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
@pytest.mark.parametrize("lambda_decay", [1.0, 0.98])
def test_working_sets_are_in_use(shrinkage, lambda_decay):
    """Where they pay, and in what the comparisons above force."""
    options = dict(n_nonzero=3, alpha=0.2, shrinkage=shrinkage, lambda_decay=lambda_decay)
    small = Problem(n_samples=6, n_features=48, n_components=64, n_unfoldings=60, **options)
    assert small.working_sets("active")
    assert not small.working_sets("auto")
    large = Problem(n_samples=64, n_features=256, n_components=1024, n_unfoldings=80, **options)
    get_denser = lambda_decay < 1 and shrinkage == "soft"
    assert bool(large.working_sets("auto")) != get_denser


@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
def test_working_sets_start_from_given_codes(shrinkage):
    """Codes and the derivative in the first ones."""
    sizes = dict(n_samples=6, n_features=48, n_components=64, n_unfoldings=60)
    problem = Problem(alpha=0.2, shrinkage=shrinkage, **sizes)
    atoms, x, levels, step = problem.inputs
    first = (x @ atoms.T).where((x @ atoms.T).abs() > 0.5 * (x @ atoms.T).abs().amax(), 0.0)

    def outcome(path):
        initial, dictionary = first.clone().requires_grad_(), DenseDictionary(atoms)
        z = unfold(dictionary, x, levels, step, initial=initial, path=path, **problem.options)
        if path == "active":
            assert any(isinstance(record, Run) for record in z.grad_fn.records)
        return z.detach(), *torch.autograd.grad((problem.weights * z).sum(), initial)

    for one, other in zip(outcome("active"), outcome("dense"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
