"""Dictionary learning by backpropagation through an unfolded sparse encoder."""

from dataclasses import replace
from functools import partial
from numbers import Integral, Real

from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._learners.base import train, update
from skpudle._learners.dense import DenseLearner, refining_updates
from skpudle._learners.models import Decay, Encoder
from skpudle._precision import training_mode
from skpudle.losses import LOSSES
from skpudle.omp import solve_omp
from skpudle.shrinkage import SHRINKAGES

__all__ = ["PUDLEDictionaryLearning"]

# max_iter="auto": at most so many epochs and operations of encoders, but at least so many updates.
_AUTO_EPOCHS = 100
_AUTO_OPERATIONS = 1.2e12
_AUTO_UPDATES = 200

# Parameters that `transform` takes, besides what `fit` made of the others.
_OF_THE_ENCODER = (
    "loss",
    "n_trials",
    "n_unfoldings",
    "shrinkage",
    "lambda_decay",
    "positive_code",
    "transform_algorithm",
    "transform_n_nonzero_coefs",
    "transform_tol",
    "transform_alpha",
    "split_sign",
    "device",
)


class _ExposedLearner(DenseLearner):
    """A learner of rows that were observed for a time, in a volume, or of so many words.

    scikit-learn routes ``exposure`` through pipelines and searches: see its guide of metadata
    routing.
    """

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def fit(self, X, y=None, exposure=None):
        """Learn a dictionary.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features), or what yields rows of them and can be iterated
            again (a list is an array); float32 and float64 are computed in as they are, everything
            else in float64. NaN marks missing entries, which then count for nothing. With
            ``loss="poisson"`` and ``"binomial"`` also a sparse array, which is dense a batch at a
            time.
        y : None
            Ignored.
        exposure : array-like of shape (n_samples,), default=None
            With ``loss="poisson"``, what the expectations of each sample are proportional to: a
            time of observation, a volume, or a total such as the length of a text,
            ``X.sum(axis=1)``. By default 1 for all.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator as it was; or if
            training diverges twice: it then holds the last finite dictionary.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and training ended before the objective stalled; or if
            training raised the objective above that of no dictionary at all.
        RuntimeWarning
            If ``step_size`` is too large for the dictionary.
        """
        return train(self, X, y, exposure=exposure)

    @_fit_context(prefer_skip_nested_validation=True)
    @training_mode()
    def partial_fit(self, X, y=None, exposure=None):
        """Update the dictionary by one pass over the data, in their order.

        The first call chooses the initial dictionary and ``alpha_``; the state of the optimiser is
        kept from call to call, also through pickling, and after `fit`, unless you change the
        optimiser, or ``components_`` in shape. ``lambda_decay`` is at its last value throughout.
        Atoms that no code has used for ten samples per atom are replaced by the samples that were
        reconstructed worst.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data as for `fit`, cut into batches of ``batch_size``.
        y : None
            Ignored.
        exposure : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If the data are unfit or of another number of features than before, which leaves the
            estimator as it was; or if training diverges twice.
        """
        return update(self, X, y, exposure=exposure)

    def transform(self, X, exposure=None):
        """Encode data with the learned dictionary.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, or a dataset, batches or a sparse array as for `fit`. NaN marks missing entries,
            and codes are those of the known ones; `inverse_transform` then fills the gaps. (Not
            with codes of the lasso: impute first.)
        exposure : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, in the dtype of ``X``; a tensor, on the same device, if ``X`` is one. With
            ``split_sign=True`` positive parts come first, then negative parts.
        """
        return self._transform(X, exposure)

    def fit_transform(self, X, y=None, exposure=None):
        """Learn a dictionary, and return the codes of the same data.

        Parameters
        ----------
        X, y, exposure
            As for `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, as of `transform`.
        """
        given = {} if exposure is None else {"exposure": exposure}
        return self.fit(X, y, **given).transform(X, **given)

    def score(self, X, y=None, exposure=None):
        """Return how well hidden features are predicted from the others.

        The columns are cut into ten fixed groups; each is hidden once for all rows, the codes are
        inferred from the remaining columns, and the hidden entries are compared with what is
        expected of them. The error of reconstruction always prefers the smallest alpha; this has a
        largest value between too little and too much, so that ``GridSearchCV`` needs no
        ``scoring``. Where the dictionary can be found it picks an alpha near the best for
        denoising; with little noise it picks too large a one (up to 2 dB worse in our
        measurements): see `skpudle.metrics.make_denoising_scorer`.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, or a dataset, batches or a sparse array as for `fit`.
        y : None
            Ignored.
        exposure : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        float
            The share of the deviance that is explained, pooled over all hidden entries that are
            known, against the column means (the mean rates times exposures); R^2 for
            ``loss="gaussian"``. At most 1, larger is better, comparable across alpha. 0 for
            constant data. With one feature, where nothing is left to infer from, that of the
            reconstruction.
        """
        return self._score(X, exposure)


