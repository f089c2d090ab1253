r"""Non-negative matrix factorization of counts of events, by the Poisson likelihood.

The count of row i and feature j has the expectation :math:`\mu_{ij} = e_i \sum_k z_{ik} d_{kj}`,
with the exposure :math:`e`, codes :math:`z` and atoms :math:`d`, none of them negative. The
negative log-likelihood is the Kullback-Leibler divergence of :math:`\mu` from the counts, up to a
constant. Atoms sum to 1, so that codes are numbers of events.

``estimator`` has the learner, `skpudle.PoissonNMF`; ``alternate`` the steps of a fit and their
compiled loops; and ``choose`` the choice of parameters that are "auto" from the data.
"""
