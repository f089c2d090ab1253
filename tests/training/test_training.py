"""The epoch loop: batches, stopping, divergence, and atoms that no code uses."""

from functools import partial

import pytest
import torch

from skpudle._data.batches import Rows, Samples
from skpudle._gradients import ae_ls
from skpudle._learners.record import Fitted
from skpudle._operators._atoms import DenseDictionary, project_atoms
from skpudle._optimizers._make import make_optimizer
from skpudle._training.loop import Diverged, Stopping, Trainer
from skpudle.encoding import encode

NEVER = Stopping(None, 1)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def epoch(source):
    return source.batches()


class FailsAt:
    """The rule ``ae-ls``, not finite at the given calls."""

    def __init__(self, *calls):
        self.calls, self.n_calls = calls, 0

    def __call__(self, dictionary, batch, **options):
        self.n_calls += 1
        evaluation = ae_ls(dictionary, batch, **options)
        if self.n_calls in self.calls:
            return evaluation._replace(
                surrogate=evaluation.surrogate * torch.nan, losses=evaluation.losses * torch.nan
            )
        return evaluation


class Model:
    """Five unfoldings, and a record of the updates that were asked for."""

    part_size = None

    def __init__(self, rule, alpha):
        self.rule, self.alpha, self.updates = rule, alpha, []

    def network(self, rows, update):
        self.updates.append(update)
        encoder = partial(encode, alpha=self.alpha, n_unfoldings=5)
        return DenseDictionary(rows), encoder, self.alpha

    def replacements(self, rows, samples):
        return samples


def make_trainer(atoms, rule=ae_ls, *, alpha=0.1, optimizer="adam"):
    optimizer = make_optimizer(optimizer, atoms, project_atoms, learning_rate=0.01, data_scale=1.0)
    return Trainer(Fitted(model=Model(rule, alpha), rows=atoms), optimizer)


@pytest.fixture
def atoms(generator):
    return project_atoms(normal(generator, 6, 4))


@pytest.fixture
def x(generator):
    return normal(generator, 23, 4)


# ---------------------------------------------------------------------------- batches


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_an_epoch_visits_every_sample_once(batch_size, shuffle, x, generator):
    source = Rows(Samples(x), batch_size, generator=generator if shuffle else None)
    for _ in range(2):
        batches = list(epoch(source))
        sizes = [len(batch.x) for batch in batches]
        assert sum(sizes) == len(x)
        assert sizes[:-1] == [min(batch_size, len(x))] * (len(sizes) - 1)
        positions = torch.cat([batch.keys for batch in batches])
        assert torch.equal(positions.sort().values, torch.arange(len(x)))
        assert all(torch.equal(batch.x, x[batch.keys]) for batch in batches)


def test_batches_come_in_the_order_of_the_samples_without_a_generator(x):
    assert torch.equal(torch.cat([batch.x for batch in epoch(Rows(Samples(x), 5))]), x)


def test_every_epoch_is_shuffled_anew(x, generator):
    source = Rows(Samples(x), 5, generator=generator)
    first, second = (torch.cat([batch.keys for batch in epoch(source)]) for _ in range(2))
    assert not torch.equal(first, second)


def test_a_full_batch_is_not_shuffled(x, generator):
    """So that nothing depends on an order that does not matter."""
    (batch,) = epoch(Rows(Samples(x), 100, generator=generator))
    assert torch.equal(batch.x, x)


def test_a_generator_determines_the_batches(x):
    orders = []
    for seed in (0, 0, 1):
        source = Rows(Samples(x), 5, generator=torch.Generator().manual_seed(seed))
        orders.append(torch.cat([batch.keys for batch in epoch(source)]))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


# ---------------------------------------------------------------------------- stopping


def first_stop(objectives, tol=1e-4, patience=3, **options):
    """Return after how many checks to stop, or None."""
    stopping = Stopping(tol, patience, **options)
    checks = (stopping.check(value, 1, update) for update, value in enumerate(objectives))
    return next((number for number, stop in enumerate(checks, start=1) if stop), None)


