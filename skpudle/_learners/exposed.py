"""Methods of learners whose samples have exposures."""

from sklearn.base import _fit_context

from skpudle._learners.base import train, update
from skpudle._learners.dense import DenseLearner
from skpudle._precision import training_mode

__all__ = ["ExposedLearner"]


class ExposedLearner(DenseLearner):
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
            If ``max_iter`` is a number, and training ended before the objective stalled.
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
