"""Networks of convolutions that remove noise from images: a module of torch, and an estimator."""
