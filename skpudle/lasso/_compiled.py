r"""The active set method of `skpudle.lasso._batched`, one sample at a time, compiled by numba.

The functions are plain Python until `loops` compiles them; they change their arguments in place.
The names of their arguments mean, for one sample with a support of ``k`` atoms:

* ``support`` has the numbers of the atoms, ``z`` their codes, ``theta`` the signs, 1 or -1,
  ``squares`` the squared norms of the atoms;
* ``c`` (n_components,) are the correlations ``D^T (x - D z)`` of all atoms with the residual;
* ``slope = c_S - penalty * theta`` is the residual of the optimality condition on the support;
* ``factor`` is the Cholesky factor L of ``G_SS``, with reciprocals on the diagonal, since divisions
  took a tenth of the time. It gets a row when an atom enters, and rotations when an atom leaves;
* ``y = L^{-1} slope``. The Newton step is ``L^{-T} y``. The fraction ``t`` of the step multiplies
  ``slope`` and ``y`` by ``1 - t``. The rotations that update L update ``y``, too. So a step costs
  one substitution;
* ``atoms`` (n_components, n_features), ``gram``, their Gram matrix or None, and ``x`` (n,
  n_features) are those of all samples;
* ``residual`` (n_features,), ``step`` (k,) and other arrays that functions set before they read
  them are memory to work in. Arrays of the shape (k,) have room for larger supports.

The code has loops where slices would be shorter, because numba takes seconds to compile an
assignment to a slice. Memory to work in comes as arguments, and functions have few callers, because
allocations, and second copies of inlined functions, took a third of the time to compile.

The batches of `skpudle.lasso._batched` take, on one core, 14 times as long for 5,000 rows of 64
features with 64 atoms, 27 times with 256 atoms, and 8 times for 1,000 rows of 256 features with
1,000 atoms.
"""

import numpy as np

from skpudle._compilation import Loops, in_parts

# Default of ``max_iter`` in `solve` and `solve_lasso`: the largest number of rounds of the active
# set method for a sample and a penalty.
MOST_ROUNDS = 1000
# A run is a group of RUN neighbouring atoms. In a round at most one atom of each run enters the
# support of a sample, the one with the largest correlation with the residual. So one pass over all
# atoms finds several atoms that enter, but only one of similar neighbours, which would explain the
# same part of the residual.
RUN = 32
# Largest number of atoms that enter the support of a sample in a round.
CANDIDATES = 8
# Only atoms enter whose correlation with the residual is at least this fraction of the largest
# correlation: smaller ones may vanish once the atom with the largest correlation has a code.
LEAST_SHARE = 0.8
# An atom counts as linearly dependent on the support if at most this fraction of its squared norm
# is outside of the span of the support. Such an atom enters only as the first atom of a round. Its
# Newton step changes the codes but not the reconstruction, and ends when a code reaches zero.
DEPENDENT = 1e-12
# Margin of rounding: an atom d_j enters only if the modulus of its correlation with the residual,
# c_j = d_j^T x - d_j^T D z, exceeds the penalty by more than RESOLUTION times the penalty plus
# ROUNDING times the size of the terms that cancel in c_j. This size is taken as the largest
# correlation so far plus the sum of |z_i| |d_i|^2 over the atoms of the support.
RESOLUTION = 1e-12
ROUNDING = 1e-15
# Correlations of atoms with the residual count as equal if they differ by less than this fraction.
# Of atoms that share the largest correlation of a run the first enters, so that rounding errors do
# not decide on the support.
TIE = 1e-10
# Rounding errors may keep codes from ever meeting the optimality condition of the lasso. So codes
# that miss the condition by less than NEARLY times the penalty get at most POLISHES more rounds.
# Without a penalty the limit is NEARLY times a hundredth of the largest correlation so far.
NEARLY = 1e-9
POLISHES = 4
# The slope of an atom is the derivative of the objective in its code, up to the sign. After a round
# the slopes of the support are zero up to rounding. If they are at most this fraction of the
# largest slope of an atom that may enter, the next Newton step takes them for zero, which saves a
# part of the substitution that computes y.
SETTLED = 1e-6
# Without a penalty the step of an atom that depends on the support (DEPENDENT) has no bound, and
# would amplify rounding errors. So the atom enters only if its correlation is above this number
# times the margin of RESOLUTION and ROUNDING.
UNBOUNDED = 1000


