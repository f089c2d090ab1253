"""Dictionary learning by backpropagation through unfolded sparse encoders.

Public modules need no import of their own: ``skpudle.pretrained`` is imported when it is first
used.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING

from skpudle._consensus import ConsensusDictionary
from skpudle._denoiser.estimator import ConvDenoiser
from skpudle._fit.checkpoint import Checkpoint
from skpudle._fit.team import data_parallel
from skpudle._imputer import DictionaryImputer
from skpudle._learners.convolutional.estimator import ConvPUDLEDictionaryLearning
from skpudle._learners.counts import CountDictionaryLearning
from skpudle._learners.noodl import NOODLDictionaryLearning
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._learners.sporco import SporcoDictionaryLearning
from skpudle._learners.supervised.classifier import PUDLEClassifier
from skpudle._learners.supervised.regressor import PUDLERegressor
from skpudle._nmf.estimator import PoissonNMF

if TYPE_CHECKING:  # a type checker does not run __getattr__
    from skpudle import datasets as datasets
    from skpudle import encoding as encoding
    from skpudle import events as events
    from skpudle import images as images
    from skpudle import inspection as inspection
    from skpudle import lasso as lasso
    from skpudle import metrics as metrics
    from skpudle import omp as omp
    from skpudle import plotting as plotting
    from skpudle import pretrained as pretrained
    from skpudle import reporting as reporting
    from skpudle import sae as sae
    from skpudle import search as search

__all__ = [
    "Checkpoint",
    "ConsensusDictionary",
    "ConvDenoiser",
    "ConvPUDLEDictionaryLearning",
    "CountDictionaryLearning",
    "DictionaryImputer",
    "NOODLDictionaryLearning",
    "PUDLEClassifier",
    "PUDLEDictionaryLearning",
    "PUDLERegressor",
    "PoissonNMF",
    "SporcoDictionaryLearning",
    "__version__",
    "data_parallel",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> _ModuleType:
    if name in __dir__():
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    modules = (module.name for module in _iter_modules(__path__))
    return sorted({*__all__, *(name for name in modules if not name.startswith("_"))})
