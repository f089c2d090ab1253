"""One pass of `partial_fit` over the rows: by codes of the lasso, or by gradients.

`skpudle._learners.rows.DenseLearner` begins the pass with a record, and sets the attributes of the
record that it returns.
"""

from dataclasses import replace

import torch

from skpudle._data.sources import Batches
from skpudle._fit.train import Stopping, Trainer
from skpudle.search.stream import FORGETTING, advance_stream, begin_stream, block_rows


def alternate(plan, fitted, data, interrupts):  # -> Fitted
    """Learn from the rows block by block, by codes of the lasso and atoms in alternation.

    This is the `partial_fit` of learners whose codes solve the lasso, with ``fitted.alpha``; the
    algorithm is `skpudle.search.stream`. Rows that are too few for a block are kept for the next
    call, in ``fitted.buffer``.
    """
    # The best size of a block depends on the mean number of nonzero codes in a row. It is unknown
    # before rows are coded, so 4 is assumed.
    size = block_rows(4.0, *fitted.atoms.shape)
    mean_square = fitted.data_scale or 0.0
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
        problem = plan.problem(buffer.to(fitted.atoms), fitted.alpha, mean_square)
        # a block that is not full is finished only if its rows have enough nonzero codes
        is_full = len(buffer) >= size
        state, is_finished = advance_stream(
            problem, state, forgetting=FORGETTING, final=is_full
        )
        loss = loss + state.loss * problem.unit**2 * n_new
        n_rows = n_rows + n_new
        buffer = None if is_finished else buffer
    return replace(
        fitted,
        atoms=state.atoms.to(fitted.atoms),
        loss_curve=(*fitted.loss_curve, loss / n_rows if n_rows else 0.0),
        stream=state,
        buffer=buffer,
        losses=(),
        training={},
    )


def train(plan, fitted, data, interrupts):  # -> Fitted
    """Learn from the rows by one epoch of gradients.

    This is the `partial_fit` of learners that train their encoder. Atoms that no code has used for
    10 times n_components samples are replaced by the samples with the largest losses.
    """
    rows = plan.join(fitted)
    state = fitted.training
    optimizer = plan.make_optimizer(fitted)
    optimizer.load(rows, state.get("moments", {}))
    unused = state.get("unused", torch.zeros(len(rows), dtype=torch.float64))
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
    return replace(fitted, training=fitted.training | {"unused": unused})
