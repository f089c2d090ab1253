"""A plugin of pytest that puts this package's engine into nilearn, for nilearn's own tests."""

from nilearn.decomposition import dict_learning

from skpudle.interoperability import dict_learning_online

dict_learning.dict_learning_online = dict_learning_online
