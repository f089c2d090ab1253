"""Metrics of dictionaries and codes, and scorers for scikit-learn.

The data determine a dictionary up to the order and the signs of its atoms: if atoms are permuted or
flipped, so are the codes, and the reconstructions stay equal. The metrics therefore match the atoms
of a dictionary one to one with the atoms of a reference, by the assignment with the largest sum of
moduli of cosines. The modulus of the cosine of two atoms is their *coherence*. A dictionary is an
array whose first axis counts the atoms, which may have any shape, or a fitted learner.

The data determine the atoms of a convolutional learner up to shifts, too. If a dictionary is such a
learner, two atoms are compared at their *best shift*, the shift with the largest coherence. So pass
the learner itself: arrays, such as its ``components_``, are compared without shifts.

"By chance" means: for random atoms. Random atoms are Gaussian combinations of the atoms of a
dictionary, with the mean and the second moments of these atoms. Atoms of smooth images, or of data
with few large principal components, are similar even if the data do not determine them. Random
atoms are similar to the same degree: only a coherence above theirs is evidence.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import permutations
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment, nnls
from sklearn.metrics import r2_score
from sklearn.preprocessing import normalize
from sklearn.utils import Bunch, check_array
from sklearn.utils.validation import check_consistent_length

from skpudle._data import arrays
from skpudle._data.arrays import check_rows, host_array
from skpudle._data.images import as_fractions
from skpudle._estimators import (
    check_learner_of_rows,
    code_and_reconstruct,
    encode_samples,
)

__all__ = [
    "atom_coherence",
    "atom_importance",
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


def check_pair(first, second, *, same_length=False):
    """Check that two dictionaries, or two sets of samples, can be compared; return float arrays.

    Arguments are arrays (n, ...) or fitted learners, whose atoms are taken; the results are arrays
    of their shapes. ValueError is raised if the shapes differ after the first axis, or with
    ``same_length`` on any axis.
    """
    first, second = (
        check_array(
            host_array(arrays.dictionary_of(atoms)),
            dtype=[np.float64, np.float32],
            allow_nd=True,
        )
        for atoms in (first, second)
    )
    start = 0 if same_length else 1
    if first.shape[start:] != second.shape[start:]:
        raise ValueError(
            f"Shapes {first.shape} and {second.shape} differ. Pass equal shapes."
        )
    return first, second


def unit_atoms(dictionary):
    """Divide atoms (n, ...) by their norms, in the same shape; zero atoms stay zero."""
    flat = dictionary.reshape(len(dictionary), -1)
    # Atoms are first scaled by powers of two, which is exact, to a largest entry of 0.5 to 1:
    # squares of large entries would overflow, and `normalize` takes norms below 1e-15 for zero.
    largest = np.abs(flat).max(axis=1, keepdims=True)
    return normalize(np.ldexp(flat, -np.frexp(largest)[1])).reshape(dictionary.shape)


def count_shift_axes(*dictionaries):  # -> int
    """Return along how many axes a comparison shifts atoms: 1 to 3 for convolutions, else 0.

    ``dictionaries`` are arrays or learners. Only convolutional learners have shifts, and the
    largest number of their axes counts.
    """
    return max(np.size(getattr(one, "atom_shape", ())) for one in dictionaries)


def shift_atoms(atoms, n_axes):  # (n, ...) -> (n, n_shifts, n_features)
    """Return flat copies of atoms at all shifts along their first ``n_axes`` axes, for comparisons.

    A shifted atom keeps its shape and has zeros where nothing was shifted in. With ``n_axes=0``
    there is one copy, the atom without a shift.
    """
    widths = [(0, 0)] * atoms.ndim
    for axis in range(1, 1 + n_axes):
        widths[axis] = (atoms.shape[axis] - 1, atoms.shape[axis] - 1)
    padded = np.pad(atoms, widths)
    shifted = sliding_window_view(padded, atoms.shape[1:], tuple(range(1, atoms.ndim)))
    return shifted.reshape(len(atoms), -1, atoms[0].size)


def atom_cosines(dictionary, reference, n_axes=None):  # -> (n_reference, n_components)
    """Return the cosine of each atom of a dictionary with each atom of a reference.

    Both are arrays (n, ...) or learners. Atoms of convolutional learners are compared at the shift
    with the largest modulus of the cosine. The cosine with an atom of zeros is 0. ``n_axes`` is the
    number of axes along which atoms are shifted, by default `count_shift_axes`.
    """
    n_axes = count_shift_axes(dictionary, reference) if n_axes is None else n_axes
    dictionary, reference = map(unit_atoms, check_pair(dictionary, reference))
    return _best_cosines(dictionary, shift_atoms(reference, n_axes))


def _best_cosines(atoms, shifted):  # -> (n_reference, n_components)
    """Return the cosine of each atom with each reference atom at the best shift.

    ``atoms`` are unit atoms (n_components, ...), and ``shifted``, (n_reference, n_shifts,
    n_features), the unit atoms of the reference at all shifts, as `shift_atoms` returns them. The
    best shift has the largest modulus of the cosine.
    """
    cosines = np.tensordot(shifted, atoms.reshape(len(atoms), -1), (2, 1))
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
        """Return the matched atoms with the order and the signs of the reference.

        ``dictionary``, an array (n_components, ...) or a learner, is the first argument of the
        `match_atoms` that made this match. The result has the shape (n_pairs, ...), where n_pairs
        is min(n_components, n_reference). Convolutional atoms are not shifted.
        """
        atoms = np.asarray(arrays.dictionary_of(dictionary))[self.indices]
        signs = np.expand_dims(self.signs, tuple(range(1, atoms.ndim)))
        return atoms * signs.astype(atoms.dtype)


def _assign(products):  # (n_reference, n_components) -> AtomMatch
    """Match atoms one to one by their inner products, as `match_atoms` does by cosines.

    The pairs have the largest sum of moduli of ``products``. Moduli above 1, which
    for cosines are rounding errors, become coherences of 1.
    """
    # `linear_sum_assignment` returns the numbers of rows, the atoms of the reference, in increasing
    # order.
    rows, columns = linear_sum_assignment(np.abs(products), maximize=True)
    matched = products[rows, columns]
    signs = np.where(matched < 0, -1, 1)
    return AtomMatch(columns, rows, signs, np.minimum(np.abs(matched), 1))


def match_coherences(cosines):  # (n_reference, n_components) -> (n_reference,)
    """Return for each atom of a reference the coherence with its match, 0 without a match.

    ``cosines`` are those of each atom of the reference with each atom of a dictionary. Atoms are
    matched one to one, and the coherence of a pair is the modulus of its cosine.
    """
    match = _assign(cosines)
    return np.bincount(match.reference_indices, match.coherences, len(cosines))


def match_atoms(dictionary: Any, reference: Any) -> AtomMatch:
    r"""Match the atoms of two dictionaries one to one, up to their signs.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, ...), or learner
        Atoms, one per entry of the first axis, or a fitted learner. If one of the two dictionaries
        is a convolutional learner, two atoms are compared at the shift with the largest modulus of
        their cosine.
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
    """The reference atoms that explain a component; see `match_components`.

    Attributes
    ----------
    nearest : object
        Name of the reference atom with the largest modulus of the cosine with the component.
    cosine : float
        Modulus of the cosine between the component and the nearest reference atom, from 0 to 1.
    shares : dict of name to float
        Positive weights of up to three reference atoms whose weighted sum, the mixture,
        approximates the component; the largest weight first. Component and reference atoms are
        scaled so that the moduli of their entries have the sum 1.
    mixture_cosine : float
        Cosine between the component and the mixture.
    """

    nearest: object
    cosine: float
    shares: dict
    mixture_cosine: float


