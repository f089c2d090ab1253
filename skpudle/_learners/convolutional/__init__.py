"""Convolutional dictionary learning of images and signals.

``base`` has what its estimator shares with `ConvDenoiser`, ``estimator`` the learner,
`skpudle.ConvPUDLEDictionaryLearning`, ``learn`` its fit, and ``noise`` estimates of noise.
"""
