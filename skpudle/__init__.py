"""Dictionary learning by backpropagation through unfolded sparse encoders."""

from skpudle.convolutional import ConvPUDLEDictionaryLearning
from skpudle.dictionary_learning import PUDLEDictionaryLearning
from skpudle.noodl import NOODLDictionaryLearning
from skpudle.reporting import report
from skpudle.sporco import SporcoDictionaryLearning

__all__ = [
    "ConvPUDLEDictionaryLearning",
    "NOODLDictionaryLearning",
    "PUDLEDictionaryLearning",
    "SporcoDictionaryLearning",
    "__version__",
    "report",
]

__version__ = "0.1.0"
