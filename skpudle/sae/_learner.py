"""Make a learner of the decoder of a sparse autoencoder."""

from os import PathLike
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle.sae._files import read_decoder


def from_sae(
    folder: str | PathLike[str],
    X: ArrayLike | Tensor | None = None,
    *,
    l0: float | None = None,
    **params: Any,
) -> PUDLEDictionaryLearning:
    """Return a learner with the decoder of a sparse autoencoder, for its exact codes.

    The autoencoder's encoder is not used: codes solve the non-negative lasso for rows minus
    the decoder's bias. Only safetensors are read, which execute no code.

    Parameters
    ----------
    folder : str or path-like
        Folder with ``cfg.json``, and ``sae_weights.safetensors`` (SAELens) or ``sae.safetensors``
        (sparsify), or the path of one of these two.
    X : array-like or Tensor of shape (n_samples, n_features), default=None
        Activations that choose the penalty, by `choose_alpha` with ``criterion="support"`` (for
        ``positive_code=False`` with "prediction").
    l0 : float, default=None
        Mean number of nonzero codes in a row; needs ``X``.
    **params : dict
        Parameters of the learner; ``positive_code`` is True unless given. Without ``X``,
        ``alpha`` must be a number.

    Returns
    -------
    PUDLEDictionaryLearning
        ``components_`` are the decoder's rows, in their order, divided by their norms, so that
        codes are in units of the activations: the length of each concept's contribution. Divide
        them by the norms for the units of the autoencoder's latents. A zero row stays zero.
        ``intercept_`` is the decoder's bias.

    Raises
    ------
    ValueError
        If the files are damaged or of another kind; if the autoencoder is a transcoder or of an
        unknown architecture, or scales each row before it codes it; if a folder holds both files;
        or if the penalty is missing, or given twice.
    FileNotFoundError
        If there are no such files.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.sae import from_sae
    >>> X = np.load("activations.npy")  # doctest: +SKIP
    >>> coder = from_sae("sae", X, l0=32)  # doctest: +SKIP
    >>> codes = coder.transform_sparse(X)  # doctest: +SKIP
    """
    (atoms, bias), params = read_decoder(folder), {"positive_code": True} | params
    alpha = params.pop("alpha", "auto")
    automatic = isinstance(alpha, str) and alpha == "auto"
    if X is None and (automatic or l0 is not None):
        raise ValueError(
            f"alpha={alpha!r:.50} and l0={l0!r:.50} came without data. Pass activations as X, "
            "or a number as alpha and no l0."
        )
    if X is not None and not automatic:
        raise ValueError(
            f"alpha={alpha!r:.50} is given, and data to choose it from. Pass one of alpha and X."
        )
    start = 1.0 if automatic else alpha
    learner = PUDLEDictionaryLearning.from_components(atoms, intercept=bias, alpha=start, **params)
    if X is None:
        return learner
    criterion = "support" if learner.positive_code else "prediction"
    return learner.set_params(alpha="auto").choose_alpha(X, l0=l0, criterion=criterion)
