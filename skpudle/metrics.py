"""Metrics of dictionaries and codes, and scorers.

A dictionary is known up to the order and the signs of its atoms: permuting or flipping atoms
permutes or flips the codes and leaves the data as they are. The metrics therefore first match the
atoms of a dictionary one to one with the atoms of a reference, by the assignment with the largest
sum of cosines. Atoms lie on the first axis of an array and may have any shape.

Atoms of a convolutional learner are known up to shifts, too. If a dictionary is such a learner, two
atoms are compared at the shift with the largest modulus of the cosine. So pass the learner itself:
arrays, such as its ``components_``, are compared without shifts.

"By chance" means here: for random atoms. Random atoms are Gaussian combinations of the atoms of a
dictionary, with the mean and the second moments of the atoms. Atoms of smooth images, or of data
with few large principal components, resemble each other even if the data do not determine them.
Random atoms resemble each other to the same degree.
"""

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from math import ceil, exp, lgamma, pi, sqrt
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment, nnls
from scipy.stats import norm
from sklearn.metrics import r2_score
from sklearn.preprocessing import normalize
from sklearn.utils import Bunch, check_array, check_random_state, check_scalar
from sklearn.utils.validation import check_consistent_length

from skpudle._data.arrays import check_rows, host_array, split_missing, to_numpy, to_tensor
from skpudle._data.foreign import dictionary_of
from skpudle._data.images import as_fractions
from skpudle._fitted import check_learner_of_rows, code_and_reconstruct, encode_samples
from skpudle._learners.counts import CountDictionaryLearning
from skpudle._learners.pudle import PUDLEDictionaryLearning

__all__ = [
    "atom_coherence",
    "atom_importance",
    "atom_support",
    "dictionary_error",
    "dictionary_stability",
    "lasso_objective",
    "make_denoising_scorer",
    "match_atoms",
    "match_components",
    "reconstruction_r2_scorer",
    "recovery_rate",
    "unexplained_variance",
]

# Singular values below this share of the largest singular value are rounding errors.
_RANK = 1e-9
# Parameters that `atom_support` copies from the given learner to the searches that it runs.
_SHARED = "loss", "n_trials", "positive_code", "positive_dict", "fit_intercept", "noise"


def check_pair(first, second, *, same_length=False):
    """Return two arrays of float, from arrays or learners; raise ValueError if shapes differ.

    The shapes are compared without the first axis, and with the first axis if ``same_length``.
    """
    first, second = (
        check_array(host_array(dictionary_of(given)), dtype=[np.float64, np.float32], allow_nd=True)
        for given in (first, second)
    )
    start = 0 if same_length else 1
    if first.shape[start:] != second.shape[start:]:
        raise ValueError(
            f"Arrays of the shapes {first.shape} and {second.shape} cannot be compared. Pass atoms "
            "or samples of one shape, along the first axis."
        )
    return first, second


def unit_atoms(dictionary):
    """Return atoms of unit norm, in their shape; zero atoms stay zero."""
    return normalize(dictionary.reshape(len(dictionary), -1)).reshape(dictionary.shape)


def count_shift_axes(*dictionaries):  # -> int
    """Return along how many axes atoms are shifted: 1 for signals, 2 for images, 0 for rows.

    It is the largest number of all ``dictionaries``, which are arrays or learners.
    """
    return max(np.size(getattr(one, "atom_shape", ())) for one in dictionaries)


def shift_atoms(atoms, n_axes):  # (n, ...) -> (n, n_shifts, n_features)
    """Return atoms at all shifts along their first ``n_axes`` axes, with zeros beyond their ends.

    With ``n_axes=0`` there is one shift, by nothing, and atoms are only flattened.
    """
    room = [(k - 1, k - 1) for k in atoms.shape[1 : 1 + n_axes]]
    padded = np.pad(atoms, [(0, 0), *room, *[(0, 0)] * (atoms.ndim - 1 - n_axes)])
    shifted = sliding_window_view(padded, atoms.shape[1:], tuple(range(1, atoms.ndim)))
    return shifted.reshape(len(atoms), -1, atoms[0].size)


def atom_cosines(dictionary, reference, n_axes=None):  # -> (n_reference, n_components)
    """Return the cosine of each atom of a dictionary with each atom of a reference.

    Both are arrays (n, ...) or learners. Atoms of convolutional learners are compared at the shift
    with the largest modulus of the cosine. The cosine with an atom of zeros is 0. ``n_axes`` is the
    number of axes of shifts; None: as `count_shift_axes` counts them.
    """
    n_axes = count_shift_axes(dictionary, reference) if n_axes is None else n_axes
    dictionary, reference = map(unit_atoms, check_pair(dictionary, reference))
    shifted, atoms = shift_atoms(reference, n_axes), dictionary.reshape(len(dictionary), -1)
    cosines = np.tensordot(shifted, atoms, (2, 1))  # (n_reference, n_shifts, n_components)
    best = np.abs(cosines).argmax(axis=1, keepdims=True)
    return np.take_along_axis(cosines, best, 1)[:, 0]


