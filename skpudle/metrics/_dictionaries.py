"""Compare two dictionaries: errors, recovery, coherence."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment, nnls

from skpudle._data.foreign import dictionary_of
from skpudle.metrics._codes import check_pair

# least rise of the cosine for which a reference joins a mixture
_GAIN = 0.01


def check_dictionaries(dictionary, reference, *, same_length=False):
    """Return the atoms of two arrays, or fitted learners, that can be compared."""
    given = dictionary_of(dictionary), dictionary_of(reference)
    return check_pair(*given, names=("dictionary", "reference"), same_length=same_length)


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
    dictionary, reference = check_dictionaries(dictionary, reference)
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


def match_atoms(
    dictionary: Any,
    reference: Any,
    *,
    by: Literal["coherence", "distance"] = "coherence",
) -> AtomMatch:
    r"""Match the atoms of two dictionaries, up to sign and permutation.

    Parameters
    ----------
    dictionary : array-like of shape (n_components, ...), or learner
        Atoms, one per entry of the first axis, or a fitted learner.
    reference : array-like of shape (n_reference, ...), or learner
        Atoms of the same shape; there may be more or fewer of them.
    by : {"coherence", "distance"}, default="coherence"
        "coherence" maximises the sum of the matched coherences, "distance" minimises the sum of the
        squared distances between matched atoms. For atoms of unit norm both are the same.

    Returns
    -------
    AtomMatch
        Named tuple of the matched `indices` and `reference_indices`, `signs` and `coherences`, each
        of shape (min(n_components, n_reference),).

    Raises
    ------
    ValueError
        If the atoms have different shapes or `by` is not one of the above.

    Notes
    -----
    The optimum over all permutations and signs, by the Hungarian method:
    :math:`\min_\pi \sum_j \min_{s_j = \pm 1} \|s_j d_{\pi(j)} - \tilde d_j\|^2` for ``"distance"``.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import match_atoms
    >>> match = match_atoms([[0.0, -1.0], [1.0, 0.0]], np.eye(2))
    >>> match.indices, match.signs
    (array([1, 0]), array([ 1, -1]))
    """
    dictionary, reference = check_dictionaries(dictionary, reference)
    if by not in ("coherence", "distance"):
        raise ValueError(f"by is {by!r}; it must be 'coherence' or 'distance'.")
    cosines = atom_cosines(dictionary, reference)
    gain = np.abs(cosines)
    if by == "distance":
        lengths = np.linalg.norm(dictionary.reshape(len(dictionary), -1), axis=1)
        widths = np.linalg.norm(reference.reshape(len(reference), -1), axis=1)
        # -|d - r|^2 with the better sign, up to |d|^2; the squares count if some atoms have no
        # match
        gain = 2 * gain * np.outer(widths, lengths) - lengths**2 - widths[:, None] ** 2
    rows, columns = linear_sum_assignment(gain, maximize=True)  # rows increase
    matched = cosines[rows, columns]
    signs = np.where(matched < 0, -1, 1)
    return AtomMatch(columns, rows, signs, np.minimum(np.abs(matched), 1))


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


def _match_component(atom, reference, names, max_terms):  # -> ComponentMatch
    cosines = atom_cosines(atom[None], reference)[:, 0]
    terms = [int(cosines.argmax())]
    shares, cosine = _mix(atom, reference[terms])
    while len(terms) < min(max_terms, len(reference)):
        others = [k for k in range(len(reference)) if k not in terms]
        mixed = [_mix(atom, reference[[*terms, k]]) for k in others]
        best = max(range(len(others)), key=lambda i: mixed[i][1])
        if mixed[best][1] < cosine + _GAIN:
            break
        terms, (shares, cosine) = [*terms, others[best]], mixed[best]
    order = np.argsort(-shares)
    named = {names[terms[i]]: float(shares[i]) for i in order if shares[i] > 0}
    return ComponentMatch(names[terms[0]], float(cosines.max()), named, cosine)


def _mix(atom, reference):  # -> shares, cosine of the mixture
    shares, _ = nnls(reference.T, atom)
    cosine = atom_cosines(atom[None], (shares @ reference)[None])
    return shares, float(cosine[0, 0])


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
    components, reference = check_dictionaries(components, reference)
    least = min(components.min(), reference.min())
    if least < 0:
        raise ValueError(f"The least entry is {least:.3g}. Pass atoms that are not negative.")
    names = list(range(len(reference))) if names is None else list(names)
    if len(names) != len(reference):
        raise ValueError(
            f"names has {len(names)} entries for {len(reference)} references. Pass one for each."
        )
    components, reference = (
        atoms / np.where(atoms.sum(1) > 0, atoms.sum(1), 1.0)[:, None]
        for atoms in (a.reshape(len(a), -1).astype(np.float64) for a in (components, reference))
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
    dictionary, reference = check_dictionaries(dictionary, reference, same_length=True)
    if match:
        dictionary = match_atoms(dictionary, reference, by="distance").align_dictionary(dictionary)
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
    dictionary, reference = check_dictionaries(dictionary, reference)
    match = match_atoms(dictionary, reference)
    coherences = np.zeros(len(reference), dtype=match.coherences.dtype)
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
