r"""Learned encoders: a few unfoldings with matrices and thresholds of their own.

Unfolding ``t`` of the encoder for a dictionary ``D`` is

.. math:: z_{t+1} = S_{\theta_t}(z_t + W_t (x - D_t^T z_t)), \quad z_0 = 0,

where the thresholds :math:`\theta_t` (one for each atom), the analysis matrix :math:`W_t` and the
synthesis matrix :math:`D_t` are trained so that the last codes minimise the lasso's objective for
``D`` (Gregor and LeCun 2010). With :math:`D_t = D` and one ``W`` for all unfoldings this is the
coupled form of Chen et al. 2018. With one unfolding it is a sparse autoencoder. Three to five
unfoldings come within a few per cent of the minimum that a solver finds.
"""

import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from itertools import takewhile
from math import frexp
from os import PathLike
from typing import Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from skpudle._compilation import import_extra
from skpudle._operators._atoms import atom_norms
from skpudle._precision import in_own_precision
from skpudle._shrinkage import join_signs, shrink, split_signs
from skpudle.encoding._compiled import multiply

# names of the tensors of an encoder that training changes
LEARNED = ("analysis", "synthesis", "thresholds")


@dataclass(frozen=True, eq=False)
class LearnedEncoder:
    """An encoder of few unfoldings, each with matrices and thresholds of its own.

    Parameters
    ----------
    analysis : Tensor of shape (n_unfoldings or 1, n_components, n_features)
        The matrices :math:`W_t` that multiply residuals; one matrix if all unfoldings share it.
    synthesis : Tensor of shape (n_unfoldings - 1 or 1, n_components, n_features)
        The matrices :math:`D_t` that reconstruct the data from codes, for each unfolding but the
        first, which starts from zero; one matrix if all unfoldings share it.
    thresholds : Tensor of shape (n_unfoldings, n_components)
        Thresholds of the shrinkage in each unfolding, in units of the codes.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    shares_atoms : bool, default=False
        Whether all unfoldings share one analysis matrix, and have the dictionary for synthesis.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage. Hard thresholding has no derivative in the thresholds.
    limit : Tensor of shape (n_features,), default=None
        Residuals are clipped to the range from ``-limit`` to ``limit``, as in the gradient of
        Huber's loss, so that outliers have less effect. None clips nothing.
    """

    analysis: Tensor
    synthesis: Tensor
    thresholds: Tensor
    positive_code: bool = False
    shares_atoms: bool = False
    shrinkage: str = "soft"
    limit: Tensor | None = None

    def __call__(self, dictionary, x, mask=None):  # -> (n_samples, n_components)
        """Return the codes of rows ``x`` (n_samples, n_features), of any dtype and on any device.

        Gradient rules and learners call all encoders with these arguments. Here ``dictionary`` has
        no effect, since the encoder has matrices of its own. ``mask``, of the shape of ``x`` or
        None, is 1 where an entry is known and 0 where it is missing.
        """
        return self.to(x).encode(x, mask)

    def encode(self, x, mask=None, z=None):
        """Return the codes of rows; autograd can differentiate them in ``x`` and in the encoder.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Data.
        mask : Tensor of shape (n_samples, n_features), default=None
            1 where an entry of ``x`` is known, 0 where it is missing (and then ``x`` is finite).
        z : Tensor of shape (n_samples, n_components), default=None
            Codes to begin with, for which the first unfolding takes the last synthesis matrix; None
            are zeros.

        Returns
        -------
        Tensor of shape (n_samples, n_components)
            Codes.
        """
        for t, threshold in enumerate(self.thresholds):
            analysis = self.analysis[t % len(self.analysis)]
            residual = x
            if z is not None:
                synthesis = self.synthesis[(t - 1) % len(self.synthesis)]
                residual = multiply(x, z, synthesis, scale=-1)
            if mask is not None:
                residual = residual * mask
            if self.limit is not None:
                residual = residual.clamp(-self.limit, self.limit)
            if z is None:
                z = residual @ analysis.mT
            else:
                z = torch.addmm(z, residual, analysis.mT)
            z = shrink(z, threshold, self.shrinkage, positive=self.positive_code)
        return z

    def of_features(self, features):
        """Return the encoder of data that have only some of the features.

        A score on hidden features needs it: the codes of a row come from its other features.

        Parameters
        ----------
        features : Tensor of shape (n,)
            Indices of the features that remain.

        Returns
        -------
        LearnedEncoder
            The encoder of data with these features, in this order.
        """
        return replace(
            self,
            analysis=self.analysis[:, :, features],
            synthesis=self.synthesis[:, :, features],
            limit=None if self.limit is None else self.limit[features],
        )

    def to(self, x):  # -> LearnedEncoder
        """Return the encoder in the dtype and on the device of the tensor ``x``."""
        return replace(
            self,
            analysis=self.analysis.to(x),
            synthesis=self.synthesis.to(x),
            thresholds=self.thresholds.to(x),
            limit=None if self.limit is None else self.limit.to(x),
        )


