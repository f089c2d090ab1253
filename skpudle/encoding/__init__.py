r"""The unfolded encoder and its adjoint.

From ``z_0 = 0`` the encoder repeats an *iteration*, a gradient step and a shrinkage,

.. math:: z_{t+1} = S(z_t + s D^T (x - D z_t), \text{level}_t), \qquad t = 0, \dots, T - 1,

(eq. 7 of the PUDLE paper, arXiv:2106.00058). Here s is the step size, S the shrinkage, and T the
*depth*, or number of unfoldings. Depth, decay of the penalty, learned thresholds and NOODL's
threshold only choose the sequence of levels. The adjoint starts from the derivatives of a loss in
the last codes, :math:`\delta_T`, and runs backwards:

.. math::
    u_t = [z_{t+1} \neq 0]\, \delta_{t+1}, \qquad \delta_t = u_t - s D^T D u_t,

and the derivative in the atoms is :math:`s \sum_t \text{outer}(u_t, x - D z_t) -
\text{outer}(z_t, D u_t)`. So one `torch.autograd.Function` that stores only the codes serves every
encoder for least squares. Autograd differentiates everything around this function, and encoders for
losses that are not quadratic.
"""

from skpudle.encoding._learned import EncoderModule, learn_encoder
from skpudle.encoding._unfold import encode

__all__ = ["EncoderModule", "encode", "learn_encoder"]
