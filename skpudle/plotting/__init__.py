"""Pictures of dictionaries, codes and training, by scikit-learn's Display convention.

A Display holds arrays, and `plot` draws them. Make one from an estimator or from arrays by a class
method, which draws at once; call `plot` again to draw on other axes or in another style. matplotlib
is imported on the first drawing.

======================  =======================================================================
`AtomsDisplay`          the atoms of a dictionary as images, lines, spectra, or maps and waveforms
`ActivationsDisplay`    where in a signal or image the atoms of a convolutional learner are active
`LossCurveDisplay`      loss against epochs, one line per learner
`CodesDisplay`          how often each atom is used, how many atoms a sample uses, how strongly
`RecoveryDisplay`       coherences between learned and known atoms as a matrix
`ContributionsDisplay`  atoms or reconstructions next to the training samples that make them
`PathDisplay`           the numbers of atoms, or penalties, that were tried, and which was chosen
`StabilityDisplay`      how stable atoms are, of a consensus or of dictionaries of several sizes
======================  =======================================================================
"""

from skpudle.plotting._atoms import ActivationsDisplay, AtomsDisplay, ContributionsDisplay
from skpudle.plotting._curves import (
    CodesDisplay,
    LossCurveDisplay,
    PathDisplay,
    RecoveryDisplay,
    StabilityDisplay,
)

__all__ = [
    "ActivationsDisplay",
    "AtomsDisplay",
    "CodesDisplay",
    "ContributionsDisplay",
    "LossCurveDisplay",
    "PathDisplay",
    "RecoveryDisplay",
    "StabilityDisplay",
]
