"""Pictures of dictionaries, codes and training, by scikit-learn's Display convention.

A Display holds arrays, and `plot` draws them. Make one from an estimator or from arrays by a class
method, which draws at once; call `plot` again to draw on other axes or in another style. matplotlib
is imported on the first drawing.

======================  =======================================================================
`AtomsDisplay`          the atoms of a dictionary as one grid of images
`ActivationsDisplay`    where in a signal or image the atoms of a convolutional learner are active
`LossCurveDisplay`      loss against epochs, one line per learner
`CodesDisplay`          how often each atom is used, how many atoms a sample uses, how strongly
`RecoveryDisplay`       coherences between learned and known atoms as a matrix
`ContributionsDisplay`  atoms or reconstructions next to the training samples that make them
`ConsensusDisplay`      the stability of each atom of a consensus of fits
`PenaltyPathDisplay`    score against the penalty of the search, and the penalty that was chosen
`SizePathDisplay`       score against the number of atoms, and the number that was chosen
`SpectraDisplay`        non-negative atoms as bars, with a colour for each group of channels
`StabilityDisplay`      how many atoms recur in other fits, against their number
`WaveformsDisplay`      atoms of rank one: maps over channels, and waveforms
======================  =======================================================================
"""

from skpudle.plotting._activations import ActivationsDisplay
from skpudle.plotting._curves import LossCurveDisplay
from skpudle.plotting._displays import AtomsDisplay, CodesDisplay, RecoveryDisplay
from skpudle.plotting._inspection import ContributionsDisplay, StabilityDisplay
from skpudle.plotting._sizes import ConsensusDisplay, PenaltyPathDisplay, SizePathDisplay
from skpudle.plotting._spectra import SpectraDisplay
from skpudle.plotting._waveforms import WaveformsDisplay

__all__ = [
    "ActivationsDisplay",
    "AtomsDisplay",
    "CodesDisplay",
    "ConsensusDisplay",
    "ContributionsDisplay",
    "LossCurveDisplay",
    "PenaltyPathDisplay",
    "RecoveryDisplay",
    "SizePathDisplay",
    "SpectraDisplay",
    "StabilityDisplay",
    "WaveformsDisplay",
]
