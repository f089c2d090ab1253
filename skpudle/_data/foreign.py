"""What comes from elsewhere: names of other packages' parameters, their learners, and files.

Learners of scikit-learn and SPORCO are recognised by their attributes, so that neither package has
to be imported: ``components_`` or ``dictionary`` with atoms as rows, or ``getdict()`` with atoms as
columns. Warnings are placed at the user's line, and files are whole at every moment.
"""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from copy import copy
from functools import wraps
from inspect import Signature, signature
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.decomposition import SparseCoder
from sklearn.utils import check_array
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions, make_constraint

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._initialization import INITIALIZATIONS
from skpudle._precision import F, training_mode

_DOCS = "https://skpudle.readthedocs.io/en/stable/"
_PAGE = f"{_DOCS}coming_from.html"
_PAGE_OF_ESTIMATOR = _DOCS + "generated/skpudle.{estimator_name}.html"

# Our parameters, and their names in scikit-learn, SPAMS, SPORCO, alphacsc and networks.
_NAMES = {
    "alpha": "l1_coefficient lambda1 lmbd_max lmbda reg",
    "atom_shape": "kernel_size n_times_atom patch_size",
    "batch_size": "batchsize",
    "dict_init": "D D0 D_init dictionary init",
    "learning_rate": "lr",
    "max_iter": "epochs iter n_iter",
    "n_components": "K d_sae n_atoms",
    "positive_code": "posAlpha",
    "positive_dict": "posD",
    "random_state": "seed",
    "transform_n_nonzero_coefs": "n_nonzero_coefs",
}
COUNTERPARTS = {theirs: ours for ours, names in _NAMES.items() for theirs in names.split()}

# Packages whose frames are not the user's: this package, and packages that wrap its methods.
_WRAPPERS = {"skpudle", "sklearn", "torch", "contextlib"}


# What a dictionary may be given as, see `dictionary_of`.
ATOMS = ["array-like", HasMethods("transform"), HasMethods("getdict")]
_COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")
_SHARE, _SIZES = Interval(Real, 0, 1, closed="both"), [_COUNT, tuple, list]
# What the types of parameters leave open: their names mean the same in all learners.
_RANGES = {
    "atom_shape": _SIZES, "C": [POSITIVE], "debias": [_SHARE, "boolean"], "device": [str],
    "dict_init": [StrOptions({"search", *INITIALIZATIONS}), *ATOMS], "learning_rate": [POSITIVE],
    "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple], "n_jobs": [Integral],
    "n_replicates": [Interval(Integral, 2, None, closed="left")], "step_size": [POSITIVE],
    "n_trials": [Interval(Real, 1, None, closed="left")], "random_state": ["random_state"],
    "stride": _SIZES, "supervision": [_SHARE], "verbose": ["verbose"],
}  # fmt: skip
_NUMBER = Interval(Real, 0, None, closed="left")
_OF_TYPES = {bool: "boolean", int: _COUNT, float: _NUMBER, Callable: callable}


def constraints_of(taken: Signature, **ranges: list) -> dict[str, list]:
    """Return scikit-learn's constraints of the parameters of a signature, from their types.

    ``ranges`` has the constraints of parameters that their types do not tell, beside the texts
    that they may be, and None.
    """
    found, ranges = {}, _RANGES | ranges
    for name, parameter in taken.parameters.items():
        union = get_origin(kind := parameter.annotation) in (Union, UnionType)
        kinds = get_args(kind) if union else (kind,)
        texts = [get_args(kind) for kind in kinds if get_origin(kind) is Literal]
        known = ranges.get(name) or [
            _OF_TYPES.get(kind, get_origin(kind) or kind)
            for kind in kinds
            if get_origin(kind) is not Literal and kind is not NoneType
        ]
        found[name] = [*known, *(StrOptions({*text}) for text in texts)]
        found[name] += [None] * (NoneType in kinds and name != "random_state")
    return found


