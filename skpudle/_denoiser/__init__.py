"""Remove noise from images by convolutional networks: a torch module and its estimator."""
