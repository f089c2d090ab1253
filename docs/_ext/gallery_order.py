"""The order of the examples in the gallery."""

EXAMPLES = [  # grouped as in examples/GALLERY_HEADER.rst: tasks first, then the theory
    # First steps
    "plot_first_atoms.py",
    "plot_find_dictionary.py",
    "plot_choosing_alpha.py",
    "plot_stability.py",
    "plot_how_many_atoms.py",
    "plot_intervals.py",
    "plot_raw_data.py",
    "plot_noise.py",
    "plot_anomalies.py",
    "plot_callback.py",
    "plot_describe_fit.py",
    # Images
    "plot_denoising.py",
    "plot_denoise_image.py",
    "plot_inpainting.py",
    "plot_stains.py",
    # Signals and counts
    "plot_heartbeats.py",
    "plot_beats.py",
    "plot_spikes.py",
    "plot_meg.py",
    "plot_counts.py",
    "plot_signatures.py",
    "plot_topics.py",
    # Tables with gaps
    "plot_imputation.py",
    # Classification, regression, interpretation
    "plot_digits_pipeline.py",
    "plot_classifier.py",
    "plot_regressor.py",
    "plot_contributions.py",
    "plot_concepts.py",
    # Streams, tensors, other packages
    "plot_online.py",
    "plot_tensors.py",
    "plot_other_learners.py",
    # Gradients and the paper
    "plot_encoders.py",
    "plot_choosing_gradient.py",
    "plot_stable_training.py",
    "plot_figure_2.py",
    "plot_figure_3.py",
    "plot_figure_4ab.py",
    "plot_figure_4cd.py",
    "plot_figure_5_6.py",
]


def example_order(name):
    """Return the place of an example in the gallery; unlisted ones come last."""
    return EXAMPLES.index(name) if name in EXAMPLES else len(EXAMPLES)
