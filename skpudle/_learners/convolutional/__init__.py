"""Convolutional dictionary learning of images and signals.

``base`` has what its estimator shares with `ConvDenoiser`, ``estimator`` the learner,
`skpudle.ConvPUDLEDictionaryLearning`, and ``learn`` its fit, with estimates of noise.
"""