@pytest.mark.parametrize("patience", [1, 3, 5])
def test_a_constant_objective_stops_after_the_patience(patience):
    """The first check sets the mark, and is no failure to improve."""
    assert first_stop([2.0] * 20, patience=patience) == 1 + patience


def test_an_objective_that_falls_never_stops():
    assert first_stop([0.99**check for check in range(200)]) is None


def test_without_a_tolerance_nothing_stops():
    assert first_stop([2.0] * 100, tol=None) is None


def test_an_improvement_is_relative_to_the_best():
    """A tolerance between the two rates tells them apart, at any scale and sign."""
    for scale in (1e-8, 1.0, 1e8):
        slow = [scale * 0.9999**check for check in range(50)]
        fast = [scale * 0.98**check for check in range(50)]
        assert first_stop(slow, tol=1e-3) is not None
        assert first_stop(fast, tol=1e-3) is None
    assert first_stop([-(1.02**check) for check in range(50)], tol=1e-3) is None


def test_updates_before_the_first_to_be_judged_do_not_count():
    assert first_stop([2.0] * 20, first_update=7) == 7 + 4


def test_noise_around_a_falling_objective_does_not_stop():
    noise = [0.02 * (-1) ** check for check in range(100)]
    assert first_stop([0.97**check + e * 0.97**check for check, e in enumerate(noise)]) is None


def test_few_samples_wait_for_others_before_they_are_judged():
    """Parts of a check, of whatever size, are that check."""
    parts, whole = Stopping(1e-4, 3), Stopping(1e-4, 3)
    for update in range(40):
        objective = max(0.5**update, 0.01)
        stops = [
            parts.check(n * (objective + e), n, update, n_judged=6)
            for n, e in ((3, 0.2), (1, 0.0), (2, -0.3))
        ]
        assert stops == [False, False, whole.check(objective, 1, update)]
    assert stops[-1]


def test_an_improvement_resets_the_patience():
    assert first_stop([2.0] * 3 + [1.0] * 20, patience=3) > 1 + 3


# ---------------------------------------------------------------------------- an epoch


def test_loss_of_an_epoch_is_the_mean_over_its_samples(atoms, x):
    """Each at the atoms of its update, also where the last batch is smaller."""
    trainer, twin = make_trainer(atoms), make_trainer(atoms)
    losses = []
    for batch in epoch(Rows(Samples(x), 5)):
        z = encode(twin.optimizer.atoms.detach(), batch.x, alpha=0.1, n_unfoldings=5)
        losses.append(0.5 * (batch.x - z @ twin.optimizer.atoms.detach()).square().sum(1))
        twin.run_epoch(Rows(Samples(batch.x), 5), NEVER)
    summary = trainer.run_epoch(Rows(Samples(x), 5), NEVER)
    assert summary.loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-12)
    assert trainer.n_steps == len(losses) == 5
    assert torch.equal(trainer.optimizer.atoms, twin.optimizer.atoms)


def test_networks_are_asked_for_every_update_in_turn(atoms, x):
    trainer = make_trainer(atoms)
    for _ in range(2):
        trainer.run_epoch(Rows(Samples(x), 10), NEVER)
    assert trainer.model.updates == list(range(6))


def test_a_long_epoch_is_left_as_soon_as_the_objective_has_stalled(atoms, generator):
    """So the first of many samples need not be gone through when nothing is left to gain."""
    x = normal(generator, 1, 4).expand(500, 4)
    trainer = make_trainer(atoms, alpha=1e3)  # zero codes, a constant objective
    summary = trainer.run_epoch(Rows(Samples(x), 1), Stopping(1e-4, 2))
    assert summary.converged
    assert trainer.n_steps < 500
    assert summary.loss == pytest.approx(0.5 * float(x[0].square().sum()))


