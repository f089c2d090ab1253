"""The epoch loop: batches, stopping, divergence, and atoms that no code uses."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from naive import normal

from skpudle._data.sources import Batches, Samples
from skpudle._fit.run import Fitted
from skpudle._fit.train import Diverged, Stopping, Trainer
from skpudle._gradients import ae_ls
from skpudle._operators._atoms import DenseDictionary, project_atoms
from skpudle._optimizers import make_optimizer
from skpudle.encoding import encode

NEVER = Stopping(None, 1)


class FailsAt:
    """The rule ``ae-ls``, not finite at the given calls."""

    def __init__(self, *calls):
        self.calls, self.n_calls = calls, 0

    def __call__(self, dictionary, batch, **options):
        self.n_calls += 1
        evaluation = ae_ls(dictionary, batch, **options)
        if self.n_calls in self.calls:
            return evaluation._replace(
                surrogate=evaluation.surrogate * torch.nan,
                losses=evaluation.losses * torch.nan,
            )
        return evaluation


class Model:
    """Five unfoldings, and a record of the updates that were asked for."""

    def __init__(self, rule, alpha):
        self.rule, self.alpha, self.updates = rule, alpha, []

    def network(self, fitted, update):
        self.updates.append(update)
        encoder = partial(encode, alpha=self.alpha, n_unfoldings=5)
        return (
            self.rule,
            DenseDictionary(fitted.atoms),
            dict(encoder=encoder, penalty=self.alpha),
        )

    def with_rows(self, fitted, rows):
        return replace(fitted, atoms=rows)

    def replacements(self, fitted, samples):
        return samples


def make_trainer(atoms, rule=ae_ls, *, alpha=0.1, optimizer="adam"):
    optimizer = make_optimizer(
        optimizer, atoms, project_atoms, learning_rate=0.01, data_scale=1.0
    )
    return Trainer(Model(rule, alpha), Fitted(atoms=atoms), optimizer)


@pytest.fixture
def atoms(generator):
    return project_atoms(normal(generator, 6, 4))


@pytest.fixture
def x(generator):
    return normal(generator, 23, 4)


# ---------------------------------------------------------------------------- stopping


def first_stop(objectives, tol=1e-4, patience=3, **options):
    """Return after how many checks to stop, or None."""
    stopping = Stopping(tol, patience, **options)
    checks = (
        stopping.check(value, 1, update) for update, value in enumerate(objectives)
    )
    return next((number for number, stop in enumerate(checks, start=1) if stop), None)


@pytest.mark.parametrize("patience", [1, 3, 5])
def test_a_constant_objective_stops_after_the_patience(patience):
    """The first check sets the mark, and is no failure to improve."""
    assert first_stop([2.0] * 20, patience=patience) == 1 + patience


def test_an_improvement_is_relative_to_the_best():
    """A tolerance between the two rates tells them apart, at any scale and sign."""
    for scale in (1e-8, 1.0, 1e8):
        slow = [scale * 0.9999**check for check in range(50)]
        fast = [scale * 0.98**check for check in range(50)]
        assert first_stop(slow, tol=1e-3) is not None
        assert first_stop(fast, tol=1e-3) is None
    assert first_stop([-(1.02**check) for check in range(50)], tol=1e-3) is None


def test_noise_around_a_falling_objective_does_not_stop():
    noise = [0.02 * (-1) ** check for check in range(100)]
    assert (
        first_stop([0.97**check + e * 0.97**check for check, e in enumerate(noise)])
        is None
    )


# ---------------------------------------------------------------------------- an epoch


def test_loss_of_an_epoch_is_the_mean_over_its_samples(atoms, x):
    """Each at the atoms of its update, also where the last batch is smaller."""
    trainer, twin = make_trainer(atoms), make_trainer(atoms)
    losses = []
    for batch in Batches(Samples(x), 5).batches():
        z = encode(twin.optimizer.atoms.detach(), batch.x, alpha=0.1, n_unfoldings=5)
        losses.append(
            0.5 * (batch.x - z @ twin.optimizer.atoms.detach()).square().sum(1)
        )
        twin.run_epoch(Batches(Samples(batch.x), 5), NEVER)
    trainer.run_epoch(Batches(Samples(x), 5), NEVER)
    assert trainer.loss_curve == (
        pytest.approx(float(torch.cat(losses).mean()), rel=1e-12),
    )
    assert trainer.n_steps == len(losses) == 5
    assert torch.equal(trainer.optimizer.atoms, twin.optimizer.atoms)


def test_a_long_epoch_is_left_as_soon_as_the_objective_has_stalled(atoms, generator):
    """So the first of many samples need not be gone through when nothing is left to gain."""
    x = normal(generator, 1, 4).expand(500, 4)
    trainer = make_trainer(atoms, alpha=1e3)  # zero codes, a constant objective
    assert trainer.run_epoch(Batches(Samples(x), 1), Stopping(1e-4, 2))
    assert trainer.n_steps < 500
    assert trainer.loss_curve == (pytest.approx(0.5 * float(x[0].square().sum())),)


@pytest.mark.parametrize("n_updates", [3, 10, 13])
def test_training_ends_after_a_given_number_of_updates(n_updates, atoms, x):
    """Also within an epoch, and after updates that are those of a longer training."""
    stopping = Stopping(None, 1, n_updates=n_updates)
    trainer, twin = make_trainer(atoms), make_trainer(atoms)
    assert not trainer.run_epoch(Batches(Samples(x), 1), stopping)
    twin.run_epoch(Batches(Samples(x[:n_updates]), 1), NEVER)
    assert trainer.n_steps == n_updates
    assert torch.equal(trainer.optimizer.atoms, twin.optimizer.atoms)


# ---------------------------------------------------------------------------- divergence


@pytest.mark.parametrize(
    ("call", "update", "n_steps"), [(3, 3, 0), (6, 6, 0), (8, 8, 5)]
)
def test_divergence_raises_with_the_last_finite_record(call, update, n_steps, atoms, x):
    """Five updates an epoch, whose first loss shows whether the atoms before it were finite."""
    failing, calm = make_trainer(atoms, FailsAt(call)), make_trainer(atoms)
    if call > 5:
        failing.run_epoch(Batches(Samples(x), 5), NEVER)
    with pytest.raises(Diverged, match=f"update {update}\\.") as raised:
        failing.run_epoch(Batches(Samples(x), 5), NEVER)
    if n_steps:
        calm.run_epoch(Batches(Samples(x), 5), NEVER)
    found = raised.value.fitted
    assert found.n_steps == n_steps
    assert torch.equal(found.atoms, calm.fitted.atoms)
    assert found.loss_curve == calm.loss_curve