class _Mixture(NamedTuple):
    """A mixture of reference atoms that approximates an atom, and its cosine with the atom.

    ``terms`` are the numbers of the reference atoms in the mixture, and ``weights`` their
    non-negative weights.
    """

    cosine: float
    terms: list
    weights: np.ndarray


def _mix(atom, reference, terms):  # -> _Mixture
    """Fit an atom (m,) by some rows of a reference (n, m), by non-negative least squares.

    ``terms`` are the numbers of the rows. The result has the cosine of atom and weighted sum.
    """
    weights, _ = nnls(reference[terms].T, atom)
    mixture = weights @ reference[terms]
    cosine = atom_cosines(atom[None], mixture[None])[0, 0]
    return _Mixture(float(cosine), terms, weights)


def _match_component(atom, shifted, names):  # -> ComponentMatch
    """Explain an atom by up to three reference atoms, chosen one by one, for `match_components`.

    Each new reference atom has to raise the cosine between ``atom`` and the mixture by 0.01.
    ``atom`` is (m,). ``shifted``, (n_reference, n_shifts, m), holds each reference atom at all its
    shifts, as `shift_atoms` returns them, and ``names`` the names of the reference atoms.
    """
    # Each reference atom gets the shift at which its inner product with the atom has the largest
    # modulus. It gets the sign that makes this product positive, since weights are non-negative.
    shifts = np.abs(shifted @ atom).argmax(axis=1)
    reference = shifted[np.arange(len(shifts)), shifts]
    reference = reference * np.where(reference @ atom < 0, -1, 1)[:, None]
    # An empty mixture, with a cosine that every atom exceeds.
    mixture = _Mixture(-1.0, [], np.zeros(0))
    for _ in range(min(3, len(reference))):
        rest = np.setdiff1d(np.arange(len(reference)), mixture.terms)
        mixtures = [_mix(atom, reference, [*mixture.terms, k]) for k in rest]
        best = max(mixtures, key=lambda one: one.cosine)
        if best.cosine < mixture.cosine + 0.01:
            break
        if not mixture.terms:
            nearest = best
        mixture = best
    shares = {
        names[mixture.terms[i]]: float(mixture.weights[i])
        for i in np.argsort(-mixture.weights)
        if mixture.weights[i] > 0
    }
    return ComponentMatch(
        nearest=names[nearest.terms[0]],
        cosine=nearest.cosine,
        shares=shares,
        mixture_cosine=mixture.cosine,
    )


