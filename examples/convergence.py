r"""Measure the paper's theorems: how fast codes, their Jacobian and gradients converge.

For a dictionary ``D`` the encoder's codes ``z_t`` converge to the solution ``z_hat`` of the lasso,
and the error that remains biases the training. These functions measure, in float64, every distance
that the theorems bound.

=========================  =======================================================================
`code_convergence`         ``|z_t - z_hat|``, ``|J_t - J_hat|``, support selection, rates (3.1, 3.2)
`gradient_convergence`     distances of ``g_t`` to ``g_hat``, ``g_star``, ``g_tilde`` (3.3, 3.4)
`training_convergence`     distances of atoms and codes in training to given ones (figure 4c, 4d)
`lasso_dictionary`         ``D*``, the minimiser of the lasso risk (eq. 1), and its codes
=========================  =======================================================================

Arrays go in, a `Bunch` of arrays comes out. Dictionaries have one atom per row.

References
----------
B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by backpropagation",
arXiv:2106.00058.
"""

from functools import partial
from itertools import pairwise

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils import Bunch

from skpudle._data.arrays import (
    check_rows,
    host_array,
    make_generator,
    to_numpy,
    to_tensor,
)
from skpudle._data.sources import Samples
from skpudle._gradients import GRADIENT_RULES
from skpudle._operators._atoms import DenseDictionary, project_atoms
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step, threshold_levels, unfold
from skpudle.lasso import solve_lasso

GRADIENTS = ("dec", "ae-lasso", "ae-ls")

_ROUNDING = 1e-12  # of the largest error; smaller errors say nothing of the rate
_CHUNK = 1000  # samples: their codes of all unfoldings fit into a cache


def _problem(X, components, step_size):  # -> x, dictionary, step
    x = to_tensor(check_rows(X)).double()
    dictionary = DenseDictionary(to_tensor(check_rows(components)).to(x))
    step = default_step(dictionary) if step_size == "auto" else x.new_tensor(step_size)
    return x, dictionary, step


def _norms(z):  # (..., n, k) -> (..., n)
    return torch.linalg.vector_norm(z, dim=-1)


def _restricted_gram(
    dictionary, used
):  # (n, p) booleans -> indices (n, k), G_SS (n, k, k)
    """Gather the Gram matrix on each sample's support, with ones on the diagonal of the padding."""
    size = int(used.sum(1).amax())
    indices = used.double().topk(size, dim=1).indices
    padding = ~used.gather(1, indices)
    atoms = dictionary.atoms[indices].masked_fill(padding[:, :, None], 0)
    return indices, atoms @ atoms.mT + torch.diag_embed(padding.to(atoms))


def _solve_on_support(dictionary, used, right):  # (n, p), (n, p) -> (n, p)
    """Solve with each sample's Gram matrix on its support."""
    indices, gram = _restricted_gram(dictionary, used)
    right = right.masked_fill(~used, 0)
    inner = (
        torch.linalg.pinv(gram, hermitian=True) @ right.gather(1, indices)[:, :, None]
    )[:, :, 0]
    return torch.zeros_like(right).scatter_(1, indices, inner).masked_fill_(~used, 0)


def _lasso(dictionary, x, alpha):  # -> (n, n_components)
    return solve_lasso(dictionary.atoms, x, alpha, certify=False)[0]


# ---------------------------------------------------------------- codes and their Jacobian


def _paths(
    dictionary, x, alpha, step, n_unfoldings
):  # -> (n_unfoldings + 1, n, p), z_0 = 0 first
    levels = threshold_levels(dictionary, alpha, n_unfoldings, step)
    codes = [x.new_zeros(len(x), len(dictionary.atoms))]
    for level in levels.split(1):
        codes.append(unfold(dictionary, x, level, step, initial=codes[-1]))
    return torch.stack(codes)


def _tangent_right(dictionary, direction, x, z):  # -> (n, p)
    """Return minus the derivative of ``D^T (D z - x)`` in the atoms, at fixed ``z``."""
    moved = DenseDictionary(direction)
    residual = x - dictionary.synthesis(z)
    return moved.analysis(residual) - dictionary.analysis(moved.synthesis(z))


def _tangents(
    dictionary, direction, x, path, step
):  # yields (n, p), derivatives of z_1, z_2, ...
    """Push one direction of the atoms through the encoder.

    ``dz_{t+1} = [z_{t+1} != 0] (dz_t - s (G dz_t + dG z_t - dD^T x))``.
    """
    tangent = torch.zeros_like(path[0])
    for z, following in pairwise(path):
        ascent = _tangent_right(dictionary, direction, x, z)
        ascent -= dictionary.analysis(dictionary.synthesis(tangent))
        tangent = (tangent + step * ascent).masked_fill_(following == 0, 0)
        yield tangent


