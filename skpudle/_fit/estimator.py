"""Base of the learners that are fitted in phases: how they read data, fit, and are pickled.

`PhasedLearner._fit` reads the data, runs the phases and sets the attributes, from top to bottom. A
phase is one stage of a fit, such as a search or training. A record is a `Fitted`, the results of a
fit so far; a phase takes a record and yields new ones. A subclass has ``_phases``, a subclass of
`skpudle._fit.run.Run`, and ``_attributes(plan, data, record)``, which makes the fitted attributes.
``_plan()`` checks the parameters and returns a `Plan`, if the learner has one.
"""

import time
from dataclasses import replace
from numbers import Integral
from typing import NamedTuple

import torch

from skpudle._data import arrays, sources
from skpudle._fit import messages
from skpudle._fit.callbacks import CallbackSupportMixin
from skpudle._fit.run import pack, unpack
from skpudle._fit.train import current_team


class Data(NamedTuple):
    """The user's input after checks, as plans and phases read it.

    Attributes
    ----------
    source : object
        All samples, as a source that yields blocks of rows, see `skpudle._data.sources`.
    samples : Samples
        Samples in memory, from which initial atoms, units and penalties are chosen: all samples or,
        of data outside memory, some of them. A checkpoint recognises the data by them.
    inputs : dict
        The fitted attributes ``n_features_in_`` and ``feature_names_in_``.
    merged_index : Tensor of shape (n_rows,) or None
        A `fit` to data in memory merges equal rows. For each row of the input: the index into
        ``samples`` of the merged row that equals it, or -1 for a row of weight 0. None where rows
        are not merged, as in `partial_fit`.
    n_rows : int or None
        Number of rows in memory before the merge: the sum of their weights, rounded. None for a
        source outside memory, which has ``n_samples``.
    task : Classification or Regression, default=None
        The task of a learner with targets, see `skpudle._learners.supervised`.
    """

    source: object
    samples: object
    inputs: dict
    merged_index: object = None
    n_rows: int | None = None
    task: object = None

    @property
    def n_seen(self):
        """The number of samples that ``n_samples_seen_`` reports; in memory the sum of weights.

        None without data, as in `from_components`.
        """
        if self.n_rows is None and self.source is not None:
            return self.source.n_samples
        return self.n_rows

    def scaled(self, total):  # -> Data
        """Return the data with weights divided by their mean, so that only their ratios matter.

        `fit` calls it, except for counts, whose weights count events. ``total(*tensors)`` returns
        sums over all processes. Equal weights are replaced by None.
        """
        source = self.source
        samples = self.samples
        weight, mean = sources.scale_weights(source.weight, source.n_samples, total)
        if mean is None:  # there are no weights
            return self
        if source is samples:  # all data are in memory
            samples = replace(samples, weight=weight)
            return self._replace(source=samples, samples=samples)
        source.weight = weight
        if weight is not None:
            weight = samples.weigh(torch.ones_like(samples.x[:, 0])) / mean
        return self._replace(samples=replace(samples, weight=weight))


class PhasedLearner(CallbackSupportMixin):
    """Base of the learners whose fit is a series of phases; subclasses document the parameters.

    The subclasses are `DenseLearner` and `PoissonNMF`. A learner that `partial_fit` can go on from
    has in ``_fitted`` the part of the record that `partial_fit` needs.
    """

    # True for counts, where a sample weight of 2 means twice as many events: `fit` then leaves the
    # weights as they are. Otherwise only their ratios matter, and `fit` divides them by their mean.
    _counts_events = False

    def __getstate__(self):
        """Return the attributes for pickle, with the record ``_fitted`` as an array of bytes.

        So skops can save the learner, too: its files hold arrays, but no tensors.
        """
        state = super().__getstate__()
        if "_fitted" in state:
            state = state | {"_fitted": pack(self._fitted)}
        return state

    def __setstate__(self, state):
        """Set the attributes that `__getstate__` returned."""
        if "_fitted" in state:
            state = state | {"_fitted": unpack(state["_fitted"])}
        super().__setstate__(state)

    def _plan(self):  # -> Plan or None
        """Check the parameters and return what they decide; None without training by gradients."""

    def _read(
        self,
        X,
        y=None,
        *,
        is_fitted=False,
        part=False,
        sample_weight=None,
        target=None,
    ):
        """Check the user's input, and return it in the form that plans and phases read.

        Parameters
        ----------
        X, y : object
            The user's input. ``y`` is for subclasses with targets, which override this method.
        is_fitted : bool, default=False
            Whether the learner is fitted, so that the number of features has to be as in `fit`.
        part : bool, default=False
            Whether the caller is `partial_fit`, which keeps all rows in their order. `fit` merges
            equal rows of data in memory into one row with the sum of their weights.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts.
        target : Tensor of shape (n_samples, ...), default=None
            What the learner knows of each row beside its features, such as labels or exposures,
            checked by the caller.

        Returns
        -------
        Data
            The checked rows.

        Raises
        ------
        ValueError
            If ``X`` or the weights are not valid, or all values of ``X`` are missing.
        """
        source = sources.open_source(X)
        weight = dtype = None
        if is_fitted and part:
            dtype = arrays.to_tensor(self.components_).dtype
        if sample_weight is not None:
            weight = arrays.check_sample_weight(sample_weight, source.n_rows)
        source.read_for(
            self,
            arrays.resolve_device(self.device, source.data),
            is_fitted=is_fitted,
            dtype=dtype,
            weight=weight,
            target=target,
            largest=self._largest,
        )
        merged_index = n_rows = None
        if source.in_parts:
            # `fit` draws the sample by the user's seed, if that is an integer, otherwise by 0
            is_seed = isinstance(self.random_state, Integral) and not part
            seed = int(self.random_state) if is_seed else 0
            n_components = None if self.n_components == "auto" else self.n_components
            samples = source.sample(n_components, seed, whole=not part)
        else:
            if not is_fitted:
                sources.check_no_picture(source.data)
            samples = source.make_samples(source.convert(source.array()))
            n_rows = round(samples.total_weight)
        if source.in_parts or part or is_fitted:
            samples = sources.drop_absent(samples)
        else:
            samples, merged_index = sources.merge_samples(samples)
        has_values = is_fitted or samples.mask is None or samples.mask.any()
        messages.refuse_unknown(self, current_team().largest(has_values))
        inputs = source.attributes
        if not source.in_parts:
            source = samples
        return Data(source, samples, inputs, merged_index, n_rows)

    def _fit(self, X, y, **of_rows):
        """Fit to the user's data: what `fit` of all subclasses calls after its own checks.

        ``of_rows`` are keyword arguments of `_read` with an entry for each row. Return the
        estimator. Errors before the first phase leave the estimator unchanged. If training diverges
        or Ctrl-C is pressed, the error is raised after the attributes of the last usable record
        have been set.
        """
        began = time.perf_counter()
        # learners of counts, and of targets
        if self._counts_events or hasattr(self, "predict"):
            messages.refuse_several(type(self).__name__)
        plan = self._plan()
        data = self._read(X, y, **of_rows)
        if not self._counts_events:
            data = data.scaled(current_team().sum)
        with self._phases(self, X, y, began, plan, data) as run:
            record = run.make_phases()
            run.warn_of_result()
        self.fit_seconds_ = run.seconds
        if self.verbose:
            print(self.summary())
        messages.warn_of_early_end(self, record.ended_by)
        return self
