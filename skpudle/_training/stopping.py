"""Rules that end training."""

__all__ = ["HeldOut", "Stopping"]


class Stopping:
    """Stop when the smoothed objective has not improved for some checks in a row.

    Parameters
    ----------
    tol : float or None
        Relative improvement that counts; None never stops.
    patience : int
        Number of checks without improvement.
    first_update : int, default=0
        Updates before this one do not count.
    n_updates : int, default=None
        Stop after this number in any case, in the middle of an epoch if need be.
    """

    def __init__(self, tol, patience, *, first_update=0, n_updates=None):
        self.tol, self.patience, self.first_update = tol, patience, first_update
        self.n_updates = n_updates
        # smoothed objective, its least value, checks without a fall; sums since the last check
        self.course = None, None, 0, 0.0, 0

    def limit(self, length, update):
        """Return the number of the next ``length`` updates to make."""
        return length if self.n_updates is None else min(length, self.n_updates - update)

    def forgive(self):
        """Restart the count of checks without improvement, after the criterion has changed."""
        smoothed, best, _, *waiting = self.course
        self.course = smoothed, best, 0, *waiting

    def check(self, total, n_samples, update, *, n_judged=1):
        """Return whether to stop, by the summed objective of ``n_judged`` or more new samples."""
        if self.tol is None or update < self.first_update:
            return False
        smoothed, best, stalled, *waiting = self.course
        total, n_samples = total + waiting[0], n_samples + waiting[1]
        if n_samples < n_judged:
            self.course = smoothed, best, stalled, total, n_samples
            return False
        objective = total / n_samples
        # the mean with its own past halves the variance of a minibatch objective in a few checks
        smoothed = objective if smoothed is None else (smoothed + objective) / 2
        stalled = 0 if best is None or smoothed < best - self.tol * abs(best) else stalled + 1
        best = smoothed if best is None else min(best, smoothed)
        self.course = smoothed, best, stalled, 0.0, 0
        return stalled >= self.patience

    def settle(self, optimizer):
        """Leave the optimiser as it is: training ends with its last rows."""


class HeldOut(Stopping):
    """Stop when the score of held-out samples has not improved for some epochs.

    Parameters
    ----------
    score : callable
        ``score(rows)`` returns the score of rows of parameters, larger for better ones.
    rows : callable
        Returns the present rows.
    n_samples : float
        Number of samples in an epoch, a sum of weights.
    tol : float or None
        Improvement that counts; None never stops.
    patience : int
        Number of epochs without improvement.
    n_updates : int, default=None
        As of `Stopping`.
    """

    def __init__(self, score, rows, n_samples, tol, patience, *, n_updates=None):
        super().__init__(tol, patience, n_updates=n_updates)
        self._score, self._rows, self._n_samples = score, rows, n_samples
        # samples since the last score, epochs without a better score, the best rows, all scores
        self.course = 0, 0, None, ()

    def forgive(self):
        """Restart the count of epochs without improvement, after the criterion has changed."""
        waiting, _, *best = self.course
        self.course = waiting, 0, *best

    def check(self, total, n_samples, update, *, n_judged=1):
        """Return whether to stop after ``n_samples`` more samples; other arguments are ignored."""
        waiting, stalled, best_rows, scores = self.course
        waiting += n_samples
        if waiting < self._n_samples:
            self.course = waiting, stalled, best_rows, scores
            return False
        score, best = self._score(self._rows()), max(scores, default=-float("inf"))
        if score > best:
            best_rows = self._rows().clone()
        stalled = 0 if score > best + (self.tol or 0) else stalled + 1
        self.course = 0, stalled, best_rows, (*scores, score)
        return self.tol is not None and stalled >= self.patience

    def settle(self, optimizer):
        """Restore the first of the rows with the best score."""
        _, _, best_rows, scores = self.course
        if scores:
            optimizer.load(best_rows, optimizer.state())