class AtomMatch(NamedTuple):
    """The pairs of atoms that `match_atoms` found, in the order of the reference.

    Attributes
    ----------
    indices : ndarray of shape (min(n_components, n_reference),)
        Number of the atom of the dictionary in each pair.
    reference_indices : ndarray of shape (min(n_components, n_reference),)
        Number of the atom of the reference in each pair, in increasing order.
    signs : ndarray of shape (min(n_components, n_reference),)
        Sign of the cosine between the two atoms of each pair, 1 or -1.
    coherences : ndarray of shape (min(n_components, n_reference),)
        Modulus of the cosine between the two atoms of each pair, from 0 to 1.
    """

    indices: np.ndarray
    reference_indices: np.ndarray
    signs: np.ndarray
    coherences: np.ndarray

    def align_dictionary(self, dictionary):
        """Return the matched atoms in the order and with the signs of the reference, unshifted."""
        atoms = np.asarray(dictionary_of(dictionary))[self.indices]
        return atoms * self.signs.reshape(-1, *[1] * (atoms.ndim - 1)).astype(atoms.dtype)


def _assign(products):  # (n_reference, n_components) -> AtomMatch
    """Match atoms one to one so that the moduli of their products have the largest sum."""
    rows, columns = linear_sum_assignment(np.abs(products), maximize=True)  # rows increase
    matched = products[rows, columns]
    signs = np.where(matched < 0, -1, 1)
    return AtomMatch(columns, rows, signs, np.minimum(np.abs(matched), 1))


def _recover(cosines):  # (n_reference, n_components) -> (n_reference,)
    """Return the modulus of the cosine of each atom of a reference with its match, 0 without."""
    match, coherences = _assign(cosines), np.zeros(len(cosines), cosines.dtype)
    coherences[match.reference_indices] = match.coherences
    return coherences


def match_atoms(dictionary: Any, reference: Any) -> AtomMatch:
    r"""Match the atoms of two dictionaries, up to sign and permutation.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, ...), or learner
        Atoms, one per entry of the first axis, or a fitted learner. If one of the two dictionaries
        is a convolutional learner, atoms are compared at the best shift.
    reference : array-like of shape (n_reference, ...), or learner
        Atoms of the same shape; there may be more or fewer of them.

    Returns
    -------
    AtomMatch
        Named tuple of the matched `indices` and `reference_indices`, `signs` and `coherences`, each
        of shape (min(n_components, n_reference),).

    Raises
    ------
    ValueError
        If the atoms have different shapes.

    Notes
    -----
    The assignment has the largest sum of coherences over all permutations. It is found by the
    Hungarian method. For atoms of unit norm it also has the least sum of squared distances over all
    permutations and signs.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import match_atoms
    >>> match = match_atoms([[0.0, -1.0], [1.0, 0.0]], np.eye(2))
    >>> match.indices, match.signs
    (array([1, 0]), array([ 1, -1]))
    """
    return _assign(atom_cosines(dictionary, reference))


class ComponentMatch(NamedTuple):
    """The references that explain a component; see `match_components`.

    Attributes
    ----------
    nearest : object
        Name of the reference with the largest cosine to the component.
    cosine : float
        Modulus of the cosine between the component and the nearest reference.
    shares : dict
        Share of each reference in the mixture, by the reference's name, the largest share first.
    mixture_cosine : float
        Cosine of the component and the mixture.
    """

    nearest: object
    cosine: float
    shares: dict
    mixture_cosine: float


def _mix(atom, reference, terms):  # -> cosine of the mixture, terms, (len(terms),) shares
    """Fit an atom (m,) by non-negative least squares on rows ``terms`` of a reference (n, m)."""
    shares, _ = nnls(reference[terms].T, atom)
    mixture = shares @ reference[terms]
    return float(atom_cosines(atom[None], mixture[None])[0, 0]), terms, shares


