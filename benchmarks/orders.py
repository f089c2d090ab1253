"""Random orders of fit, partial_fit, choose_alpha, set_params, other atoms, pickles and clones.

After every call a choice is kept or the call is refused by a clear error: the penalty of codes, the
share of their bias, atoms that were put in the place of learned ones, the number of samples seen,
and codes. Nothing is undone in silence. `tests/learners/test_orders.py` runs some orders.
"""

import copy
import pickle
import re
import traceback
import warnings

import numpy as np
from sklearn.base import clone

from skpudle import (
    NOODLDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
)

__all__ = ["orders"]

# messages of torch and NumPy for arguments that were not checked
_UNCLEAR = re.compile(
    "mat1 and mat2|broadcast|split_with_sizes|out of (range|bounds)|size mismatch|must match the "
    "size|shape mismatch|unhashable|unsupported operand|has no attribute|not supported between|"
    "not iterable|not subscriptable|can't (convert|assign)|positional argument|invalid for input"
)

OF_ROWS = {
    "default": dict(),
    "number": dict(alpha=0.5),
    "positive": dict(positive_code=True),
    "ae-ls": dict(gradient="ae-ls", n_unfoldings=3, max_iter=2),
    "adam": dict(gradient="dec", optimizer="adam", n_unfoldings=3, max_iter=2),
    "encoder": dict(separate_atoms=True, n_unfoldings=2, max_iter=2),
    "encoders": dict(separate_atoms="unfolding", n_unfoldings=2, max_iter=2),
    "poisson": dict(loss="poisson"),
}
N_COMPONENTS = 5


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


def is_clear(error):
    """Return whether an error is one of this package or scikit-learn that names the fault."""
    frames = traceback.extract_tb(error.__traceback__)
    known = isinstance(error, ValueError | TypeError) and not _UNCLEAR.search(str(error))
    return known and "/torch/" not in frames[-1].filename


def random_learner(rng):
    """Return a learner and the name of its options."""
    kind, seed = (pick(rng, "rows", "rows", "task", "noodl"), dict(random_state=0))
    if kind == "rows":
        name = pick(rng, *OF_ROWS)
        return PUDLEDictionaryLearning(N_COMPONENTS, **OF_ROWS[name], **seed), name
    if kind == "task":
        supervision = pick(rng, 0.0, 0.5)
        options = dict(supervision=supervision, max_iter=2, n_unfoldings=3, tol=None)
        return PUDLEClassifier(N_COMPONENTS, **options, **seed), f"{supervision=}"
    return NOODLDictionaryLearning(N_COMPONENTS, n_unfoldings=3, max_iter=2, **seed), "noodl"


def fitted_state(learner):
    """Return all fitted attributes as bytes, to see whether one has changed."""
    values = {n: v for n, v in vars(learner).items() if n.endswith("_") or n == "_training_state"}
    return pickle.dumps(copy.deepcopy(values))


