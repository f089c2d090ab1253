"""Dictionary learning by backpropagation through an unfolded sparse encoder."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import (
    host_array,
    mean_square,
    to_numpy,
    to_tensor,
    unit_of,
)
from skpudle._data.names import explain_names
from skpudle._data.sources import InMemory, open_source
from skpudle._fit.encoders import (
    Codes,
    Learned,
    Pursuit,
    baseline_of,
    in_units,
    learned_encoder,
    units_of,
)
from skpudle._fit.messages import warn_of_l0, warn_of_unused
from skpudle._fit.plan import DensePlan
from skpudle._fit.run import Phase
from skpudle._fit.team import refuse_several
from skpudle._learners.dense import DenseLearner, read_rows
from skpudle._learners.rows import RowPhases, collect
from skpudle._learners.summary import describe_fit
from skpudle._operators._atoms import DenseDictionary
from skpudle._shrinkage import SHRINKAGES
from skpudle.encoding import EncoderModule, learn_encoder
from skpudle.encoding._learned import LearnedEncoder, default_updates
from skpudle.encoding._unfold import threshold_levels
from skpudle.search import Problem, auto_alpha
from skpudle.search.choose import best_coding, coding_of_l0, coding_of_support, judged

# parameters that only some kinds of codes use
_OF_SOME_CODES = "debias", "transform_n_nonzero_coefs", "transform_tol", "transform_alpha"

# parameters that `transform` reads, in addition to fitted attributes
_OF_THE_ENCODER = (
    "n_unfoldings",
    "shrinkage",
    "lambda_decay",
    "positive_code",
    "debias",
    "transform_algorithm",
    "transform_n_nonzero_coefs",
    "transform_tol",
    "transform_alpha",
    "split_sign",
    "device",
)


def penalty_of(learner):
    """Return the penalty or threshold that a learner encodes with.

    Raises
    ------
    ValueError
        If the learner was made from atoms alone: "auto" had no data to choose a penalty from.
    """
    if learner.transform_alpha is not None:
        return learner.transform_alpha
    if not hasattr(learner, "alpha_"):
        raise ValueError(
            "alpha='auto' is chosen from data, and atoms alone came without. Pass transform_alpha, "
            "or data to partial_fit."
        )
    return learner.alpha_


def _solves(codes):
    """Return whether codes are solved for, which is no fixed graph."""
    return codes.of_lasso or codes.converges


def module_of(learner, codes):  # -> EncoderModule
    """Return the encoder of a fitted learner as a module of torch; see `to_module`."""
    given = codes.given
    solved = not given.separate_atoms and _solves(codes)
    if solved or given.transform_algorithm != "unfolded":
        raise ValueError(
            "Codes that are solved for are no fixed graph of products, and cannot be exported. "
            "Pass transform_algorithm='unfolded' and n_unfoldings=3, for example, with "
            "separate_atoms='unfolding', and fit again."
        )
    noise, decoder = units_of(learner), to_tensor(learner.components_)
    if noise.rows is not None:
        raise ValueError(
            "Each row is coded in units of its own noise, which takes several codings and is no "
            "fixed graph. Pass noise='features' or 'equal', and fit again."
        )
    options = dict(split_sign=learner.split_sign, scale=noise.scale)
    if (baseline := baseline_of(learner)) is not None:
        options["intercept"] = to_tensor(baseline)
    return EncoderModule(_graph_of(learner, codes, noise), decoder, **options).eval()


def _graph_of(learner, codes, noise):  # -> LearnedEncoder
    """Return the unfoldings of a fitted learner, of rows in units of the noise."""
    atoms, limit = noise.atoms, noise.limit
    if codes.given.separate_atoms:
        return replace(learned_encoder(learner, atoms), limit=limit)
    dictionary, step = DenseDictionary(atoms), learner.step_size_
    levels = threshold_levels(
        dictionary,
        penalty_of(learner),
        codes.n_unfoldings,
        atoms.new_tensor(step),
        lambda_decay=learner.lambda_decay_,
        shrinkage=codes.given.shrinkage,
    )
    thresholds = levels.expand(-1, len(atoms))
    how = bool(codes.given.positive_code), True, codes.given.shrinkage, limit
    return LearnedEncoder(step * atoms[None], atoms[None], thresholds, *how)


def _knows_noise(learner):
    """Return whether a fit estimates the noise of an entry."""
    return learner.alpha == "auto" and Codes.of(learner).of_lasso


def _check_choice(learner, codes, l0, criterion):
    """Raise ValueError unless the penalty of a learner's codes can be chosen in this way."""
    if not (codes.of_lasso or codes.converges) or learner.transform_algorithm == "omp":
        raise ValueError(
            "The penalty is chosen for codes of the lasso, and this learner has others. Pass "
            "transform_algorithm='lasso', or alpha as a number."
        )
    if learner.transform_alpha is not None:
        raise ValueError(
            f"transform_alpha={learner.transform_alpha} overrides the penalty to choose. Pass "
            "transform_alpha=None."
        )
    if l0 is not None and not (isinstance(l0, Real) and 0 < l0 < float("inf")):
        raise ValueError(f"l0={l0!r:.50} is no number of codes. Pass a positive number.")
    if not isinstance(criterion, str) or criterion not in ("prediction", "support"):
        raise ValueError(f"criterion={criterion!r:.50} is unknown. Pass 'prediction' or 'support'.")
    if criterion == "support" and l0 is None and not learner.positive_code:
        raise ValueError(
            "criterion='support' takes negative codes for mistakes, and positive_code=False "
            "allows them. Pass criterion='prediction', or l0."
        )


