r"""Counts of events from sources that add: the Poisson loss with the identity link.

Every entry is a count with expectation :math:`\mu_{ij} = e_i \sum_k z_{ik} d_{kj}`, of codes and
atoms that are not negative. The negative log-likelihood is the Kullback-Leibler divergence of
:math:`\mu` from the data. Atoms sum to 1, so that codes count events.

``alternate`` has the steps, ``choose`` the choices that held-out entries make, ``estimator`` the
learner, `skpudle.PoissonNMF`, and ``_compiled`` the loops.
"""