def match_components(
    components: Any, reference: Any, names: Sequence | None = None
) -> list[ComponentMatch]:
    """Explain components by named atoms, such as a catalogue of spectra: the nearest, and mixtures.

    The mixture of a component begins with the nearest reference atom. The atom that raises the
    cosine between component and mixture most is added, until the mixture has three atoms or the
    rise is below 0.01. Weights of atoms are fitted by non-negative least squares. Components and
    reference atoms with negative entries are compared up to sign.

    Parameters
    ----------
    components : array-like of shape (n_components, ...), or learner
        Atoms, such as ``components_`` of `skpudle.PoissonNMF`, or the learner itself. If it is a
        convolutional learner, reference atoms are shifted to fit the component before they are
        mixed.
    reference : array-like of shape (n_reference, ...), or learner
        Known atoms of the same shape.
    names : sequence of length n_reference, default=None
        Names of the reference atoms; by default the numbers 0, 1, ...

    Returns
    -------
    list of ComponentMatch
        A named tuple for each component: the `nearest` name and its `cosine`; `shares`, a dict from
        name to weight in the mixture, for atoms scaled so that the moduli of their entries have the
        sum 1; and `mixture_cosine`.

    Raises
    ------
    ValueError
        If the atoms have different shapes, or if there is not one name per reference atom.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import match_components
    >>> (match,) = match_components([[0.7, 0.3, 0.0]], np.eye(3), names=["A", "B", "C"])
    >>> match.nearest, {name: round(share, 2) for name, share in match.shares.items()}
    ('A', {'A': 0.7, 'B': 0.3})
    """
    n_axes = count_shift_axes(components, reference)
    pair = check_pair(components, reference)
    flat = (atoms.reshape(len(atoms), -1).astype(np.float64) for atoms in pair)
    components, reference = (normalize(unit_atoms(atoms), norm="l1") for atoms in flat)
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
        compares atom i with atom i, as [1]_ does for a dictionary initialised near the
        reference. Convolutional atoms are not shifted; `atom_coherence` shifts them.

    Returns
    -------
    float
        :math:`\|D - \tilde D\|_F / \|\tilde D\|_F` for the dictionary :math:`D` and the reference
        :math:`\tilde D`, as in appendix B of [1]_.

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
    # The permutation and signs with the largest sum of inner products give the smallest error: the
    # squared error is a sum of squared norms, which they do not change, minus twice this sum.
    if match:
        flat = (atoms.reshape(len(atoms), -1) for atoms in (reference, dictionary))
        dictionary = _assign(np.inner(*flat)).align_dictionary(dictionary)
    return float(np.linalg.norm(dictionary - reference) / np.linalg.norm(reference))


