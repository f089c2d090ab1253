"""Dictionary learning by backpropagation through unfolded sparse encoders."""

from skpudle._learners.convolutional import ConvPUDLEDictionaryLearning
from skpudle._learners.noodl import NOODLDictionaryLearning
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._learners.sporco import SporcoDictionaryLearning
from skpudle._training.checkpoint import Checkpoint
from skpudle._training.team import data_parallel
from skpudle.reporting import report

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