def sets_parameters(**ranges: list) -> Callable[[F], F]:
    """Return the decorator of estimators: their constructors set the parameters as attributes.

    Names of other packages are answered by ours. Parameters have the constraints of their types and
    of ``ranges``, see `constraints_of`. The HTML view of an estimator links to its page.
    """

    def decorate(kind):
        init = kind.__init__
        taken = signature(init)
        known = [*taken.parameters][1:]

        @wraps(init)
        def checked(self, *args, **kwargs):
            for name in kwargs.keys() - known:
                mend = f" Pass {COUNTERPARTS[name]}." if COUNTERPARTS.get(name) in known else ""
                raise TypeError(
                    f"{type(self).__name__} has no parameter {name!r}.{mend} The page {_PAGE} "
                    "lists names of other packages and their counterparts."
                )
            init(self, *args, **kwargs)
            given = taken.bind(self, *args, **kwargs)
            given.apply_defaults()
            vars(self).update({name: given.arguments[name] for name in known})

        given = constraints_of(taken, **ranges)
        del given["self"]
        made = {name: [*map(make_constraint, constraints)] for name, constraints in given.items()}
        of_class = dict(__init__=checked, _parameter_constraints=given, _constraints=made)
        of_class |= dict(_doc_link_module="skpudle", _doc_link_template=_PAGE_OF_ESTIMATOR)
        for name, value in of_class.items():
            setattr(kind, name, value)
        return kind

    return decorate


def fits(*, validates_nested: bool = False) -> Callable[[F], F]:
    """Return the decorator of methods that fit: scikit-learn's, in the mode of training.

    ``validates_nested`` is whether estimators inside check their parameters, too.
    """
    decorate = _fit_context(prefer_skip_nested_validation=not validates_nested)
    return lambda method: decorate(training_mode()(method))


def users_level():
    """Return the ``stacklevel`` of the user's line.

    Call ``warnings.warn(message, stacklevel=users_level())``.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] in _WRAPPERS
    ):
        frame, level = frame.f_back, level + 1
    return level


def dictionary_of(source):
    """Return the atoms of a fitted learner; an array is returned unchanged.

    Parameters
    ----------
    source : estimator, SPORCO learner, array-like or Tensor
        A fitted learner of this package or of scikit-learn (with ``components_``), a
        `~sklearn.decomposition.SparseCoder`, a learner of SPORCO (with ``getdict``), or atoms.

    Returns
    -------
    array-like of shape (n_components, n_features)
        Atoms as rows.

    Raises
    ------
    ValueError
        If a learner is not fitted; clones, such as those of a grid search, are not.
    """
    if isinstance(source, torch.Tensor):
        return to_numpy(source)
    if hasattr(source, "getdict"):
        atoms = np.asarray(source.getdict())
        return (np.squeeze(atoms) if atoms.ndim > 2 else atoms).T
    if hasattr(source, "components_"):
        return source.components_
    if isinstance(source, SparseCoder):
        return source.dictionary
    if hasattr(source, "fit"):
        raise ValueError(
            f"{type(source).__name__} is not fitted: `clone` forgets the fit of a parameter. Pass "
            "its components_, or wrap it in sklearn.frozen.FrozenEstimator."
        )
    return source


def drop_names(learner):
    """Return a copy of a fitted learner that takes arrays for frames, whose names were compared."""
    learner = copy(learner)
    vars(learner).pop("feature_names_in_", None)
    return learner


def given_atoms(dict_init, n_components, x, name="dict_init"):
    """Check an initial dictionary from the user.

    Parameters
    ----------
    dict_init : array-like or learner
        Atoms as rows, or a learner that `dictionary_of` takes.
    n_components : int or None
        Required number of atoms; None for any.
    x : Tensor of shape (n_samples, n_features)
        The data.
    name : str, default="dict_init"
        The parameter.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm, of the dtype and on the device of ``x``.

    Raises
    ------
    ValueError
        If the shape is wrong, or an atom is zero or not finite.
    """
    atoms = check_array(dictionary_of(dict_init), dtype=np.float64, input_name=name)
    atoms = to_tensor(atoms, x.device, x.dtype)
    if atoms.shape != (n_components or len(atoms), x.shape[1]):
        raise ValueError(
            f"{name} has shape {tuple(atoms.shape)}, expected (n_components, n_features) = "
            f"{(n_components, x.shape[1])}. Pass one atom per row."
        )
    if not atoms.any(1).all():
        raise ValueError(f"{name} has atoms of zeros. Drop or replace these rows.")
    return atoms


@contextmanager
def named_errors(file, what, advice):
    """Turn every error of reading a file of unknown origin into an error that names the file.

    Parameters
    ----------
    file : str or path-like
        The file's name.
    what : str
        Kind of file expected, after "is no".
    advice : str
        Sentence that says how to get such a file.
    """
    try:
        yield
    except Exception as error:  # errors of damaged archives are not documented
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no {what}: {reason.rstrip('.'):.500}. {advice}") from error


def replace_file(path, content):
    """Write a file atomically: its content is in ``path.part`` until it is whole.

    Parameters
    ----------
    path : str or path-like
        Path of the file. An older file is replaced at the very end; a link is followed.
    content : bytes-like
        Content of the file.

    Raises
    ------
    OSError
        If the file cannot be written; an older one then stays.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
