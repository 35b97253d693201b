"""Challenger against champion on live requests: counts in, verdict with reasons out. Pure; may be asked every second.

Each role's rates and quantiles get a confidence sequence: intervals that hold at every number of requests at once with
the stated probability, so that looking after every request, and stopping when it suits, inflates no error (Howard,
Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Ann. Statist. 49(2),
2021). Two intervals give an interval of the difference, valid however the two roles depend on each other, and that is
held against a margin of the line:

    the whole interval is beyond the margin     harm is shown: roll back, at any number of requests
    the whole interval is within the margin     absence of harm is shown: go on, from the minimum of requests on
    the margin lies inside                      nothing is shown: wait

| check   | what is compared                                   | interval                                           |
|---------|----------------------------------------------------|----------------------------------------------------|
| errors  | shares of failed requests                          | `share_bounds`: beta-binomial mixture              |
| latency | a quantile, from histograms                        | `quantile_bounds`: the same, of the share below it |
| scores  | distribution functions at every edge (Kolmogorov)  | `share_bounds`, a union bound over the edges       |
| paired  | mean difference of the scores of the same requests | `mean_bounds`: betting, adapts to the variance     |

The error of a whole rollout, 1 - confidence, is spread evenly over its stages, their three checks and the two roles.
The intervals take requests of a role as alike and independent. Bursts are neither, so a stage lasts for minutes too.
"""

from __future__ import annotations

import math
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from aifactory.line import Deployment
from aifactory.reasons import ReasonCode
from aifactory.specfile import Spec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

NUM_CHECKS = 3
"""Checks of a stage: errors, latency, scores."""
LATENCY_EDGES_MS = tuple(round(10 ** (k / 20), 4) for k in range(-20, 97))
"""Edges from 0.1 ms to a minute, 20 a decade: neighbours differ by 12 %, so a ratio of 1.3 or more can be shown."""
SCORE_EDGES = tuple(round(k / 20, 2) for k in range(1, 20))
"""Edges of probabilities: twenty equal bins."""
PAIRED_EDGES = tuple(round(k / 200, 3) for k in range(-199, 200))
"""Edges of score differences from -1 to 1: the bounds of a mean are wider by a bin, 0.005."""

_BETS = tuple(0.001 * (0.99 / 0.001) ** (k / 23) for k in range(24))
_HALVINGS = 40


class Histogram(Spec):
    """Counts of values: `counts[i]` of those in (edges[i-1], edges[i]], the last one of those above every edge."""

    edges: tuple[float, ...] = Field(min_length=1, description="Upper edges, rising.")
    counts: tuple[int, ...] = Field(description="One more than edges; cumulative over time, not over bins.")

    @model_validator(mode="after")
    def _consistent(self) -> Histogram:
        if len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts, got {len(self.counts)}")
        if any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError("edges must rise")
        if min(self.counts) < 0:
            raise ValueError(f"counts must not be negative, got {min(self.counts)}")
        return self

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(self.counts)


class Counts(Spec):
    """What one role did since the stage began."""

    requests: int = Field(ge=0, description="Requests that were sent to it; its callers' faults (4xx) do not count.")
    errors: int = Field(ge=0, description="Those of them that it failed: 5xx, no answer, an answer without a score.")
    latency_ms: Histogram = Field(description="Latencies of the requests, ms.")
    scores: Histogram = Field(description="Scores, 0 to 1, one a request: rows of one request are not independent.")

    @model_validator(mode="after")
    def _consistent(self) -> Counts:
        if self.errors > self.requests:
            raise ValueError(f"errors {self.errors} exceed requests {self.requests}")
        return self