def _directions(
    atoms, n_directions, random_state
):  # yields directions of the shape of atoms
    if n_directions is None:
        yield from torch.eye(
            atoms.numel(), dtype=atoms.dtype, device=atoms.device
        ).view(-1, *atoms.shape)
    elif n_directions:
        generator = make_generator(random_state)
        for _ in range(n_directions):
            drawn = torch.randn(
                atoms.shape, generator=generator, device="cpu", dtype=atoms.dtype
            )
            yield drawn.to(atoms.device)


def _observed_rate(error, start):  # (T, n), (n,) -> (n,)
    """Fit a line to the logarithm of each error from ``start`` until it drowns in rounding."""
    rates = np.full(error.shape[1], np.nan)
    for i, (curve, first) in enumerate(zip(error.T, start)):
        above = curve[first - 1 :] > _ROUNDING * curve.max()
        length = len(above) if above.all() else int(above.argmin())
        if length >= 10:
            tail = slice(first - 1 + length // 2, first - 1 + length)
            steps = np.arange(len(curve))[tail]
            rates[i] = np.exp(np.polyfit(steps, np.log(curve[tail]), 1)[0])
    return rates


def code_convergence(
    X,
    components,
    *,
    alpha,
    n_unfoldings=100,
    step_size="auto",
    n_directions=8,
    random_state=None,
):
    r"""Measure how codes and their Jacobian converge (theorems 3.1 and 3.2).

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Samples.
    components : array-like of shape (n_components, n_features)
        Dictionary.
    alpha : float
        Penalty of the lasso.
    n_unfoldings : int, default=100
        Number of iterations, :math:`T`.
    step_size : float or "auto", default="auto"
        Step of an iteration; "auto" is 1 over a bound of the squared spectral norm.
    n_directions : int or None, default=8
        Number of random directions that estimate the Frobenius norm of the Jacobian's error; 0
        leaves it out, None takes every entry of the dictionary (small ones only).
    random_state : int, RandomState instance or None, default=None
        Seed of the directions.

    Returns
    -------
    Bunch
        - ``n_unfoldings``, (T,): 1 to T;
        - ``code_error``, (T, n_samples): :math:`|z_t - \hat z|`;
        - ``jacobian_error``, (T, n_samples): :math:`\|J_t - \hat J\|_F`, where
            :math:`J = \partial z / \partial D`; left out without directions;
        - ``support_time``, (n_samples,): the first t from which on codes have the support of
          :math:`\hat z` (proposition 3.1), or T + 1 if there is none;
        - ``observed_rate``, (n_samples,): :math:`\rho`, from the slope of the logarithm of the code
          error after that; NaN where there are too few iterations;
        - ``rate``, (n_samples,): :math:`|1 - s \mu|`, the largest over the eigenvalues
          :math:`\mu` of the Gram matrix on the support of :math:`\hat z`.
    """
    x, dictionary, step = _problem(X, components, step_size)
    path = _paths(dictionary, x, alpha, step, n_unfoldings)
    solution = _lasso(dictionary, x, alpha)
    used = solution != 0
    code_error = to_numpy(_norms(path[1:] - solution))

    same = to_numpy(((path[1:] != 0) == used).all(2))  # (T, n)
    support_time = n_unfoldings + 1 - np.logical_and.accumulate(same[::-1]).sum(0)

    squares = x.new_zeros(code_error.shape)
    weight = 1 / n_directions if n_directions else 1.0
    for direction in _directions(dictionary.atoms, n_directions, random_state):
        limit = _solve_on_support(
            dictionary, used, _tangent_right(dictionary, direction, x, solution)
        )
        for t, tangent in enumerate(_tangents(dictionary, direction, x, path, step)):
            squares[t] += weight * (tangent - limit).square().sum(1)

    indices, gram = _restricted_gram(dictionary, used)
    # an entry of the padding adds an eigenvalue 1: make it 1 / step, whose mode is 0
    padding = (~used.gather(1, indices)).to(x)
    modes = 1 - step * torch.linalg.eigvalsh(
        gram + torch.diag_embed(padding * (1 / step - 1))
    )
    rate = modes.abs().amax(1) if modes.shape[1] else x.new_zeros(len(x))
    jacobian = {} if n_directions == 0 else {"jacobian_error": to_numpy(squares.sqrt())}
    return Bunch(
        n_unfoldings=np.arange(1, n_unfoldings + 1),
        code_error=code_error,
        **jacobian,
        support_time=support_time,
        observed_rate=_observed_rate(code_error, support_time),
        rate=to_numpy(rate),
    )


# ---------------------------------------------------------------- gradients


def _adjoint(dictionary, path, residuals, step, delta):  # -> (n, p, m)
    """Push ``delta``, a derivative in the last codes, back to the atoms, for each sample."""
    moved, images = [], []
    for following in reversed(path[1:]):
        moved.append(delta.masked_fill(following == 0, 0))
        images.append(dictionary.synthesis(moved[-1]))
        delta = moved[-1] - step * dictionary.analysis(images[-1])
    moved, images = torch.stack(moved[::-1]), torch.stack(images[::-1])
    pairs = ((moved, residuals[:-1]), (path[:-1], -images))
    return step * sum(torch.einsum("tnp,tnm->npm", z, x) for z, x in pairs)


def _sample_gradients(
    dictionary, path, residuals, step, alpha
):  # -> (3, n, p, m), as GRADIENTS
    z, residual = path[-1], residuals[-1]
    dec = -z[:, :, None] * residual[:, None]
    by_code = -dictionary.analysis(residual)
    ae_ls = dec + _adjoint(dictionary, path, residuals, step, by_code)
    ae_lasso = dec + _adjoint(
        dictionary, path, residuals, step, by_code + alpha * z.sign()
    )
    return torch.stack([dec, ae_lasso, ae_ls])


def _mean_gradients(dictionary, x, n_unfoldings, step, alpha):  # -> (3, p, m)
    encoder = partial(encode, alpha=alpha, n_unfoldings=n_unfoldings, step_size=step)
    atoms = dictionary.atoms.clone().requires_grad_()
    means = []
    for name in GRADIENTS:
        total = 0
        for rows in x.split(_CHUNK):
            rule, batch = GRADIENT_RULES[name], Samples(rows)
            evaluation = rule(
                DenseDictionary(atoms), batch, encoder=encoder, penalty=alpha
            )
            (gradient,) = torch.autograd.grad(evaluation.surrogate, atoms)
            total = total + gradient * len(rows)
        means.append(total / len(x))
    return torch.stack(means)


def gradient_convergence(
    X,
    components,
    *,
    alpha,
    n_unfoldings=100,
    step_size="auto",
    code=None,
    minimizer=None,
    per_sample=False,
):
    r"""Measure distances of gradients to those at converged, optimal and true codes (3.3 and 3.4).

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Samples.
    components : array-like of shape (n_components, n_features)
        Dictionary.
    alpha : float
        Penalty of the lasso.
    n_unfoldings : int or array-like of int, default=100
        Depths of the gradients; a number n means 1 to n. The cost is proportional to the sum of
        the depths.
    step_size : float or "auto", default="auto"
        Step of an iteration; "auto" is 1 over a bound of the squared spectral norm.
    code : array-like of shape (n_samples, n_components), default=None
        Codes :math:`\tilde z` that generated the data.
    minimizer : array-like of shape (n_components, n_features), default=None
        The minimiser :math:`D^*` of the lasso risk, as `lasso_dictionary` returns it.
    per_sample : bool, default=False
        Whether to measure each sample's gradient rather than their mean.

    Returns
    -------
    Bunch
        - ``n_unfoldings``, (n_depths,): the depths;
        - ``gradient``, (3,): the names "dec", "ae-lasso" and "ae-ls";
        - ``local``, (3, n_depths): :math:`\|g_t - \hat g\|_F`, where :math:`\hat g` is the gradient
          of converged codes (eq. 5);
        - ``minimizer``, (3, n_depths): :math:`\|g_t - g^*\|_F` (eq. 6), if `minimizer` is given;
        - ``truth``, (3, n_depths): :math:`\|g_t - \tilde g\|_F` (eq. 6), if `code` is given.

        With ``per_sample=True`` the distances have a last axis of length n_samples.
    """
    x, dictionary, step = _problem(X, components, step_size)
    depths = (
        np.arange(1, n_unfoldings + 1) if np.ndim(n_unfoldings) == 0 else n_unfoldings
    )
    depths = np.asarray(depths)
    codes = {"local": _lasso(dictionary, x, alpha)}
    if minimizer is not None:
        best = DenseDictionary(to_tensor(check_rows(minimizer)).to(x))
        codes["minimizer"] = _lasso(best, x, alpha)
    if code is not None:
        codes["truth"] = to_tensor(check_rows(code)).to(x)

    average, targets = "np,nm->pm", {}
    if per_sample:
        path = _paths(dictionary, x, alpha, step, int(depths.max()))
        residuals, average = x - dictionary.synthesis(path), "np,nm->npm"
    for name, z in codes.items():
        targets[name] = torch.einsum(average, z, dictionary.synthesis(z) - x)
        targets[name] /= 1 if per_sample else len(x)
    errors = {name: [] for name in codes}
    for depth in depths.tolist():
        if per_sample:
            before = path[: depth + 1], residuals[: depth + 1]
            gradients = _sample_gradients(dictionary, *before, step, alpha)
        else:
            gradients = _mean_gradients(dictionary, x, depth, step, alpha)
        for name, target in targets.items():
            errors[name].append(_norms((gradients - target).flatten(-2)))
    errors = {
        name: to_numpy(torch.stack(error, dim=1)) for name, error in errors.items()
    }
    return Bunch(n_unfoldings=depths, gradient=np.array(GRADIENTS), **errors)


# ---------------------------------------------------------------- training


def lasso_dictionary(X, components, *, alpha, max_iter=1000, tol=1e-6):
    """Minimise the lasso risk over dictionaries of unit-norm atoms, from a given one (eq. 1).

    Alternates exact updates of all atoms with 20 unfoldings, started at the last codes; the codes
    have converged at the beginning and at the end. Started at the dictionary that generated the
    data, it ends at the nearest minimiser.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Samples.
    components : array-like of shape (n_components, n_features)
        Initial dictionary.
    alpha : float
        Penalty of the lasso.
    max_iter : int, default=1000
        Largest number of alternations.
    tol : float, default=1e-6
        Change of the dictionary, in the Frobenius norm, at which to stop.

    Returns
    -------
    Bunch
        - ``components``, (n_components, n_features): the dictionary :math:`D^*`;
        - ``code``, (n_samples, n_components): its converged codes :math:`z^*`;
        - ``change``, (n_iter,): how much each alternation changed the dictionary.
    """
    x, dictionary, _ = _problem(X, components, "auto")
    atoms = project_atoms(dictionary.atoms)
    codes, changes = _lasso(DenseDictionary(atoms), x, alpha), []
    while len(changes) < max_iter and not (changes and changes[-1] <= tol):
        second, cross, before = codes.mT @ codes, codes.mT @ x, atoms.clone()
        for j in range(len(atoms)):
            if second[j, j] > 0:
                atoms[j] += (cross[j] - second[j] @ atoms) / second[j, j]
                atoms[j] = project_atoms(atoms[j : j + 1])[0]
        changes.append(float(torch.linalg.vector_norm(atoms - before)))
        dictionary = DenseDictionary(atoms)
        step = default_step(dictionary)
        levels = threshold_levels(dictionary, alpha, 20, step)
        codes = unfold(dictionary, x, levels, step, initial=codes)
    codes = _lasso(dictionary, x, alpha)
    return Bunch(
        components=to_numpy(atoms), code=to_numpy(codes), change=np.array(changes)
    )


def training_convergence(learner, X, *, n_epochs, references):
    """Measure distances of the dictionary and its codes to references during training.

    Parameters
    ----------
    learner : estimator
        An unfitted learner with `partial_fit`; a clone of it is trained.
    X : array-like of shape (n_samples, n_features)
        Samples.
    n_epochs : int
        Number of passes over the samples, each of them in the same order.
    references : dict of str to (ndarray, ndarray or None)
        For each name a dictionary of shape (n_components, n_features) and codes of shape
        (n_samples, n_components), or None.

    Returns
    -------
    Bunch
        - ``epoch``, (n_epochs,): 1 to n_epochs;
        - ``loss``, (n_epochs,): mean reconstruction loss;
        - ``NAME`` for each name, (n_epochs,): Frobenius distance of the dictionary;
        - ``NAME_code`` for each that has codes, (n_epochs,): root mean square over the samples of
          the distance of the code.
    """
    learner = clone(learner)
    curves = {name: [] for name in references}
    curves |= {
        f"{name}_code": [] for name, (_, code) in references.items() if code is not None
    }
    for _ in range(n_epochs):
        learner.partial_fit(X)
        codes = None
        for name, (components, code) in references.items():
            curves[name].append(np.linalg.norm(learner.components_ - components))
            if code is not None:
                codes = host_array(learner.transform(X)) if codes is None else codes
                squares = np.square(codes - code).sum(axis=1)
                curves[f"{name}_code"].append(np.sqrt(squares.mean()))
    curves = {name: np.array(curve) for name, curve in curves.items()}
    return Bunch(
        epoch=np.arange(1, n_epochs + 1), loss=learner.loss_curve_.copy(), **curves
    )