def _root_mean_square(part):  # (n_unfoldings or 1, ...) -> (n_unfoldings or 1, 1, ...)
    """Return the unit in which `_train` trains a tensor of the encoder, one for each unfolding.

    The unit is the root mean square of the entries, or 1 if all are zero, since `_train` divides
    by it.
    """
    axes = tuple(range(1, part.ndim))
    size = part.square().mean(axes, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


class EncoderModule(torch.nn.Module):
    """An encoder and its decoder as one module, for `torch.export`, ONNX or further training.

    ``to_module`` of a learner returns it. The module takes the same steps for all data, so it can
    be exported: data decide neither the number of iterations nor which operations run.

    Parameters
    ----------
    encoder : LearnedEncoder
        The encoder.
    atoms : Tensor of shape (n_components, n_features)
        The dictionary, which decodes codes.
    split_sign : bool, default=False
        Whether the positive and the negative parts of codes are in separate columns. The number of
        columns, ``n_features_out``, is then ``2 * n_components``, otherwise ``n_components``.
    intercept : Tensor of shape (n_features,), default=None
        Baseline, which is subtracted from rows before they are coded and added to reconstructions.
    scale : Tensor of shape (n_features,), default=None
        Standard deviations of the noise of features, in units of the data. Rows are divided by them
        before they are coded. The encoder must be that of the atoms divided by ``scale`` and then
        rescaled to their former norms.
    """

    def __init__(
        self,
        encoder: LearnedEncoder,
        atoms: Tensor,
        *,
        split_sign: bool = False,
        intercept: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name in LEARNED:
            setattr(self, name, torch.nn.Parameter(getattr(encoder, name).clone()))
        self.decoder = torch.nn.Parameter(atoms.clone())
        self.split_sign = split_sign
        gains = None
        if scale is not None:
            # The encoder was trained for the atoms / scale / gains, so its codes z stand for the
            # data / scale, and z / gains are the codes of `atoms`. An atom of zeros has the gain 1.
            gains = atom_norms(atoms / scale.to(atoms)) / atom_norms(atoms)
            gains = gains.flatten().nan_to_num(1.0)
        constants = dict(
            intercept=intercept, scale=scale, gains=gains, limit=encoder.limit
        )
        for name, part in constants.items():
            self.register_buffer(name, None if part is None else part.to(atoms))
        self._positive_code = encoder.positive_code
        self._shrinkage = encoder.shrinkage

    def forward(self, x: Tensor) -> Tensor:
        """Encode rows, as a learner's ``transform`` does.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Data, of the dtype and on the device of the module.

        Returns
        -------
        Tensor of shape (n_samples, n_features_out)
            Codes.
        """
        x = x if self.intercept is None else x - self.intercept
        x = x if self.scale is None else x / self.scale
        encoder = LearnedEncoder(
            self.analysis,
            self.synthesis,
            self.thresholds,
            positive_code=self._positive_code,
            shrinkage=self._shrinkage,
            limit=self.limit,
        )
        z = encoder.encode(x)
        z = z if self.gains is None else z / self.gains
        return split_signs(z) if self.split_sign else z

    def decode(self, z: Tensor) -> Tensor:
        """Reconstruct rows from codes, as a learner's ``inverse_transform`` does.

        Parameters
        ----------
        z : Tensor of shape (n_samples, n_features_out)
            Codes.

        Returns
        -------
        Tensor of shape (n_samples, n_features)
            Reconstructed data, in the units of the data.
        """
        z = join_signs(z) if self.split_sign else z
        x = z @ self.decoder
        return x if self.intercept is None else x + self.intercept

    def to_onnx(self, file: str | PathLike[str]) -> None:
        """Write the encoder to a file in the format ONNX, to run it without this package and torch.

        The file has the input ``"x"`` of shape (n_samples, n_features), with any number of rows,
        and the output ``"codes"`` of shape (n_samples, n_features_out), both in the dtype of the
        atoms. It does not have the decoder.

        Parameters
        ----------
        file : str or path-like
            File to write.

        Raises
        ------
        ImportError
            If onnx or onnxscript is not installed.
        """
        for name in ("onnx", "onnxscript"):
            import_extra("onnx", name)
        if "dynamic_shapes" not in signature(torch.onnx.export).parameters:
            raise ImportError(
                f"to_onnx needs PyTorch 2.5 or later, and this is {torch.__version__}. Update it: "
                "pip install -U torch."
            )
        rows = self.decoder.new_zeros(2, self.decoder.shape[1])
        log = logging.getLogger("torch.onnx._internal.exporter._registration")
        # torch's exporter warns of its own code and logs missing packages that it does not need:
        # nothing that a user can change
        with warnings.catch_warnings(), ExitStack() as on_exit:
            on_exit.callback(log.setLevel, log.level)
            log.setLevel(logging.ERROR)
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning
            )
            torch.onnx.export(
                self,
                (rows,),
                file,
                input_names=["x"],
                output_names=["codes"],
                dynamo=True,
                dynamic_shapes=({0: "rows"},),
                external_data=False,
                verbose=False,
            )


# Return the objective of the lasso, averaged over rows, for the codes z (n, n_components) of the
# rows x (n, n_features). The mask has the shape of x, or is None. With alpha = 0 there is no
# penalty.
def _lasso(
    x,
    mask,
    z,
    atoms,
    alpha,
):  # -> Tensor of shape ()
    residual = x - z @ atoms
    residual = residual if mask is None else residual * mask
    loss = residual.square().sum(1).mean() / 2
    return loss + alpha * z.abs().sum(1).mean() if alpha else loss


@torch.no_grad()
def _first_encoder(
    atoms,
    alpha,
    x,
    mask,
    n_unfoldings,
    *,
    separate,
    positive,
):
    """Return the `LearnedEncoder` from which training starts.

    Each analysis matrix is close to the pseudoinverse of the dictionary ``atoms`` (n_components,
    n_features), times a step size. With ``separate`` each unfolding gets matrices of its own: the
    unfoldings, one after the other, take the step size with which their codes have the least
    objective of the lasso with the penalty ``alpha``. Otherwise one step size is chosen for all
    unfoldings. The objective is that of at most 1,000 of the rows ``x`` (n, n_features), with their
    ``mask`` or None. With ``positive`` codes are not negative.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=generator, device="cpu")
    rows = order[:1000].sort().values
    x = x[rows]
    mask = None if mask is None else mask[rows]
    n_step_sizes = n_unfoldings if separate else 1
    n_sharing = n_unfoldings // n_step_sizes  # unfoldings with the same step size
    # The Gram matrix of the features may be singular, so 3 % of its largest eigenvalue is added to
    # its diagonal. Row j of `duals` has the inner product 1 with atom j and small ones with other
    # atoms. So, as analysis matrix, `duals` mix up the codes of correlated atoms less than the
    # atoms themselves do. After 800 updates of an encoder of three unfoldings the objective on
    # held-out rows is 0.7 % above its exact minimum for 60 planted atoms, and 3.2 % for digits. If
    # training starts from the atoms instead of the duals, it is 1.3 and 5.3 %
    # (benchmarks/constants.py start-of-encoders).
    gram = atoms.mT @ atoms
    gram.diagonal().add_(0.03 * torch.linalg.matrix_norm(gram, 2) or 1.0)
    duals = torch.linalg.solve(gram, atoms.mT).mT
    duals = duals / (duals * atoms).sum(1, keepdim=True).clamp_min(
        torch.finfo(x.dtype).tiny
    )
    norm = float(torch.linalg.matrix_norm(duals @ atoms.mT, 2)) or 1.0
    z = None
    encoders = []
    for _ in range(n_step_sizes):
        least_objective = None
        # step sizes in rising order, until the objective of the codes no longer falls
        for step in (0.25 / norm * 2 ** (0.5 * i) for i in range(20)):
            levels = atoms.new_full((n_sharing, len(atoms)), step * alpha)
            encoder = LearnedEncoder(step * duals[None], atoms[None], levels, positive)
            codes = encoder.encode(x, mask, z)
            objective = float(_lasso(x, mask, codes, atoms, alpha))
            if least_objective is not None and not objective <= least_objective:
                break
            least_objective = objective
            best = encoder
            best_codes = codes
        z = best_codes
        encoders.append(best)
    return LearnedEncoder(
        torch.cat([encoder.analysis for encoder in encoders]),
        atoms.repeat(n_unfoldings - 1 if separate else 1, 1, 1),
        torch.cat([encoder.thresholds for encoder in encoders]),
        positive,
        not separate,
    )


def _power_of_two(x):  # (n, n_features) -> float
    """Return the unit for training data: the least power of two above the RMS norm of the rows.

    `learn_encoder` divides the data by the unit; division by a power of two has no rounding error.
    The unit is 1 if all rows are zero.
    """
    largest = float(x.abs().amax())
    if not largest:
        return 1.0
    norm = largest * float((x / largest).square().sum(1).mean().sqrt())
    return 2.0 ** frexp(norm)[1]


def _draw_batch(
    x,
    mask,
    weight,
    n_rows,
    generator,
):  # -> (n_rows, n_features), mask
    """Draw a batch of rows with probabilities in proportion to ``weight``, and add noise to them.

    ``x`` is (n, n_features). ``mask`` has this shape or is None. ``weight`` is (n,), or None for
    equal probabilities. Return the noisy rows, with 0 at missing entries, and their mask.
    """
    if weight is None:
        rows = torch.randint(len(x), (n_rows,), generator=generator, device=x.device)
    else:
        rows = weight.multinomial(n_rows, replacement=True, generator=generator)
    x = x[rows]
    draws = x.new_empty(len(x), 1).uniform_(generator=generator)
    # Noise turns few rows into any number of training rows, which the objective, with its fixed
    # dictionary, can score as well. The root mean square of the noise is a random fraction, from 0
    # to 0.15, of that of the row. For 1,200 digits and three unfoldings the objective on held-out
    # rows is 3 % above the exact minimum with noise, and 5 % without (benchmarks/constants.py
    # noise-of-encoders).
    noise_size = 0.15 * draws * x.square().mean(1, keepdim=True).sqrt()
    x = x + noise_size * torch.empty_like(x).normal_(generator=generator)
    return (x, None) if mask is None else (x * mask[rows], mask[rows])


def _train(
    start,
    lasso,
    batches,
    n_updates,
    stopped,
    of_synthesis,
):
    """Train the `LearnedEncoder` ``start`` by one update of Adam for each batch, and return it.

    ``lasso(x, mask, codes)`` is the objective, and ``batches`` yields ``n_updates`` pairs of rows
    and mask. Training ends early when ``stopped()`` is true. Adam sees each tensor divided by the
    root mean square that its entries have at the start, so that one learning rate fits tensors in
    any unit. The learning rates fall linearly to 0 over the second half of the updates. The
    synthesis matrices are trained only with ``of_synthesis``.
    """
    units = {name: _root_mean_square(getattr(start, name)) for name in LEARNED}
    tensors = {name: getattr(start, name) / units[name] for name in LEARNED}
    # Learning rates of the analysis, the synthesis and the thresholds, each in units of its root
    # mean square at the start. For 1,200 digits and three unfoldings the objective on held-out rows
    # is 3.2 % above its exact minimum. It is 3.5 % with 0.4 times these rates, and 4.2 % with twice
    # these rates (benchmarks/constants.py rates-of-encoders).
    rates = dict(zip(LEARNED, (0.05, 0.02, 0.05), strict=True))
    groups = [
        {"params": [tensors[name].requires_grad_()], "lr": rates[name]}
        for name in LEARNED
        if of_synthesis or name != "synthesis"
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    schedule = LambdaLR(
        optimizer, lambda update: min(1.0, 2 * (1 - update / max(n_updates, 1)))
    )

    def trained():  # -> LearnedEncoder with the trained tensors, times their units
        parts = {name: tensors[name] * units[name] for name in LEARNED}
        return replace(start, **parts)

    for x, mask in takewhile(lambda _: not stopped(), batches):
        optimizer.zero_grad()
        lasso(x, mask, trained().encode(x, mask)).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            # Adam may step below 0, and a negative threshold would not shrink
            tensors["thresholds"].clamp_min_(0)
    with torch.no_grad():
        return trained()


@in_own_precision
def learn_encoder(
    atoms: Tensor,
    x: Tensor,
    alpha: float,
    *,
    n_unfoldings: int = 3,
    separate: bool = True,
    penalised: bool = True,
    positive_code: bool = False,
    mask: Tensor | None = None,
    start: LearnedEncoder | None = None,
    n_updates: int | Literal["auto"] = "auto",
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    stopped: Callable = bool,
    weight: Tensor | None = None,
) -> LearnedEncoder:
    r"""Train an encoder of few unfoldings for a fixed dictionary, to code new rows fast.

    Adam minimises the lasso's objective of the codes after the last unfolding, on batches of rows
    with added noise. The learning rate falls linearly to 0 over the second half of training. Each
    tensor of the encoder is trained in units of the root mean square that its entries have at the
    start, so that the learning rates suit data in any units and dictionaries of any size.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        The dictionary.
    x : Tensor of shape (n_samples, n_features)
        Rows to learn from, of the dtype and on the device of the atoms.
    alpha : float
        Penalty of the lasso, in units of the data times the atoms.
    n_unfoldings : int, default=3
        Unfoldings of the encoder.
    separate : bool, default=True
        Whether each unfolding has matrices of its own. Otherwise all unfoldings share one analysis
        matrix, and the synthesis matrix is the dictionary.
    penalised : bool, default=True
        Whether the penalty is a part of the objective. Otherwise ``alpha`` only sets the thresholds
        at the start, training minimises the squared error alone, and codes may be less sparse.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where an entry of ``x`` is known, 0 where it is missing (and then ``x`` is finite).
    start : LearnedEncoder, default=None
        Encoder to begin with. By default its analysis is close to a pseudoinverse of the
        dictionary, with the best step sizes.
    n_updates : int or "auto", default="auto"
        Number of updates. "auto" is the smallest of three numbers, but at least 300: 3000, three
        times the number of rows, and the number of updates that take :math:`3 \cdot 10^{12}`
        operations.
    batch_size : int, default=256
        Rows in an update.
    generator : torch.Generator, default=None
        Generator of batches and noise, on the device of the data; by default one with seed 0.
    stopped : callable, default=bool
        ``stopped()`` is called before each update, and training ends if it returns true. The
        default, ``bool``, returns false.
    weight : Tensor of shape (n_samples,), default=None
        How often each row counts: rows are drawn with probabilities in proportion to the weights.

    Returns
    -------
    LearnedEncoder
        The trained encoder.

    References
    ----------
    K. Gregor and Y. LeCun, "Learning fast approximations of sparse coding", ICML 2010.

    X. Chen, J. Liu, Z. Wang and W. Yin, "Theoretical linear convergence of unfolded ISTA and its
    practical weights and thresholds", NeurIPS 2018.

    Examples
    --------
    >>> import torch
    >>> from skpudle.encoding import learn_encoder
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> encoder = learn_encoder(torch.eye(2), x, 0.5, n_unfoldings=1, n_updates=0)
    >>> encoder.encode(x)
    tensor([[1.5000, 0.0000],
            [0.0000, 0.5000]])
    """
    generator = generator or torch.Generator(x.device).manual_seed(0)
    x = x if mask is None else x * mask
    unit = _power_of_two(x)
    atoms = atoms.detach()
    x = x.detach() / unit
    alpha = alpha / unit
    if n_updates == "auto":
        # Operations of an update: 2 products an unfolding, of which each entry takes a
        # multiplication and an addition. The backward pass takes twice those of the forward pass.
        n_operations = 3 * 2 * batch_size * atoms.numel() * (2 * n_unfoldings)
        # At most 3,000: for 1,200 digits and three unfoldings the objective is 3 % above the exact
        # minimum after 3,000 updates, and 5 % above it after 1,000.
        n_updates = int(max(300, min(3000, 3 * len(x), 3e12 // n_operations)))
    if start is None:
        start = _first_encoder(
            atoms,
            alpha,
            x,
            mask,
            n_unfoldings,
            separate=separate,
            positive=bool(positive_code),
        )
    else:
        start = replace(start, thresholds=start.thresholds / unit)
    lasso = partial(_lasso, atoms=atoms, alpha=alpha if penalised else 0.0)
    batches = (
        _draw_batch(x, mask, weight, batch_size, generator) for _ in range(n_updates)
    )
    with torch.enable_grad():
        encoder = _train(
            start, lasso, batches, n_updates, stopped, separate and n_unfoldings > 1
        )
    return replace(encoder, thresholds=encoder.thresholds * unit)
