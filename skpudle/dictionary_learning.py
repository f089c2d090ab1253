"""Dictionary learning by backpropagation through an unfolded sparse encoder."""

from functools import partial
from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._base import _AUTO_ALPHA, BaseDictionaryLearner
from skpudle.encoding import encode
from skpudle.gradients import GRADIENT_RULES
from skpudle.shrinkage import SHRINKAGES

__all__ = ["PUDLEDictionaryLearning"]


class PUDLEDictionaryLearning(BaseDictionaryLearner):
    def __init__(
        self,
        n_components=None,
        *,
        alpha="auto",
        gradient="ae-ls",
        n_unfoldings=100,
        step_size="auto",
        lambda_decay=1.0,
        shrinkage="soft",
        positive_code=False,
        positive_dict=False,
        atom_norm="unit",
        optimizer="adam",
        learning_rate=1e-3,
        optimizer_params=None,
        batch_size="auto",
        max_iter=100,
        tol=1e-4,
        n_iter_no_change=5,
        dict_init="data",
        transform_algorithm="unfolded",
        transform_alpha=None,
        split_sign=False,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.alpha = alpha
        self.gradient = gradient
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
        self.transform_alpha = transform_alpha
        self.split_sign = split_sign
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    _parameter_constraints = BaseDictionaryLearner._parameter_constraints | {
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "gradient": [StrOptions({"dec", "ae-lasso", "ae-ls"})],
        "n_unfoldings": [Interval(Integral, 1, None, closed="left"), None],
        "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
        "shrinkage": [StrOptions(set(SHRINKAGES))],
        "positive_code": ["boolean"],
        "positive_dict": ["boolean"],
        "atom_norm": [StrOptions({"unit", "ball"}), None],
        "transform_algorithm": [StrOptions({"unfolded", "lasso"})],
        "transform_alpha": [Interval(Real, 0, None, closed="left"), None],
        "split_sign": ["boolean"],
    }

    def _check_parameters(self):
        decay = self.lambda_decay
        if isinstance(decay, tuple) and not (
            len(decay) == 2 and all(isinstance(beta, Real) and 0 < beta <= 1 for beta in decay)
        ):
            raise ValueError(
                f"lambda_decay={decay!r} is not a pair (first, last) of numbers in (0, 1]; pass such a "
                "pair, or one number."
            )
        converged = self.n_unfoldings is None or self.transform_algorithm == "lasso"
        if converged and (self.shrinkage == "hard" or decay != 1):
            raise ValueError(
                "Converged codes (n_unfoldings=None or transform_algorithm='lasso') exist for soft "
                f"shrinkage without decay, got shrinkage={self.shrinkage!r} and "
                f"lambda_decay={decay!r}. Pass shrinkage='soft' and lambda_decay=1, or a number of "
                "unfoldings and transform_algorithm='unfolded'."
            )

    def _rule(self):
        return GRADIENT_RULES[self.gradient]

    def _encoder(self, alpha, lambda_decay, step_size):
        return partial(
            encode,
            alpha=alpha,
            n_unfoldings=self.n_unfoldings,
            step_size=step_size,
            lambda_decay=lambda_decay,
            shrinkage=self.shrinkage,
            positive_code=self.positive_code,
        )

    def _transform_encoder(self):
        alpha = self.alpha_ if self.transform_alpha is None else self.transform_alpha
        return self._encoder(alpha, self.lambda_decay_, self.step_size_)

    def _penalty(self, alpha, lambda_decay):
        if self.shrinkage == "hard":
            return 0.0
        return alpha * lambda_decay ** (self.n_unfoldings - 1)

    def _choose_alpha(self, correlation, step_size):
        if self.alpha != "auto":
            return self.alpha
        unit = step_size if self.shrinkage == "hard" else 1.0
        return _AUTO_ALPHA * unit * correlation
