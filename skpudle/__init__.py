"""Dictionary learning by backpropagation through unfolded sparse encoders.

Classes and public modules are imported when they are first used: ``import skpudle`` alone imports
neither torch nor scikit-learn.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers do not run `__getattr__`, so they read the names here
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
    from skpudle import sae as sae
    from skpudle import search as search
    from skpudle._consensus import ConsensusDictionary as ConsensusDictionary
    from skpudle._denoiser.estimator import ConvDenoiser as ConvDenoiser
    from skpudle._fit.run import Checkpoint as Checkpoint
    from skpudle._fit.train import data_parallel as data_parallel
    from skpudle._imputer import DictionaryImputer as DictionaryImputer
    from skpudle._learners.convolutional.estimator import (
        ConvPUDLEDictionaryLearning as ConvPUDLEDictionaryLearning,
    )
    from skpudle._learners.counts import (
        CountDictionaryLearning as CountDictionaryLearning,
    )
    from skpudle._learners.noodl import (
        NOODLDictionaryLearning as NOODLDictionaryLearning,
    )
    from skpudle._learners.pudle import (
        PUDLEDictionaryLearning as PUDLEDictionaryLearning,
    )
    from skpudle._learners.sporco import (
        SporcoDictionaryLearning as SporcoDictionaryLearning,
    )
    from skpudle._learners.supervised import PUDLEClassifier as PUDLEClassifier
    from skpudle._learners.supervised import PUDLERegressor as PUDLERegressor
    from skpudle._nmf.estimator import PoissonNMF as PoissonNMF

__version__ = "0.1.0"

# For each public class or function the private module from which `__getattr__` imports it. A new
# public name also needs an import above.
_HOMES = {
    "Checkpoint": "_fit.run",
    "ConsensusDictionary": "_consensus",
    "ConvDenoiser": "_denoiser.estimator",
    "ConvPUDLEDictionaryLearning": "_learners.convolutional.estimator",
    "CountDictionaryLearning": "_learners.counts",
    "DictionaryImputer": "_imputer",
    "NOODLDictionaryLearning": "_learners.noodl",
    "PUDLEClassifier": "_learners.supervised",
    "PUDLEDictionaryLearning": "_learners.pudle",
    "PUDLERegressor": "_learners.supervised",
    "PoissonNMF": "_nmf.estimator",
    "SporcoDictionaryLearning": "_learners.sporco",
    "data_parallel": "_fit.train",
}
__all__ = ["__version__", *_HOMES]


# Python calls the next two functions for attributes of the package (PEP 562). `__getattr__` imports
# a public name when it is first used. `__dir__` lists all public names, whether imported or not.
def __getattr__(name: str) -> object:
    if name not in __dir__():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _import_module(f"{__name__}.{_HOMES.get(name, name)}")
    value = globals()[name] = getattr(module, name) if name in _HOMES else module
    return value


def __dir__() -> list[str]:
    modules = (module.name for module in _iter_modules(__path__))
    return sorted({*__all__, *(name for name in modules if not name.startswith("_"))})