def _correlate(
    atoms,
    gram,
    x,
    row,
    start,
    support,
    z,
    k,
    residual,
    c,
):
    """Set ``c`` (n_components,) to the correlations ``D^T (x - D z)`` of row ``row`` of the data.

    With a Gram matrix they are ``D^T x - G z``, where ``start`` (n, n_components) has ``D^T x`` of
    each row. Without one they are computed from the ``residual``, memory of (n_features,), and
    ``start`` is not read. ``support`` and ``z`` are the numbers and the codes of the ``k`` atoms.
    """
    n_components, n_features = atoms.shape
    if gram is None:
        for feature in range(n_features):
            residual[feature] = x[row, feature]
        for i in range(k):
            code = z[i]
            atom = support[i]
            for feature in range(n_features):
                residual[feature] -= code * atoms[atom, feature]
        for j in range(n_components):
            total = 0.0
            for feature in range(n_features):
                total += atoms[j, feature] * residual[feature]
            c[j] = total
        return
    for j in range(n_components):
        c[j] = start[row, j]
    i = 0
    while i + 3 < k:  # four rows of `gram` at a time, to read and write `c` less often
        z0 = z[i]
        z1 = z[i + 1]
        z2 = z[i + 2]
        z3 = z[i + 3]
        s0 = support[i]
        s1 = support[i + 1]
        s2 = support[i + 2]
        s3 = support[i + 3]
        for j in range(n_components):
            c[j] -= (
                z0 * gram[s0, j]
                + z1 * gram[s1, j]
                + z2 * gram[s2, j]
                + z3 * gram[s3, j]
            )
        i += 4
    while i < k:
        z0 = z[i]
        s0 = support[i]
        for j in range(n_components):
            c[j] -= z0 * gram[s0, j]
        i += 1


def _border(
    atoms,
    gram,
    support,
    k,
    squares,
    factor,
):  # -> float
    """Append the atom ``support[k]`` to the Cholesky ``factor`` and to ``squares``, in place.

    The support has ``k`` atoms before the new one. ``factor``, of their Gram matrix, is lower
    triangular, with reciprocals on the diagonal; ``squares`` are the squared norms. ``gram``, the
    Gram matrix of all ``atoms``, may be None. Return the fraction of the new atom's squared
    norm that is outside of the span of the first ``k`` atoms.
    """
    new = support[k]
    for i in range(k + 1):
        other = support[i]
        total = 0.0
        if gram is None:
            for feature in range(atoms.shape[1]):
                total += atoms[new, feature] * atoms[other, feature]
        else:
            total = gram[new, other]
        factor[k, i] = total
    squares[k] = factor[k, k]
    pivot = squares[k]
    i = 0
    while i + 1 < k:  # two rows of the factor at a time, to read the new row less often
        entry = factor[k, i]
        next_entry = factor[k, i + 1]
        for j in range(i):
            entry -= factor[k, j] * factor[i, j]
            next_entry -= factor[k, j] * factor[i + 1, j]
        entry *= factor[i, i]
        next_entry = (next_entry - entry * factor[i + 1, i]) * factor[i + 1, i + 1]
        factor[k, i] = entry
        factor[k, i + 1] = next_entry
        pivot -= entry * entry + next_entry * next_entry
        i += 2
    if i < k:
        entry = factor[k, i]
        for j in range(i):
            entry -= factor[k, j] * factor[i, j]
        entry *= factor[i, i]
        factor[k, i] = entry
        pivot -= entry * entry
    # The pivot of an atom that depends on the support is 0 up to rounding, and might give an
    # infinite step. With this least pivot the step is only long. The step leaves the reconstruction
    # as it is, and ends at the first code that reaches zero.
    least = 0.1 * DEPENDENT * squares[k]
    factor[k, k] = 1 / np.sqrt(pivot if pivot > least else least)
    return pivot / squares[k]


def _remove(
    index,
    k,
    support,
    z,
    theta,
    squares,
    step,
    y,
    factor,
):
    """Remove the atom at ``index`` of the support of ``k`` atoms from all arrays, in place.

    Rotations update the Cholesky ``factor``, lower triangular with reciprocals on the diagonal, and
    ``y``, the inverse factor times the slope. This is faster than to factor the smaller Gram matrix
    anew. The module docstring explains the other arguments.
    """
    for i in range(index, k - 1):
        support[i] = support[i + 1]
        z[i] = z[i + 1]
        theta[i] = theta[i + 1]
        squares[i] = squares[i + 1]
        step[i] = step[i + 1]
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    # Now that the atom's row is gone, row j has an entry in column j + 1, right of the diagonal. A
    # rotation of the columns j and j + 1 makes this entry zero.
    for j in range(index, k - 1):
        last = 1 / factor[j, j + 1]
        first = factor[j, j]
        inverse = 1 / np.sqrt(first * first + last * last)
        cosine = first * inverse
        sine = last * inverse
        factor[j, j] = inverse
        left = y[j]
        right = y[j + 1]
        y[j] = cosine * left + sine * right
        y[j + 1] = cosine * right - sine * left
        for i in range(j + 1, k - 1):
            left = factor[i, j]
            right = factor[i, j + 1]
            factor[i, j] = cosine * left + sine * right
            factor[i, j + 1] = cosine * right - sine * left


