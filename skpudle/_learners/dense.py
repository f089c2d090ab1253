"""Learners of rows: read data, search, and build the model of data and parameters."""

from dataclasses import replace
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from sklearn.utils._param_validation import HasMethods, StrOptions

from skpudle._data.arrays import (
    check_no_picture,
    check_rows,
    host_array,
    input_attributes,
    resolve_device,
    to_numpy,
    to_tensor,
)
from skpudle._data.foreign import dictionary_of
from skpudle._data.names import fit_context
from skpudle._data.sources import Reader, open_source
from skpudle._data.weights import (
    check_sample_weight,
    known_samples,
    merge_samples,
)
from skpudle._fit.encoders import InUnits, Learned, units_of
from skpudle._fit.estimator import Data, GradientLearner
from skpudle._fit.fitted import Fitted
from skpudle._fit.messages import wrong_atoms
from skpudle._initialization import INITIALIZATIONS
from skpudle._learners.rows import (
    Beginning,
    RowPhases,
    check_known_entries,
    learn_noise,
    resume_rows,
)
from skpudle._learners.transformer import DictionaryTransformer
from skpudle._precision import training_mode
from skpudle.search.units import CENTRED, Units

DICT_INIT = [
    StrOptions(set(INITIALIZATIONS)),
    "array-like",
    HasMethods("transform"),  # fitted learners
    HasMethods("getdict"),  # SPORCO's learners
]


def of_features(values, atoms):  # -> ndarray of shape (n_features,), in the atoms' dtype
    """Check numbers for each feature."""
    known = np.asarray(host_array(values))
    numbers = known.dtype.kind in "iuf" and np.isfinite(known).all()
    if known.shape != atoms.shape[1:] or not numbers:
        raise ValueError(
            f"intercept has shape {known.shape} and dtype {known.dtype}, or is not finite; pass "
            f"{atoms.shape[1]} numbers, one for each feature."
        )
    return known.astype(to_numpy(atoms[:0]).dtype)


# ------------------------------------------------------------------ learners


def read_rows(
    learner, plan, given, *, known=False, part=False, weight=None, target=None, largest=None
):
    """Check the rows of a learner, with ``known`` against its fitted attributes.

    Parameters
    ----------
    learner : estimator
        The learner.
    plan : Plan
        Its plan.
    given : InMemory or source
        The user's X, see `skpudle._data.sources.open_source`.
    known : bool, default=False
        Whether the learner is fitted.
    part : bool, default=False
        Whether the rows are one part of several, of `partial_fit`.
    weight : Tensor of shape (n_samples,), default=None
        How often each row counts, checked.
    target : Tensor of shape (n_samples, ...), default=None
        What the learner knows of each row beside its numbers, checked.
    largest : float, default=None
        The largest value of rows that start at 0; by default they may have any numbers.

    Returns
    -------
    Data
        The rows.
    """
    device = resolve_device(learner.device, given.data)
    reader = Reader(learner, device, known=known, allow_nan=True, largest=largest)
    if given.in_parts:
        source = given.read_by(reader)
        source.weight, source.target = weight, target
        seed = 0 if part or not isinstance(learner.random_state, Integral) else learner.random_state
        samples = source.sample(plan.n_components, int(seed), whole=not part)
        samples, n_given = known_samples(samples), None
    else:
        if not known:
            check_no_picture(given.data)
        x, of_rows = reader(given.array()), dict(weight=weight, target=target)
        of_rows = {name: values.to(x) for name, values in of_rows.items() if values is not None}
        samples = reader.samples(x, **of_rows)
        samples = source = known_samples(samples) if part else samples
        n_given = round(samples.total_weight)
    if known:
        if np.shape(learner.components_)[1:] != (samples.x.shape[1],):
            raise wrong_atoms(learner, samples.x.shape[1])
        source = source.to(to_tensor(learner.components_).dtype)
    return Data(source, samples, device, {} if known else reader.attributes, n_given=n_given)


