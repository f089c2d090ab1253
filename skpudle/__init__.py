"""Dictionary learning by backpropagation through unfolded sparse encoders."""

from skpudle.checkpoint import Checkpoint
from skpudle.convolutional import ConvPUDLEDictionaryLearning
from skpudle.dictionary_learning import PUDLEDictionaryLearning
from skpudle.distributed import data_parallel
from skpudle.noodl import NOODLDictionaryLearning
from skpudle.reporting import report
from skpudle.sporco import SporcoDictionaryLearning

__all__ = [
    "Checkpoint",
    "ConvPUDLEDictionaryLearning",
    "NOODLDictionaryLearning",
    "PUDLEDictionaryLearning",
    "SporcoDictionaryLearning",
    "__version__",
    "data_parallel",
    "report",
]

__version__ = "0.1.0"