def _coding_of(problem, atoms, l0, criterion, *, debias):  # -> Coding
    """Return the coding with a number of codes, or by a criterion; see `choose_alpha`."""
    if l0 is not None:
        coding, is_met = coding_of_l0(problem, atoms, float(l0), debias=debias)
        if not is_met:
            warn_of_l0(coding.n_entries, l0)
        return coding
    predicting = best_coding(judged(problem), atoms, debias=debias)
    if criterion == "prediction":
        return predicting
    found = coding_of_support(problem, atoms, debias=debias)
    return max(found, predicting, key=lambda coding: coding.alpha)


def _with_encoder(plan, fitted, data, interrupts, **options):  # -> Fitted, int
    """Return the record with a trained encoder, and the number of updates."""
    samples, given, n_made = fitted.in_units(collect(data.samples)), plan.given, 0

    def stopped():  # called before each update
        nonlocal n_made
        n_made += not interrupts.pending
        return interrupts.pending

    learned = learn_encoder(
        fitted.rows,
        samples.x,
        float(fitted.model.alpha),
        n_unfoldings=plan.n_unfoldings,
        separate=given.separate_atoms == "unfolding",
        penalised=given.gradient != "ae-ls",
        positive_code=given.positive_code,
        mask=samples.mask,
        weight=samples.weight,
        batch_size=plan.batch_size(len(samples)),
        stopped=stopped,
        **options,
    )
    return replace(fitted, learned=learned), n_made