def atom_coherence(dictionary: Any, reference: Any) -> np.ndarray:
    """Return how well a dictionary recovers each atom of a reference, from 0 to 1.

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
    return match_coherences(atom_cosines(dictionary, reference))


def recovery_rate(dictionary: Any, reference: Any, *, threshold: float = 0.9) -> float:
    """Return the fraction of a reference's atoms that a dictionary recovers.

    Parameters
    ----------
    dictionary, reference : array-like of shape (n, ...), or learner
        Atoms of the same shape, n_components and n_reference of them, one per entry of the first
        axis, or fitted learners. Atoms of convolutional learners are compared at the best shift.
    threshold : float, default=0.9
        `atom_coherence` from which an atom counts as recovered: 0.99 is common for learned
        dictionaries, 0.9 for initial ones.

    Returns
    -------
    float
        Fraction of the reference's atoms with an `atom_coherence` of at least `threshold`, from 0
        to 1.
    """
    return float((atom_coherence(dictionary, reference) >= threshold).mean())


def recombine_atoms(atoms, rng):  # (n_components, ...) -> the same
    """Draw random unit atoms with about the mean and second moments of a dictionary's unit atoms.

    Random dictionaries show which similarity of atoms is due to chance. A random atom is a Gaussian
    combination of all ``atoms``, which are unit atoms. The mean of atoms depends on their signs, so
    each atom first gets the sign that makes its inner product with the first principal direction
    positive. ``rng`` is a `numpy.random.RandomState`.
    """
    rows = atoms.reshape(len(atoms), -1)
    n = len(atoms)
    direction = rows.sum(axis=0)
    # The first principal direction, by power iterations. Ten are enough although they need not
    # converge, since the direction is only used to choose signs.
    for _ in range(10):
        direction = normalize([rows.T @ (rows @ direction)])[0]
    aligned = rows * np.where(rows @ direction < 0, -1, 1)[:, None]
    mean = aligned.mean(axis=0)
    drawn = rng.standard_normal((n, n)) @ (aligned - mean) / n**0.5 + mean
    return normalize(drawn).reshape(atoms.shape)


def chance_coherence(dictionary, reference, n_axes=0):  # -> (n_draws, n_reference)
    """Return the coherence of a reference with random dictionaries: the coherence by chance.

    Both arguments are arrays (n, ...) or learners. Row i of the result holds the `atom_coherence`
    of each reference atom for random dictionary i, which `recombine_atoms` draws from the nonzero
    atoms of ``dictionary``. There are so many draws that the mean of the result is exact to 0.005.
    ``n_axes`` is the number of axes along which atoms are shifted.

    Random combinations lie in the span of the dictionary's few atoms, and therefore match the
    reference a little worse than independent atoms would. If the reference is recombined too, the
    coherence falls by the same amount a second time. The second fall is measured and added to the
    result.
    """
    dictionary, reference = map(unit_atoms, check_pair(dictionary, reference))
    rng = np.random.RandomState(0)
    used = dictionary[[atom.any() for atom in dictionary]]
    # So many draws that the result is a mean of at least 2,500 coherences: the coherence of one
    # random atom has a standard deviation of about 0.1, and the mean of 2,500 has 0.002.
    n_draws = max(4, ceil(2500 / min(len(used), len(reference))))
    draws = [recombine_atoms(used, rng) for _ in range(n_draws)]
    references = [recombine_atoms(reference, rng) for _ in range(n_draws)]

    def compare(drawn, other):  # -> (n_reference,)
        return match_coherences(_best_cosines(drawn, shift_atoms(other, n_axes)))

    first = np.stack([compare(drawn, reference) for drawn in draws])
    second = [compare(drawn, other) for drawn, other in zip(draws, references)]
    return np.clip(first + first.mean() - np.mean(second), 0, 1)


def dictionary_stability(
    dictionaries: Sequence[Any], *, threshold: float = 0.9
) -> Bunch:
    """Return how well independently learned dictionaries agree, for each atom and on average.

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

        - ``atoms``, ndarray of shape (n_dictionaries, n_components): for every atom the coherence
          (modulus of the cosine) with its match by `match_atoms` in another dictionary, averaged
          over all other dictionaries, from 0 to 1;
        - ``stability``, float: the mean of ``atoms``;
        - ``by_chance``, float: the stability of random atoms;
        - ``above_chance``, float: ``stability - by_chance``;
        - ``n_stable``, float: the number of atoms of a dictionary whose entry in ``atoms`` is at
          least the threshold, averaged over the dictionaries.

    Raises
    ------
    ValueError
        If the shapes of the dictionaries differ.

    Notes
    -----
    Random atoms are Gaussian combinations of the atoms of a dictionary. They share only the mean
    (up to signs) and the second moments of the atoms. Fits to the same samples, or from one start,
    agree above chance even if the samples are noise. To exclude this, fit disjoint halves of the
    samples from different seeds, or use `skpudle.inspection.atom_support`.

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
    dictionaries = [host_array(arrays.dictionary_of(one)) for one in dictionaries]
    # Each dictionary is the reference of all other dictionaries. `permutations` lists the pairs of
    # the first dictionary first, then the pairs of the second: ``coherences`` get the shape
    # (n_dictionaries, n_dictionaries - 1, n_components), and are averaged over the second axis, the
    # other dictionaries.
    coherences = [
        match_coherences(atom_cosines(other, one, n_axes))
        for one, other in permutations(dictionaries, 2)
    ]
    shape = (len(dictionaries), -1, len(coherences[0]))
    atoms = np.reshape(coherences, shape).mean(axis=1)
    # For the agreement by chance each dictionary is compared with random atoms of one other only.
    pairs = zip(dictionaries, dictionaries[1:] + dictionaries[:1])
    chances = [chance_coherence(other, one, n_axes).mean() for one, other in pairs]
    by_chance = float(np.mean(chances))
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
    r"""Return the lasso objective of codes and reconstructions, averaged over samples.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Data.
    code : array-like of shape (n_samples, ...)
        Codes of the samples, with any number of axes.
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
    """Return data, their codes and their reconstructions as arrays, for the scores of this module.

    Data and reconstructions have the shape of ``X``, (n_samples, ...), and codes are the result of
    the estimator's ``transform``. Images of unsigned integers become fractions of the largest
    integer, as the learner reads them.
    """
    codes, reconstructions = code_and_reconstruct(estimator, X)
    data = X if np.ndim(X) == 2 else as_fractions(X)
    return tuple(
        np.asarray(host_array(array)) for array in (data, codes, reconstructions)
    )


def reconstruction_r2_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Score a fitted learner by the R^2 of its reconstructions; for ``scoring`` in scikit-learn.

    Parameters
    ----------
    estimator : estimator
        Fitted, with ``transform`` and either ``inverse_transform`` or ``components_``.
    X : array-like of shape (n_samples, ...)
        Data.
    y : object, default=None
        Ignored; scikit-learn passes it to every scorer.

    Returns
    -------
    float
        The fraction of the variance of all features together that the reconstruction explains,
        :math:`R^2`: 1 for a perfect reconstruction, 0 for the mean of the data. It does not reward
        sparsity.
    """
    X, _, reconstruction = code_and_compare(estimator, X)
    n = len(X)
    score = r2_score(
        X.reshape(n, -1),
        reconstruction.reshape(n, -1),
        multioutput="variance_weighted",
    )
    return float(score)