def _match_component(atom, shifted, names):  # (m,), (n_reference, n_shifts, m) -> ComponentMatch
    """Name an atom by up to three atoms of a reference, which is given at all shifts."""
    # Each atom of the reference gets the shift at which its product with the atom has the largest
    # modulus, and the sign that makes the product positive.
    best = np.abs(shifted @ atom).argmax(axis=1)
    reference = shifted[np.arange(len(best)), best]
    reference = reference * np.where(reference @ atom < 0, -1, 1)[:, None]
    mixtures = [(-1.0, [], [])]
    for _ in range(min(3, len(reference))):
        cosine, terms, _ = mixtures[-1]
        rest = np.setdiff1d(np.arange(len(reference)), terms)
        found = max((_mix(atom, reference, [*terms, k]) for k in rest), key=itemgetter(0))
        # A reference joins the mixture if it raises the mixture's cosine by at least 0.01.
        if found[0] < cosine + 0.01:
            break
        mixtures.append(found)
    cosine, terms, shares = mixtures[-1]
    named = {names[terms[i]]: float(shares[i]) for i in np.argsort(-shares) if shares[i] > 0}
    return ComponentMatch(names[terms[0]], mixtures[1][0], named, cosine)


def match_components(
    components: Any, reference: Any, names: Sequence | None = None
) -> list[ComponentMatch]:
    """Name components by the nearest reference, and by a mixture of few of them.

    A mixture begins with the nearest reference. The reference that raises the cosine of the mixture
    most joins it, until the rise is below 0.01. Shares are the non-negative least squares fit.
    Components and references with negative entries are compared up to sign.

    Parameters
    ----------
    components : array-like of shape (n_components, ...), or learner
        Atoms, such as ``components_`` of `skpudle.PoissonNMF`, or the learner itself. References of
        a convolutional learner are shifted to fit the component before they are mixed.
    reference : array-like of shape (n_reference, ...), or learner
        Atoms with names, such as a catalogue of known spectra.
    names : sequence of length n_reference, default=None
        Names of the references; by default their positions.

    Returns
    -------
    list of ComponentMatch
        For each component the `nearest` name, its `cosine`, the `shares` of the mixture by name, of
        atoms of sum 1 (of their magnitudes, if entries are negative), and the `mixture_cosine`.

    Raises
    ------
    ValueError
        If the atoms have different shapes, or if the number of names is another.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import match_components
    >>> (match,) = match_components([[0.7, 0.3, 0.0]], np.eye(3), names=["A", "B", "C"])
    >>> match.nearest, {name: round(share, 2) for name, share in match.shares.items()}
    ('A', {'A': 0.7, 'B': 0.3})
    """
    n_axes, pair = count_shift_axes(components, reference), check_pair(components, reference)
    flat = (atoms.reshape(len(atoms), -1).astype(np.float64) for atoms in pair)
    components, reference = (normalize(atoms, norm="l1") for atoms in flat)
    names = range(len(reference)) if names is None else list(names)
    check_consistent_length(reference, names)
    shifted = shift_atoms(reference.reshape(pair[1].shape), n_axes)
    return [_match_component(atom, shifted, names) for atom in components]


def dictionary_error(dictionary: Any, reference: Any, *, match: bool = False) -> float:
    r"""Return the relative Frobenius norm of the difference of two dictionaries.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, ...), or learner
        Atoms, one per entry of the first axis, or a fitted learner.
    reference : array-like of the same shape, or learner
        Atoms to compare with.
    match : bool, default=False
        Whether to take the smallest error over all permutations and signs of the atoms. False
        compares atoms by position, as the paper does for a dictionary initialised near the
        reference. Convolutional atoms are not shifted; `atom_coherence` shifts them.

    Returns
    -------
    float
        :math:`\|D - \tilde D\|_F / \|\tilde D\|_F`, as in appendix B of [1]_.

    Raises
    ------
    ValueError
        If the shapes differ; `atom_coherence` compares different numbers of atoms.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
       backpropagation", arXiv:2106.00058, appendix B.
    """
    dictionary, reference = check_pair(dictionary, reference, same_length=True)
    if match:  # the permutation with the largest sum of products has the least sum of distances
        flat = (atoms.reshape(len(atoms), -1) for atoms in (reference, dictionary))
        dictionary = _assign(np.inner(*flat)).align_dictionary(dictionary)
    return float(np.linalg.norm(dictionary - reference) / np.linalg.norm(reference))


def atom_coherence(dictionary: Any, reference: Any) -> np.ndarray:
    """Return how well each atom of a reference is recovered.

    Parameters
    ----------
    dictionary, reference : array-like of shape (n, ...), or learner
        Atoms of the same shape, n_components and n_reference of them, one per entry of the first
        axis, or fitted learners. Atoms of convolutional learners are compared at the best shift.

    Returns
    -------
    ndarray of shape (n_reference,)
        Modulus of the cosine between the atom and its match by `match_atoms`, from 0 to 1. No atom
        of `dictionary` counts twice: an atom without a match has coherence 0.
    """
    return _recover(atom_cosines(dictionary, reference))


