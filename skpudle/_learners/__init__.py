"""The learners: scikit-learn outside, the mathematics and the training of this package inside."""