class Order:
    """A learner, its data, and the choices that have to stay.

    Parameters
    ----------
    rng : Generator
        Draws the calls.
    """

    def __init__(self, rng):
        self.rng = rng
        self.learner, self.name = random_learner(rng)
        self.task = isinstance(self.learner, PUDLEClassifier)
        self.penalty = "threshold" if self.name == "noodl" else "alpha"
        self.calls = []
        self.fitted, self.only_zeros = False, False
        # parameters that the last fit had, and atoms before they were replaced
        self.given, self.before = {}, None
        atoms = rng.gamma(0.5, 4.0, size=(N_COMPONENTS, 8))
        codes = rng.gamma(1.0, 1.0, size=(90, N_COMPONENTS))
        self.X = rng.poisson(codes * (rng.random(codes.shape) < 0.4) @ atoms).astype(float)
        self.X[0, 0] += 1.0  # a row that is not zero
        self.y = np.arange(len(self.X)) % 3

    # ------------------------------------------------------------------ checks

    def expect(self, right, fault):
        if not right:
            raise AssertionError(f"{fault}, after {', '.join(self.calls)}")

    def call(self, name, function, *, may_refuse):
        """Make a call; return whether it was refused, by a clear error that changed nothing."""
        self.calls.append(name)
        before = fitted_state(self.learner)
        try:
            function()
        except Exception as error:
            if not (may_refuse and is_clear(error)):
                said = f"{type(error).__name__}: {error}, after {', '.join(self.calls)}"
                raise AssertionError(said) from error
            self.expect(fitted_state(self.learner) == before, f"{name} was refused, and acted")
            self.calls[-1] += " (refused)"
            return True
        return False

    def parameters(self):
        names = "loss", "n_components", self.penalty, "debias"
        known = self.learner.get_params(deep=False)
        return {name: known[name] for name in names if name in known}

    def changed(self):
        """Return the names of parameters that were set since the last fit."""
        now = self.parameters()
        return {name for name, value in now.items() if value != self.given.get(name, value)}

    def fits_no_more(self):
        """Return whether `partial_fit` has to be refused."""
        now = self.parameters()
        n_atoms = len(self.learner.components_)
        return "loss" in self.changed() or (
            "n_components" in self.changed() and now["n_components"] != n_atoms
        )

    def of_this_width(self):
        shape = np.shape(self.learner.components_)
        return shape[1] == self.X.shape[1]

    def check_codes(self):
        """Check that codes are there for the present atoms, or refused."""
        if not self.fitted:
            return None
        learner, codes = self.learner, []
        n_atoms = len(learner.components_)
        others = n_atoms != N_COMPONENTS or not self.of_this_width()
        refused = self.call(
            "transform",
            lambda: codes.append(learner.transform(self.X)),
            may_refuse="loss" in self.changed() or others,
        )
        self.calls.pop()
        if refused:
            return None
        self.expect("loss" not in self.changed(), "codes of another loss")
        (codes,) = codes
        n_columns = n_atoms * (1 + getattr(learner, "split_sign", False))
        self.expect(codes.shape[-1] == n_columns, f"codes have shape {codes.shape}")
        self.expect(np.isfinite(codes).all(), "codes are not finite")
        back = learner.inverse_transform(codes)
        self.expect(back.shape == self.X.shape, f"reconstructions have shape {back.shape}")
        return codes

    # ------------------------------------------------------------------ calls

    def fit(self):
        learner, y = self.learner, (self.y,) if self.task else ()
        self.call("fit", lambda: learner.fit(self.X, *y), may_refuse=False)
        self.took(fitted=True, zeros=False)
        named = getattr(learner, self.penalty)
        if named != "auto" and not np.ndim(learner.alpha_):
            self.expect(learner.alpha_ == named, f"alpha_ is {learner.alpha_}, not {named}")

    def took(self, *, fitted, zeros):
        self.fitted, self.only_zeros, self.given = fitted, zeros, self.parameters()
        self.before = None

    def partial_fit(self):
        learner, rng = self.learner, self.rng
        zeros = not self.fitted and rng.random() < 0.5
        X = self.X[rng.permutation(len(self.X))[:40]]
        X, y = 0 * X if zeros else X, self.y[: len(X)]
        rest = (y, [0, 1, 2]) if self.task else ()
        changed, known = self.changed(), self.fitted
        n_seen = getattr(learner, "n_samples_seen_", 0)
        alpha, debias = getattr(learner, "alpha_", None), getattr(learner, "debias_", None)
        wrong = known and (self.fits_no_more() or not self.of_this_width())
        edited = copy.deepcopy(learner.components_) if known else None
        of_shape = known and len(edited) == N_COMPONENTS
        may_refuse = wrong or self.penalty in changed or (known and not of_shape)
        name = f"partial_fit of {'zeros' if zeros else 'rows'}"
        refused = self.call(name, lambda: learner.partial_fit(X, *rest), may_refuse=may_refuse)
        if refused:
            return
        self.expect(not wrong, "partial_fit went on with a change that it cannot take")
        now, named = learner.alpha_, getattr(learner, self.penalty)
        if named != "auto" and self.penalty in changed:
            self.expect(now == named, f"alpha_ is {now}, not {named}, which was set")
        elif known and not self.only_zeros and not np.ndim(now):
            learned = getattr(learner, "learn_threshold", None)
            self.expect(learned or now == alpha, f"alpha_ was {alpha}, and is {now}")
        if known and not self.only_zeros and getattr(learner, "debias", None) == "auto":
            same = getattr(learner, "debias_", None) == debias
            self.expect(same or self.penalty in changed, f"debias_ was {debias}")
        # a classifier counts different rows
        if hasattr(learner, "n_samples_seen_") and not self.task:
            seen = learner.n_samples_seen_
            self.expect(seen == n_seen + len(X), f"n_samples_seen_ was {n_seen}, and is {seen}")
        if known and self.before is not None and np.shape(self.before) == np.shape(edited):
            found, (new, old) = learner.components_, (edited, self.before)
            rows = [i for i in range(len(new)) if not np.array_equal(new[i], old[i])]
            near, far = (np.linalg.norm(found[rows] - those[rows]) for those in (new, old))
            self.expect(
                near < far or not rows,
                f"atoms are {near:.3g} from the new and {far:.3g} from the old",
            )
        self.took(fitted=True, zeros=zeros)

    def choose_alpha(self):
        learner = self.learner
        if not self.fitted or not hasattr(learner, "choose_alpha"):
            return
        l0 = pick(self.rng, None, 1.0, 2.0)
        self.call(
            f"choose_alpha(l0={l0})", lambda: learner.choose_alpha(self.X, l0=l0), may_refuse=True
        )

    def set_params(self):
        learner, rng = self.learner, self.rng
        names = sorted({self.penalty, "n_components", "debias", "split_sign", "loss"})
        name = pick(rng, *[name for name in names if name in learner.get_params(deep=False)])
        value = {
            "loss": lambda: pick(rng, "gaussian", "poisson"),
            "n_components": lambda: pick(rng, N_COMPONENTS, N_COMPONENTS, 4),
            "debias": lambda: pick(rng, "auto", 0.5, 1.0),
            "split_sign": lambda: bool(rng.integers(2)),
        }.get(name, lambda: pick(rng, "auto", 0.3, 0.7))()
        if name == "split_sign" and self.task:  # the weights of codes are for one of them
            return
        if name == "loss" and self.name not in ("default", "poisson"):
            return
        learner.set_params(**{name: value})
        self.calls.append(f"{name}={value!r}")

    def set_back(self):
        """Set parameters as the last fit had them."""
        self.learner.set_params(**self.given)
        self.calls.append("parameters as they were")

    def replace_atoms(self):
        learner, rng = self.learner, self.rng
        if not self.fitted:
            return
        if self.before is None:
            self.before = learner.components_.copy()
        kind, atoms = pick(rng, "an atom", "all", "fewer", "narrow"), learner.components_
        if kind == "an atom":
            atoms[0] = rng.permutation(atoms[0].ravel()).reshape(atoms[0].shape)
        elif kind == "all":
            learner.components_ = np.ascontiguousarray(atoms[::-1])
        elif kind == "fewer":
            learner.components_ = atoms[:4].copy()
        else:
            learner.components_ = atoms[:, :5].copy()
        self.calls.append(f"other atoms, {kind}")

    def put_back(self):
        """Put learned atoms back, if others are in their place."""
        if self.before is not None:
            self.learner.components_ = self.before.copy()
            self.before = None
            self.calls.append("the learned atoms")

    def pickle(self):
        before, expected = self.check_codes(), fitted_state(self.learner)
        self.learner = pickle.loads(pickle.dumps(self.learner))
        self.calls.append("pickle")
        self.expect(fitted_state(self.learner) == expected, "a pickle has other attributes")
        found = self.check_codes()
        same = before is None if found is None else np.array_equal(found, before)
        self.expect(same, "a pickle has other codes")

    def clone(self):
        twin = clone(self.learner)
        self.calls.append("clone")
        same = repr(twin.get_params()) == repr(self.learner.get_params())
        self.expect(same and not hasattr(twin, "components_"), "a clone is another learner")


CALLS = {
    "fit": 1,
    "partial_fit": 5,
    "choose_alpha": 3,
    "set_params": 4,
    "set_back": 2,
    "replace_atoms": 2,
    "put_back": 1,
    "pickle": 1,
    "clone": 1,
}  # and how often


def orders(rng):
    """Check a random order of calls; yield a description."""
    order = Order(rng)
    yield f"{order.learner}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(int(rng.integers(4, 10))):
            getattr(order, pick(rng, *[name for name in CALLS for _ in range(CALLS[name])]))()
            order.check_codes()