def recovery_rate(dictionary: Any, reference: Any, *, threshold: float = 0.9) -> float:
    """Return the share of a reference's atoms that are recovered.

    Parameters
    ----------
    dictionary, reference : array-like of shape (n, ...), or learner
        Atoms of the same shape, n_components and n_reference of them, one per entry of the first
        axis, or fitted learners. Atoms of convolutional learners are compared at the best shift.
    threshold : float, default=0.9
        Coherence from which an atom counts as recovered: 0.99 is common for learned dictionaries,
        0.9 for initial ones.

    Returns
    -------
    float
        Share of the reference's atoms with an `atom_coherence` of at least `threshold`.
    """
    return float((atom_coherence(dictionary, reference) >= threshold).mean())


def recombine_atoms(atoms, rng):  # (n_components, ...) -> the same shape
    """Return as many random atoms of norm 1, with about the mean and second moments of the atoms.

    The random atoms are Gaussian combinations of the given unit atoms. The mean of atoms depends on
    their signs. So each atom first gets the sign that makes its product with the leading principal
    direction of all atoms positive.
    """
    rows, n = atoms.reshape(len(atoms), -1), len(atoms)
    direction = rows.sum(axis=0)
    # 10 power iterations are enough: the direction only decides about signs.
    for _ in range(10):
        direction = rows.T @ (rows @ direction)
        direction /= np.linalg.norm(direction) or 1.0
    aligned = rows * np.where(rows @ direction < 0, -1, 1)[:, None]
    mean = aligned.mean(axis=0)
    drawn = rng.standard_normal((n, n)) @ (aligned - mean) / n**0.5 + mean
    return unit_atoms(drawn).reshape(atoms.shape)


def chance_coherence(dictionary, reference, n_axes=0):  # -> (n_draws, n_reference)
    """Return how well random dictionaries recover a reference, by `atom_coherence`.

    Each random dictionary is drawn by `recombine_atoms` from ``dictionary``, so often that the mean
    over all draws is exact to 0.005. Its atoms of zeros do not count. ``n_axes`` is the number of
    axes of shifts.

    Combinations of few atoms lie in the span of the atoms, and therefore match the reference a
    little worse than independent atoms would. If the reference is recombined too, the coherence
    falls by the same amount a second time. The second fall is measured and added to the coherences.
    """
    dictionary, reference = map(unit_atoms, check_pair(dictionary, reference))
    rng, used = np.random.RandomState(0), dictionary[[atom.any() for atom in dictionary]]
    used = used if len(used) else dictionary
    # The standard deviation is about 0.1 for the coherence of one random atom, so that it is 0.002
    # for the mean of 2,500 coherences.
    n_draws = max(4, ceil(2500 / min(len(used), len(reference))))
    draws = [recombine_atoms(used, rng) for _ in range(n_draws)]
    pairs = [(drawn, recombine_atoms(reference, rng)) for drawn in draws]
    found = np.stack([_recover(atom_cosines(drawn, reference, n_axes)) for drawn in draws])
    both = [_recover(atom_cosines(*pair, n_axes)) for pair in pairs]
    return np.clip(found + found.mean() - np.mean(both), 0, 1)


def dictionary_stability(dictionaries: Sequence[Any], *, threshold: float = 0.9) -> Bunch:
    """Return how well dictionaries that were learned independently agree, atom by atom.

    Fit a learner several times, with different seeds or, better, on bootstrap samples: atoms that
    the data determine recur, accidental atoms do not. Stability is largest if the learner has the
    number of atoms of the data. So `stability` helps to choose ``n_components``, and `n_stable` of
    too large a dictionary counts the atoms of the data.

    Parameters
    ----------
    dictionaries : list of array-like of shape (n_components, ...), or of learners
        At least two fitted learners, or their ``components_``, of the same shape. Pass
        convolutional learners themselves: their atoms are compared at the best shift.
    threshold : float, default=0.9
        Mean coherence from which an atom counts as stable.

    Returns
    -------
    Bunch
        With these entries:

        - ``atoms``, (n_dictionaries, n_components): for every atom the modulus of the cosine with
          its match by `match_atoms` in another dictionary, averaged over all other dictionaries,
          from 0 to 1;
        - ``stability``, the mean of ``atoms``;
        - ``by_chance``, the stability of random atoms;
        - ``above_chance``, ``stability - by_chance``;
        - ``n_stable``, the number of atoms of a dictionary with at least the threshold in
          ``atoms``, averaged over the dictionaries.

    Raises
    ------
    ValueError
        If the shapes of the dictionaries differ.

    Notes
    -----
    Random atoms are Gaussian combinations of the atoms of a dictionary. They share only the mean
    (up to signs) and the second moments of the atoms. Fits to the same samples, or from one start,
    agree above chance even if the samples are noise. To exclude this, fit disjoint halves of the
    samples from different seeds, or use `atom_support`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import dictionary_stability
    >>> atoms = np.eye(3)
    >>> agreement = dictionary_stability([atoms[:2], -atoms[1::-1], atoms[[0, 2]]])
    >>> agreement.atoms.tolist()
    [[1.0, 0.5], [0.5, 1.0], [1.0, 0.0]]
    """
    n_axes = count_shift_axes(*dictionaries)
    dictionaries = [host_array(dictionary_of(one)) for one in dictionaries]
    found, turned = [], dictionaries
    for _ in dictionaries[1:]:
        turned = [turned[-1], *turned[:-1]]
        found.append([_recover(atom_cosines(*pair, n_axes)) for pair in zip(turned, dictionaries)])
    chances = [chance_coherence(*pair, n_axes).mean() for pair in zip(turned, dictionaries)]
    atoms, by_chance = np.mean(found, axis=0), float(np.mean(chances))
    return Bunch(
        atoms=atoms,
        stability=float(atoms.mean()),
        by_chance=by_chance,
        above_chance=float(atoms.mean()) - by_chance,
        n_stable=float((atoms >= threshold).sum(axis=1).mean()),
    )