@pytest.mark.parametrize("n_updates", [3, 10, 13])
def test_training_ends_after_a_given_number_of_updates(n_updates, atoms, x):
    """Also within an epoch, and after updates that are those of a longer training."""
    stopping = Stopping(None, 1, n_updates=n_updates)
    trainer, twin = make_trainer(atoms), make_trainer(atoms)
    summary = trainer.run_epoch(Rows(Samples(x), 1), stopping)
    twin.run_epoch(Rows(Samples(x[:n_updates]), 1), NEVER)
    assert trainer.n_steps == n_updates
    assert not summary.converged
    assert torch.equal(trainer.optimizer.atoms, twin.optimizer.atoms)


# ---------------------------------------------------------------------------- divergence


def test_one_divergence_halves_the_learning_rate_and_starts_the_epoch_again(atoms, x):
    trainer = make_trainer(atoms, FailsAt(3))
    summary = trainer.run_epoch(Rows(Samples(x), 5), NEVER)
    calm = make_trainer(atoms)
    calm.optimizer.halve_learning_rate()
    assert summary == calm.run_epoch(Rows(Samples(x), 5), NEVER)
    assert torch.equal(trainer.optimizer.atoms, calm.optimizer.atoms)
    assert trainer.n_steps == calm.n_steps == 5


@pytest.mark.parametrize("optimizer", ["adam", "sgd", torch.optim.RMSprop])
def test_training_goes_on_from_the_last_finite_state(optimizer, atoms, x):
    """Moments included: the next epoch is that of a trainer whose learning rate was halved."""
    failing = make_trainer(atoms, FailsAt(8), optimizer=optimizer)
    calm = make_trainer(atoms, optimizer=optimizer)
    for trainer in (failing, calm):
        trainer.run_epoch(Rows(Samples(x), 5), NEVER)
    calm.optimizer.halve_learning_rate()
    for trainer in (failing, calm):
        trainer.run_epoch(Rows(Samples(x), 5), NEVER)
    assert torch.equal(failing.optimizer.atoms, calm.optimizer.atoms)


@pytest.mark.parametrize(("calls", "update"), [((3, 6), 1), ((3, 8), 3), ((7, 12), 7)])
def test_a_second_divergence_raises_with_the_number_of_the_update(calls, update, atoms, x):
    """Five updates an epoch; the retry after the first failure starts counting where it did."""
    trainer = make_trainer(atoms, FailsAt(*calls))
    starts = []

    def train():
        while True:
            starts.append(trainer.optimizer.atoms.detach().clone())
            trainer.run_epoch(Rows(Samples(x), 5), NEVER)

    with pytest.raises(Diverged, match=f"update {update}$") as error:
        train()
    assert error.value.update == update
    assert torch.equal(trainer.optimizer.atoms, starts[-1])  # the last that were finite


def test_an_update_that_leaves_no_finite_loss_is_taken_back(atoms, x):
    """Also the last of an epoch: from the atoms that it led to, half the step helps no more."""

    def step_length(trainer):
        return float((trainer.optimizer.atoms.detach() - atoms).norm())

    calm = make_trainer(atoms, optimizer="sgd")
    calm.run_epoch(Rows(Samples(x), 100), NEVER)
    too_far = 0.75 * step_length(calm)

    def rule(dictionary, batch, **options):
        evaluation = ae_ls(dictionary, batch, **options)
        if float((dictionary.atoms.detach() - atoms).norm()) > too_far:
            return evaluation._replace(losses=evaluation.losses * torch.nan)
        return evaluation

    trainer = make_trainer(atoms, rule, optimizer="sgd")
    trainer.run_epoch(Rows(Samples(x), 100), NEVER)
    trainer.run_epoch(Rows(Samples(x), 100), NEVER)
    assert 0 < step_length(trainer) < too_far


