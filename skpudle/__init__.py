"""Dictionary learning by backpropagation through unfolded sparse encoders."""

from skpudle.dictionary_learning import NOODLDictionaryLearning, PUDLEDictionaryLearning

__all__ = ["NOODLDictionaryLearning", "PUDLEDictionaryLearning", "__version__"]

__version__ = "0.1.0"