def lasso_objective(
    X: ArrayLike, code: ArrayLike, reconstruction: ArrayLike, alpha: float
) -> float:
    r"""Return the mean over samples of the lasso objective.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Data.
    code : array-like of shape (n_samples, ...)
        Codes of the samples.
    reconstruction : array-like of the shape of X
        Data that the dictionary makes of the codes, such as ``code @ components``.
    alpha : float
        Sparsity penalty, in units of the data for atoms of unit norm.

    Returns
    -------
    float
        :math:`\frac{1}{n} \sum_i \frac{1}{2} \|x_i - D z_i\|_2^2 + \alpha \|z_i\|_1`: the objective
        of equation 1 of [1]_, averaged over the samples.

    Raises
    ------
    ValueError
        If `X` and `reconstruction` differ in shape or `code` in the number of samples.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
       backpropagation", arXiv:2106.00058.
    """
    X, reconstruction = check_pair(X, reconstruction, same_length=True)
    code = np.asarray(host_array(code))
    check_consistent_length(X, code)
    residual = np.square(X - reconstruction).sum(dtype=np.float64)
    return float((0.5 * residual + alpha * np.abs(code).sum(dtype=np.float64)) / len(X))


def code_and_compare(estimator, X):
    """Return data, their codes and their reconstructions as arrays, in the units of the learner.

    Images of unsigned integers become fractions of the largest integer, as the learner reads them.
    """
    found = X if np.ndim(X) == 2 else as_fractions(X), *code_and_reconstruct(estimator, X)
    return tuple(np.asarray(host_array(array)) for array in found)