class PUDLEDictionaryLearning(_ExposedLearner):
    r"""Dictionary learning by backpropagation through an unfolded sparse encoder (PUDLE).

    Codes are what ``n_unfoldings`` iterations of (soft- or hard-) thresholded gradient descent make
    of the data; the dictionary is trained by gradient descent on what the codes reconstruct, and
    the gradient goes through the encoder:

    .. math:: z_{t+1} = S(z_t + s D^T (x - D z_t)), \quad
        D \leftarrow D - \eta \frac{\partial}{\partial D} \frac12 |x - D z_T(D)|^2 .

    Parameters
    ----------
    n_components : int, default=None
        Number of atoms; by default that of ``dict_init`` if it is an array or a learner, else the
        number of features.

    alpha : float or "auto", default="auto"
        Soft shrinkage: the penalty of the lasso, :math:`\lambda` in the paper, in the units of the
        data (as in scikit-learn). Hard shrinkage: the threshold of the codes, :math:`b`. "auto" is
        0.07 times the root mean square norm of the samples that are not zero, for hard shrinkage
        times the root of the step size, so that scaling the data scales the codes and changes
        nothing else.

    gradient : {"auto", "ae-ls", "ae-lasso", "dec"}, default="auto"
        What is differentiated (eq. 8): the reconstruction error through decoder and encoder, the
        lasso objective through both, or the reconstruction error through the decoder alone. "auto"
        is "ae-ls" where ``dict_init`` is a start. After a search it is none (see the notes), but
        "dec" for a ``loss`` other than "gaussian" and in `partial_fit`. With such a loss a named
        gradient trains after the search and a few epochs of "dec".

    loss : {"gaussian", "poisson", "binomial"}, default="gaussian"
        What data are to the reconstruction: numbers whose expectation is :math:`D z`, counts of
        expectation :math:`\exp(D z + b)`, or successes of ``n_trials`` with the odds
        :math:`\exp(D z + b)`. The baseline :math:`b`, ``intercept_``, is learned. What is minimised
        is half the deviance, which is :math:`\frac12 |x - D z|^2` for "gaussian", and ``alpha`` is
        in the units of ``X`` times those of the atoms; "auto" is at least twice the deviation of
        the noise, and 1 where events are rare. See :doc:`/guide/counts`.

    n_trials : float, default=1
        Of the binomial loss; with 1 data are binary, or fractions.

    n_unfoldings : int, None or "auto", default="auto"
        Number of iterations of the encoder, :math:`T`. None: converged codes, those of the lasso
        (soft shrinkage without decay). "auto" is None where that is defined, and 100 otherwise and
        for samples with missing entries.

    step_size : float or "auto", default="auto"
        Step of an iteration, :math:`s`. "auto" is 1 over a bound, tight to 5 %, of the squared
        spectral norm of the current dictionary.

    lambda_decay : float or tuple (first, last), default=1.0
        Iteration t of soft shrinkage has the penalty ``alpha * lambda_decay**t``. A pair
        (first, last) is annealed over training in ten equal parts, as in figure 5 of the paper;
        training is then not stopped early before the last part.

    shrinkage : {"soft", "hard"}, default="soft"
        Soft thresholding, or hard thresholding at ``alpha``, which ``lambda_decay`` leaves alone.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    positive_dict : bool, default=False
        Whether atoms are restricted to non-negative entries.

    atom_norm : {"unit", "ball", None}, default="unit"
        Whether atoms have norm 1, at most 1, or any.

    optimizer : str or subclass of torch.optim.Optimizer, default="auto"
        How the gradient changes the atoms: "adam", "sgd", "surrogate" or "auto", which is the
        surrogate, a quadratic model of the loss that every batch refines, for up to 4096 atoms, and
        Adam for more.

    learning_rate : float, default=1e-3
        Learning rate of the optimizer; the surrogate has none and ignores it.

    optimizer_params : dict, default=None
        Further keyword arguments of the optimizer, such as ``{"momentum": 0.9}`` for "sgd". Adam's
        ``eps`` is by default 1e-8 times the mean squared norm of a sample; given here it is
        absolute.

    batch_size : int or "auto", default="auto"
        Samples in an update; "auto" is ``min(256, n_samples)``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training. After a search there are some only if ``gradient`` is
        named too, since nothing is gained (see the notes), and for a ``loss`` other than
        "gaussian", where "auto" is a few of them. From elsewhere "auto" is 100, or fewer where
        their encoders would take more than about :math:`10^{12}` operations, some 10 to 30 seconds
        of two CPU cores; but at least 200 updates, which may end within an epoch.

    tol : float or None, default=1e-4
        Relative improvement of the smoothed objective that counts as one; None trains for
        ``max_iter`` epochs.

    n_iter_no_change : int, default=5
        Training stops after this many checks in a row without improvement. There is a check at the
        end of each epoch and, in epochs of more than 10 updates, after every 10 of them.

    dict_init : str, array-like or learner, default="search"
        Initial dictionary: what a "search" finds in the data (see the notes), samples of the
        "data", "random" directions, leading singular vectors ("svd"), "pairwise", the spectral
        initialisation of Arora et al. [2]_, an array of shape (n_components, n_features), or a
        fitted learner of this package, scikit-learn or SPORCO.

    transform_algorithm : {"unfolded", "lasso", "omp"}, default="unfolded"
        Whether `transform` runs the trained encoder, solves the lasso to a certified gap, or makes
        an orthogonal matching pursuit, which knows no ``alpha``.

    transform_n_nonzero_coefs : int, default=None
        How many atoms a sample gets from the pursuit; by default a tenth of the features.

    transform_tol : float, default=None
        The pursuit ends where the squared norm of the residual is at most this; overrides
        ``transform_n_nonzero_coefs``.

    transform_alpha : float, default=None
        Overrides ``alpha_`` in `transform` and `score`.

    split_sign : bool, default=False
        Whether `transform` returns positive and negative parts of the codes in separate columns.

    device : str, default="auto"
        A torch device, or "auto": that of a tensor input, else CUDA if present, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Determines the initial dictionary and the order of the samples.

    verbose : int, default=0
        Whether to print a line per epoch.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary, one atom per row.

    n_components_ : int
        Number of atoms.

    intercept_ : ndarray of shape (n_features,)
        The baseline, where the loss is not "gaussian".

    n_features_in_ : int
        Number of features seen in `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features seen in `fit`, where ``X`` has names.

    n_iter_ : int
        Number of epochs, of the search and of training; the last may be incomplete.

    n_steps_ : int
        Number of updates by gradients.

    loss_curve_ : ndarray of shape (n_epochs,)
        Mean over each epoch of :math:`\frac12 |x - D z|^2`, whatever is minimised. A search adds
        atoms and takes others away, and then it rises.

    ended_by_ : str
        What ended `fit`: "search" (by itself, and nothing was trained after it), "tol" (the
        objective had stalled), "max_iter", "callback", "interrupt" (Ctrl-C) or "divergence". Not
        there after `partial_fit`.

    alpha_ : float
        The penalty or threshold in use.

    step_size_ : float
        The step size for ``components_``. Not there for ``loss="poisson"`` and "auto": every
        sample then looks for steps of its own (`skpudle.encoding.unfold`).

    lambda_decay_ : float
        The decay used last, which `transform` uses.

    device_ : str
        The device that `fit` computed on.

    See Also
    --------
    sklearn.decomposition.MiniBatchDictionaryLearning : Alternating minimisation.
    skpudle.encoding.encode : The encoder alone, as a torch function.

    Notes
    -----
    A search (`skpudle.initialization.search`) is Algorithm 1 of the paper, alternating minimisation
    of the lasso, over all samples or the head of a stream, with moves that lead out of its local
    minima: atoms that stand for two are split, and those that others can do without are removed.
    It ends by adapting the atoms to codes without the lasso's bias, least squares on its supports,
    where the gradient through the encoder is that through the decoder alone. Training from there
    adapts the dictionary to its encoder, and leads away from the one that generated the data; it
    is what a ``gradient`` and a number for ``max_iter`` ask for. From samples, gradients through
    the encoder find no dictionary: they are local methods (theorem 3.4 starts near the truth).
    `partial_fit` does not search; where it begins with samples it trains by the gradient "dec",
    which can.

    Atoms that no sample of an epoch used are replaced, before the next, by the samples that were
    reconstructed worst. If the loss stops being finite, the learning rate is halved, once.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit Acceleration of Dictionary Learning by
       Backpropagation", arXiv:2106.00058, 2021.
    .. [2] S. Arora, R. Ge, T. Ma and A. Moitra, "Simple, Efficient, and Neural Algorithms for
       Sparse Coding", COLT 2015.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(n_components=32, max_iter=5, tol=None, random_state=0)
    >>> codes = learner.fit_transform(X)
    >>> codes.shape, learner.components_.shape
    ((1797, 32), (32, 64))
    """

    def __init__(
        self,
        n_components=None,
        *,
        alpha="auto",
        gradient="auto",
        loss="gaussian",
        n_trials=1,
        n_unfoldings="auto",
        step_size="auto",
        lambda_decay=1.0,
        shrinkage="soft",
        positive_code=False,
        positive_dict=False,
        atom_norm="unit",
        optimizer="auto",
        learning_rate=1e-3,
        optimizer_params=None,
        batch_size="auto",
        max_iter="auto",
        tol=1e-4,
        n_iter_no_change=5,
        dict_init="search",
        transform_algorithm="unfolded",
        transform_n_nonzero_coefs=None,
        transform_tol=None,
        transform_alpha=None,
        split_sign=False,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.alpha = alpha
        self.gradient = gradient
        self.loss = loss
        self.n_trials = n_trials
        self.n_unfoldings = n_unfoldings
        self.step_size = step_size
        self.lambda_decay = lambda_decay
        self.shrinkage = shrinkage
        self.positive_code = positive_code
        self.positive_dict = positive_dict
        self.atom_norm = atom_norm
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.optimizer_params = optimizer_params
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.dict_init = dict_init
        self.transform_algorithm = transform_algorithm
        self.transform_n_nonzero_coefs = transform_n_nonzero_coefs
        self.transform_tol = transform_tol
        self.transform_alpha = transform_alpha
        self.split_sign = split_sign
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    _parameter_constraints = DenseLearner._parameter_constraints | {
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "gradient": [StrOptions({"auto", "dec", "ae-lasso", "ae-ls"})],
        "loss": [StrOptions(set(LOSSES))],
        "n_trials": [Interval(Real, 1, None, closed="left")],
        "n_unfoldings": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "optimizer": [StrOptions({"auto", "adam", "sgd", "surrogate"}), type],
        "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
        "max_iter": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "shrinkage": [StrOptions(set(SHRINKAGES))],
        "positive_code": ["boolean"],
        "positive_dict": ["boolean"],
        "atom_norm": [StrOptions({"unit", "ball"}), None],
        "transform_algorithm": [StrOptions({"unfolded", "lasso", "omp"})],
        "transform_n_nonzero_coefs": [Interval(Integral, 1, None, closed="left"), None],
        "transform_tol": [Interval(Real, 0, None, closed="left"), None],
        "transform_alpha": [Interval(Real, 0, None, closed="left"), None],
        "split_sign": ["boolean"],
    }

    def _check_parameters(self):
        if self.loss != "gaussian" and (self._converges() or self.transform_algorithm == "omp"):
            raise ValueError(
                "Codes that are solved for (n_unfoldings=None, transform_algorithm='lasso' or "
                f"'omp') are those of least squares, but loss={self.loss!r}. Pass a number of "
                "unfoldings, or 'auto', and transform_algorithm='unfolded'."
            )
        decays = Decay.of(self.lambda_decay) != (1, 1)
        if self._converges() and (self.shrinkage == "hard" or decays):
            raise ValueError(
                "Converged codes (n_unfoldings=None or transform_algorithm='lasso') exist for soft "
                f"shrinkage without decay, got shrinkage={self.shrinkage!r} and "
                f"lambda_decay={self.lambda_decay!r}. Pass shrinkage='soft' and lambda_decay=1, or "
                "a number of unfoldings and transform_algorithm='unfolded'."
            )
        if self._converges() and 0 in (self.alpha, self.transform_alpha):
            raise ValueError(
                "The lasso needs a positive alpha, got 0; pass a number of unfoldings and "
                "transform_algorithm='unfolded' for codes without a penalty."
            )

    @property
    def _gradient(self):
        if self.gradient != "auto":
            return self.gradient
        return "dec" if self._searches() else "ae-ls"

    @property
    def _penalty_or_threshold(self):
        return self.alpha

    def _encoder(self):
        options = self.n_unfoldings, self.shrinkage, self.positive_code
        return Encoder(*options, loss=self._loss())

    def _transform_encoder(self):
        self._validate_params(*_OF_THE_ENCODER)  # they may have been set since `fit`
        self._check_parameters()
        if self.transform_algorithm == "omp":
            return self._pursue
        encoder = self._encoder()
        if self._converges():
            encoder = replace(encoder, n_unfoldings=None)
        return partial(
            encoder.encode,
            alpha=self.alpha_ if self.transform_alpha is None else self.transform_alpha,
            step_size=getattr(self, "step_size_", None),
            lambda_decay=self.lambda_decay_,
            warn=True,
        )

    def _pursue(self, dictionary, x, mask=None):
        return solve_omp(
            dictionary.atoms,
            x,
            n_nonzero_coefs=self.transform_n_nonzero_coefs,
            tol=self.transform_tol,
            positive=bool(self.positive_code),
            mask=mask,
        )

    def _chunk_size(self, x, device):
        # the solvers have their own
        solved = self._converges() or self.transform_algorithm == "omp"
        return len(x) if solved else super()._chunk_size(x, device)

    def _allows_nan(self):
        return not self._converges()  # the lasso is solved for complete samples

    def _converges(self):
        return self.n_unfoldings is None or self.transform_algorithm == "lasso"

    def _optimizer_for(self, rows):
        # the surrogate has one curvature for all: with that of counts "ae-ls" diverged
        unbounded = self.optimizer == "auto" and self.loss == "poisson" and not self._refines
        return "adam" if unbounded else super()._optimizer_for(rows)

    @property
    def _is_only_searched(self):  # nobody has said how to train from there
        return self._searches() and "auto" in (self.gradient, self.max_iter)

    @property
    def _refines(self):
        return self._searches() and self.gradient == "auto" and self.loss != "gaussian"

    def _n_updates(self, n_batches, batch_size, data):
        if self._is_only_searched and self.loss == "gaussian":
            return 0  # see the notes
        if self.max_iter != "auto":
            return super()._n_updates(n_batches, batch_size, data)
        if self._refines:
            return refining_updates(n_batches)
        n_features = data.sample.shape[1]
        n_components = self.n_components or n_features
        push = 2 * batch_size * n_components * min(n_components, 2 * n_features)
        n_products = 1 if self._gradient == "dec" else 3  # the adjoint has two more
        n_unfoldings = self.n_unfoldings if isinstance(self.n_unfoldings, Integral) else 100
        affordable = _AUTO_OPERATIONS / (n_unfoldings * n_products * push)
        return max(_AUTO_UPDATES, min(_AUTO_EPOCHS * n_batches, int(affordable)))
