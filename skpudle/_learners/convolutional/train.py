"""Train atoms of images by gradients, through an unfolded encoder or with codes of the lasso."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import isfinite, prod

import torch

from skpudle._data.batches import Samples
from skpudle._fit.train import Stopping
from skpudle._gradients import GRADIENT_RULES, differentiate
from skpudle._learners.convolutional.learn import Fitted, unfoldings_of
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle._optimizers._make import make_optimizer
from skpudle.encoding import encode
from skpudle.search._conv_epoch import conv_codes


def code_images(dictionary, x, mask=None, *, learner, alpha, debias=0.0):
    """Return code maps of images that atoms cover, and whether each image has converged codes.

    Parameters
    ----------
    dictionary : ConvDictionary
        The atoms.
    x, mask : Tensor of shape (n, n_channels, *size)
        Images, and 1 for known pixels, 0 for missing ones; None if all are known.
    learner : ConvPUDLEDictionaryLearning
        The learner, with its parameters.
    alpha, debias : float
        The penalty, and the share of the lasso's bias to remove.
    """
    options = dict(alpha=alpha, positive_code=learner.positive_code)
    mask, depth = None if mask is None else mask.expand_as(x), unfoldings_of(learner)
    if depth is None:
        return conv_codes(dictionary, x, mask=mask, debias=debias, **options)
    codes = encode(dictionary, x, mask=mask, n_unfoldings=depth, **options)
    return codes, torch.ones(len(x), dtype=torch.bool)


def train(records, data, given, generator) -> Iterator[Fitted]:
    """Train the atoms of a search; yield its records, and one after every epoch of training.

    Parameters
    ----------
    records : iterator of Fitted
        The search.
    data : TrainingImages
        Images.
    given : ConvPUDLEDictionaryLearning
        The learner, with its parameters.
    generator : torch.Generator
        Random numbers.

    Raises
    ------
    ValueError
        If training diverges.
    """
    for fitted in records:
        yield fitted
    x = torch.stack(data.pieces())
    samples = Samples(x, data.masks and torch.stack(data.pieces(data.masks)))
    optimizer = make_optimizer(
        given.optimizer,
        fitted.atoms,
        partial(project_atoms, rank=given.rank),
        learning_rate=None,
        data_scale=float(x.square().mean()) * prod(x.shape[1:]),
    )

    def encoder(dictionary, x, mask):
        return code_images(dictionary, x, mask, learner=given, alpha=fitted.alpha)[0]

    how, rule = dict(encoder=encoder, penalty=fitted.alpha), GRADIENT_RULES[given.gradient]
    stopping = Stopping(given.tol, 5)
    batch_size = given.batch_size
    if batch_size == "auto":
        # The codes of all unfoldings, which the derivative needs, take half a gigabyte for 64 atoms
        # at every pixel.
        batch_size = min(16, max(1, 2**16 // x[0, 0].numel()))
    for epoch in range(1, given.max_iter + 1):
        loss = objective = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            batch, atoms = samples[rows], optimizer.atoms
            with torch.enable_grad():  # whichever mode the caller set
                step = differentiate(rule, ConvDictionary(atoms, data.stride), atoms, batch, **how)
            optimizer.update(step[0])
            loss += float(step[1].losses.sum())
            objective += float(step[1].objective) * len(rows)
        if not (isfinite(objective) and optimizer.atoms.isfinite().all()):
            raise ValueError(
                f"Training diverged in epoch {epoch}. Pass a smaller learning rate, such as "
                "optimizer=partial(torch.optim.Adam, lr=1e-4)."
            )
        # the objective of few pieces is too noisy to judge
        is_over = stopping.check(objective, len(x), epoch, n_judged=256)
        fitted = replace(
            fitted,
            atoms=optimizer.atoms.detach().clone(),
            losses=(*fitted.losses, loss / len(x)),
            note=f"{given.gradient}, epoch {epoch}  loss {loss / len(x):.6g}",
            ended_by="tol" if is_over else "max_iter",
        )
        yield fitted
        if is_over:
            break