def reconstruction_r2_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Return the share of the variance of new data that codes and dictionary explain.

    Parameters
    ----------
    estimator : estimator
        Fitted, with ``transform`` and either ``inverse_transform`` or ``components_``.
    X : array-like of shape (n_samples, ...)
        Data.
    y : object, default=None
        Ignored; here for scikit-learn's interface of a scorer.

    Returns
    -------
    float
        :math:`R^2`, features weighted by their variance: 1 for a perfect reconstruction, 0 for the
        mean of the data. It does not reward sparsity.
    """
    X, _, reconstruction = code_and_compare(estimator, X)
    pair = (array.reshape(len(array), -1) for array in (X, reconstruction))
    return float(r2_score(*pair, multioutput="variance_weighted"))


def _denoising_score(estimator, X, y=None, *, noise_std):
    """Return the score of `make_denoising_scorer`, which has the formulas."""
    X, code, reconstruction = code_and_compare(estimator, X)
    X, reconstruction = check_pair(X, reconstruction, same_length=True)
    residual = float(np.square(X - reconstruction).mean(dtype=np.float64))
    n_used = np.count_nonzero(code.reshape(len(X), -1), axis=1)
    share = float(np.minimum(n_used, X[0].size).mean()) / X[0].size
    if noise_std is not None:
        return noise_std**2 * (1 - 2 * share) - residual
    # Codes with as many nonzero entries as a sample has entries fit any data. They predict nothing,
    # and get the score of a constant, the mean of the samples.
    return -residual / (1 - share) ** 2 if share < 1 else -float(X.var(axis=0).mean())


def make_denoising_scorer(*, noise_std: float | None = None) -> Callable:
    r"""Return a scorer that estimates how far codes of noisy data are from the clean data.

    A search over ``alpha`` by this scorer finds the best denoising. The default score of a learner
    measures the prediction of held-out features, which favours larger penalties.

    Parameters
    ----------
    noise_std : float, default=None
        Standard deviation of the noise, in units of the data, if known: the scorer is then minus
        Stein's unbiased estimate of the risk (SURE). None: generalised cross-validation (GCV),
        which needs the data alone and fails where no dictionary explains them.

    Returns
    -------
    callable
        ``scorer(estimator, X, y=None)``, which can be pickled: minus the estimated mean squared
        error of an entry (for GCV, up to a constant), by ``transform`` and either
        ``inverse_transform`` or ``components_``.

    Notes
    -----
    With :math:`r` the mean square of the residual of :math:`m` entries, and :math:`k` nonzero
    entries of the codes, the estimates are :math:`r - \sigma^2 + 2 \sigma^2 k / m` and
    :math:`r / (1 - k / m)^2`. :math:`k` is the number of degrees of freedom of the lasso [1]_ for
    data that the dictionary was not learned from, such as the held-out part of a search. For hard
    thresholding it is too small, because its choice of entries adapts to the noise.

    References
    ----------
    .. [1] H. Zou, T. Hastie and R. Tibshirani, "On the 'degrees of freedom' of the lasso", Annals
       of Statistics 35, 2007.
    .. [2] G. Golub, M. Heath and G. Wahba, "Generalized cross-validation as a method for choosing
       a good ridge parameter", Technometrics 21, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.datasets import make_dictionary_data
    >>> from skpudle.metrics import make_denoising_scorer
    >>> X, _, _ = make_dictionary_data(300, 16, 20, n_nonzero=2, random_state=0)
    >>> X += np.random.default_rng(0).normal(scale=0.1, size=X.shape)
    >>> learner = PUDLEDictionaryLearning(20, random_state=0)
    >>> scorer = make_denoising_scorer(noise_std=0.1)
    >>> search = GridSearchCV(learner, {"alpha": [0.05, 0.2]}, scoring=scorer).fit(X)
    """
    return partial(_denoising_score, noise_std=noise_std)


def unexplained_variance(X: ArrayLike, reconstruction: ArrayLike) -> float:
    """Return the fraction of the variance of data that a reconstruction leaves unexplained (FVU).

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Data.
    reconstruction : array-like of the shape of X
        Data that a dictionary makes of their codes.

    Returns
    -------
    float
        Sum of squared residuals over the sum of squared deviations from the mean of the samples: 0
        for a perfect reconstruction, 1 for the mean, NaN if all samples are equal. Without constant
        features it is 1 minus the R^2 of `reconstruction_r2_scorer`.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    X, reconstruction = check_pair(X, reconstruction, same_length=True)
    variance = np.square(X - X.mean(axis=0, dtype=np.float64)).sum()
    return float(np.square(X - reconstruction).sum(dtype=np.float64) / variance)


def _without(learner, atom):
    """Return a copy of a learner whose codes never use one atom; ``atom`` is its number.

    The atom is zero in the copy. A learned encoder does not compute codes from the atoms, so its
    thresholds for the atom are infinite in the copy.
    """
    other = copy(learner)
    vars(other).pop("feature_names_in_", None)  # it gets arrays, which have no names
    other.components_ = np.array(learner.components_)
    other.components_[atom] = 0
    if hasattr(learner, "thresholds_"):
        other.thresholds_ = np.array(learner.thresholds_)
        other.thresholds_[:, atom] = np.inf
    return other


def atom_importance(learner: Any, X: ArrayLike) -> Bunch:
    r"""Return how much each atom contributes: its uses, its energy, and the loss of R^2 without it.

    The energies of atoms do not add up to the energy that all atoms explain, since atoms are not
    orthogonal: copies share their energy, and removing one copy costs little. So each atom is
    removed in turn, the samples that used it are encoded by the remaining atoms, and the loss of
    R^2 is measured.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and `transform`:
        of this package, or `~sklearn.decomposition.NMF`,
        `~sklearn.decomposition.MiniBatchDictionaryLearning` and the like.
    X : array-like of shape (n_samples, n_features)
        Data, as `transform` takes them; NaN if the learner takes them for missing.

    Returns
    -------
    Bunch
        With these arrays of shape (n_components,):

        - ``usage``, the share of the samples whose code of the atom is not zero;
        - ``energy``, the share of the sum of :math:`z_{ij}^2 \|d_j\|^2`;
        - ``r2_loss``, the fall of R^2 of the reconstruction without the atom. R^2 is relative to
          the column means and pooled over all known entries. Samples that did not use the atom keep
          their codes.

    Raises
    ------
    ValueError
        If atoms are convolved.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.metrics import atom_importance
    >>> X = np.diag([2.0, 1.0]).repeat(5, axis=0)
    >>> learner = PUDLEDictionaryLearning.from_components(np.eye(2), alpha=1e-6)
    >>> atom_importance(learner, X).r2_loss.round(2)
    array([1.6, 0.4])
    """
    learner = check_learner_of_rows(learner)
    given = host_array(X)  # a data frame stays a data frame, with the names of its columns
    X = check_rows(given, allow_nan=True)

    def squares(learner, data, rows):  # -> (n,)
        _, _, reconstruction = code_and_compare(learner, data)
        return np.nansum(np.square(rows - reconstruction), axis=1, dtype=np.float64)

    (codes, _), errors = encode_samples(learner, given), squares(learner, given, X)
    energy = np.square(codes).sum(axis=0, dtype=np.float64)
    energy *= np.square(learner.components_).sum(axis=1)
    mean = np.nansum(X, axis=0) / np.maximum((~np.isnan(X)).sum(axis=0), 1)
    total = np.nansum(np.square(X - mean), dtype=np.float64)
    losses = np.zeros(len(energy))
    for atom, used in enumerate(codes.T != 0):
        if used.any():
            left = squares(_without(learner, atom), X[used], X[used])
            losses[atom] = left.sum() - errors[used].sum()
    return Bunch(
        usage=(codes != 0).mean(axis=0),
        energy=energy / (energy.sum() or 1.0),
        r2_loss=losses / (total or 1.0),
    )