class Comparison(Spec):
    """Counts of both roles over the same time."""

    generation: int = Field(ge=0, description="Generation of the traffic document since whose coming into force it is.")
    champion: Counts
    challenger: Counts
    paired: Histogram | None = Field(
        default=None,
        description="In shadow: challenger's score minus champion's of the same request, -1 to 1, one a request.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Comparison:
        if self.champion.scores.edges != self.challenger.scores.edges:
            raise ValueError("the scores of champion and challenger must be counted between the same edges")
        return self


class Outcome(StrEnum):
    """What one check has shown."""

    HARM = "harm"
    NO_HARM = "no_harm"
    OPEN = "open"


class Verdict(StrEnum):
    """What a stage's counts say; going on from the last step is the promotion."""

    GO_ON = "go_on"
    WAIT = "wait"
    NO_TRAFFIC = "no_traffic"
    ROLL_BACK = "roll_back"


class Finding(Spec):
    """One check: the number, the interval it surely lies in, and the limit it was held against."""

    check: str
    outcome: Outcome
    reason: ReasonCode
    value: float | None = Field(description="As observed; None where there is nothing to observe.")
    lower: float
    upper: float
    limit: float
    num_champion: int
    num_challenger: int

    @property
    def sentence(self) -> str:
        """The finding in words."""
        relation = {Outcome.HARM: "exceeds", Outcome.NO_HARM: "is within", Outcome.OPEN: "cannot be told from"}
        value = "unknown" if self.value is None else f"{self.value:.4g}"
        return (
            f"{self.check} {value} (surely {self.lower:.4g} to {self.upper:.4g}) "
            f"{relation[self.outcome]} {self.limit:.4g}, "
            f"on {self.num_challenger} requests of the challenger and {self.num_champion} of the champion"
        )


class Judgement(Spec):
    """The verdict and what it rests on."""

    verdict: Verdict
    findings: tuple[Finding, ...]

    @property
    def harms(self) -> tuple[Finding, ...]:
        """The checks that showed harm."""
        return tuple(f for f in self.findings if f.outcome is Outcome.HARM)

    @property
    def explanation(self) -> str:
        """The findings that decided, in words."""
        deciding = self.harms or [f for f in self.findings if f.outcome is Outcome.OPEN] or self.findings
        return "; ".join(f.sentence for f in deciding)


def judge(seen: Comparison, limits: Deployment, *, min_requests: int) -> Judgement:
    """Compare the roles of one stage.

    Args:
        seen: cumulative counts since the stage came into force.
        limits: the line's deployment section.
        min_requests: fewest requests of the challenger to go on with.

    Returns:
        ROLL_BACK where a check shows harm; NO_TRAFFIC with fewer requests than the minimum; GO_ON where every check
        shows that there is no harm; else WAIT.
    """
    alpha = (1 - limits.confidence) / max(limits.num_stages, 1) / NUM_CHECKS
    findings = (
        _errors(seen, limits.max_error_excess, alpha),
        _latency(seen, limits, alpha),
        _paired(seen.paired, limits.max_score_shift, alpha)
        if seen.paired is not None
        else _scores(seen, limits.max_score_shift, alpha),
    )
    outcomes = {f.outcome for f in findings}
    if Outcome.HARM in outcomes:
        verdict = Verdict.ROLL_BACK
    elif seen.challenger.requests < min_requests:
        verdict = Verdict.NO_TRAFFIC
    else:
        verdict = Verdict.WAIT if Outcome.OPEN in outcomes else Verdict.GO_ON
    return Judgement(verdict=verdict, findings=findings)


def silent(seen: Comparison, percent: float, limits: Deployment) -> bool:
    """Whether the challenger surely gets less than half of its share of the requests: it is not reached.

    Args:
        seen: the counts.
        percent: the challenger's share of all requests, percent.
        limits: the line's deployment section.
    """
    total = seen.champion.requests + seen.challenger.requests
    _, upper = share_bounds(seen.challenger.requests, total, 1 - limits.confidence)
    return bool(upper < percent / 200)


# --- the checks
def _errors(seen: Comparison, margin: float, alpha: float) -> Finding:
    old, new = seen.champion, seen.challenger
    lower, upper = share_bounds([old.errors, new.errors], [old.requests, new.requests], alpha / 2)
    return _finding(
        "error rate excess",
        ReasonCode.CANARY_ERRORS,
        value=_ratio(new.errors, new.requests) - _ratio(old.errors, old.requests),
        bounds=(float(lower[1] - upper[0]), float(upper[1] - lower[0])),
        limit=margin,
        sizes=(old.requests, new.requests),
    )


def _latency(seen: Comparison, limits: Deployment, alpha: float) -> Finding:
    """The challenger's quantile against the ratio times the champion's, or the floor where that is more.

    The limit is itself an interval: harm must show against its upper end, absence of harm against its lower one.
    """
    old, new, q = seen.champion.latency_ms, seen.challenger.latency_ms, limits.latency_quantile

    def allowed(champion_ms: float) -> float:
        return max(limits.max_latency_ratio * champion_ms, limits.latency_floor_ms)

    lower, upper = quantile_bounds(new, q, alpha / 2)
    old_lower, old_upper = quantile_bounds(old, q, alpha / 2)
    if lower > allowed(old_upper):
        outcome, limit = Outcome.HARM, allowed(old_upper)
    else:
        limit = allowed(old_lower)
        outcome = Outcome.NO_HARM if upper <= limit else Outcome.OPEN
    return Finding(
        check=f"p{100 * q:g} latency ms",
        outcome=outcome,
        reason=ReasonCode.CANARY_SLOW,
        value=_quantile(new, q) if new.total else None,
        lower=lower,
        upper=upper,
        limit=limit,
        num_champion=old.total,
        num_challenger=new.total,
    )


def _scores(seen: Comparison, margin: float, alpha: float) -> Finding:
    """Kolmogorov's distance over the edges; the difference of the means is never larger."""
    import numpy as np

    old, new = seen.champion.scores, seen.challenger.scores
    below = np.cumsum([old.counts[:-1], new.counts[:-1]], axis=1)
    totals = np.array([[old.total], [new.total]])
    lower, upper = share_bounds(below, totals, alpha / 2 / len(old.edges))
    apart = np.maximum(np.maximum(lower[1] - upper[0], lower[0] - upper[1]), 0)
    at_most = np.maximum(upper[1] - lower[0], upper[0] - lower[1])
    seen_apart = np.abs(below[1] / totals[1] - below[0] / totals[0]) if totals.all() else np.array([math.nan])
    return _finding(
        "score distance",
        ReasonCode.CANARY_SCORES_SHIFTED,
        value=float(seen_apart.max()),
        bounds=(float(apart.max()), float(at_most.max())),
        limit=margin,
        sizes=(old.total, new.total),
    )


def _paired(differences: Histogram, margin: float, alpha: float) -> Finding:
    lower, upper = mean_bounds(differences, (-1.0, 1.0), alpha)
    return _finding(
        "mean score difference",
        ReasonCode.SHADOW_MISMATCH,
        value=abs(_mean(differences, (-1.0, 1.0))),
        bounds=(max(lower, -upper, 0.0), max(upper, -lower)),
        limit=margin,
        sizes=(differences.total, differences.total),
    )


def _finding(
    check: str,
    reason: ReasonCode,
    *,
    value: float,
    bounds: tuple[float, float],
    limit: float,
    sizes: tuple[int, int],
) -> Finding:
    lower, upper = bounds
    outcome = Outcome.HARM if lower > limit else Outcome.NO_HARM if upper <= limit else Outcome.OPEN
    return Finding(
        check=check,
        outcome=outcome,
        reason=reason,
        value=None if math.isnan(value) else value,
        lower=lower,
        upper=upper,
        limit=limit,
        num_champion=sizes[0],
        num_challenger=sizes[1],
    )


# --- confidence sequences
def share_bounds(successes: npt.ArrayLike, totals: npt.ArrayLike, alpha: float) -> tuple[Array, Array]:
    """Confidence sequence of a Bernoulli share: Robbins' beta-binomial mixture with Jeffreys' prior.

    For the true share p, ∫ p'^s (1-p')^(n-s) dBeta(½,½)(p') / p^s (1-p)^(n-s) is a martingale from 1, which ever
    reaches 1/alpha with probability alpha at most (Ville). The interval is where it has not. It needs s and n alone,
    and both ends rise with s at equal n.

    Args:
        successes: s, any shape.
        totals: n, of a shape that broadcasts; (0, 1) where it is 0.
        alpha: probability that the share is ever outside.

    Returns:
        lower and upper ends.
    """
    import numpy as np

    s, n = np.broadcast_arrays(np.asarray(successes, dtype=np.float64), np.asarray(totals, dtype=np.float64))
    centre = np.divide(s, n, out=np.full(s.shape, 0.5), where=n > 0)
    reach = _log_mixture(s, n) + math.log(alpha)
    return _end(s, n, centre, 0.0, reach), _end(s, n, centre, 1.0, reach)


def _end(s: Array, n: Array, inside: Array, extreme: float, reach: Array) -> Array:
    """The end of the interval between a share inside of it and an extreme one, on its outer side."""
    import numpy as np

    outside = np.full(s.shape, extreme)
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        refuted = _log_likelihood(s, n, middle) <= reach
        outside, inside = np.where(refuted, middle, outside), np.where(refuted, inside, middle)
    return outside


def _log_mixture(s: Array, n: Array) -> Array:
    """Logarithm of the likelihood, mixed over the shares by Beta(½,½)."""
    import numpy as np
    from scipy.special import betaln

    return np.asarray(betaln(s + 0.5, n - s + 0.5) - math.log(math.pi))


def _log_likelihood(s: Array, n: Array, share: Array | float) -> Array:
    """Logarithm of the likelihood of a share; a share is refuted where it is `reach` = mixture + log alpha, or less."""
    import numpy as np
    from scipy.special import xlog1py, xlogy

    return np.asarray(xlogy(s, share) + xlog1py(n - s, -np.asarray(share)))


def quantile_bounds(values: Histogram, quantile: float, alpha: float) -> tuple[float, float]:
    """Confidence sequence of a quantile, to an edge: one is a bound where the share below it surely is not `quantile`.

    The share is tested at one fixed value, so no union bound over edges is needed (Howard and Ramdas, "Sequential
    estimation of quantiles", Bernoulli 28(3), 2022, section 2).

    Returns:
        lower end, 0 where there is none; upper end, infinite where there is none.
    """
    import numpy as np

    below = np.cumsum(values.counts[:-1]).astype(np.float64)
    total = np.full(below.shape, float(values.total))
    surely = _log_likelihood(below, total, quantile) <= _log_mixture(below, total) + math.log(alpha)
    edges = np.asarray(values.edges)
    low = edges[surely & (below < quantile * total)]
    high = edges[surely & (below > quantile * total)]
    return (float(low[-1]) if len(low) else 0.0, float(high[0]) if len(high) else math.inf)


def mean_bounds(values: Histogram, span: tuple[float, float], alpha: float) -> tuple[float, float]:
    """Confidence sequence of the mean of bounded values, by betting against every mean.

    Bets are constant and mixed evenly, as in a universal portfolio (Waudby-Smith and Ramdas, "Estimating means of
    bounded random variables by betting", JRSS B 86(1), 2024; Orabona and Jun, IEEE Trans. Inf. Theory 70(1), 2024), so
    the order of the values does not matter and a histogram is enough. A value counts as its bin's lower edge for the
    lower end, and as its upper edge for the upper end.

    Args:
        values: the values; none is outside `span`.
        span: smallest and largest possible value.
        alpha: probability that the mean is ever outside.
    """
    import numpy as np

    low, high = span
    edges = (np.array([low, *values.edges, high]) - low) / (high - low)
    counts = np.asarray(values.counts, dtype=np.float64)
    lower = _mean_at_least(edges[:-1], counts, alpha / 2)
    upper = 1 - _mean_at_least(1 - edges[1:], counts, alpha / 2)
    return low + (high - low) * lower, low + (high - low) * upper


def _mean_at_least(values: Array, counts: Array, alpha: float) -> float:
    """Largest mean that the values, 0 to 1, have refuted as an upper bound of theirs."""
    import numpy as np
    from scipy.special import logsumexp

    bets = np.array(_BETS)[:, None]
    there = counts > 0
    outside, inside = 0.0, 1.0
    for _ in range(_HALVINGS):
        mean = (outside + inside) / 2
        wealth = np.log1p(bets * (values[there] / mean - 1)) @ counts[there]
        refuted = logsumexp(wealth) - math.log(len(_BETS)) >= -math.log(alpha)
        outside, inside = (mean, inside) if refuted else (outside, mean)
    return outside


# --- as observed
def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def _quantile(values: Histogram, quantile: float) -> float:
    """Upper edge of the bin that holds the quantile; infinite above the last edge."""
    below = 0
    for edge, count in zip(values.edges, values.counts, strict=False):
        below += count
        if below >= quantile * values.total:
            return edge
    return math.inf


def _mean(values: Histogram, span: tuple[float, float]) -> float:
    """Mean of the bins' middles; NaN of nothing."""
    edges = (span[0], *values.edges, span[1])
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    return _ratio(sum(m * c for m, c in zip(middles, values.counts, strict=True)), values.total)
