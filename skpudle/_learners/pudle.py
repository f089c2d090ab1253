"""Dictionary learning by backpropagation through an unfolded sparse encoder."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import validate_parameter_constraints
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import check_rows, host_array, to_numpy, to_tensor, warn
from skpudle._data.sources import open_source
from skpudle._fit.encoders import EncoderPlan, learned_encoder, units_of
from skpudle._fit.messages import refuse, refuse_several, warn_of_unused
from skpudle._learners.parameters import POSITIVE, constraints_of, sets_parameters
from skpudle._learners.rows import DenseLearner
from skpudle._operators._atoms import DenseDictionary
from skpudle._states import Coding
from skpudle.encoding import EncoderModule
from skpudle.encoding._learned import LearnedEncoder
from skpudle.encoding._unfold import threshold_levels
from skpudle.omp import solve_omp
from skpudle.search import auto_alpha
from skpudle.search.choose import (
    best_coding,
    coding_of_l0,
    coding_of_support,
    judged,
)


def penalty_of(learner):  # -> float
    """Return the penalty of `transform`: ``transform_alpha`` if it is set, else ``alpha_``.

    Raise ValueError if the learner has neither: `from_components` with alpha="auto" had no data
    that could choose a penalty.
    """
    penalty = learner.transform_alpha or learner.alpha_
    refuse(
        penalty is None,
        "alpha='auto' needs data. Pass transform_alpha, or call partial_fit.",
    )
    return penalty


def _graph_of(learner, plan, units):  # -> LearnedEncoder
    """Return a fitted learner's unfolded encoder as a fixed number of matrix products.

    `to_module` exports it, and `transform` uses it if the encoder has matrices of its own or has to
    bound outliers.

    Parameters
    ----------
    learner : PUDLEDictionaryLearning
        The learner.
    plan : EncoderPlan
        What the learner's parameters decide about codes.
    units : Units
        The units of the rows that the encoder takes. Its atoms are the dictionary, and residuals
        beyond its limit are clipped, as outliers.

    Returns
    -------
    LearnedEncoder
        The trained encoder of ``separate_atoms``, or unfoldings with the atoms as matrices.
    """
    atoms = units.atoms
    limit = units.limit
    if plan.params.separate_atoms:
        return replace(learned_encoder(learner, atoms), limit=limit)
    step = learner.step_size_
    shrinkage = plan.params.shrinkage
    levels = threshold_levels(
        DenseDictionary(atoms),
        penalty_of(learner),
        plan.n_unfoldings,
        atoms.new_tensor(step),
        lambda_decay=learner.lambda_decay_,
        shrinkage=shrinkage,
    )
    # An unfolding adds to codes ``step * atoms`` times the residual, and shrinks them by a level.
    return LearnedEncoder(
        step * atoms[None],
        atoms[None],
        levels.expand(-1, len(atoms)),
        positive_code=bool(plan.params.positive_code),
        shares_atoms=True,
        shrinkage=shrinkage,
        limit=limit,
    )


def _pursue(
    dictionary,
    x,
    mask=None,
    *,
    n_nonzero_coefs,
    tol,
    positive,
):
    """Return codes of rows by orthogonal matching pursuit: the encoder of "omp".

    It ends at ``n_nonzero_coefs`` nonzero codes of a row, or at the squared norm ``tol`` of the
    residual.
    """
    return solve_omp(
        dictionary.atoms,
        x,
        n_nonzero_coefs=n_nonzero_coefs,
        tol=tol,
        positive=positive,
        mask=mask,
    )


def _check_choice(learner, plan, l0, criterion):
    """Check the arguments of `choose_alpha`, and whether the learner's penalty can be chosen.

    ``plan`` is the `Plan` of the learner; ``plan.solves`` is whether codes solve the lasso.

    Raises
    ------
    ValueError
        If codes are not the lasso's, if ``transform_alpha`` is set, or if an argument is invalid.
    """
    refuse(
        not plan.solves or learner.transform_algorithm == "omp",
        "Only codes of the lasso have a penalty to choose. Pass transform_algorithm='lasso'.",
    )
    refuse(
        learner.transform_alpha is not None,
        f"transform_alpha={learner.transform_alpha} overrides the penalty to choose. Pass None.",
    )
    validate_parameter_constraints(
        constraints_of(signature(learner.choose_alpha), l0=[POSITIVE]),
        {"l0": l0, "criterion": criterion},
        "choose_alpha",
    )
    refuse(
        criterion == "support" and l0 is None and not learner.positive_code,
        "criterion='support' counts negative codes as mistakes. Pass 'prediction', or l0.",
    )


def _coding_of(
    problem,
    atoms,
    l0,
    criterion,
    *,
    debias,
):  # -> Coding
    """Choose a penalty of codes for fixed atoms, for `choose_alpha`.

    The penalty of "support" is not below the one of "prediction".

    Parameters
    ----------
    problem : Problem
        Rows in units of the noise, and the penalty of a search.
    atoms : Tensor of shape (n_components, n_features)
        Atoms in the same units.
    l0 : float or None
        Mean number of nonzero codes in a row that the penalty has to give.
    criterion : str
        Without ``l0``: "prediction", codes that predict hidden entries, or "support", most true and
        few false codes.
    debias : float or None
        Share of the lasso's bias to remove; None chooses it.

    Returns
    -------
    Coding
        The penalty, in units of the problem, and the share of bias to remove.
    """
    if l0 is not None:
        coding, is_met = coding_of_l0(problem, atoms, float(l0), debias=debias)
        if not is_met:
            got = f"{coding.n_entries:.4g} codes on average instead of l0={l0:g}"
            warn(
                f"Rows have {got}: their number jumps. Pass a number that rows can have."
            )
        return coding
    predicting = best_coding(judged(problem), atoms, debias=debias)
    if criterion == "prediction":
        return predicting
    supported = coding_of_support(problem, atoms, debias=debias)
    return max(supported, predicting, key=lambda coding: coding.alpha)


@sets_parameters(noise=["array-like"])
class PUDLEDictionaryLearning(DenseLearner):
    r"""Dictionary learning: rows are sums of few atoms, which a search finds.

    By default `fit` searches for the atoms, and predictions of held-out entries choose penalties,
    baseline, noise and outliers. `transform` returns sparse codes: the lasso's, less a share of the
    lasso's bias.

    Set ``n_components``, and others for a purpose:

    - of the search, if you know the rows: ``alpha``, ``dict_init``, ``fit_intercept``,
      ``noise``, ``positive_code``, ``positive_dict`` (:doc:`/guide/choosing`, :doc:`/guide/rows`);
    - of codes, for the model that uses them: ``debias``, ``transform_algorithm``,
      ``transform_n_nonzero_coefs``, ``transform_alpha``, ``split_sign``;
    - of the encoder and its training, for codes of a fixed cost or for gradients:
      ``n_unfoldings``, ``separate_atoms``, ``shrinkage``, ``lambda_decay``, ``step_size``,
      ``gradient``, ``optimizer``, ``learning_rate``, ``batch_size``, ``max_iter``, ``tol``
      (:doc:`/guide/encoders`);
    - of computing: ``device``, ``random_state``, ``verbose`` (:doc:`/guide/large_data`).

    An encoder that you set is trained after the search by backpropagation (PUDLE [1]_), with the
    shrinkage :math:`S`:

    .. math:: z_{t+1} = S(z_t + s D^T (x - D z_t)), \quad
        D \leftarrow D - \eta \frac{\partial}{\partial D} \frac12 \|x - D z_T(D)\|^2 .

    Parameters
    ----------
    n_components : int or "auto", default=None
        Number of atoms: by default that of atoms in ``dict_init``, or of features. "auto" is the
        smallest number that predicts hidden entries as well as any (:doc:`/guide/how_many`); in
        `partial_fit`, that of features.

    alpha : float or "auto", default="auto"
        Penalty of the lasso, in the units of the data. A number holds in search, training and
        `transform`. "auto" lets predictions choose ``search_alpha_`` and ``alpha_``; training has
        0.07 times the root mean square norm of a row. With hard shrinkage ``alpha`` is the
        threshold of codes, and "auto" is multiplied by the root of the step.

    dict_init : str, array-like or learner, default="search"
        First atoms: from a "search", samples of the "data", "random" directions, singular vectors
        ("svd"), an array of shape (n_components, n_features), or a fitted learner of this package,
        scikit-learn or SPORCO. All but "search" train by gradients.

    fit_intercept : bool or "auto", default="auto"
        Whether rows have a baseline, ``intercept_``. "auto" adds one that makes codes sparser,
        halves residuals or predicts better, but none to non-negative codes, or without a search.

    noise : {"auto", "equal", "features", "rows", "both"} or array-like, default="auto"
        What the noise of an entry depends on. An array has the standard deviation of each feature.
        "auto" detects outliers and noise of features; without them, or without a search, it is
        "equal".

    positive_code, positive_dict : bool, default=False
        Whether codes, and entries of atoms, are non-negative.

    debias : float or "auto", default="auto"
        Share of the lasso's bias to remove from codes [2]_: 0 is the lasso, 1 is least squares on
        its support. "auto" is chosen together with ``alpha="auto"``, else 0.

    transform_algorithm : {"unfolded", "lasso", "omp"}, default="unfolded"
        Codes of the fit's encoder, of the lasso, or of orthogonal matching pursuit.

    transform_n_nonzero_coefs : int, default=None
        Nonzero codes of a row with "omp"; by default a tenth of the number of features.

    transform_alpha : float, default=None
        Overrides ``alpha_`` in `transform` and `score`. "omp" ends at this squared norm of the
        residual.

    split_sign : bool, default=False
        Whether positive and negative parts of codes are separate columns, for a linear model.

    n_unfoldings : int, None or "auto", default="auto"
        Number of iterations of the encoder. None: codes converge. "auto" is None for the lasso, 3
        with ``separate_atoms``, else 100.

    separate_atoms : bool or "unfolding", default=False
        Whether the encoder has matrices of its own: an analysis, a synthesis and thresholds in each
        "unfolding", or (True) one analysis for all. They minimise the lasso's objective, or
        the squared error with ``gradient="ae-ls"``.

    shrinkage : {"soft", "hard"}, default="soft"
        Soft thresholding, or hard thresholding at ``alpha``.

    lambda_decay : float or tuple (first, last), default=1.0
        Unfolding t of soft shrinkage has the penalty ``alpha * lambda_decay**t``. Training anneals
        a pair in ten parts.

    step_size : float or "auto", default="auto"
        Step of an unfolding, :math:`s`. "auto" is 1 over a bound, tight to 5 %, of the squared
        spectral norm of the dictionary.

    gradient : {"auto", "ae-ls", "ae-lasso", "dec"}, default="auto"
        Training differentiates the squared error through decoder and encoder ("ae-ls"), the lasso's
        objective through both ("ae-lasso"), or the error through the decoder ("dec"). "auto":
        "ae-ls" if you set the encoder, and "dec" in `partial_fit` by gradients.

    optimizer : {"auto", "adam", "sgd", "surrogate"} or callable, default="auto"
        "auto" is the surrogate, a quadratic model of the loss, up to 4096 atoms, and Adam above. A
        callable is like ``torch.optim.AdamW``.

    learning_rate : float, default=1e-3
        Learning rate; the surrogate has none.

    batch_size : int or "auto", default="auto"
        Samples in an update. "auto" is ``min(256, n_samples)``, and for the surrogate after a
        search a sixteenth of the samples, within 64 to 256.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training. "auto" takes about as long as the search; without a
        search 100.

    tol : float or None, default=1e-4
        Five successive checks of the objective with less relative improvement end training. None:
        ``max_iter`` epochs.

    device : str, default="auto"
        A torch device; "auto" is that of a tensor input, else CUDA if present, else the CPU.

    random_state : int, RandomState instance or None, default=None
        Determines first atoms and order of samples.

    verbose : int, default=0
        Whether to print epochs and the `summary`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The atoms, one per row.

    intercept_ : ndarray of shape (n_features,) or float
        The baseline; 0.0 without one.

    alpha_, debias_, lambda_decay_, step_size_ : float
        Penalty, share of bias removed, decay and step of `transform`.

    search_alpha_ : float
        Penalty of the search, if there was one.

    noise_std_ : float or ndarray of shape (n_features,)
        Estimated standard deviation of noise (of each feature, or in the median row, if noise
        differs), if the data chose the penalty of codes.

    outliers_ : csr_array of shape (n_samples, n_features), bool
        True for outliers in memory, which `fit` left out.

    analysis_components_, synthesis_components_, thresholds_ : ndarray
        The encoder of "unfolding", of shapes (n_unfoldings, n_components, n_features),
        (n_unfoldings - 1, n_components, n_features) and (n_unfoldings, n_components). True has one
        analysis (n_components, n_features).

    size_path_, penalty_path_ : Bunch
        Numbers of atoms, and penalties, that were tried: arrays (n_tried,) ``n_components`` or
        ``alpha``, ``score`` (R^2 of hidden entries), ``tolerance`` (a loss of score by chance), and
        ``objective`` or ``unbiased`` (whether atoms have no bias).

    factor_score_ : Bunch
        R^2 of hidden entries: ``score`` by factor analysis with ``n_factors``, ``dense_score`` with
        one for two features, ``atoms_score`` by atoms; ``is_better``: factors win beyond
        chance. None above 128 features.

    n_components_, n_features_in_, n_iter_, n_steps_, n_samples_seen_ : int
        Numbers of atoms, features, epochs, updates and rows read, over all calls of `partial_fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features, if ``X`` has names.

    loss_curve_ : ndarray of shape (n_epochs,)
        Mean of :math:`\frac12 \|x - D z\|^2` over each epoch.

    ended_by_, device_ : str
        What ended `fit` ("search", "tol", "max_iter", "callback", "divergence" or "interrupt"), and
        where it computed.

    phases_, fit_seconds_ : dict
        Epochs of each phase; seconds of "fit", "reading", each phase and "result". `partial_fit`
        sets neither, nor ``ended_by_``.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit Acceleration of Dictionary Learning by
       Backpropagation", arXiv:2106.00058, 2021; equation 8.
    .. [2] N. Meinshausen, "Relaxed Lasso", Computational Statistics & Data Analysis 52, 2007.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(n_components=32, random_state=0)
    >>> codes = learner.fit_transform(X)
    >>> codes.shape, learner.components_.shape
    ((1797, 32), (32, 64))
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        dict_init: Any = "search",
        fit_intercept: bool | Literal["auto"] = "auto",
        noise: Literal["auto", "equal", "features", "rows", "both"]
        | ArrayLike = "auto",
        positive_code: bool = False,
        positive_dict: bool = False,
        debias: float | Literal["auto"] = "auto",
        transform_algorithm: Literal["unfolded", "lasso", "omp"] = "unfolded",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        split_sign: bool = False,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        separate_atoms: bool | Literal["unfolding"] = False,
        shrinkage: Literal["soft", "hard"] = "soft",
        lambda_decay: float | tuple[float, float] = 1.0,
        step_size: float | Literal["auto"] = "auto",
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        optimizer: Literal["auto", "adam", "sgd", "surrogate"] | Callable = "auto",
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    # ------------------------------------------------------------------ the fit and its score

    # The score needs ``noise_std_``, which `fit` estimates only with alpha="auto" and codes of the
    # lasso.
    @available_if(
        lambda learner: learner.alpha == "auto" and EncoderPlan(learner).of_lasso
    )
    def score_samples(self, X: Any) -> np.ndarray:
        r"""Score rows for the detection of anomalies: rows with low scores are unusual.

        The score is the Bayesian information criterion of a row [1]_, an approximate log-evidence,
        divided by the number of known entries: the log-likelihood of the residual of the codes of
        `transform`, for the noise of the median row, less :math:`\frac12 k \log m` for :math:`k`
        nonzero codes of :math:`m` known entries. Rows with large residuals, or with many codes,
        have low scores. If the fit found outlying entries, residuals beyond the limit of outliers
        count by their size, not by their square, as in the loss of Huber. Fit with
        ``n_components="auto"``, since surplus atoms learn anomalies that are among the rows of
        `fit`.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, also with NaN for missing entries.

        Returns
        -------
        ndarray of shape (n_samples,)
            Log-evidence of a row over the number of its known entries, in nats. It is NaN for a
            row without a known entry.

        Raises
        ------
        AttributeError
            If the noise is unknown: only `fit` estimates it, and only with ``alpha="auto"`` and
            codes of the lasso.

        Warns
        -----
        UserWarning
            If there are more atoms than features, and their number is not "auto".

        References
        ----------
        .. [1] G. Schwarz, "Estimating the dimension of a model", Annals of Statistics 6, 1978.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skpudle import PUDLEDictionaryLearning
        >>> X = load_digits().data
        >>> learner = PUDLEDictionaryLearning(32, random_state=0).fit(X[:1000])
        >>> usual = learner.score_samples(X[1000:])
        >>> mirrored = learner.score_samples(X[1000:, ::-1])
        >>> bool(usual.mean() > mirrored.mean())
        True
        """
        check_is_fitted(self)
        if self.noise_std_ is None:
            raise AttributeError(
                "noise_std_ is None: the noise is unknown. Call fit with alpha='auto'."
            )
        if len(self.components_) > self.n_features_in_ and self.n_components != "auto":
            many = f"{len(self.components_)} atoms, more than {self.n_features_in_} features"
            warn(
                f"{many}, explain strange rows too. Pass n_components='auto', or fewer."
            )
        x = host_array(check_rows(open_source(X).array(), allow_nan=True))
        codes = np.asarray(host_array(self.transform(X)))
        noise = np.maximum(self.noise_std_, np.finfo(x.dtype).tiny)
        clipped = residual = np.abs(x - self.inverse_transform(codes)) / noise
        if (units := units_of(self)).limit is not None:
            clipped = np.minimum(residual, to_numpy(units.limit_in_data()) / noise)
        # The log-likelihood of each entry: minus Huber's loss, less the log of the normalisation.
        # Without outliers ``clipped`` is ``residual``, and the loss is half the squared residual.
        entries = (
            clipped * (0.5 * clipped - residual)
            - 0.5 * np.log(2 * np.pi)
            - np.log(noise)
        )
        n_known = (~np.isnan(entries)).sum(axis=1)
        cost = 0.5 * (codes != 0).sum(axis=1) * np.log(np.maximum(n_known, 1))
        with np.errstate(invalid="ignore"):
            return (np.nansum(entries, axis=1) - cost) / n_known

    # ------------------------------------------------------------------ penalty of codes

    def choose_alpha(
        self,
        X: ArrayLike | Tensor,
        l0: float | None = None,
        *,
        criterion: Literal["prediction", "support"] = "prediction",
    ) -> Self:
        r"""Choose the penalty of codes, ``alpha_``, for the present atoms.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, if possible independent of the training data; of data outside memory some rows
            are read. Nonzero codes are counted in up to 2000 rows that are spread over the data.
        l0 : float, default=None
            Mean number of nonzero codes in a row; bisection finds a penalty that gives this number
            to half a percent. None: the ``criterion`` chooses.
        criterion : {"prediction", "support"}, default="prediction"
            "prediction": the sparsest codes that predict held-out entries nearly best, as `fit`
            chooses. "support": most true codes and few false codes, for codes that are known to be
            non-negative (``positive_code``). Codes are also computed without the constraint; their
            negative entries estimate the number of false positives. The penalty falls by a factor
            of :math:`\sqrt 2` while at most 40 % of the new codes are false, and stays above the
            penalty of "prediction".

        Returns
        -------
        self
            With new ``alpha_`` and, if ``debias="auto"``, new ``debias_``.

        Raises
        ------
        ValueError
            If codes are not those of the lasso; if ``transform_alpha`` overrides the penalty; if
            ``l0`` is not positive, or no penalty gives ``l0`` codes; or if the criterion is
            unknown, or "support" for codes of both signs.

        Warns
        -----
        UserWarning
            If the number of codes jumps past ``l0`` from one penalty to the next.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skpudle import PUDLEDictionaryLearning
        >>> X = load_digits().data
        >>> learner = PUDLEDictionaryLearning(32, random_state=0).fit(X[:1000])
        >>> codes = learner.choose_alpha(X[1000:], l0=5).transform(X[1000:])
        >>> float((codes != 0).sum(axis=1).mean().round())
        5.0
        """
        refuse_several("choose_alpha")
        check_is_fitted(self)
        self._validate_params()
        plan = self._plan()
        _check_choice(self, plan, l0, criterion)
        units = units_of(self)
        rows = self._read(X, is_fitted=True).samples.in_units(units)
        # the choice begins at the default penalty of a search
        problem = plan.problem(rows, auto_alpha(rows.x, mask=rows.mask))
        coding = _coding_of(problem, units.atoms, l0, criterion, debias=plan.debias)
        self.alpha_ = coding.alpha * problem.unit
        self.debias_ = coding.debias
        # The record gets the choice, too, since `partial_fit` goes on from the record. After a fit
        # to zeros data_scale is 0, and `partial_fit` would then choose another penalty. With None
        # it keeps the penalty that was chosen here.
        last = self._fitted
        noise_std = last.coding and last.coding.noise_std
        chosen = Coding(self.alpha_, self.debias_, noise_std=noise_std)
        data_scale = last.data_scale or None
        self._fitted = replace(last, coding=chosen, data_scale=data_scale)
        return self

    def to_module(self) -> EncoderModule:
        """Return the fitted encoder and decoder as a module of torch.

        Its codes equal the codes of `transform` to rounding. It can be trained further, or exported
        by `torch.export`, and by its ``to_onnx(file)``, whose file needs neither this package nor
        Python.

        Returns
        -------
        skpudle.encoding.EncoderModule
            ``module(x)`` returns the codes (n_samples, n_features_out) of a tensor of rows, and
            ``module.decode(codes)`` the reconstructed rows (n_samples, n_features).

        Raises
        ------
        ValueError
            If codes are solved for, or noise differs between rows: neither is a fixed number of
            products.

        Examples
        --------
        >>> import torch
        >>> from sklearn.datasets import load_digits
        >>> from skpudle import PUDLEDictionaryLearning
        >>> X = load_digits().data[:200]
        >>> options = dict(n_unfoldings=3, separate_atoms="unfolding", max_iter=5)
        >>> learner = PUDLEDictionaryLearning(20, random_state=0, **options).fit(X)
        >>> module = learner.to_module()
        >>> codes = module(torch.tensor(X))
        >>> bool(torch.allclose(codes, torch.tensor(learner.transform(X))))
        True
        """
        check_is_fitted(self)
        self._validate_params()
        plan = EncoderPlan(self)
        units = units_of(self)
        is_solved = plan.solves and not self.separate_atoms
        refuse(
            is_solved or self.transform_algorithm != "unfolded",
            "Solved codes are not a fixed graph. Fit with n_unfoldings=3, "
            "separate_atoms='unfolding'.",
        )
        refuse(
            units.row_noise is not None,
            "Codes in units of the row's noise are not a fixed graph. Fit with noise='features'.",
        )
        return EncoderModule(
            _graph_of(self, plan, units),
            to_tensor(self.components_),
            split_sign=self.split_sign,
            scale=units.scale,
            intercept=units.intercept,
        ).eval()

    def _encoder(self):
        """Return the encoder of `transform` for rows in units of their noise.

        The encoder follows the present parameters, which the user may have set since `fit`. Warn of
        parameters without effect on codes. Callers subtract the baseline from the rows.
        """
        self._validate_params()  # the user may have set parameters since `fit`
        plan = EncoderPlan(self)
        warn_of_unused(self, plan.without_effect(), "on these codes")
        if self.transform_algorithm == "omp":
            return partial(
                _pursue,
                n_nonzero_coefs=self.transform_n_nonzero_coefs,
                tol=self.transform_alpha,
                positive=bool(self.positive_code),
            )
        units = units_of(self)
        unfolds = self.transform_algorithm == "unfolded"
        # Unfolded codes clip the residuals of outliers. For codes that solve the lasso the caller
        # takes outliers for missing entries.
        clips = units.limit is not None and not plan.solves
        if unfolds and (self.separate_atoms or clips):
            return _graph_of(self, plan, units)
        return plan.encoder(
            penalty_of(self),
            step_size=self.step_size_,
            lambda_decay=self.lambda_decay_,
            solves=plan.converges,  # whether the user asks for codes of the lasso in `transform`
            debias=self.debias_ if self.debias == "auto" else None,
        )
