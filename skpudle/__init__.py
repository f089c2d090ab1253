"""Dictionary learning by backpropagation through unfolded sparse encoders.

Public modules need no import of their own: ``skpudle.pretrained`` is imported when it is first
used.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules

from skpudle._consensus import ConsensusDictionary
from skpudle._imputer import DictionaryImputer
from skpudle._learners.convolutional.pudle import ConvPUDLEDictionaryLearning
from skpudle._learners.nmf import PoissonNMF
from skpudle._learners.noodl import NOODLDictionaryLearning
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._learners.sporco import SporcoDictionaryLearning
from skpudle._learners.supervised.classifier import PUDLEClassifier
from skpudle._learners.supervised.regressor import PUDLERegressor
from skpudle._training.checkpoint import Checkpoint
from skpudle._training.team import data_parallel
from skpudle.reporting import report

__all__ = [
    "Checkpoint",
    "ConsensusDictionary",
    "ConvPUDLEDictionaryLearning",
    "DictionaryImputer",
    "NOODLDictionaryLearning",
    "PUDLEClassifier",
    "PUDLEDictionaryLearning",
    "PUDLERegressor",
    "PoissonNMF",
    "SporcoDictionaryLearning",
    "__version__",
    "data_parallel",
    "report",
]

__version__ = "0.1.0"


def __getattr__(name):
    if name in __dir__():
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    modules = (module.name for module in _iter_modules(__path__))
    return sorted({*__all__, *(name for name in modules if not name.startswith("_"))})