def _denoising_score(estimator, X, y=None, *, noise_std):
    """Return minus the estimated squared error of an entry: the scorer of `make_denoising_scorer`.

    With the standard deviation ``noise_std`` of the noise the estimate of the error is Stein's
    (SURE), ``residual - noise_std**2 * (1 - 2 * ratio)``. With None it is that of generalised
    cross-validation (GCV), ``residual / (1 - ratio)**2``, up to an unknown constant. Here
    ``residual`` is the mean squared residual, and ``ratio`` the number of nonzero codes per entry
    of a sample.
    """
    X, code, reconstruction = code_and_compare(estimator, X)
    residual = float(np.square(X - reconstruction).mean(dtype=np.float64))
    n_used = np.count_nonzero(code.reshape(len(X), -1), axis=1)
    # More nonzero codes than entries count as many as entries, since they fit no better.
    ratio = float(np.minimum(n_used, X[0].size).mean()) / X[0].size
    if noise_std is not None:
        return noise_std**2 * (1 - 2 * ratio) - residual
    # Codes with as many nonzero entries as a sample has entries (``ratio`` is 1) fit any sample
    # exactly, so their residuals tell nothing about the error, and GCV would divide by 0. Such
    # codes get the score of a reconstruction by the mean of the samples.
    return -residual / (1 - ratio) ** 2 if ratio < 1 else -float(X.var(axis=0).mean())