class DenseLearner(GradientLearner, DictionaryTransformer):
    """A learner of rows in units of their noise; see the subclasses for its parameters."""

    _parameter_constraints = GradientLearner._parameter_constraints | {
        "dict_init": [StrOptions({"search"}), *DICT_INIT]
    }

    _penalty = "alpha"  # name of the parameter for `alpha_`
    _beginning = Beginning  # the rows to search in

    @classmethod
    def from_components(
        cls,
        components: Any,
        *,
        intercept: ArrayLike | None = None,
        **params: Any,
    ) -> Self:
        """Return a learner that is fitted to given atoms, without data.

        Parameters
        ----------
        components : array-like of shape (n_components, n_features), Tensor or learner
            Atoms as rows, or a fitted learner of this package, scikit-learn or SPORCO. They are
            not projected on the constraints.
        intercept : array-like of shape (n_features,), default=None
            The baseline of rows, ``intercept_``, by default none.
        **params : dict
            Parameters of the learner. Without data the penalty or threshold must be a number, not
            "auto", unless ``transform_algorithm="omp"`` needs none.

        Returns
        -------
        estimator
            Ready for `transform`, and for `partial_fit`, whose first data choose values for
            "auto".

        Raises
        ------
        ValueError
            If the atoms are no matrix of finite numbers, if the penalty, or the baseline of counts,
            is missing, or if the learner learns more than atoms, such as the weights of a task.

        Examples
        --------
        >>> import numpy as np
        >>> from skpudle import PUDLEDictionaryLearning
        >>> learner = PUDLEDictionaryLearning.from_components(np.eye(3), alpha=0.5)
        >>> learner.transform([[1.0, -0.25, 0.0]])
        array([[0.5, 0. , 0. ]])
        """
        if hasattr(cls, "predict"):
            raise ValueError(
                f"{cls.__name__} learns the weights of its decisions from data, and got none. Pass "
                "the atoms as dict_init, and fit."
            )
        atoms = to_tensor(check_rows(dictionary_of(components)))
        learner = cls(len(atoms), **params)
        learner._validate_params()
        plan = learner._plan()
        if plan.given.separate_atoms:
            raise ValueError(
                f"{cls.__name__} learns the encoder of separate_atoms from data, and got none. "
                "Pass the atoms as dict_init, and fit."
            )
        rows, noise = learner._with_intercept(atoms, intercept)
        alpha = getattr(learner, cls._penalty)
        if alpha == "auto" and getattr(learner, "transform_algorithm", None) != "omp":
            pursues = hasattr(learner, "transform_algorithm")
            pursuit = ", or transform_algorithm='omp'" if pursues else ""
            raise ValueError(
                f"{cls._penalty}='auto' needs data, and there are none: pass a number{pursuit}."
            )
        model = plan.model(alpha=None if alpha == "auto" else float(alpha))
        data = Data(None, None, atoms.device, input_attributes(to_numpy(atoms)))
        fitted = Fitted(model=model, rows=rows, noise=noise)
        learner._take(learner._attributes(plan, data, fitted))
        return learner

    def _with_intercept(self, atoms, intercept):  # -> rows of parameters, Units
        """Return the parameters of given atoms and a given baseline."""
        if intercept is None:
            return atoms, CENTRED
        return atoms, Units(intercept=to_tensor(of_features(intercept, atoms)))

    def _read(self, plan, X, y=None, *, part=False, sample_weight=None, **options):
        given, weight = open_source(X, self), None
        if sample_weight is not None:
            weight = check_sample_weight(sample_weight, given.n_rows)
        how = dict(part=part, weight=weight, largest=self._largest)
        data = read_rows(self, plan, given, **how, **options)
        if part or data.source is not data.samples:
            return data
        samples, places = merge_samples(data.samples)
        return data._replace(source=samples, samples=samples, places=places)

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X: Any, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features), in memory or not: whatever has a shape and
            slices, such as arrays of h5py, zarr and dask; a dataset whose items are rows, or
            dictionaries with one array; an iterable of batches of rows that can be iterated again
            (a list is an array); or a sparse array, which becomes dense a batch at a time.
            Computations are in float32 for float32, otherwise in float64. NaN marks missing
            entries, which are ignored. Large data outside memory are read once for a sample of
            them (a stream completely), and once more for all rows.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts in sums over rows; its codes do not depend on it. Weights
            equal repetitions, and a weight of zero equals absence. Their unit does not matter. By
            default all rows count the same.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator unchanged; or if
            training diverges twice: it then holds the last finite dictionary.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before the objective had stalled; or if
            training raised the objective above its value without a dictionary.
        RuntimeWarning
            If ``step_size`` is too large for the dictionary.
        UserWarning
            If named parameters have no effect in this fit, if there are fewer samples than atoms,
            or features without a known value.
        """
        return self._fit(X, y, sample_weight=sample_weight)

    @fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X: Any, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Update the dictionary by one pass over the data, in their order.

        The first call with data that are not all zero chooses the initial dictionary and
        ``alpha_``. A number that you set later as the penalty replaces ``alpha_``. If you edit or
        replace ``components_``, learning continues from your atoms. By default codes of the lasso
        of a block of rows and atoms alternate, with the moves of a search, so that a stream of new
        populations is learned too. Rows that are too few for a block stay for the next call.

        With a named gradient, encoder or parameter of training each batch is an update. The state
        of the optimiser persists from call to call, also through pickling, and after `fit`, unless
        you change the optimiser, or ``components_``. ``lambda_decay`` has its last value
        throughout. Atoms that no code has used for ten samples per atom are replaced by the samples
        that were reconstructed worst.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data as for `fit`, cut into batches of ``batch_size``.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            As for `fit`; a weight of 1 is one row in all calls.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If the data are unfit or have another number of features than before, or if
            ``n_components`` was set to another value since, which leaves the estimator unchanged;
            or if training diverges twice.
        """
        return self._partial_fit(X, y, sample_weight=sample_weight)

    def _phases(self, plan, data, run):  # -> RowPhases
        return RowPhases(self, plan, data, run)

    def _begin(self, plan, data, generator):  # -> Fitted
        """Return the record of a first `partial_fit`, without a search."""
        check_known_entries(self, data)
        samples, noise = data.samples, CENTRED
        if plan.learns_noise:
            noise = learn_noise(plan, samples)
        begun = self._beginning(plan, samples, noise)
        fitted = begun.fitted(begun.first_atoms(plan.n_components, generator))
        if plan.searches:  # "dec", since other gradients fail from samples
            return fitted.with_model(rule=plan.rule("dec"), from_samples=True)
        return fitted

    def _attributes(self, plan, data, fitted):
        attributes = super()._attributes(plan, data, fitted)
        attributes["outliers_"] = None
        if fitted.outliers is not None and len(fitted.outliers):
            shape = len(data.samples) + 1, data.samples.x.shape[1]  # one more: rows without weight
            values = np.ones(len(fitted.outliers), bool), to_numpy(fitted.outliers).T
            attributes["outliers_"] = csr_array(values, shape=shape)[to_numpy(data.places)]
        return attributes

    def _encoder(self):
        """Return the encoder of rows in units of their noise."""
        raise NotImplementedError

    def _transform_encoder(self):
        """Return the encoder of rows without their baseline."""
        encoder, noise = self._encoder(), units_of(self).of_new_rows()
        if isinstance(encoder, Learned):  # it limits residuals itself
            noise = replace(noise, limit=None)
        if noise.is_equal:
            return encoder
        noise = replace(noise, intercept=None)
        return InUnits(encoder, noise, noise.gains(to_tensor(self.components_)))

    def _resume(self, plan, data):  # -> Fitted
        return resume_rows(plan, data, vars(self), self._beginning)
