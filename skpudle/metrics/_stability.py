"""How much of a dictionary comes back when it is learned again."""

import numpy as np
from sklearn.utils import Bunch

from skpudle._data.arrays import host_array
from skpudle.metrics._codes import check_pair
from skpudle.metrics._dictionaries import atom_coherence

__all__ = ["dictionary_stability"]


def dictionary_stability(dictionaries, *, threshold=0.9):
    """Return how well dictionaries that were learned independently agree, atom by atom.

    Fit a learner several times, with other seeds or, better, on bootstrap samples: what the data
    determine comes back, and what a fit made up does not. The most atoms come back where there are
    as many as the data have, so that `stability` helps to choose ``n_components``, and `n_stable`
    of a dictionary that is too large counts them.

    Parameters
    ----------
    dictionaries : list of array-like of shape (n_components, ...)
        ``components_`` of at least two fits, of the same shape.
    threshold : float, default=0.9
        Mean coherence from which an atom counts as stable.

    Returns
    -------
    Bunch
        With these entries:

        - ``atoms``, (n_dictionaries, n_components): for every atom the modulus of the cosine with
          the atom that `match_atoms` gives it in another dictionary, averaged over the others, from
          0 to 1;
        - ``stability``, the mean of them;
        - ``n_stable``, how many atoms of a dictionary reach the threshold, on average.

    Raises
    ------
    ValueError
        If there are fewer than two dictionaries, or their shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import dictionary_stability
    >>> atoms = np.eye(3)
    >>> agreement = dictionary_stability([atoms[:2], -atoms[1::-1], atoms[[0, 2]]])
    >>> agreement.atoms.tolist()
    [[1.0, 0.5], [0.5, 1.0], [1.0, 0.0]]
    """
    dictionaries = [host_array(dictionary) for dictionary in dictionaries]
    if len(dictionaries) < 2:
        raise ValueError(
            f"Stability compares dictionaries, got {len(dictionaries)}; pass the components_ of "
            "two fits or more."
        )
    for other in dictionaries[1:]:
        check_pair(
            other, dictionaries[0], names=("a dictionary", "the first one"), same_length=True
        )
    n = len(dictionaries)
    total = np.zeros((n, len(dictionaries[0])))
    for i in range(n):
        for j in range(n):
            if i != j:
                total[i] += atom_coherence(dictionaries[j], dictionaries[i])
    atoms = total / (n - 1)
    return Bunch(
        atoms=atoms,
        stability=float(atoms.mean()),
        n_stable=float((atoms >= threshold).sum(axis=1).mean()),
    )