def make_denoising_scorer(*, noise_std: float | None = None) -> Callable:
    r"""Return a scorer that estimates how far reconstructions of noisy data are from clean data.

    A `GridSearchCV` over ``alpha`` with this scorer finds the penalty that denoises best. The
    default score of a learner measures the prediction of held-out features, which favours larger
    penalties.

    Parameters
    ----------
    noise_std : float, default=None
        Standard deviation of the noise, in units of the data, if known: the scorer is then minus
        Stein's unbiased estimate of the risk (SURE). None: generalised cross-validation (GCV),
        which needs the data alone and fails where no dictionary explains them.

    Returns
    -------
    callable
        ``scorer(estimator, X, y=None)`` for ``scoring`` in scikit-learn; it can be pickled. It
        takes a fitted estimator with ``transform`` and either ``inverse_transform`` or
        ``components_``, and samples (n_samples, ...). It returns minus the estimated mean squared
        error of an entry, in squared units of the data; for GCV the estimate has an unknown
        constant.

    Notes
    -----
    Let :math:`r` be the mean square of the residuals, :math:`m` the number of entries of a sample,
    and :math:`k` the mean number of nonzero entries of its code. SURE is
    :math:`r - \sigma^2 + 2 \sigma^2 k / m`, and GCV [2]_ is :math:`r / (1 - k / m)^2`. :math:`k`
    is the number of degrees of freedom of the lasso [1]_ for data that the dictionary was not
    learned from, such as the held-out part of a search. For hard thresholding :math:`k` is too
    small, because the choice of nonzero entries adapts to the noise.

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
    """Return the fraction of variance unexplained (FVU) by reconstructions of data.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Data.
    reconstruction : array-like of the shape of X
        Reconstructions of the data by codes and a dictionary.

    Returns
    -------
    float
        Sum of squared residuals over the sum of squared deviations from the mean of the samples: 0
        for a perfect reconstruction, 1 for the mean. If all samples are equal, it is NaN for a
        perfect reconstruction, and else infinite. Without constant features it is 1 minus the R^2
        of `reconstruction_r2_scorer`.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    X, reconstruction = check_pair(X, reconstruction, same_length=True)
    variance = np.square(X - X.mean(axis=0, dtype=np.float64)).sum()
    return float(np.square(X - reconstruction).sum(dtype=np.float64) / variance)


