"""One call of `partial_fit`: where learning begins, and one pass over the rows.

Learning begins in one of three ways, each a function that returns the record to update and the
`Data` to update it by:

- `begin_with`: with the rows of this call, if it is the first one, or if all rows so far were zero;
- `begin_with_gathered`: with the rows of this call and all earlier ones, as long as they were too
  few to learn units from (baseline and noise);
- `go_on`: from the record and the attributes that the last call, or `fit`, has left.

Then `alternate` learns by codes of the lasso and atoms in turn, or `train` by gradients.
"""

from dataclasses import replace

import torch

from skpudle._data.sources import Batches
from skpudle._fit import messages
from skpudle._fit.encoders import learned_encoder
from skpudle._fit.plan import train_encoder
from skpudle._fit.run import Interrupts, take
from skpudle._fit.train import Diverged, Stopping, Trainer
from skpudle._operators._atoms import project_atoms
from skpudle.search.learn_units import least_rows
from skpudle.search.stream import FORGETTING, advance_stream, begin_stream, block_rows

# Parameters by which a user asks for training by gradients.
_OF_TRAINING = "optimizer", "learning_rate", "batch_size"


def update_learner(learner, X, y, **of_rows):
    """Update a learner by one pass over the data: `partial_fit` of all learners of rows.

    ``of_rows`` are keyword arguments of `PhasedLearner._read` with an entry for each row. Return
    the learner.
    """
    messages.refuse_several("partial_fit")
    is_fitted = hasattr(learner, "components_")
    if is_fitted:  # the decorator `fits` checks the parameters in a first call only
        learner._validate_params()
        _refuse_new_size(learner)
    plan = learner._plan()
    read = learner._read(X, y, is_fitted=is_fitted, part=True, **of_rows)
    plan = plan.for_data(read)
    fitted, data = _begin(learner, plan, read, is_fitted)
    n_seen = read.n_seen
    if is_fitted:
        n_seen += learner.n_samples_seen_
        curve = tuple(learner.loss_curve_)
        fitted = replace(fitted, n_steps=learner.n_steps_, loss_curve=curve)
    by_gradients = not plan.alternates or messages.any_named(learner, _OF_TRAINING)
    learn = train if by_gradients else alternate
    error = None
    with Interrupts() as interrupts:
        try:
            fitted = learn(learner, plan, fitted, data, interrupts)
        except Diverged as diverged:
            fitted = diverged.fitted
            error = diverged
        attributes = learner._attributes(plan, data, fitted)
        take(learner, attributes | {"n_samples_seen_": n_seen})
        if error is not None:
            raise error
    return learner


def _refuse_new_size(learner):
    """Raise ValueError if the user has set another number of atoms since the last call."""
    n_atoms = len(learner.components_)
    now = learner.n_components
    before = learner._at_fit["n_components"]
    messages.refuse(
        now not in (None, "auto", before, n_atoms),
        f"n_components={now} was set after fit, and components_ has {n_atoms} atoms, which "
        "partial_fit keeps. Set it back, fit again, or replace components_, too.",
    )


# ------------------------------------------------------------------ three beginnings


def _begin(learner, plan, data, is_fitted):  # -> Fitted, Data
    """Choose one of the three beginnings, see the module, and make it."""
    if not is_fitted:
        return begin_with(learner, plan, data)
    edited = learner._at_fit["atoms"] != messages.describe(learner.components_)
    last = learner._fitted
    if last.first_rows is not None and not edited:
        return begin_with_gathered(learner, plan, data)
    if last.data_scale == 0 and not edited:
        return begin_with(learner, plan, data)
    return go_on(learner, plan, data, edited)


def begin_with(learner, plan, data):  # -> Fitted, Data
    """Begin with the rows of this call: first atoms, penalty and, from enough rows, units."""
    fitted = learner._begin(plan, data)
    samples = data.samples
    least = least_rows(plan.n_components or samples.x.shape[1])
    if plan.learns_noise and len(samples) == data.source.n_samples < least:
        fitted = replace(fitted, first_rows=samples.map(torch.clone))
    return fitted, data


def begin_with_gathered(learner, plan, data):  # -> Fitted, Data
    """Begin again with all rows so far, which were too few to learn units from."""
    samples = data.samples.after(learner._fitted.first_rows)
    return begin_with(learner, plan, data._replace(source=samples, samples=samples))