def _fraction_at_zero(z, theta, step):  # floats, of one code -> float
    """Return the fraction of a Newton step at which a code reaches zero; 2 if it keeps its sign.

    ``z``, ``theta`` and ``step`` are the code of one atom, its sign, 1 or -1, and its Newton step.
    """
    if theta * (z + step) > 0:
        return 2.0
    return z / -step if theta * step < 0 else 0.0


def _minimise(
    n_zeros,
    k,
    support,
    z,
    theta,
    slope,
    squares,
    step,
    y,
    factor,
):  # -> int
    """Minimise the objective for a fixed support and signs; return the support's new size.

    Each Newton step ends at the first code that would change its sign; this code becomes zero and
    leaves the support. The last step is one that keeps all signs. ``slope`` is only read, and its
    first ``n_zeros`` entries count as zero. All other arrays change in place. The module docstring
    explains the arguments.
    """
    for i in range(n_zeros):
        y[i] = 0.0
    for i in range(n_zeros, k):  # y = L^{-1} slope
        total = slope[i]
        for j in range(n_zeros, i):
            total -= factor[i, j] * y[j]
        y[i] = total * factor[i, i]
    while k > 0:
        for i in range(k):
            step[i] = y[i]
        i = k - 1
        while i > 0:  # two rows of the factor at a time, to pass over `step` less often
            value = step[i] * factor[i, i]
            above = (step[i - 1] - factor[i, i - 1] * value) * factor[i - 1, i - 1]
            step[i] = value
            step[i - 1] = above
            for j in range(i - 1):
                step[j] -= factor[i, j] * value + factor[i - 1, j] * above
            i -= 2
        if i == 0:
            step[0] *= factor[0, 0]
        length = 2.0
        for i in range(k):
            fraction = _fraction_at_zero(z[i], theta[i], step[i])
            length = fraction if fraction < length else length
        if length > 1.0:
            for i in range(k):
                z[i] += step[i]
            break
        remaining = k
        for i in range(k):
            y[i] *= 1.0 - length
        for i in range(k - 1, -1, -1):
            stops = _fraction_at_zero(z[i], theta[i], step[i]) <= length
            z[i] += length * step[i]
            if stops:
                _remove(i, remaining, support, z, theta, squares, step, y, factor)
                remaining -= 1
        k = remaining
    return k


def _peaks(c, positive, peaks):  # (n_components,), bool, (n_runs,) -> float
    """Set ``peaks`` to the largest correlation of each run of atoms (`RUN`); return the largest.

    ``c`` are the correlations of all atoms. Their moduli count, unless codes are ``positive``.
    """
    best = 0.0
    for run in range(len(peaks)):
        peak = 0.0
        last = (run + 1) * RUN
        for j in range(run * RUN, last if last < len(c) else len(c)):
            size = c[j] if positive else abs(c[j])
            peak = size if size > peak else peak
        peaks[run] = peak
        best = peak if peak > best else best
    return best


def _admit(
    atoms, gram, c, penalty, positive, peaks, weakest, least_dependent, k, support, z,
    theta, slope, squares, factor,
):  # fmt: skip
    """Admit atoms to the support in a round, and return its new size.

    The atom with the largest correlation of each run enters, if this correlation (one of
    ``peaks``, see `_peaks`) is at least ``weakest``; at most `CANDIDATES` atoms enter. They are
    appended to the arrays from ``support`` on. An atom that depends on the support enters only as
    the first one, and only if its correlation exceeds ``least_dependent``. The module docstring
    explains the other arguments.
    """
    n_old = k
    for run in range(len(peaks)):
        if peaks[run] < weakest or k == n_old + CANDIDATES:
            continue
        j = run * RUN
        while (c[j] if positive else abs(c[j])) < (1 - TIE) * peaks[run]:
            j += 1
        support[k] = j
        outside = _border(atoms, gram, support, k, squares, factor)
        if outside > DEPENDENT or (k == n_old and abs(c[j]) > least_dependent):
            z[k] = 0.0
            theta[k] = 1.0 if c[j] > 0.0 else -1.0
            slope[k] = c[j] - penalty * theta[k]
            k += 1
    return k