class _WithEncoder(RowPhases):
    """The phases of a fit that ends with an encoder of its own."""

    def table(self):  # -> tuple of Phase
        """Return all phases; without updates, after Ctrl-C, the encoder is the initial one."""
        return *super().table(), Phase("encoder", self.train_encoder, ends_search=True)

    def train_encoder(self, fitted):
        """Train the encoder for the atoms."""
        plan, run, n_samples = self.plan, self.run, len(self.data.samples)
        size = plan.batch_size(n_samples)
        n_batches = -(-n_samples // size)
        n_updates = plan.given.max_iter
        if n_updates == "auto":
            shape = fitted.rows.shape
            n_updates = default_updates(n_samples, *shape, plan.n_unfoldings, size)
        else:
            n_updates *= n_batches
        generator = torch.Generator(fitted.rows.device).manual_seed(run.generator.initial_seed())
        options = dict(n_updates=n_updates, generator=generator)
        fitted, n_made = _with_encoder(plan, fitted, self.data, run.interrupts, **options)
        later = {"encoder": -(-n_made // n_batches)} if n_made else {}
        yield replace(fitted, later=later, is_done=n_made >= n_updates)


class PUDLEDictionaryLearning(DenseLearner):
    r"""Dictionary learning: rows are sums of few atoms, which a search finds.

    By default `fit` searches for atoms that make the lasso objective small. Held-out rows, whose
    entries are hidden, choose the penalties, outliers and the noise. `transform` solves the lasso
    for each row, and takes off a share of its bias. No gradient trains the atoms.

    Training follows the search if a ``gradient`` or an unfolded encoder (``n_unfoldings``,
    ``shrinkage="hard"``, ``lambda_decay``) is named: dictionary learning by backpropagation through
    the encoder (PUDLE). The encoder makes ``n_unfoldings`` iterations of (soft- or hard-)
    thresholded gradient descent. The dictionary descends the error of the reconstruction from its
    codes, and the gradient goes through the encoder:

    .. math:: z_{t+1} = S(z_t + s D^T (x - D z_t)), \quad
        D \leftarrow D - \eta \frac{\partial}{\partial D} \frac12 \|x - D z_T(D)\|^2 .

    Parameters
    ----------
    n_components : int or "auto", default=None
        Number of atoms; by default the number in ``dict_init`` if it is an array or a learner, else
        the number of features. "auto" is the smallest number whose atoms predict hidden entries of
        held-out samples as well as any other number does; of data that have no such number it is
        the smallest from which twice as many atoms explain less than .02 more (see the notes). It
        needs ``dict_init="search"``; in `partial_fit` it is the number of features.

    alpha : float or "auto", default="auto"
        Soft shrinkage: the penalty of the lasso, :math:`\lambda` in the paper, in the units of the
        data (as in scikit-learn). Hard shrinkage: the threshold of the codes, :math:`b`. A number
        is the penalty of the search, of training and of `transform`. "auto" searches with the
        penalty whose atoms predict held-out samples best (see the notes), and trains with 0.07
        times the root mean square norm of the nonzero samples (for hard shrinkage times the root of
        the step size). Codes of the lasso then get a penalty of their own, ``alpha_``, which
        predicts held-out entries best (see the notes). Scaling the data scales the codes and leaves
        the atoms unchanged.

    gradient : {"auto", "ae-ls", "ae-lasso", "dec"}, default="auto"
        The gradient of training (eq. 8): of the reconstruction error through decoder and encoder,
        of the lasso objective through both, or of the reconstruction error through the decoder
        alone. If you name one, `fit` trains by it. "auto" is "ae-ls" for all training (see the
        notes), except in `partial_fit` for codes of the lasso if another parameter of training is
        named, where it is "dec".

    fit_intercept : bool or "auto", default="auto"
        Whether rows have a baseline, ``intercept_``, which is estimated together with the atoms.
        "auto" has one if the mean is four standard errors from zero and if atoms around it
        lower the objective, and the number of codes, by a twentieth. It has none for non-negative
        codes, whose mean competes with it, for less than four rows for each atom, and with a
        ``dict_init`` other than "search".

    noise : {"auto", "equal", "features", "rows", "both"} or array-like, default="auto"
        What the noise of entries depends on: nothing, the feature, the row, or both; an array of
        shape (n_features,) has the standard deviation of each feature. Rows and features with more
        noise have less weight, and atoms, codes and reconstructions are in the units of ``X``.
        "auto" decides on the noise of features, and takes entries and whole rows for outliers if
        they hold the energy of an atom, cannot be predicted, and hide the other entries. The fit
        goes without them; `transform` and `score` then limit the errors of entries. If nothing is
        found, and with a ``dict_init`` other than "search", "auto" is "equal". See
        :doc:`/guide/rows`.

    n_unfoldings : int, None or "auto", default="auto"
        Number of iterations of the encoder, :math:`T`. None: converged codes, which solve the lasso
        (soft shrinkage without decay). "auto" is None if the encoder is a lasso's, and 100
        otherwise.

    step_size : float or "auto", default="auto"
        Step of an iteration, :math:`s`. "auto" is 1 over a bound, tight to 5 %, of the squared
        spectral norm of the current dictionary.

    lambda_decay : float or tuple (first, last), default=1.0
        Iteration t of soft shrinkage has the penalty ``alpha * lambda_decay**t``. A pair
        (first, last) is annealed over training in ten equal parts, as in figure 5 of the paper;
        training is then not stopped early before the last part.

    shrinkage : {"soft", "hard"}, default="soft"
        Soft thresholding, or hard thresholding at ``alpha``, without ``lambda_decay``.

    debias : float or "auto", default="auto"
        Share of the lasso's bias to remove from codes: 0 is the lasso, 1 is least squares on the
        atoms that the lasso chose, and a share between is the relaxed lasso [2]_. "auto" is chosen
        together with ``alpha="auto"``; with a number for ``alpha`` it is 0. Only codes of the lasso
        use it.

    separate_atoms : bool or "unfolding", default=False
        Whether the encoder has matrices of its own, trained after the search for a fixed
        dictionary: one analysis matrix for all unfoldings (True), or an analysis and a synthesis
        for each ("unfolding"), and in both cases a threshold for each atom and unfolding. A few
        unfoldings then do the work of a solver, and one is a sparse autoencoder
        (`skpudle.encoding.learn_encoder`); ``n_unfoldings="auto"`` is 3. They minimise the
        objective of the lasso; with ``gradient="ae-ls"`` the squared error alone. They see the
        samples that the search sees: all rows of an array, a sample of other data.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    positive_dict : bool, default=False
        Whether atoms are restricted to non-negative entries.

    atom_norm : {"unit", "ball", None}, default="unit"
        Whether atoms have norm 1, at most 1, or any.

    optimizer : {"auto", "adam", "sgd", "surrogate"} or callable, default="auto"
        The surrogate is a quadratic model of the loss that every batch refines. A callable takes
        parameters and ``lr`` and returns an optimiser of torch, such as ``torch.optim.AdamW`` or
        ``partial(torch.optim.SGD, momentum=0.9)``. Adam's ``eps`` is by default 1e-8 times the
        mean squared norm of a sample; in a `partial` it is absolute.
        "auto" is the surrogate for up to 4096 atoms and Adam for more.

    learning_rate : float, default=1e-3
        Learning rate of the optimizer; the surrogate has none.

    batch_size : int or "auto", default="auto"
        Samples in an update; "auto" is ``min(256, n_samples)``, and for the surrogate after a
        search a sixteenth of the samples, within 64 to 256.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training, if there is any (see the notes). For the surrogate
        after a search, "auto" takes about as long as the search: for 100 atoms some 8 epochs
        through 3 unfoldings, 3 through 20, of at most 4096 samples. Otherwise it is 100, or fewer
        if their encoders take more than about :math:`10^{12}` operations, some 10 to 30 seconds of
        two CPU cores; but at least 200 updates, which may end within an epoch.

    tol : float or None, default=1e-4
        Relative improvement of the smoothed objective that counts as one; None trains for
        ``max_iter`` epochs.

    n_iter_no_change : int, default=5
        Training stops after this many checks in a row without improvement. There is a check at the
        end of each epoch and, in epochs of more than 10 updates, after every 10 of them.

    dict_init : str, array-like or learner, default="search"
        Initial dictionary: the result of a "search" in the data (see the notes), samples of the
        "data", "random" directions, leading singular vectors ("svd"), an array of shape
        (n_components, n_features), or a fitted learner of this package, scikit-learn or SPORCO.

    transform_algorithm : {"unfolded", "lasso", "omp"}, default="unfolded"
        Whether `transform` runs the trained encoder, solves the lasso to a certified gap, or runs
        orthogonal matching pursuit, which has no ``alpha``.

    transform_n_nonzero_coefs : int, default=None
        Number of atoms that the pursuit chooses for a sample; by default a tenth of the features.

    transform_tol : float, default=None
        The pursuit ends when the squared norm of the residual is at most this; overrides
        ``transform_n_nonzero_coefs``.

    transform_alpha : float, default=None
        Overrides ``alpha_`` in `transform` and `score`. Codes of the pursuit, and of an encoder of
        ``separate_atoms``, have no penalty to override.

    split_sign : bool, default=False
        Whether `transform` returns positive and negative parts of the codes in separate columns.

    device : str, default="auto"
        A torch device, or "auto": the device of a tensor input, else CUDA if present, else the CPU.
        Search, training, codes and scores run there; searches need CUDA, or run on the CPU.

    random_state : int, RandomState instance or None, default=None
        Determines the initial dictionary and the order of the samples.

    verbose : int, default=0
        Whether to print a line per epoch, one before an encoder of ``separate_atoms`` is trained,
        and the `summary` of the fit.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary, one atom per row.

    n_components_ : int
        Number of atoms.

    size_path_ : Bunch
        With ``n_components="auto"``, the numbers of atoms that were tried: arrays
        ``n_components``, ``score`` (R^2 of hidden entries of held-out samples), ``objective``
        (of the search, mean over its samples) and ``tolerance`` (the loss against the best score
        that counts as chance: a standard error, at least .001). Not there after `partial_fit`.

    penalty_path_ : Bunch
        The penalties that a search tried, in its order: arrays ``alpha``, ``score`` (share of the
        energy of hidden entries of held-out samples that the atoms explain), ``unbiased`` (whether
        these are atoms without the lasso's bias) and ``tolerance`` (the score that counts as
        chance: two standard errors). Not there after `partial_fit`, and with fewer than 20 samples.

    intercept_ : ndarray of shape (n_features,) or float
        The baseline: of a row without codes, in `inverse_transform`. 0.0 without one.

    outliers_ : csr_array of shape (n_samples, n_features), bool
        Entries of an array that `fit` left out because they were far from the rest of their row,
        and all known entries of long rows that no atom predicts. Absent if there are none.

    n_features_in_ : int
        Number of features seen in `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features seen in `fit`, if ``X`` has names.

    n_iter_ : int
        Number of epochs, of the search and of training; the last may be incomplete.

    n_steps_ : int
        Number of updates by gradients.

    n_samples_seen_ : int
        Number of rows that were read at least once; of `partial_fit` the sum over all calls.

    loss_curve_ : ndarray of shape (n_epochs,)
        Mean over each epoch of :math:`\frac12 \|x - D z\|^2`, whichever objective is minimised. It
        rises when a search adds and removes atoms.

    ended_by_ : str
        Cause of the end of `fit`: "search" (it was complete, and no training followed), "tol" (the
        objective had stalled), "max_iter", "callback", "interrupt" (Ctrl-C) or "divergence". Absent
        after `partial_fit`.

    phases_ : dict of str to int
        The phases of `fit`, in their order, and their numbers of epochs: "search", the gradient of
        training, and the "encoder" of ``separate_atoms``. Absent after `partial_fit`.

    fit_seconds_ : dict of str to float
        Seconds of the last `fit` ("fit") and of its phases: the "units" of the data, the "size" of
        ``n_components="auto"``, "search", the "noise" of features, "search in units of the noise",
        the "pass" over rows that do not fit into memory, "unbiased atoms" (least squares on the
        lasso's supports), "units again", "training", the "penalty of codes", and the "encoder" of
        ``separate_atoms``; of the "reading" of the data before the phases, and of the "result"
        after the phases, its attributes and checks. Absent after `partial_fit`.

    alpha_ : float
        The penalty or threshold for codes in `transform`.

    analysis_components_ : ndarray of shape (n_unfoldings, n_components, n_features)
        The analysis of each unfolding, with ``separate_atoms="unfolding"``; with True a single one,
        of shape (n_components, n_features).

    synthesis_components_ : ndarray of shape (n_unfoldings - 1, n_components, n_features)
        Atoms that decode the codes before each unfolding but the first, with
        ``separate_atoms="unfolding"``.

    thresholds_ : ndarray of shape (n_unfoldings, n_components)
        Thresholds of the unfoldings, with ``separate_atoms``.

    debias_ : float
        The share of the lasso's bias that `transform` removes.

    noise_std_ : float or ndarray of shape (n_features,)
        Estimated standard deviation of the noise of an entry, if the data chose the penalty of
        codes: of each feature where the noise of features differs, and of the median row where the
        noise of rows differs.

    search_alpha_ : float
        The penalty of the search, if there was one.

    step_size_ : float
        The step size for ``components_``.

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
    Naming a parameter asks for its phase:

    .. list-table::
       :header-rows: 1

       * - parameters
         - phases of `fit`
       * - none
         - search; it optimises the lasso's codes, which need no training
       * - ``gradient``
         - search, then training by it
       * - ``n_unfoldings`` (a number), ``shrinkage="hard"``, ``lambda_decay``, ``alpha=0``
         - search, then training through that encoder, by "ae-ls" unless ``gradient`` is named
       * - ``separate_atoms``
         - search, then training of the encoder alone, on the objective of the lasso
       * - ``dict_init`` other than "search"
         - training, by "ae-ls" unless ``gradient`` is named
       * - ``max_iter``
         - a limit for epochs of training; alone it starts no training
       * - a parameter without effect in this fit, such as ``optimizer`` if nothing trains
         - as without it, and a UserWarning that names it and a setting that would use it

    A search (`skpudle.search.search`) is Algorithm 1 of the paper, alternating minimisation of the
    lasso, with moves out of its local minima, over all samples, or over a sample of data outside
    memory, and then once over all of them, block by block as in [4]_: it splits atoms that merge
    two atoms, and removes redundant atoms. Atoms are freed of the lasso's bias (they adapt to least
    squares on its supports, for which the gradients through encoder and decoder agree) if they then
    predict held-out samples better. Training from there adapts the dictionary to its encoder. If
    the encoder makes few iterations, or is no lasso, training explains more with fewer codes: of
    digits 65 instead of 23 % with 3 unfoldings, 87 instead of 61 % with 20. For codes of the lasso
    it trades sparsity for error, and leads away from the dictionary that generated the data. From
    samples, gradients through the encoder find no dictionary: they are local methods (theorem 3.4
    starts near the truth). `partial_fit` alternates in the same way, with the moves, between the
    codes of a block of rows and the atoms for these and all earlier rows; rows that were seen
    longer ago count less. If a parameter of training is named, it trains by gradients, by "dec" if
    it begins with samples. It makes one pass, whatever ``max_iter``, ``tol`` and
    ``n_iter_no_change`` are, and warns of no parameter.

    Finding atoms and coding rows are two jobs, and held-out samples choose the penalty of both. One
    sample in ten, or a hundred if that is more, is held out. Groups of its features are hidden in
    turn, and predicted from codes of the visible ones. The search begins at 0.07 times the root
    mean square norm of the samples, goes on to larger penalties as long as the predictions get no
    worse by more than a standard error, and to smaller ones as long as they are better by half of
    one. If a larger penalty explains a fifth more of their energy than all penalties before, the
    rounds of the search begin again at it. The largest penalty that predicts nearly as well as the
    best is ``search_alpha_``, and ``penalty_path_`` has all of them; in the end the atoms adapt to
    the held-out samples too. Then the atoms, before they have seen these samples, choose the
    penalty of codes: among codings with nearly the smallest error (5 % more for the lasso, 15 % for
    least squares, noise apart), the sparsest gives ``alpha_`` and ``debias_``. If no entry can be
    predicted, or with fewer than 20 samples, the first penalty stays.

    For samples that mix few non-negative atoms (``positive_code``, ``positive_dict``, and four
    features for each atom), such as spectra, the search begins at the purest samples, with a
    penalty of 0.3 deviations of the noise. Larger and smaller penalties follow until predictions
    are worse.

    With ``n_components="auto"`` a quarter of the samples, at most 2000, are held out, and hidden
    entries of them predicted; equal samples count as one. The number of atoms begins at half the
    number of features, and grows by half until the score, R^2 of the hidden entries, has failed
    twice to get larger. The penalty, if it is "auto", rises first where much noise hides the atoms.
    Then atoms are removed that lower the objective least per use, a quarter of them at a time and
    finally one by one, and the remaining atoms adapt, as in [3]_. The number is the smallest whose
    score is as large as the largest, within the standard error of the difference, which counts as
    0.001 at least. From there the search continues on all samples.

    Atoms that no sample of an epoch used are replaced, before the next epoch, by the samples that
    were reconstructed worst. If the loss stops being finite, the learning rate is halved, once.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit Acceleration of Dictionary Learning by
       Backpropagation", arXiv:2106.00058, 2021.
    .. [2] N. Meinshausen, "Relaxed Lasso", Computational Statistics & Data Analysis 52, 2007.
    .. [3] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
       arXiv:1804.07101.
    .. [4] J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online Learning for Matrix Factorization and
       Sparse Coding", Journal of Machine Learning Research 11, 2010.

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

    @explain_names
    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        fit_intercept: bool | Literal["auto"] = "auto",
        noise: Literal["auto", "equal", "features", "rows", "both"] | ArrayLike = "auto",
        n_unfoldings: int | Literal["auto"] | None = "auto",
        step_size: float | Literal["auto"] = "auto",
        lambda_decay: float | tuple[float, float] = 1.0,
        shrinkage: Literal["soft", "hard"] = "soft",
        debias: float | Literal["auto"] = "auto",
        separate_atoms: bool | Literal["unfolding"] = False,
        positive_code: bool = False,
        positive_dict: bool = False,
        atom_norm: Literal["unit", "ball", None] = "unit",
        optimizer: Literal["auto", "adam", "sgd", "surrogate"] | Callable = "auto",
        learning_rate: float = 1e-3,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        n_iter_no_change: int = 5,
        dict_init: Any = "search",
        transform_algorithm: Literal["unfolded", "lasso", "omp"] = "unfolded",
        transform_n_nonzero_coefs: int | None = None,
        transform_tol: float | None = None,
        transform_alpha: float | None = None,
        split_sign: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Set the parameters."""

    _parameter_constraints = DenseLearner._parameter_constraints | {
        "n_components": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "gradient": [StrOptions({"auto", "dec", "ae-lasso", "ae-ls"})],
        "fit_intercept": ["boolean", StrOptions({"auto"})],
        "noise": [StrOptions({"auto", "equal", "features", "rows", "both"}), "array-like"],
        "n_unfoldings": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "optimizer": [StrOptions({"auto", "adam", "sgd", "surrogate"}), callable],
        "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
        "max_iter": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "separate_atoms": ["boolean", StrOptions({"unfolding"})],
        "shrinkage": [StrOptions(set(SHRINKAGES))],
        "debias": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"}), "boolean"],
        "positive_code": ["boolean"],
        "positive_dict": ["boolean"],
        "atom_norm": [StrOptions({"unit", "ball"}), None],
        "transform_algorithm": [StrOptions({"unfolded", "lasso", "omp"})],
        "transform_n_nonzero_coefs": [Interval(Integral, 1, None, closed="left"), None],
        "transform_tol": [Interval(Real, 0, None, closed="left"), None],
        "transform_alpha": [Interval(Real, 0, None, closed="left"), None],
        "split_sign": ["boolean"],
    }

    # ------------------------------------------------------------------ fit and score

    def _fit(self, X, y, **of_rows):
        super()._fit(X, y, **of_rows)
        if self.verbose:
            print(self.summary())
        return self

    @available_if(_knows_noise)
    def score_samples(self, X: Any) -> np.ndarray:
        r"""Return how usual each row is: the logarithm of its evidence, for each known entry.

        It is the log-likelihood of the residual of the codes of `transform`, for the noise of the
        median row, less :math:`\frac12 k \log m` for :math:`k` codes of :math:`m` known entries:
        the Bayesian information criterion of a row [1]_. Rows that need more noise, or many codes,
        have low scores. Where the fit found outlying entries, errors beyond the limit count by
        their size, not by their square: the loss of Huber, for which codes are robust, too. The
        score tells anomalies, as of scikit-learn's density models. Fit with
        ``n_components="auto"``: surplus atoms learn anomalies that are among the rows of `fit`.

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
        ValueError
            If the noise is unknown, since there was no `fit`. (The method is there for
            ``alpha="auto"`` and codes of the lasso.)

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
        if getattr(self, "noise_std_", None) is None:
            raise ValueError(
                "The noise of the data is unknown: partial_fit does not estimate it. Call fit."
            )
        if len(self.components_) > self.n_features_in_ and self.n_components != "auto":
            warnings.warn(
                f"{len(self.components_)} atoms, more than {self.n_features_in_} features, explain "
                'strange rows too. Pass n_components="auto", or a smaller number.',
                stacklevel=2,
            )
        ((samples, _),) = self._read_parts(InMemory(open_source(X, self).array()))
        codes = np.asarray(host_array(self.transform(X)))
        rows = self.inverse_transform(codes)
        baseline = baseline_of(self)
        fitted = to_numpy(to_tensor(rows)) - (0.0 if baseline is None else baseline)
        noise = np.maximum(self.noise_std_, np.finfo(fitted.dtype).tiny)
        residual = np.abs(to_numpy(samples.x) - fitted) / noise
        usual = residual
        if (units := units_of(self)).limit is not None:
            usual = np.minimum(residual, to_numpy(units.limit_in_data()) / noise)
        known = np.ones_like(residual) if samples.mask is None else to_numpy(samples.mask)
        entries = usual * (0.5 * usual - residual) - 0.5 * np.log(2 * np.pi) - np.log(noise)
        n_known = known.sum(axis=1)
        cost = 0.5 * (codes != 0).sum(axis=1) * np.log(np.maximum(n_known, 1))
        with np.errstate(invalid="ignore"):
            return ((entries * known).sum(axis=1) - cost) / n_known

    def summary(self, X: ArrayLike | Tensor | None = None) -> str:
        """Say in some ten lines what `fit` has decided, and which decisions were close.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features), default=None
            Rows to reconstruct: the summary then has their R^2, and the codes of a row.

        Returns
        -------
        str
            Lines: rows and features, the number of atoms, baseline, outliers, noise, penalties, how
            much of the energy of hidden entries is predicted, and the end of the fit.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skpudle import PUDLEDictionaryLearning
        >>> X = load_digits().data
        >>> learner = PUDLEDictionaryLearning(32, random_state=0).fit(X)
        >>> print(learner.summary())  # doctest: +ELLIPSIS
        PUDLEDictionaryLearning: 1797 rows of 64 features
          32 atoms, as named
        ...
        """
        check_is_fitted(self, "components_")
        return describe_fit(self, X)

    # ------------------------------------------------------------------ penalty of codes

    def choose_alpha(
        self,
        X: ArrayLike | Tensor,
        *,
        l0: float | None = None,
        criterion: Literal["prediction", "support"] = "prediction",
    ) -> Self:
        r"""Choose the penalty of codes, ``alpha_``, for the present atoms.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, if possible independent of the training data; of a stream, a sample. Nonzero codes
            are counted in up to 2000 rows, one in each of equal parts.
        l0 : float, default=None
            Mean number of nonzero codes in a row, which bisection meets to half a percent. None:
            the ``criterion`` chooses.
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
        data = read_rows(self, plan, open_source(X, self), known=True)
        units = units_of(self)
        rows = in_units(units, data.samples)
        x, mask = rows.x, rows.mask
        unit, penalty = unit_of(mean_square(x)), auto_alpha(x, mask=mask)
        signs = dict(positive_code=bool(self.positive_code))
        problem = Problem.in_unit(x, penalty, unit, mask=mask, **signs)
        coding = _coding_of(problem, units.atoms, l0, criterion, debias=plan.debias)
        return self._take_coding(coding, unit)

    def _plan(self):
        return DensePlan.of(self)

    def to_module(self) -> EncoderModule:
        """Return the fitted encoder and decoder as a module of torch.

        Its codes equal the codes of `transform` to rounding. It can be trained further, or exported
        by `torch.export`, and by its ``to_onnx(file)``, whose file needs neither this package nor
        Python.

        Returns
        -------
        skpudle.encoding.EncoderModule
            ``module(x)`` returns codes, ``module.decode(codes)`` rows, both as tensors.

        Raises
        ------
        ValueError
            If codes are solved for, which is no fixed graph.

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
        self._validate_params(*_OF_THE_ENCODER)
        return module_of(self, Codes.of(self))

    def _encoder(self):
        self._validate_params(*_OF_THE_ENCODER)  # they may have been set since `fit`
        codes = Codes.of(self)
        if any(getattr(self, name) not in (None, "auto") for name in _OF_SOME_CODES):
            warn_of_unused(self, codes.unused_by_codes(), "on these codes")
        if self.transform_algorithm == "omp":
            limits = self.transform_n_nonzero_coefs, self.transform_tol
            return Pursuit(*limits, bool(self.positive_code))
        units, unfolds = units_of(self), self.transform_algorithm == "unfolded"
        if unfolds and (self.separate_atoms or (units.limit is not None and not _solves(codes))):
            return Learned(_graph_of(self, codes, units))
        encoder = codes.encoder
        if self.debias == "auto":
            encoder = replace(encoder, debias=self.debias_)
        if codes.converges:
            encoder = replace(encoder, n_unfoldings=None)
        options = dict(step_size=getattr(self, "step_size_", None), lambda_decay=self.lambda_decay_)
        return encoder.at(penalty_of(self), **options, warn=True)

    def _phases(self, plan, data, run):  # -> RowPhases
        kind = _WithEncoder if self.separate_atoms else RowPhases
        return kind(self, plan, data, run)

    def _finish_part(self, plan, fitted, data, interrupts):  # -> Fitted
        if not self.separate_atoms:
            return fitted
        rows, n_samples = fitted.rows, len(data.samples)
        start = learned_encoder(self, rows) if hasattr(self, "thresholds_") else None
        options = dict(n_updates=-(-n_samples // plan.batch_size(n_samples)), start=start)
        return _with_encoder(plan, fitted, data, interrupts, **options)[0]