def go_on(learner, plan, data, edited):  # -> Fitted, Data
    """Go on from the last record; ``edited`` is whether the user has changed the atoms since."""
    fitted = learner._resume(plan, data)
    if edited:
        positive = plan.params.positive_dict
        atoms = project_atoms(fitted.atoms.contiguous(), positive=positive)
        fitted = replace(fitted, atoms=atoms, training={})
    return fitted, data


# ------------------------------------------------------------------ one pass over the rows


def alternate(learner, plan, fitted, data, interrupts):  # -> Fitted
    """Learn from the rows block by block, by codes of the lasso and atoms in alternation.

    This is the `partial_fit` of learners whose codes solve the lasso; the algorithm is
    `skpudle.search.stream`. Rows that are too few for a block are kept for the next call, in
    ``fitted.buffer``.
    """
    # The best size of a block depends on the mean number of nonzero codes in a row. It is unknown
    # before rows are coded, so 4 is assumed.
    size = block_rows(4.0, *fitted.atoms.shape)
    square = fitted.data_scale or 0.0
    buffer = fitted.buffer
    loss = 0.0
    n_rows = 0
    atoms = fitted.atoms.detach().to("cpu", torch.float64)
    state = fitted.stream
    if state is None or len(state.held.energy) != len(atoms):
        state = begin_stream(atoms)
    # ``components_`` may have been edited since the state was stored, so its atoms are replaced
    state = state._replace(held=state.held._replace(atoms=atoms))
    for block in data.source.blocks(size):
        if interrupts.pending:
            break
        n_new = block.total_weight
        block = block.in_units(fitted.units)
        buffer = block if buffer is None else block.after(buffer)
        problem = plan.problem(buffer.to(fitted.atoms), fitted.alpha, square)
        is_full = len(buffer) >= size
        state, is_over = advance_stream(
            problem, state, forgetting=FORGETTING, final=is_full
        )
        loss = loss + state.loss * problem.unit**2 * n_new
        n_rows = n_rows + n_new
        buffer = None if is_over else buffer
    return replace(
        fitted,
        atoms=state.atoms.to(fitted.atoms),
        loss_curve=(*fitted.loss_curve, loss / n_rows if n_rows else 0.0),
        stream=state,
        buffer=buffer,
        losses=(),
        training={},
    )


def train(learner, plan, fitted, data, interrupts):  # -> Fitted
    """Learn from the rows by one epoch of gradients.

    This is the `partial_fit` of learners that train their encoder. Atoms that no code has used for
    10 times n_components samples are replaced by the samples with the largest losses.
    """
    rows = plan.join(fitted)
    before = fitted.training
    now = messages.describe(plan.optimizer_for(len(fitted.atoms)))
    moments = before.get("moments", {})
    if moments and learner._at_fit["optimizer"] != now:
        moments = {}
    optimizer = plan.make_optimizer(fitted)
    optimizer.load(rows, moments)
    unused = before.get("unused", torch.zeros(len(rows), dtype=torch.float64))
    fitted = replace(fitted, training={"unused": unused})
    trainer = Trainer(plan, fitted, optimizer, interrupts=interrupts)
    trainer.run_epoch(Batches(data.source, plan.batch_size()), Stopping(None, 1))
    if not interrupts.pending:
        # ``unused``: for each atom, the number of samples, over all calls, since a nonzero code
        # last used the atom
        epoch = trainer.epoch
        unused = torch.where(epoch["unused"].cpu(), unused + epoch["n_samples"], 0.0)
        # The limit of 10 * n_components samples is so long that rarely used atoms stay: an atom
        # that one in n_components samples uses exceeds the limit with probability exp(-10).
        trainer.replace_unused(among=unused >= 10 * len(unused))
    fitted = trainer.fitted
    fitted = replace(fitted, training=fitted.training | {"unused": unused})
    if plan.params.separate_atoms:
        samples = data.samples.in_units(fitted.units)
        is_trained = getattr(learner, "thresholds_", None) is not None
        start = learned_encoder(learner, fitted.atoms) if is_trained else None
        fitted = train_encoder(plan, fitted, samples, interrupts, 1, start=start)
    return fitted
