"""Base of the learners that are fitted in phases: `fit`, `partial_fit` and fitted attributes.

`GradientLearner._fit` reads the data, runs the phases and sets the attributes, from top to bottom.
A phase is one stage of a fit, such as a search or training. A record is a `Fitted`, the results of
a fit so far; a phase takes a record and yields new ones. A subclass has ``_plan()``, which checks
the parameters and returns a `Plan`, and ``_phases``, a subclass of `skpudle._fit.run.Run`. For
`partial_fit` a subclass has ``_begin(plan, data)``, which returns the record that a first call
updates, and ``_resume(plan, data)``, which returns the record that a later call updates, made from
the fitted attributes.
"""

import time
from dataclasses import replace
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from skpudle._data import arrays, sources
from skpudle._fit import messages
from skpudle._fit.callbacks import CallbackSupportMixin
from skpudle._fit.encoders import learned_encoder
from skpudle._fit.plan import train_encoder
from skpudle._fit.run import Interrupts, pack, take, unpack
from skpudle._fit.train import Diverged, Stopping, Trainer, current_team
from skpudle._operators._atoms import project_atoms
from skpudle.search.learn_units import least_rows
from skpudle.search.stream import FORGETTING, advance_stream, begin_stream, block_rows


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
    n_given : int or None
        Number of rows in memory before the merge: the sum of their weights, rounded. None for a
        source outside memory, which has ``n_samples``.
    """

    source: object
    samples: object
    inputs: dict
    merged_index: object = None
    n_given: int | None = None

    @property
    def n_seen(self):
        """The number of samples that ``n_samples_seen_`` reports; in memory the sum of weights.

        None without data, as in `from_components`.
        """
        return (
            self.source.n_samples
            if self.n_given is None and self.source
            else self.n_given
        )

    def scaled(self, total):  # -> Data
        """Return the data with weights divided by their mean, so that only their ratios matter.

        `fit` calls it, except for counts, whose weights count events. ``total(*tensors)`` returns
        sums over all processes. Equal weights are replaced by None.
        """
        source = self.source
        samples = self.samples
        weight, mean = sources.scale_weights(source.weight, source.n_samples, total)
        if mean is None:
            return self
        if source is samples:
            samples = source = replace(samples, weight=weight)
            return self._replace(source=source, samples=samples)
        source.weight = weight
        weight = (
            None
            if weight is None
            else samples.weigh(torch.ones_like(samples.x[:, 0])) / mean
        )
        return self._replace(samples=replace(samples, weight=weight))


class GradientLearner(CallbackSupportMixin):
    """Base of the learners that a `Plan` and phases fit; subclasses document the parameters.

    The subclasses are `DenseLearner` and `PoissonNMF`. A fitted learner has in ``_fitted`` the part
    of the record that `partial_fit` needs, and in ``_fit_given`` what the user had set at the time
    of the fit, so that `partial_fit` notices later changes.
    """

    def __getstate__(self):
        """Return the attributes for pickle, with the record ``_fitted`` as an array of bytes.

        So skops can save the learner, too: its files hold arrays, but no tensors.
        """
        state = super().__getstate__()
        return state | {"_fitted": pack(self._fitted)} if "_fitted" in state else state

    def __setstate__(self, state):
        """Set the attributes that `__getstate__` returned."""
        read = {"_fitted": unpack(state["_fitted"])} if "_fitted" in state else {}
        super().__setstate__(state | read)

    def _read(
        self,
        plan,
        X,
        y=None,
        *,
        known=False,
        part=False,
        sample_weight=None,
        target=None,
    ):
        """Check the user's input, and return it in the form that plans and phases read.

        Parameters
        ----------
        plan : Plan
            The plan of the fit, whose ``n_components`` sets the size of a sample of data outside
            memory.
        X, y : object
            The user's input. ``y`` is for subclasses with targets, which override this method.
        known : bool, default=False
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
        given = sources.open_source(X)
        how = dict(known=known, allow_nan=True, largest=self._largest, target=target)
        if known and part:
            how["dtype"] = arrays.to_tensor(self.components_).dtype
        if sample_weight is not None:
            how["weight"] = arrays.check_sample_weight(sample_weight, given.n_rows)
        given.read_for(self, arrays.resolve_device(self.device, given.data), **how)
        merged_index = n_given = None
        if given.in_parts:
            seed = (
                0
                if part or not isinstance(self.random_state, Integral)
                else self.random_state
            )
            samples = given.sample(plan.n_components, int(seed), whole=not part)
        else:
            if not known:
                sources.check_no_picture(given.data)
            samples = given.make_samples(given.convert(given.array()))
            n_given = round(samples.total_weight)
        if given.in_parts or part or known:
            samples = sources.known_samples(samples)
        else:
            samples, merged_index = sources.merge_samples(samples)
        is_known = known or samples.mask is None or samples.mask.any()
        messages.refuse_unknown(self, current_team().largest(is_known))
        source = given if given.in_parts else samples
        return Data(source, samples, given.attributes, merged_index, n_given)

    def _loss_of_baseline(self, fitted, data):  # -> float
        """Return the mean loss of a sample if all codes are zero, to compare training with."""
        return 0.5 * fitted.data_scale

    # ------------------------------------------------------------------ fitting

    def _fit(self, X, y, **of_samples):
        """Fit to the user's data: what `fit` of all subclasses calls after its own checks.

        ``of_samples`` are keyword arguments of `_read` with an entry for each row. Return the
        estimator. Errors before the first phase leave the estimator unchanged. If training diverges
        or Ctrl-C is pressed, the error is raised after the attributes of the last usable record
        have been set.
        """
        began = time.perf_counter()
        plan = self._plan()
        if plan.counts_events or hasattr(self, "predict"):
            messages.refuse_several(type(self).__name__)
        data = self._read(plan, X, y, **of_samples)
        messages.warn_of_unused(self, plan.without_effect(data))
        if not plan.counts_events:
            data = data.scaled(current_team().sum)
        with self._phases(self, X, y, began, plan, data) as run:
            fitted = run.make_phases()
            if plan.step_size is not None:
                messages.warn_of_step(plan.step_size, fitted.atoms)
            # The loss curve holds errors of reconstruction. A classifier or regressor (with a
            # task) minimises another loss and may raise these errors, so it gets no warning.
            if fitted.n_steps and plan.task is None:
                ends = fitted.loss_curve[0], fitted.loss_curve[-1]
                messages.warn_of_rise(self, *ends, self._loss_of_baseline(fitted, data))
            x = data.samples.x
            # no warning for rows that are all zero, or all equal: they need no codes
            if (
                not fitted.has_codes
                and x.any()
                and not (len(x) > 1 and (x == x[0]).all())
            ):
                messages.warn_of_zero_codes(self)
        self.fit_seconds_ = run.seconds
        if self.verbose and hasattr(self, "summary"):
            print(self.summary())
        messages.warn_of_early_end(self, fitted.ended_by)
        return self

    def _partial_fit(self, X, y, **of_samples):
        """Update the model by one pass over the data: `partial_fit` of all subclasses calls it.

        ``of_samples`` are keyword arguments of `_read` with an entry for each row. Return the
        estimator.
        """
        messages.refuse_several("partial_fit")
        known = hasattr(self, "components_")
        if known:  # the decorator `fits` checks the parameters in a first call only
            self._validate_params()
            now = self.n_components
            n_atoms = len(self.components_)
            messages.refuse(
                now not in (None, "auto", self._fit_given["n_components"], n_atoms),
                f"n_components={now} was set after fit, and components_ has {n_atoms} atoms, which "
                "partial_fit keeps. Set it back, fit again, or replace components_, too.",
            )
        plan = self._plan()
        data = self._read(plan, X, y, known=known, part=True, **of_samples)
        # ``replaced``: the user has changed ``components_`` since the last call. ``young``: rows of
        # earlier calls, kept while they are too few to learn units from (baseline and noise); this
        # call then begins again with all rows. ``decided``: this call goes on from the record of
        # the last call; False while rows are too few, or if all rows so far were zero.
        replaced = known and self._fit_given["atoms"] != messages.describe(
            self.components_
        )
        read = data
        young = self._fitted.first_rows if known and not replaced else None
        if young is not None:
            samples = data.samples.after(young)
            data = data._replace(source=samples, samples=samples)
        decided = known and self._fitted.data_scale != 0 and young is None
        fitted = (self._resume if replaced or decided else self._begin)(plan, data)
        if not (replaced or decided) and plan.learns_noise:
            least = least_rows(plan.n_components or data.samples.x.shape[1])
            is_young = len(data.samples) == data.source.n_samples < least
            fitted = replace(
                fitted, first_rows=data.samples.map(torch.clone) if is_young else None
            )
        if replaced:
            atoms = project_atoms(
                fitted.atoms.contiguous(), positive=plan.params.positive_dict
            )
            fitted = replace(fitted, atoms=atoms, training={})
        if known:
            fitted = replace(
                fitted, n_steps=self.n_steps_, loss_curve=tuple(self.loss_curve_)
            )
        # a user who sets one of these parameters asks for training by gradients
        of_training = ("optimizer", "learning_rate", "batch_size")
        error = None
        alternates = plan.alternates and not messages.any_named(self, of_training)
        learn = self._alternate if alternates else self._train_part
        with Interrupts() as interrupts:
            try:
                fitted = learn(plan, fitted, data, interrupts)
            except Diverged as diverged:
                fitted = diverged.fitted
                error = diverged
            attributes = self._attributes(plan, data, fitted)
            attributes["n_samples_seen_"] = (
                getattr(self, "n_samples_seen_", 0) + read.n_seen
            )
            take(self, attributes)
            if error is not None:
                raise error
        return self

    def _alternate(self, plan, fitted, data, interrupts):
        """Learn from the rows block by block, by codes of the lasso and atoms in alternation.

        This is the `partial_fit` of learners whose codes solve the lasso; the algorithm is
        `skpudle.search.stream`. Return the new record. Rows that are too few for a block are kept
        for the next call, in ``fitted.buffer``.
        """
        # The best size of a block depends on the mean number of nonzero codes in a row. It is
        # unknown before rows are coded, so 4 is assumed.
        square = fitted.data_scale or 0.0
        size = block_rows(4.0, *fitted.atoms.shape)
        state = fitted.stream
        recent = fitted.buffer
        loss = 0.0
        n_rows = 0
        atoms = fitted.atoms.detach().to("cpu", torch.float64)
        if state is None or len(state.held.energy) != len(atoms):
            state = begin_stream(atoms)
        # ``components_`` may have been edited since the state was stored, so its atoms are replaced
        state = state._replace(held=state.held._replace(atoms=atoms))
        for block in data.source.blocks(size):
            if interrupts.pending:
                break
            block, n_new = block.in_units(fitted.units), block.total_weight
            recent = block if recent is None else block.after(recent)
            problem = plan.problem(recent.to(fitted.atoms), fitted.alpha, square)
            how = dict(forgetting=FORGETTING, final=len(recent) >= size)
            state, over = advance_stream(problem, state, **how)
            loss = loss + state.loss * problem.unit**2 * n_new
            n_rows = n_rows + n_new
            recent = None if over else recent
        curve = (*fitted.loss_curve, loss / n_rows if n_rows else 0.0)
        known = dict(stream=state, buffer=recent, losses=(), training={})
        return replace(
            fitted, atoms=state.atoms.to(fitted.atoms), loss_curve=curve, **known
        )

    def _train_part(self, plan, fitted, data, interrupts):
        """Learn from the rows by one epoch of gradients, and return the new record.

        This is the `partial_fit` of learners that train their encoder. Atoms that no code has used
        for 10 times n_components samples are replaced by the samples with the largest losses.
        """
        rows = plan.join(fitted)
        before = fitted.training
        now = messages.describe(plan.optimizer_for(len(fitted.atoms)))
        moments = before.get("moments", {})
        optimizer = plan.make_optimizer(fitted)
        optimizer.load(
            rows, moments if moments and self._fit_given["optimizer"] == now else {}
        )
        unused = before.get("unused", torch.zeros(len(rows), dtype=torch.float64))
        fitted = replace(fitted, training={"unused": unused})
        trainer = Trainer(plan, fitted, optimizer, interrupts=interrupts)
        trainer.run_epoch(
            sources.Batches(data.source, plan.batch_size()), Stopping(None, 1)
        )
        if not interrupts.pending:
            # ``unused``: for each atom, the number of samples, over all calls, since a nonzero code
            # last used the atom
            epoch = trainer.epoch
            unused = torch.where(
                epoch["unused"].cpu(), unused + epoch["n_samples"], 0.0
            )
            # The limit of 10 * n_components samples is so long that rarely used atoms stay: an atom
            # that one in n_components samples uses exceeds the limit with probability exp(-10).
            trainer.replace_unused(among=unused >= 10 * len(unused))
        fitted = trainer.fitted
        fitted = replace(fitted, training=fitted.training | {"unused": unused})
        if plan.params.separate_atoms:
            known = hasattr(self, "thresholds_")
            samples = data.samples.in_units(fitted.units)
            start = learned_encoder(self, fitted.atoms) if known else None
            fitted = train_encoder(plan, fitted, samples, interrupts, 1, start=start)
        return fitted

    def _attributes(self, plan, data, fitted):
        """Return all fitted attributes as a dict, with what a later `partial_fit` needs.

        Keys are names of attributes; `skpudle._fit.run.take` sets them on the learner, and removes
        an attribute whose value is None. Callbacks get the same dict after each epoch.
        """
        phases = None
        curve = [*fitted.losses, *fitted.loss_curve]
        if (
            fitted.ended_by is not None
        ):  # only at the end of a `fit`, not in `partial_fit`
            epochs = {"search": len(fitted.losses), plan.name: len(fitted.loss_curve)}
            phases = {name: n for name, n in (epochs | fitted.later).items() if n}
        outliers = None
        if fitted.outliers is not None and len(fitted.outliers):
            # `fit` merged equal rows: ``fitted.outliers`` has indices of merged rows.
            # ``data.merged_index`` has, for each row of the user, the index of its merged row, or
            # -1 for a row of weight 0. The index -1 selects the last row, which is added here and
            # empty.
            shape = len(data.samples) + 1, data.samples.x.shape[1]
            values = (
                np.ones(len(fitted.outliers), bool),
                arrays.to_numpy(fitted.outliers).T,
            )
            outliers = csr_array(values, shape=shape)[
                arrays.to_numpy(data.merged_index)
            ]
        attributes = data.inputs | plan.attributes(fitted)
        given = dict(alpha=plan.params.alpha, n_components=plan.params.n_components)
        given["optimizer"] = messages.describe(plan.optimizer_for(len(fitted.atoms)))
        given["atoms"] = messages.describe(attributes["components_"])
        return attributes | {
            "lambda_decay_": plan.decay_of(fitted, max(fitted.n_steps - 1, 0)),
            "device_": str(data.samples.x.device),
            "n_iter_": max(len(curve), 1),
            "n_steps_": fitted.n_steps,
            "n_samples_seen_": data.n_seen,
            "loss_curve_": np.array(curve, dtype=np.float64),
            "outliers_": outliers,
            "ended_by_": fitted.ended_by,
            "phases_": phases,
            "fit_seconds_": None,  # `_fit` sets it when all callbacks have run
            "_fitted": fitted.kept(),
            "_fit_given": given,
        }