def _find_atoms(learner, X, seed):  # -> (n_found, n_features), unit atoms
    """Fit a new learner to ``X`` that chooses its number of atoms, with ``learner``'s constraints.

    ``X`` has the shape (n_samples, n_features).
    """
    shared = {name: getattr(learner, name) for name in _SHARED if hasattr(learner, name)}
    kind = CountDictionaryLearning if "loss" in shared else PUDLEDictionaryLearning
    found = kind("auto", random_state=seed, **shared).fit(X)
    return unit_atoms(found.components_.astype(np.float64))


def _without_any_feature(first, second):  # (n, n_features) twice -> (n,)
    """Return for each pair of unit atoms how far they agree without the feature that matters most.

    The result is the modulus of the cosine without one feature, the least over all features. Fits
    to noise with heavy tails find atoms that consist of a single feature, and two fits find the
    same ones. Without this feature the cosine of two such atoms is near 0.
    """
    rest = (first * second).sum(axis=1, keepdims=True) - first * second
    lengths = np.sqrt((1 - np.square(first)).clip(0) * (1 - np.square(second)).clip(0))
    return np.abs(rest / np.maximum(lengths, 1e-12)).min(axis=1)


def _geary(projections, lengths):  # (n, n_atoms), (n,) -> (n_atoms,)
    """Return Geary's ratio of the projections of rows on each atom, as a measure of sparsity.

    It is the mean modulus over the root mean square: 0.80 for normal projections, smaller for
    sparse ones. The projections of each row are divided by the length of the row first.
    """
    projections = projections / np.where(lengths > 0, lengths, 1)[:, None]
    size = np.sqrt(np.square(projections).mean(axis=0))
    return np.abs(projections).mean(axis=0) / np.where(size > 0, size, 1)