def test_atoms_that_stop_being_finite_are_noticed_though_losses_are_finite(atoms, x):
    """The last update of a round has no loss behind it."""

    def rule(dictionary, batch, **options):
        evaluation = ae_ls(dictionary, batch, **options)
        return evaluation._replace(surrogate=evaluation.surrogate * torch.inf)

    trainer = make_trainer(atoms, rule)
    before = trainer.optimizer.atoms.detach().clone()
    with pytest.raises(Diverged, match="update 1$"):
        trainer.run_epoch(Rows(Samples(x), 100), NEVER)
    assert torch.equal(trainer.optimizer.atoms, before)
    assert trainer.n_steps == 0


# ---------------------------------------------------------------------------- unused atoms


def trained_with_unused_atoms(generator):
    """Return a trainer after an epoch, its source, and the two atoms that no code used."""
    x = torch.cat([normal(generator, 23, 2), torch.zeros(23, 2, dtype=torch.float64)], dim=1)
    x[4, 3], x[17, 3] = 9.0, -8.0  # badly reconstructed
    atoms = torch.eye(4, dtype=torch.float64)[[0, 2, 1, 2]]  # no sample has the third feature
    trainer, source = make_trainer(atoms), Rows(Samples(x), 5, generator=generator)
    trainer.run_epoch(source, NEVER)
    return trainer, source, torch.tensor([1, 3])


def test_unused_atoms_become_the_worst_reconstructed_samples(generator):
    trainer, source, unused = trained_with_unused_atoms(generator)
    before = trainer.optimizer.atoms.detach().clone()
    trainer.replace_unused(source)
    atoms = trainer.optimizer.atoms.detach()
    torch.testing.assert_close(atoms[unused], project_atoms(source.given.x[[4, 17]]))
    assert torch.equal(atoms[[0, 2]], before[[0, 2]])


def test_replaced_atoms_have_no_moments(generator):
    trainer, source, unused = trained_with_unused_atoms(generator)
    trainer.optimizer._optimizer.state[trainer.optimizer.atoms]["exp_avg"].fill_(1.0)
    trainer.replace_unused(source)
    moments = trainer.optimizer.state()["exp_avg"]
    assert not moments[unused].any()
    assert (moments[[0, 2]] == 1).all()


def test_an_atom_used_in_one_batch_of_the_epoch_is_kept(generator):
    trainer, source, _ = trained_with_unused_atoms(generator)
    rare = normal(generator, 23, 4)
    rare[:, 2] = 0
    rare[7] = torch.tensor([0.0, 0.0, 5.0, 0.0])
    source = Rows(Samples(rare), 5)
    trainer.run_epoch(source, NEVER)
    before = trainer.optimizer.atoms.detach().clone()
    trainer.replace_unused(source)
    assert torch.equal(trainer.optimizer.atoms, before)


def test_more_unused_atoms_than_samples_are_replaced_as_far_as_samples_go(generator):
    x = normal(generator, 3, 4)
    trainer, source = (
        make_trainer(torch.ones(6, 4, dtype=torch.float64), alpha=1e3),
        Rows(Samples(x), 3),
    )
    trainer.run_epoch(source, NEVER)
    trainer.replace_unused(source)
    atoms = trainer.optimizer.atoms.detach()
    worst = x[x.norm(dim=1).argsort(descending=True)]
    torch.testing.assert_close(atoms[:3], project_atoms(worst))
    torch.testing.assert_close(atoms[3:], torch.full((3, 4), 0.5, dtype=torch.float64))


def test_samples_without_an_error_replace_nothing(atoms):
    """Zero samples are no atoms."""
    source = Rows(Samples(torch.zeros(5, 4, dtype=torch.float64)), 5)
    trainer = make_trainer(atoms)
    trainer.run_epoch(source, NEVER)
    before = trainer.optimizer.atoms.detach().clone()
    trainer.replace_unused(source)
    assert torch.equal(trainer.optimizer.atoms, before)
