"""Agreement of dictionaries that were learned independently, and agreement by chance.

Random atoms are random combinations of the atoms of a dictionary. They share only the mean and the
second moments of the atoms. Atoms of smooth images, or of data with few large principal components,
resemble each other even if the data do not determine them, and so do random atoms.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from skpudle._data.arrays import host_array
from skpudle._data.foreign import dictionary_of
from skpudle.metrics._codes import check_pair
from skpudle.metrics._dictionaries import atom_coherence, unit_atoms

# Number of random matches in a mean, and least number of draws. Coherences of random atoms vary by
# 0.1, and the mean of 2,500 coherences by 0.002.
_MATCHES, _DRAWS = 2500, 4

# Steps of the power iteration for the direction that aligns signs, which need not be exact.
_POWER_STEPS = 10


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