def _sparsity(atoms, rows, rng):  # (n_atoms, m), (n, m) -> (n_atoms,)
    """Return how much sparser the rows' projections on each atom are than projections of noise.

    The unit is one standard error. Projections are products of whitened rows with atoms, and
    `_geary` measures their sparsity. They are compared with two kinds of noise, and the smaller
    difference is returned. The first kind is Gaussian noise of any covariance and any lengths of
    rows: whitened rows of one length are then uniform on the sphere. The second kind is independent
    between features: it keeps its distribution if each feature is permuted over the rows.
    """
    centred = rows - rows.mean(axis=0)
    n, deviations = len(rows), centred.std(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    kept = values > values[0] * _RANK
    whiten = vectors[kept].T / values[kept]  # (m, rank)
    directions, rank = whiten @ (atoms @ whiten).T, int(kept.sum())
    sphere = sqrt(rank / pi) * exp(lgamma(rank / 2) - lgamma((rank + 1) / 2))
    ratios = _geary(centred @ directions, np.linalg.norm(centred @ whiten, axis=1))
    # The variance of Geary's ratio of mean modulus and standard deviation, times the number of
    # samples, is 1 - 3 / pi for Gaussian samples.
    of_gaussian = (sphere - ratios) / sqrt((1 - 3 / pi) / n)

    scales = np.where(deviations > 0, deviations, 1)

    def measure(rows):
        return _geary(rows @ directions, np.linalg.norm(rows / scales, axis=1))

    # 30 permutations estimate the standard deviation of the measure to 13 %.
    drawn = [measure(rng.permuted(centred, axis=0)) for _ in range(30)]
    spread = np.std(drawn, axis=0, ddof=1)
    of_features = (np.mean(drawn, axis=0) - measure(centred)) / np.maximum(spread, _RANK)
    return np.minimum(of_gaussian, of_features)


def _found_twice(halves, fits, level, rng):  # -> (n_found, n_features)
    """Return the atoms that the fits to both halves of the samples found: unit means of pairs.

    Atoms of the two fits are matched. A pair is kept if its cosine is above chance, and if the
    codes of the pair are sparser than codes of noise. The sparsity of each atom is measured in the
    half that the atom was not fitted to, and the measures of a pair are added. ``halves`` are two
    arrays (n, n_features), and ``fits`` two arrays (n_atoms, n_features).
    """
    match = match_atoms(*fits)
    first, second = match.align_dictionary(fits[0]), fits[1][match.reference_indices]
    quantile = norm.ppf(1 - level / max(1, len(first)))
    chance = np.arctanh(np.minimum(chance_coherence(*fits), 1 - 1e-9))
    least = np.tanh(chance.mean() + quantile * chance.std())
    agree = _without_any_feature(first, second) > least
    sparse = _sparsity(first, halves[1], rng) + _sparsity(second, halves[0], rng)
    return unit_atoms(first + second)[agree & (sparse > sqrt(2) * quantile)]


def atom_support(
    learner: Any,
    X: ArrayLike,
    *,
    level: float = 0.05,
    random_state: int | np.random.RandomState | None = 0,
) -> Bunch:
    """Return which atoms of a dictionary the samples support.

    Each half of the samples is searched for atoms once more. The two searches do not see the
    learner's atoms and choose their own numbers of atoms. An atom that both searches find counts if
    its two versions agree above chance, and if their codes in the half that each was not searched
    in are sparser than codes of noise. Each such atom supports the one atom of the learner that it
    is matched with, if their cosine is at least 0.8. Atoms of noise, of too few samples, and
    superfluous atoms of too large a dictionary are not supported. The function takes as long as a
    fit with ``n_components="auto"``.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features), as for `atom_importance`.
        The searches have its ``loss``, ``positive_code``, ``positive_dict``, ``fit_intercept`` and
        ``noise``, where it has them.
    X : array-like of shape (n_samples, n_features)
        Samples: those of `fit`, or others; NaN for missing entries.
    level : float, default=0.05
        Probability that any atom is supported if the samples are noise, between 0 and 1: Gaussian
        with any covariance and any lengths of rows, or independent between features.
    random_state : int, RandomState instance or None, default=0
        Determines the halves and the searches.

    Returns
    -------
    Bunch
        With these entries:

        - ``supported``, bool of shape (n_components,);
        - ``found``, (n_found, n_features): unit atoms that both halves found, the means of both;
        - ``coherence``, (n_components,): modulus of the cosine between an atom and its match in
          ``found``, 0 without a match. Supported atoms have 0.8 or more.

    Raises
    ------
    ValueError
        If atoms are convolved, counts add, features differ, or the level is not in (0, 1).

    See Also
    --------
    skpudle.ConsensusDictionary : How far many fits agree on each atom.

    Examples
    --------
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.datasets import make_dictionary_data
    >>> from skpudle.metrics import atom_support
    >>> X, _, _ = make_dictionary_data(600, 20, 8, n_nonzero=2, snr_db=20, random_state=0)
    >>> learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)
    >>> int(atom_support(learner, X).supported.sum())
    8
    """
    learner = check_learner_of_rows(learner)
    check_scalar(level, "level", float, min_val=0, max_val=1, include_boundaries="neither")
    X = check_rows(host_array(X), allow_nan=True)
    atoms = unit_atoms(np.asarray(host_array(learner.components_), dtype=np.float64))
    rng = np.random.default_rng(check_random_state(random_state).randint(2**31))
    coherence, found = np.zeros(len(atoms)), np.zeros((0, atoms.shape[1]))
    rows = rng.permutation(len(X))
    halves = X[rows[::2]], X[rows[1::2]]
    if all(len(half) > 1 for half in halves):
        with warnings.catch_warnings():  # poor fits of halves are expected
            warnings.simplefilter("ignore", UserWarning)
            fits = [_find_atoms(learner, half, int(rng.integers(2**31))) for half in halves]
        filled = [to_numpy(split_missing(to_tensor(half))[0]) for half in halves]
        found = _found_twice(filled, fits, level, rng)
    if len(found):
        coherence = atom_coherence(found, atoms)
    # From a cosine of 0.8 on two atoms count as the same. An atom and its sum with an orthogonal
    # atom have the cosine 0.71. Known atoms and the atoms of fits with twice the number of atoms
    # have at least 0.91, on synthetic data with a signal-to-noise ratio of 10 dB.
    return Bunch(supported=coherence >= 0.8, found=found, coherence=coherence)
