"""Optimisers are those of torch, followed by a projection, and can be stopped and resumed."""

from functools import partial

import pytest
import torch

from skpudle._operators._atoms import atom_norms, project_atoms
from skpudle._optimizers._gradient import GradientOptimizer
from skpudle._optimizers._make import make_optimizer
from skpudle._optimizers._surrogate import SurrogateOptimizer

OPTIMIZERS = {
    "adam": ("adam", {}),
    "sgd": ("sgd", {}),
    "sgd with momentum": ("sgd", dict(momentum=0.9)),
    "AdamW": (torch.optim.AdamW, {}),
    "RMSprop": (torch.optim.RMSprop, dict(momentum=0.5)),
    "Adagrad": (torch.optim.Adagrad, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "Rprop": (torch.optim.Rprop, {}),
}
CLASSES = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make(kind, atoms, *, atom_norm="unit", data_scale=1.0, learning_rate=0.01, **params):
    name, defaults = OPTIMIZERS[kind]
    arguments = defaults | params
    return make_optimizer(
        partial(CLASSES.get(name, name), **arguments) if arguments else name,
        atoms,
        partial(project_atoms, atom_norm=atom_norm),
        learning_rate=learning_rate,
        data_scale=data_scale,
    )


def train(optimizer, gradients):
    for gradient in gradients:
        optimizer.update(gradient, None)
    return optimizer.atoms.detach().clone()


@pytest.fixture(params=OPTIMIZERS)
def kind(request):
    return request.param


@pytest.fixture
def atoms(generator):
    return normal(generator, 6, 4)


@pytest.fixture
def gradients(generator):
    return [normal(generator, 6, 4) for _ in range(5)]


class Interrupting(torch.optim.SGD):
    """An optimiser whose import of what it needs is interrupted, and which does not notice."""

    def __init__(self, *args, **kwargs):
        try:
            raise KeyboardInterrupt
        except BaseException as error:
            raise RuntimeError("cannot import") from error


def test_an_interrupt_is_no_wrong_parameter():
    with pytest.raises(KeyboardInterrupt):
        make_optimizer(Interrupting, torch.eye(3), abs, learning_rate=0.1, data_scale=1.0)


@pytest.mark.parametrize("atom_norm", ["unit", "ball", None])
def test_an_update_is_a_step_of_torch_and_a_projection(kind, atom_norm, atoms, gradients):
    project = partial(project_atoms, atom_norm=atom_norm)
    name, params = OPTIMIZERS[kind]
    expected = torch.nn.Parameter(project(atoms).clone())
    reference = CLASSES.get(name, name)([expected], lr=0.01, **params)
    for gradient in gradients:
        expected.grad = gradient
        reference.step()
        with torch.no_grad():
            expected.copy_(project(expected))
    trained = train(make(kind, atoms, atom_norm=atom_norm), gradients)
    torch.testing.assert_close(trained, expected.detach(), rtol=0, atol=1e-14)


def test_initial_atoms_are_projected_and_copied(kind, atoms, gradients):
    before = atoms.clone()
    optimizer = make(kind, atoms)
    torch.testing.assert_close(optimizer.atoms.detach(), project_atoms(atoms))
    train(optimizer, gradients)
    assert torch.equal(atoms, before)


def test_initial_atoms_are_copied_without_a_constraint_too(atoms, gradients):
    before = atoms.clone()
    train(make("sgd", atoms, atom_norm=None), gradients)
    assert torch.equal(atoms, before)


def test_a_resumed_optimizer_takes_the_same_steps(kind, atoms, gradients):
    """Going back, or loading into a new optimiser, gives the same bits."""
    optimizer = make(kind, atoms)
    middle, state = train(optimizer, gradients[:2]), optimizer.state()
    last = train(optimizer, gradients[2:])
    optimizer.load(middle, state)
    assert torch.equal(train(optimizer, gradients[2:]), last)
    fresh = make(kind, torch.ones_like(atoms))
    fresh.load(middle, state)
    assert torch.equal(train(fresh, gradients[2:]), last)


def test_state_is_a_copy(kind, atoms, gradients):
    """Neither training on nor training from it writes into it."""
    optimizer = make(kind, atoms)
    middle, state = train(optimizer, gradients[:2]), optimizer.state()
    copies = {name: value.clone() for name, value in state.items()}
    train(optimizer, gradients)
    optimizer.load(middle, state)
    train(optimizer, gradients)
    assert all(torch.equal(state[name], copies[name]) for name in copies)


def test_the_state_before_the_first_update_can_be_loaded(kind, atoms, gradients):
    optimizer = make(kind, atoms)
    start, state = optimizer.atoms.detach().clone(), optimizer.state()
    last = train(optimizer, gradients)
    optimizer.load(start, state)
    assert torch.equal(train(optimizer, gradients), last)


def test_replaced_atoms_are_projected_and_have_no_past(kind, atoms, gradients, generator):
    """What is remembered entry by entry is at its start in their rows, and elsewhere as before."""
    optimizer = make(kind, atoms)
    start = optimizer.fresh_state()
    kept, state = train(optimizer, gradients), optimizer.state()
    rows, new = torch.tensor([4, 1]), 3 * normal(generator, 2, 4)
    optimizer.replace(rows, new)
    torch.testing.assert_close(optimizer.atoms.detach()[rows], project_atoms(new))
    others = [0, 2, 3, 5]
    assert torch.equal(optimizer.atoms.detach()[others], kept[others])
    for name, value in optimizer.state().items():
        if value.shape == atoms.shape:
            assert torch.equal(value[rows], start[name][rows])
            assert torch.equal(value[others], state[name][others])


@pytest.mark.parametrize("kind", ["sgd with momentum", "RMSprop", "Adagrad", "Rprop"])
def test_a_replaced_atom_steps_as_a_new_one_does(kind, atoms, gradients, generator):
    """For optimisers that do not count; step sizes of Rprop, for one, do not start at zero."""
    optimizer, new = make(kind, atoms, atom_norm=None), normal(generator, 1, 4)
    train(optimizer, gradients)
    optimizer.replace(torch.tensor([2]), new)
    fresh = make(kind, new.expand(6, 4), atom_norm=None)
    torch.testing.assert_close(train(optimizer, gradients)[2], train(fresh, gradients)[2])


class Normalized(torch.optim.Optimizer):
    """Momentum of normalised gradients, which of nothing are not a number."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad / p.grad.norm(), 0.5)
                p.data.sub_(mean, alpha=group["lr"])


def test_a_replaced_atom_is_finite_whatever_nothing_does_to_the_optimiser(atoms, gradients):
    options = dict(learning_rate=0.1, data_scale=1.0)
    optimizer = make_optimizer(Normalized, atoms, torch.clone, **options)
    train(optimizer, gradients)
    optimizer.replace(torch.tensor([2]), atoms[:1])
    assert torch.isfinite(train(optimizer, gradients)).all()


@pytest.mark.parametrize("name", ["adam", "sgd with momentum", "Rprop", "surrogate"])
@pytest.mark.parametrize("change", ["rows", "dtype", "missing", "atoms"])
def test_a_state_of_other_atoms_is_refused(name, change, atoms, gradients):
    """What is fused trusts that moments are as large as the atoms."""
    if name == "surrogate":
        optimizer = SurrogateOptimizer(atoms, project_atoms)
    else:
        optimizer = make(name, atoms)
    for gradient in gradients:
        optimizer.update(gradient, normal(torch.Generator().manual_seed(0), 9, 6))
    before, state = optimizer.atoms.detach().clone(), optimizer.state()
    moment = next(key for key, value in state.items() if value.ndim)
    named = {"missing": "is missing", "atoms": "atoms"}.get(change, moment)
    if change == "missing":
        state = {"other": state[moment]}
    elif change != "atoms":
        state[moment] = state[moment][:4] if change == "rows" else state[moment].float()
    with pytest.raises(ValueError, match=f"not the state.*{named}"):
        optimizer.load(atoms[:1] if change == "atoms" else atoms, state)
    assert torch.equal(optimizer.atoms, before)
    assert (optimizer.misfit(state) is None) == (change == "atoms")
    assert optimizer.misfit({}) is None


def test_atoms_can_be_replaced_before_the_first_update(kind, atoms, generator):
    optimizer = make(kind, atoms)
    new = normal(generator, 1, 4)
    optimizer.replace(torch.tensor([2]), new)
    torch.testing.assert_close(optimizer.atoms.detach()[2], project_atoms(new)[0])


def test_halving_the_learning_rate_halves_a_step(kind, atoms, gradients):
    steps = []
    for halve in (False, True):
        optimizer = make(kind, atoms, atom_norm=None)
        if halve:
            optimizer.halve_learning_rate()
        # weight decay and the like apart, a first step is proportional to the learning rate
        steps.append(train(optimizer, gradients[:1]) - atoms)
    torch.testing.assert_close(2 * steps[1], steps[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-16, 1e-6, 1e6, 1e16])
def test_adam_does_not_depend_on_the_units_of_the_data(scale, atoms, gradients):
    """Gradients are proportional to the mean squared norm of a sample, and so is its eps."""
    scaled = make("adam", atoms, data_scale=scale)
    expected = train(make("adam", atoms), gradients)
    actual = train(scaled, [scale * gradient for gradient in gradients])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_adam_does_so_in_float32_too(atoms, gradients):
    """The square of a gradient of data of size 1e-8 is no number of float32."""
    atoms, gradients = atoms.float(), [gradient.float() for gradient in gradients]
    expected = train(make("adam", atoms), gradients)
    for scale in (1e-16, 1e16):
        scaled = [scale * gradient for gradient in gradients]
        actual = train(make("adam", atoms, data_scale=scale), scaled)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("parameter", ["eps", "weight_decay"])
def test_what_is_given_for_adam_is_absolute(parameter, atoms, gradients):
    expected = train(make("adam", atoms, **{parameter: 0.1}), gradients)
    actual = train(make("adam", atoms, data_scale=1e2, **{parameter: 0.1}), gradients)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_strides_of_the_initial_atoms_do_not_matter(kind, atoms, gradients):
    """An array in the order of Fortran, as other packages have, with gradients in that of C."""
    by_columns = atoms.mT.contiguous().mT
    assert not by_columns.is_contiguous()
    expected = train(make(kind, atoms), gradients)
    assert torch.equal(train(make(kind, by_columns), gradients), expected)


def test_an_optimiser_that_starts_with_a_state_can_forget_all(atoms, gradients):
    """Adagrad of some versions of torch has its sums before the first step."""
    options = dict(learning_rate=0.1, data_scale=1.0)
    adagrad = partial(torch.optim.Adagrad, initial_accumulator_value=0.5)
    used, new = (make_optimizer(adagrad, atoms, torch.clone, **options) for _ in "12")
    train(used, gradients)
    used.load(atoms, {})
    assert torch.equal(train(used, gradients), train(new, gradients))


def test_zero_data_leave_the_atoms_where_they_are(kind, atoms):
    zero = [torch.zeros_like(atoms)] * 3
    trained = train(make(kind, atoms, data_scale=0.0), zero)
    torch.testing.assert_close(trained, project_atoms(atoms), rtol=1e-12, atol=0)


def test_atoms_stay_inside_their_constraints(kind, atoms, gradients):
    norms = atom_norms(train(make(kind, atoms, learning_rate=1.0), gradients))
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_a_class_of_torch_is_taken_with_its_parameters(atoms):
    optimizer = make_optimizer(
        partial(torch.optim.RMSprop, alpha=0.7),
        atoms,
        project_atoms,
        learning_rate=0.5,
        data_scale=1.0,
    )
    assert isinstance(optimizer, GradientOptimizer)
    (group,) = optimizer._optimizer.param_groups
    assert group["lr"] == 0.5
    assert group["alpha"] == 0.7


class Counting(torch.optim.Optimizer):
    """A step of 1 over the number of steps, which it counts by an integer."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["step"] = self.state[p].get("step", 0) + 1
                p.data.sub_(p.grad, alpha=group["lr"] / self.state[p]["step"])


def test_an_optimizer_may_count_by_integers_and_know_no_closures(atoms, gradients):
    options = dict(learning_rate=0.1, data_scale=1.0)
    first, second, third = (make_optimizer(Counting, atoms, torch.clone, **options) for _ in "123")
    train(first, gradients)
    train(second, gradients[:2])
    third.load(second.atoms, second.state())
    assert torch.equal(train(third, gradients[2:]), first.atoms)


def test_foreach_takes_the_place_of_the_fused_adam(atoms, gradients):
    found = train(make("adam", atoms, foreach=True), gradients)
    torch.testing.assert_close(found, train(make("adam", atoms), gradients))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("parameter", ["foo", "lr", "learning_rate"])
def test_parameters_that_an_optimiser_does_not_have_are_named(kind, parameter, generator):
    atoms = normal(generator, 3, 4)
    options = dict(learning_rate=0.1, data_scale=1.0)
    with pytest.raises(ValueError, match=f"{kind.__name__}.*makes no steps.*{parameter}"):
        make_optimizer(partial(kind, **{parameter: 1.0}), atoms, project_atoms, **options)


def test_a_function_that_makes_an_optimiser_is_its_class_with_arguments(atoms, gradients):
    def rmsprop(parameters, lr):
        return torch.optim.RMSprop(parameters, lr=lr, alpha=0.7)

    options = dict(learning_rate=0.5, data_scale=1.0)
    makes = rmsprop, partial(torch.optim.RMSprop, alpha=0.7)
    one, other = (make_optimizer(make, atoms, project_atoms, **options) for make in makes)
    assert torch.equal(train(one, gradients), train(other, gradients))


def test_an_optimiser_that_cannot_step_is_named(atoms):
    with pytest.raises(
        ValueError, match=r"optimizer=.*SparseAdam.*no steps along gradients.*'adam'"
    ):
        make_optimizer(
            torch.optim.SparseAdam, atoms, project_atoms, learning_rate=0.1, data_scale=1.0
        )


class Interrupted(torch.optim.Optimizer):
    def __init__(self, params, lr):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("An import failed") from None


def test_ctrl_c_behind_another_error_is_ctrl_c(atoms):
    """While torch imports what it needs late, it makes other errors of it."""
    with pytest.raises(KeyboardInterrupt):
        make_optimizer(Interrupted, atoms, project_atoms, learning_rate=0.1, data_scale=1.0)
