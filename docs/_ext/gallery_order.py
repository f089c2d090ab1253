"""The order of the examples in the gallery."""

EXAMPLES = [  # what users come for first, then the theory
    "plot_first_atoms.py",
    "plot_denoising.py",
    "plot_denoise_image.py",
    "plot_inpainting.py",
    "plot_imputation.py",
    "plot_heartbeats.py",
    "plot_spikes.py",
    "plot_counts.py",
    "plot_spike_counts.py",
    "plot_digits_pipeline.py",
    "plot_classifier.py",
    "plot_regressor.py",
    "plot_contributions.py",
    "plot_how_many_atoms.py",
    "plot_stability.py",
    "plot_stable_training.py",
    "plot_noise.py",
    "plot_choosing_alpha.py",
    "plot_other_learners.py",
    "plot_choosing_gradient.py",
    "plot_find_dictionary.py",
    "plot_tensors.py",
    "plot_online.py",
    "plot_figure_2.py",
    "plot_figure_3.py",
    "plot_figure_4ab.py",
    "plot_figure_4cd.py",
    "plot_figure_5_6.py",
]


def example_order(name):
    """Return the place of an example in the gallery; what is not listed comes last."""
    return EXAMPLES.index(name) if name in EXAMPLES else len(EXAMPLES)
