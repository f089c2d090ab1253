"""Compare dictionaries: errors, recovery, coherence, and agreement beyond chance.

Random atoms are random combinations of the atoms of a dictionary. They share only the mean and the
second moments of the atoms. Atoms of smooth images, or of data with few large principal components,
resemble each other even if the data do not determine them, and so do random atoms.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment, nnls
from sklearn.preprocessing import normalize
from sklearn.utils import Bunch, check_consistent_length
from sklearn.utils.validation import check_non_negative

from skpudle._data.arrays import host_array
from skpudle._data.foreign import dictionary_of
from skpudle.metrics._codes import check_pair

# least rise of the cosine for which a reference joins a mixture
_GAIN = 0.01
# Number of random matches in a mean, and least number of draws. Coherences of random atoms vary by
# 0.1, and the mean of 2,500 coherences by 0.002.
_MATCHES, _DRAWS = 2500, 4

# Steps of the power iteration for the direction that aligns signs, which need not be exact.
_POWER_STEPS = 10


def unit_atoms(dictionary):
    """Return the atoms as rows of unit norm; zero atoms stay zero."""
    atoms = dictionary.reshape(len(dictionary), -1)
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    return atoms / np.where(norms > 0, norms, 1)


def atom_cosines(dictionary, reference):
    """Return the cosine of the angle between every atom and every atom of a reference.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, ...)
        Atoms, one per entry of the first axis.
    reference : array-like of shape (n_reference, ...)
        Atoms of the same shape; there may be more or fewer of them.

    Returns
    -------
    ndarray of shape (n_reference, n_components)
        Cosines; 0 for atoms that are zero.

    Raises
    ------
    ValueError
        If the atoms have different shapes.
    """
    dictionary, reference = check_pair(dictionary, reference)
    return unit_atoms(reference) @ unit_atoms(dictionary).T


class AtomMatch(NamedTuple):
    """The pairs that `match_atoms` found, in the order of the reference.

    Attributes
    ----------
    indices : ndarray of shape (min(n_components, n_reference),)
        Atoms of the dictionary.
    reference_indices : ndarray of the same shape
        Atoms of the reference that they match, increasing.
    signs : ndarray of the same shape
        1 or -1, the sign by which an atom of the dictionary agrees with its match.
    coherences : ndarray of the same shape
        Modulus of the cosine between the two, from 0 to 1.
    """

    indices: np.ndarray
    reference_indices: np.ndarray
    signs: np.ndarray
    coherences: np.ndarray

    def align_dictionary(self, dictionary):
        """Return the matched atoms in the order and with the signs of the reference."""
        atoms = np.asarray(dictionary_of(dictionary))[self.indices]
        return atoms * self.signs.reshape(-1, *[1] * (atoms.ndim - 1)).astype(atoms.dtype)


def _assign(products):  # (n_reference, n_components) -> AtomMatch
    rows, columns = linear_sum_assignment(np.abs(products), maximize=True)  # rows increase
    matched = products[rows, columns]
    signs = np.where(matched < 0, -1, 1)
    return AtomMatch(columns, rows, signs, np.minimum(np.abs(matched), 1))


def match_atoms(dictionary: Any, reference: Any) -> AtomMatch:
    r"""Match the atoms of two dictionaries, up to sign and permutation.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, ...), or learner
        Atoms, one per entry of the first axis, or a fitted learner.
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
    The largest sum of matched coherences over all permutations, by the Hungarian method. For atoms
    of unit norm it has the least sum of squared distances over all permutations and signs.

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
        Name of the reference of the largest cosine.
    cosine : float
        Its cosine.
    shares : dict
        Names of the references of a mixture, the largest share first, and their shares.
    mixture_cosine : float
        Cosine of the component and the mixture.
    """

    nearest: object
    cosine: float
    shares: dict
    mixture_cosine: float


def _mix(atom, reference):  # -> cosine of the mixture, shares
    shares, _ = nnls(reference.T, atom)
    return float(atom_cosines(atom[None], (shares @ reference)[None])[0, 0]), shares


def _match_component(atom, reference, names, max_terms):  # -> ComponentMatch
    cosines = atom_cosines(atom[None], reference)[:, 0]
    terms = [int(cosines.argmax())]
    cosine, shares = _mix(atom, reference[terms])
    while len(terms) < min(max_terms, len(reference)):
        others = [[*terms, k] for k in range(len(reference)) if k not in terms]
        mixed = [_mix(atom, reference[some]) for some in others]
        best = int(np.argmax([cosine for cosine, _ in mixed]))
        if mixed[best][0] < cosine + _GAIN:
            break
        terms, (cosine, shares) = others[best], mixed[best]
    named = {names[terms[i]]: float(shares[i]) for i in np.argsort(-shares) if shares[i] > 0}
    return ComponentMatch(names[terms[0]], float(cosines.max()), named, cosine)


def match_components(
    components: Any, reference: Any, names: Sequence | None = None, max_terms: int = 3
) -> list[ComponentMatch]:
    """Name components by the nearest reference, and by a mixture of few of them.

    A mixture begins with the nearest reference. The reference that raises the cosine of the mixture
    most joins it, until the rise is below 0.01. Shares are the non-negative least squares fit.

    Parameters
    ----------
    components : array-like of shape (n_components, n_features), or learner
        Non-negative atoms, such as ``components_`` of `skpudle.PoissonNMF`, or the learner itself.
    reference : array-like of shape (n_reference, n_features), or learner
        Non-negative atoms with names, such as a catalogue of known spectra.
    names : sequence of length n_reference, default=None
        Names of the references; by default their positions.
    max_terms : int, default=3
        Largest number of references in a mixture.

    Returns
    -------
    list of ComponentMatch
        For each component the `nearest` name, its `cosine`, the `shares` of the mixture by name, of
        atoms of sum 1, and the `mixture_cosine`.

    Raises
    ------
    ValueError
        If the atoms have different shapes or negative entries, or if the number of names is
        another.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import match_components
    >>> (match,) = match_components([[0.7, 0.3, 0.0]], np.eye(3), names=["A", "B", "C"])
    >>> match.nearest, {name: round(share, 2) for name, share in match.shares.items()}
    ('A', {'A': 0.7, 'B': 0.3})
    """
    components, reference = check_pair(components, reference)
    names = range(len(reference)) if names is None else list(names)
    check_consistent_length(reference, names)
    for atoms in (components, reference):
        check_non_negative(atoms, "match_components")
    components, reference = (
        normalize(atoms.astype(np.float64), norm="l1") for atoms in (components, reference)
    )
    return [_match_component(atom, reference, names, max_terms) for atom in components]


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
        reference.

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
    if match:  # the largest sum of products has the least sum of distances
        flat = (atoms.reshape(len(atoms), -1) for atoms in (reference, dictionary))
        dictionary = _assign(np.inner(*flat)).align_dictionary(dictionary)
    return float(np.linalg.norm(dictionary - reference) / np.linalg.norm(reference))


def atom_coherence(dictionary: Any, reference: Any) -> np.ndarray:
    """Return how well each atom of a reference is recovered.

    Parameters
    ----------
    dictionary, reference : array-like of shape (n, ...), or learner
        Atoms of the same shape, n_components and n_reference of them, one per entry of the first
        axis, or fitted learners.

    Returns
    -------
    ndarray of shape (n_reference,)
        Modulus of the cosine between the atom and its match by `match_atoms`, from 0 to 1. No atom
        of `dictionary` counts twice: an atom without a match has coherence 0.
    """
    match, n = match_atoms(dictionary, reference), len(dictionary_of(reference))
    coherences = np.zeros(n, dtype=match.coherences.dtype)
    coherences[match.reference_indices] = match.coherences
    return coherences


def recovery_rate(dictionary: Any, reference: Any, *, threshold: float = 0.9) -> float:
    """Return the share of a reference's atoms that are recovered.

    Parameters
    ----------
    dictionary, reference : array-like of shape (n, ...), or learner
        Atoms of the same shape, n_components and n_reference of them, one per entry of the first
        axis, or fitted learners.
    threshold : float, default=0.9
        Coherence from which an atom counts as recovered: 0.99 is common for learned dictionaries,
        0.9 for initial ones.

    Returns
    -------
    float
        Share of the reference's atoms with an `atom_coherence` of at least `threshold`.
    """
    return float((atom_coherence(dictionary, reference) >= threshold).mean())


def recombine_atoms(atoms, rng):  # (n_components, n_features) -> the same shape
    """Return Gaussian combinations of unit atoms, with their mean and second moments, and norm 1.

    Signs of atoms are aligned with the leading direction of all, since a mean needs signs.
    """
    direction = atoms.sum(axis=0)
    for _ in range(_POWER_STEPS):
        direction = atoms.T @ (atoms @ direction)
        direction /= np.linalg.norm(direction) or 1.0
    aligned = atoms * np.where(atoms @ direction < 0, -1, 1)[:, None]
    mean, n = aligned.mean(axis=0), len(atoms)
    return unit_atoms(rng.standard_normal((n, n)) @ (aligned - mean) / n**0.5 + mean)


def chance_coherence(dictionary, reference):  # -> (n_draws, n_reference)
    """Return the `atom_coherence` of a reference in random dictionaries.

    Each random dictionary has the number of atoms of ``dictionary``. The number of draws makes the
    mean exact to 0.005.

    Random atoms are Gaussian combinations of the atoms of ``dictionary``, with the mean (up to
    signs) and the second moments of these atoms, and norm 1. Combinations of few atoms lie in their
    span and match a little worse than independent atoms. If the reference is combined too, the
    coherence falls by the same amount again, and that difference is added.
    """
    dictionary, reference = map(unit_atoms, check_pair(dictionary, reference))
    used, rng = dictionary[dictionary.any(axis=1)], np.random.RandomState(0)
    n_draws = max(_DRAWS, ceil(_MATCHES / max(1, min(len(used), len(reference)))))
    if not len(used):
        return np.zeros((n_draws, len(reference)))
    draws = [recombine_atoms(used, rng) for _ in range(n_draws)]
    found = np.stack([atom_coherence(drawn, reference) for drawn in draws])
    both = [atom_coherence(drawn, recombine_atoms(reference, rng)) for drawn in draws]
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
        At least two fitted learners, or their ``components_``, of the same shape.
    threshold : float, default=0.9
        Mean coherence from which an atom counts as stable.

    Returns
    -------
    Bunch
        With these entries:

        - ``atoms``, (n_dictionaries, n_components): for every atom the modulus of the cosine with
          its match by `match_atoms` in another dictionary, averaged over all other dictionaries,
          from 0 to 1;
        - ``stability``, the mean of them;
        - ``by_chance``, the stability of random atoms, and ``above_chance``, the difference;
        - ``n_stable``, how many atoms of a dictionary reach the threshold, on average.

    Raises
    ------
    ValueError
        If the shapes of the dictionaries differ.

    Notes
    -----
    Random atoms are Gaussian combinations of the atoms of a dictionary. They share only the mean
    (up to signs) and the second moments of the atoms: fits of noise to the same samples, or from
    one start, agree beyond this chance. Fit disjoint halves of the samples, from different seeds,
    or ask `atom_support`.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import dictionary_stability
    >>> atoms = np.eye(3)
    >>> agreement = dictionary_stability([atoms[:2], -atoms[1::-1], atoms[[0, 2]]])
    >>> agreement.atoms.tolist()
    [[1.0, 0.5], [0.5, 1.0], [1.0, 0.0]]
    """
    dictionaries = [host_array(dictionary_of(one)) for one in dictionaries]
    n = len(dictionaries)
    atoms = np.mean(
        [
            [atom_coherence(dictionaries[i - k], dictionaries[i]) for i in range(n)]
            for k in range(1, n)
        ],
        axis=0,
    )
    pairs = zip(dictionaries, [*dictionaries[1:], dictionaries[0]], strict=True)
    by_chance = float(np.mean([chance_coherence(other, one).mean() for one, other in pairs]))
    return Bunch(
        atoms=atoms,
        stability=float(atoms.mean()),
        by_chance=by_chance,
        above_chance=float(atoms.mean()) - by_chance,
        n_stable=float((atoms >= threshold).sum(axis=1).mean()),
    )