def _without_atom(learner, atom):
    """Return a copy of a learner whose codes never use the atom with the index ``atom``.

    `atom_importance` measures the loss without the atom by this copy. The atom is zero in the copy.
    A learned encoder has weights of its own instead of the atoms, so its thresholds for the atom
    become infinite as well. The learner itself does not change.
    """
    other = copy(learner)
    # The copy encodes arrays. If it had the names of features that the learner was fitted with,
    # scikit-learn would warn that the columns of the arrays have no names.
    vars(other).pop("feature_names_in_", None)
    other.components_ = np.array(learner.components_)
    other.components_[atom] = 0
    if getattr(learner, "thresholds_", None) is not None:
        other.thresholds_ = np.array(learner.thresholds_)
        other.thresholds_[:, atom] = np.inf
    return other


def atom_importance(learner: Any, X: ArrayLike) -> Bunch:
    r"""Return how much each atom contributes: its uses, its energy, and the loss of R^2 without it.

    Atoms are not orthogonal, so an atom with much energy may be replaceable, for example by a copy
    of itself. Therefore each atom is also removed in turn: the samples that used the atom are
    encoded by the remaining atoms, and the fall of R^2 is measured.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and ``transform``: a
        learner of this package, or such as `~sklearn.decomposition.NMF` or
        `~sklearn.decomposition.MiniBatchDictionaryLearning`.
    X : array-like of shape (n_samples, n_features)
        Data, as ``transform`` takes them; NaN marks missing entries if the learner allows it.

    Returns
    -------
    Bunch
        With these arrays of shape (n_components,):

        - ``usage``, the fraction of the samples whose code of the atom is not zero;
        - ``energy``, the atom's fraction of the sum of :math:`z_{ij}^2 \|d_j\|^2` over all samples
          i and atoms j, with codes z and atoms d;
        - ``r2_loss``, the fall of R^2 of the reconstruction without the atom. R^2 is relative to
          the column means and pooled over all known entries. Samples that did not use the atom keep
          their codes.

    Raises
    ------
    ValueError
        If the learner is convolutional, or if an entry of X is missing and the learner allows none.

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
    data = host_array(X)  # keeps a data frame, whose names the learner checks
    X = check_rows(data, allow_nan=True)

    def row_errors(learner, data, rows):  # -> (n,), the squared error of each row
        _, _, reconstruction = code_and_compare(learner, data)
        return np.nansum(np.square(rows - reconstruction), axis=1, dtype=np.float64)

    codes, _ = encode_samples(learner, data)
    errors = row_errors(learner, data, X)
    energy = np.square(codes).sum(axis=0, dtype=np.float64)
    energy *= np.square(learner.components_).sum(axis=1)
    mean = np.nansum(X, axis=0) / np.maximum((~np.isnan(X)).sum(axis=0), 1)
    total = np.nansum(np.square(X - mean), dtype=np.float64)
    losses = np.zeros(len(energy))
    for atom, used in enumerate(codes.T != 0):
        if used.any():
            without = row_errors(_without_atom(learner, atom), X[used], X[used])
            losses[atom] = without.sum() - errors[used].sum()
    return Bunch(
        usage=(codes != 0).mean(axis=0),
        energy=energy / (energy.sum() or 1.0),
        r2_loss=losses / (total or 1.0),
    )
