"""When training is to stop by itself."""

from numbers import Real

__all__ = ["HeldOut", "Stopping"]


class Stopping:
    """Stop when the smoothed objective has not improved for some checks in a row.

    Parameters
    ----------
    tol : float or None
        Relative improvement that counts; None never stops.
    patience : int
        Number of checks without one.
    first_update : int, default=0
        Updates before this one are not judged.
    n_updates : int, default=None
        Stop after that many in any case, in the middle of an epoch if need be.
    """

    def __init__(self, tol, patience, *, first_update=0, n_updates=None):
        self.tol, self.patience, self.first_update = tol, patience, first_update
        self.n_updates = n_updates
        # smoothed objective, the best so far, checks without a better; sums since the last check
        self.course = None, None, 0, 0.0, 0

    def limit(self, length, update):
        """Return how many of the next ``length`` updates are to be made."""
        return length if self.n_updates is None else min(length, self.n_updates - update)

    def accepts(self, course, rows):
        """Return whether this may be the course of one that stops training of these rows."""
        numbers = (isinstance(number, Real | None) for number in course)
        return len(course) == len(self.course) and all(numbers)

    def forgive(self):
        """Count checks without an improvement anew, after what counts as one has changed."""
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
        """Choose what training ends with: what it came to."""


class HeldOut(Stopping):
    """Stop when the score of samples that are not trained on has not improved for some epochs.

    Parameters
    ----------
    score : callable
        ``score(rows)`` returns that of rows of parameters, larger is better.
    rows : callable
        Returns the present ones.
    n_samples : int
        Of an epoch.
    tol : float or None
        Improvement that counts; None never stops.
    patience : int
        Number of epochs without one.
    n_updates : int, default=None
        As of `Stopping`.
    """

    def __init__(self, score, rows, n_samples, tol, patience, *, n_updates=None):
        super().__init__(tol, patience, n_updates=n_updates)
        self._score, self._rows, self._n_samples = score, rows, n_samples
        # samples since the last score, epochs without a better one, the best rows, all scores
        self.course = 0, 0, None, ()

    def accepts(self, course, rows):
        """Return whether this may be the course of one that stops training of these rows."""
        *counters, best_rows, scores = course
        fit = best_rows is None or (best_rows.shape, best_rows.dtype) == (rows.shape, rows.dtype)
        numbers = (isinstance(number, Real) for number in (*counters, *scores))
        return len(counters) == 2 and fit and all(numbers)

    def forgive(self):
        """Count epochs without an improvement anew, after what counts as one has changed."""
        waiting, _, *best = self.course
        self.course = waiting, 0, *best

    def check(self, total, n_samples, update, *, n_judged=1):
        """Return whether to stop, after so many new samples; the others are not looked at."""
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
        """Go back to the rows with the best score, the first of them."""
        _, _, best_rows, scores = self.course
        if scores:
            optimizer.load(best_rows, optimizer.state())
