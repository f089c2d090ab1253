"""Update the surrogate of a small dictionary in one compiled call.

The same update takes some seventy calls of torch, 0.3 ms, in `skpudle.optimizers._surrogate`. The
functions are plain Python until numba compiles them (`_compiled`).
"""

from functools import cache, partial

import numpy as np
import torch

from skpudle._compilation import compile_together
from skpudle.operators import project_atoms

__all__ = ["is_small", "known_projection", "update_small"]

# Up to this many multiplications calls of torch take longer: 0.9 instead of 0.5 ms for 256 samples,
# 100 atoms and 64 features (5e6); but 0.9 instead of 1.2 ms for 3, 50 and 625 (8e6).
_MOST_WORK = 5 * 10**6


def project(atom, norm, positive):
    """Project as `skpudle.operators.project_atoms`; ``norm`` is 2 for "unit", 1 for "ball"."""
    best, free, squares = 0, 0.0, 0.0
    for f in range(len(atom) if positive else 0):
        free += atom[f] ** 2
        if atom[f] > atom[best]:
            best = f
    for f in range(len(atom) if positive else 0):
        atom[f] = max(atom[f], 0.0)
    for f in range(len(atom)):
        squares += atom[f] ** 2
    length = np.sqrt(squares)
    if norm == 2 and positive and length == 0.0 and free > 0.0:
        atom[best] = 1.0
    elif (norm == 2 and length > 0.0) or (norm == 1 and length > 1.0):
        for f in range(len(atom)):
            atom[f] /= length


def refine(codes, gradient, per_curvature, keep, atoms, uses, curvature, pull):
    """Add a batch to the model."""
    n_samples, n_components = codes.shape
    n_features = atoms.shape[1]
    energy, n_used = 0.0, 0
    for j in range(n_components):
        for k in range(n_components):
            curvature[j, k] *= keep
        for f in range(n_features):
            pull[j, f] = keep * pull[j, f] - n_samples * per_curvature * gradient[j, f]
    support, synthesis = np.empty(n_components + 1, np.int64), np.empty(n_features)
    for i in range(n_samples):
        k = np.int64(0)
        for j in range(n_components):
            support[k] = j
            k += codes[i, j] != 0.0
        n_used += k
        for f in range(n_features):
            synthesis[f] = 0.0
        for a in range(k):
            j, z = support[a], codes[i, support[a]]
            energy += z**2
            for f in range(n_features):
                synthesis[f] += z * atoms[j, f]
        for a in range(k):
            j, weight = support[a], codes[i, support[a]]
            for b in range(k):
                curvature[j, support[b]] += weight * codes[i, support[b]]
            for f in range(n_features):
                pull[j, f] += weight * synthesis[f]
    uses[0] = keep * uses[0] + energy
    uses[1] = keep * uses[1] + n_used


def subtract(weights, rows, out):
    """Set ``out -= weights @ rows``, four rows at a time: fewer passes over the result."""
    k, n_features = 0, len(out)
    while k + 3 < len(weights):
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for f in range(n_features):
            out[f] -= (w0 * rows[k, f] + w1 * rows[k + 1, f]) + (
                w2 * rows[k + 2, f] + w3 * rows[k + 3, f]
            )
        k += 4
    while k < len(weights):
        for f in range(n_features):
            out[f] -= weights[k] * rows[k, f]
        k += 1


def minimise(curvature, pull, weight, n_inner, norm, positive, tiny, atoms):
    """Make projected gradient steps on the model, scaled per atom."""
    n_components, n_features = atoms.shape
    diagonal, scale, bound, squares = np.empty(n_components), np.empty(n_components), 0.0, 0.0
    for j in range(n_components):
        diagonal[j] = max(curvature[j, j] + weight, tiny)
        scale[j] = 1 / np.sqrt(diagonal[j])
    for j in range(n_components):
        own = weight / diagonal[j]  # the anchor's part of the diagonal; both parts are positive
        total, square = own, own * (own + 2 * curvature[j, j] / diagonal[j])
        for k in range(n_components):
            entry = abs(curvature[j, k]) * scale[j] * scale[k]
            total += entry
            square += entry**2
        squares += square
        bound = max(bound, total)
    bound = max(min(bound, np.sqrt(squares)), 1.0)
    slope, moves = np.empty_like(atoms), np.empty_like(atoms)
    for j in range(n_components):
        for f in range(n_features):
            slope[j, f] = pull[j, f]
        subtract(curvature[j], atoms, slope[j])
    for i in range(n_inner):
        for j in range(n_components if i else 0):
            subtract(curvature[j], moves, slope[j])
            for f in range(n_features):
                slope[j, f] -= weight * moves[j, f]
        for j in range(n_components):
            for f in range(n_features):
                moves[j, f] = -atoms[j, f]
                atoms[j, f] += slope[j, f] / (bound * diagonal[j])
            project(atoms[j], norm, positive)
            for f in range(n_features):
                moves[j, f] += atoms[j, f]


def update(gradient, codes, keep, per_curvature, anchor, n_inner, norm, positive, tiny,
           uses, curvature, pull, atoms):  # fmt: skip
    """Refine the model by a batch, then minimise it, starting at the current atoms."""
    refine(codes, gradient, per_curvature, keep, atoms, uses, curvature, pull)
    one_use = uses[0] / uses[1] if uses[1] > 0 else 0.0
    minimise(curvature, pull, anchor * one_use, n_inner, norm, positive, tiny, atoms)


_FUNCTIONS = project, refine, subtract, minimise, update


@cache
def _compiled():
    return compile_together(_FUNCTIONS)["update"]


def known_projection(project):
    """Return norm, as a number, and sign constraint of a projection; None if it is unknown."""
    known = partial(project)  # also of a partial
    if known.func is not project_atoms or known.args:
        return None
    norm = {"unit": 2, "ball": 1, None: 0}[known.keywords.get("atom_norm", "unit")]
    return norm, bool(known.keywords.get("positive", False))


def is_small(gradient, codes, n_inner):
    """Return whether an update is small enough to be faster compiled."""
    (n_components, n_features), n_samples = gradient.shape, len(codes)
    work = n_components * n_features * (n_samples + (2 + n_inner) * n_components)
    known = gradient.dtype in (torch.float32, torch.float64) and gradient.device.type == "cpu"
    return known and n_samples > 0 and work <= _MOST_WORK


def update_small(gradient, codes, keep, *, per_curvature, anchor, n_inner, projection, uses,
               curvature, pull, atoms):  # fmt: skip
    """Update the model (``uses``, ``curvature`` and ``pull``) and the atoms in place.

    ``keep`` is the share of the sums to keep, and ``projection`` comes from `known_projection`. The
    other arguments are attributes of `SurrogateOptimizer`.
    """
    batch = (np.asarray(t.contiguous()) for t in (gradient, codes))
    model = (np.asarray(t) for t in (uses, curvature, pull, atoms))
    tiny = torch.finfo(atoms.dtype).tiny
    _compiled()(*batch, keep, per_curvature, anchor, n_inner, *projection, tiny, *model)