def _gap(
    atoms,
    x,
    row,
    support,
    z,
    k,
    largest,
    penalty,
    residual,
):  # -> float
    """Return the relative duality gap of one row: a certificate that its codes are optimal.

    The gap bounds how far the objective is above its minimum, and is divided by the objective of
    zero codes. ``largest`` is a bound on the correlations of the residual with all atoms (on their
    moduli, for codes of both signs), and at least the penalty. The module docstring explains the
    other arguments.
    """
    n_features = x.shape[1]
    l1_norm = 0.0
    for feature in range(n_features):
        residual[feature] = x[row, feature]
    for i in range(k):
        code = z[i]
        atom = support[i]
        l1_norm += abs(code)
        for feature in range(n_features):
            residual[feature] -= code * atoms[atom, feature]
    energy = 0.0
    square = 0.0
    product = 0.0
    for feature in range(n_features):
        value = x[row, feature]
        rest = residual[feature]
        energy += value * value
        square += rest * rest
        product += value * rest
    # the residual times this number is the dual point with the best bound
    multiple = 0.0
    if product > 0.0 and square > 0.0:
        multiple = product / square
        if penalty / largest < multiple:
            multiple = penalty / largest
    gap = square / 2 + penalty * l1_norm - multiple * (product - multiple * square / 2)
    if gap <= 0.0:
        return 0.0
    # NaN if data or codes are NaN
    return np.inf if energy == 0.0 else gap / (energy / 2)


def solve_rows(
    first, last, whole_atoms, gram, x, mask, penalties, positive, max_iter, codes, gaps,
    support, z, theta, slope, squares, step, y, factor, c, residual, peaks, seen,
):  # fmt: skip
    """Solve the lasso for the rows ``first:last`` at falling penalties, on one thread of the CPU.

    ``codes`` (1 or 2, n_penalties, n, n_components) gets the lasso's codes in ``codes[0]``, and
    least squares codes on their supports in ``codes[1]``, if it exists. ``gaps`` (n,) gets the
    relative duality gaps of the lasso's codes at the last penalty; if it is empty, no gaps are
    computed.

    With a Gram matrix ``codes[0, -1]`` has to hold ``D^T x`` on entry, and ``mask`` is not read.
    Without one, ``mask`` is (n, n_features), or (n, 0) if no entry is missing. It holds 1 and 0, or
    weights; it multiplies the atoms of each row, and ``x`` has been multiplied by it before. numba
    compiles the solver with and without a Gram matrix separately, each when it is first used.

    The arguments from ``support`` on are memory to work in, see the module; `solve_alike` allocates
    it. Return ``last``, or the first row whose support needs more memory; the caller solves this
    row again.
    """
    atoms = whole_atoms
    n_components, n_features = atoms.shape
    n_penalties = len(penalties)
    start = codes[0, n_penalties - 1]
    for row in range(first, last):
        if gram is None and mask.shape[1] > 0:
            atoms = seen
            for j in range(n_components):
                for feature in range(n_features):
                    seen[j, feature] = mask[row, feature] * whole_atoms[j, feature]
        k = np.int64(0)  # a literal 0 would make numba compile every function twice
        scale = 0.0  # the largest correlation so far; rounding errors grow with it
        for p in range(n_penalties):
            penalty = penalties[p]
            polished = 0
            n_rounds = 0
            stage = 0  # 0: codes of the lasso; 1: least squares codes
            is_solved = False
            while True:
                if not is_solved:
                    _correlate(atoms, gram, x, row, start, support, z, k, residual, c)
                    if k + CANDIDATES > len(support):
                        return row
                    # `miss` is by how much codes miss the optimality condition, at first only on
                    # the support. `n_zeros` is the number of slopes at the beginning of the
                    # support that `_minimise` takes for zero (`SETTLED`).
                    miss = 0.0
                    size = 0.0
                    n_zeros = k
                    for i in range(k):
                        slope[i] = c[support[i]] - penalty * theta[i]
                        c[support[i]] = 0.0
                        miss = abs(slope[i]) if abs(slope[i]) > miss else miss
                        size += abs(z[i]) * squares[i]
                    best = _peaks(c, positive, peaks)
                    scale = best if best > scale else scale
                    margin = RESOLUTION * penalty + ROUNDING * (scale + size)
                    if miss > SETTLED * (best - penalty):
                        n_zeros = 0  # no slope of the support counts as zero
                    # Without a penalty the slopes of the support should be 0, and are rounding
                    # errors. If no other atom has a larger correlation, this correlation may be a
                    # rounding error, too. So no atom enters, and the round only makes the codes of
                    # the support more exact.
                    by_rounding = penalty == 0.0 and best <= miss
                    miss = best - penalty if best - penalty > miss else miss
                    k_before = k
                    if miss <= NEARLY * (penalty if penalty > 0.0 else 0.01 * scale):
                        polished += 1
                    is_solved = (
                        miss <= margin or polished > POLISHES or n_rounds >= max_iter
                    )
                    if is_solved and p == n_penalties - 1 and len(gaps) > 0:
                        gaps[row] = _gap(
                            atoms, x, row, support, z, k, penalty + miss, penalty, residual
                        )  # fmt: skip
                if is_solved:
                    for j in range(n_components):
                        codes[stage, p, row, j] = 0.0
                    for i in range(k):
                        codes[stage, p, row, support[i]] = z[i]
                    stage += 1
                    if stage == len(codes):
                        break
                    # the next stage: one more minimisation, now without the penalty, gives the
                    # least squares codes on the support
                    for i in range(k):
                        slope[i] += penalty * theta[i]
                    n_zeros = 0
                else:
                    weakest = penalty + margin
                    if LEAST_SHARE * best > weakest:
                        weakest = LEAST_SHARE * best
                    if by_rounding:
                        weakest = np.inf
                    least_dependent = 0.0 if penalty > 0.0 else UNBOUNDED * margin
                    k = _admit(
                        atoms, gram, c, penalty, positive, peaks, weakest, least_dependent, k,
                        support, z, theta, slope, squares, factor,
                    )  # fmt: skip
                    # without a penalty a round that admits no atom can only polish the codes
                    polished += penalty == 0.0 and k == k_before
                    inverse = factor[k_before, k_before] if k > k_before else 0.0
                    if inverse**2 * squares[k_before] > 1e6:
                        # At most 1e-6 of the squared norm of the first new atom is outside of the
                        # span of the support. So the step is long and amplifies even small slopes
                        # of the support, which must not count as zero.
                        n_zeros = 0
                k = _minimise(
                    n_zeros, k, support, z, theta, slope, squares, step, y, factor
                )
                n_rounds += 1
    return last


loops = Loops(globals())


def solve_alike(
    atoms,
    gram,
    x,
    mask,
    penalties,
    positive,
    max_iter,
    out,
    gaps,
):
    """Solve the lasso on the CPU, in threads; `skpudle.lasso._batched.solve` calls this function.

    ``out`` (1 or 2, n_penalties, n, n_components) gets the lasso's codes in ``out[0]``, and least
    squares codes on their supports in ``out[1]``, if it exists. ``gaps`` (n,), if it is not None,
    gets the relative duality gaps of the lasso's codes at the last penalty. Arguments are those of
    `skpudle.lasso._batched.solve_alike`, which does the same in torch, except that with a Gram
    matrix ``out[0, -1]`` has to hold ``x @ atoms.mT`` on entry. Codes of each penalty start from
    the codes of the penalty before.
    """
    mask = x.new_empty(len(x), 0) if mask is None else mask
    gaps = x.new_empty(0) if gaps is None else gaps
    # the arrays share the memory of the tensors, so that the loops write into `out` and `gaps`
    atoms = np.asarray(atoms.contiguous())
    x = np.asarray(x.contiguous())
    mask = np.asarray(mask.contiguous())
    gram = None if gram is None else np.asarray(gram.contiguous())
    out = np.asarray(out)
    gaps = np.asarray(gaps)
    penalties = np.asarray(penalties, dtype=np.float64)

    def solve_part(first, last):  # solve the rows `first:last`
        room = 4 * CANDIDATES
        c = np.empty(len(atoms))
        residual = np.empty(x.shape[1])
        peaks = np.empty(-(-len(atoms) // RUN))
        seen = np.empty((len(atoms), mask.shape[1]))
        # `loops.solve_rows` returns early at a row whose support may need more than `room` atoms;
        # it is called again for this and later rows, with twice the memory
        while first < last:
            z, theta, slope, squares, step, y = np.empty((6, room))
            first = loops.solve_rows(
                first, last, atoms, gram, x, mask, penalties, bool(positive), max_iter, out, gaps,
                np.empty(room, np.int64), z, theta, slope, squares, step, y,
                np.empty((room, room)), c, residual, peaks, seen,
            )  # fmt: skip
            room = 2 * room

    # A thread gets at least 16 rows, and rows whose product with the atoms takes at least 2e6
    # multiplications; to solve for their codes takes a few milliseconds. With less work two threads
    # are no faster than one on idle cores, and take twice the time on busy cores.
    least_rows = max(16, int(2e6 / max(atoms.size, 1)))
    in_parts(solve_part, len(x), least_rows)
