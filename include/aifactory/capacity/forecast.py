"""Forecast of an hourly series from nothing but its own past: linear regression on the last week, shrunk.

Days are counted back from the last hour that is known; they need not begin at midnight. With p_d the 24 values of day d
and m_d the mean of the days d-6 .. d, hour by hour, the day k days after d is

    p_(d+k) - m_d = c_k + B_k x_d,    x_d = (p_d - m_d, p_(d-1) - m_d, p_(d-6) - m_d, m_d, weekday)

so that a day like the last week's mean is where it starts from, and what the level, the shape, the same weekday and the
trend add is learnt. c is the mean of what followed; B is fitted anew to the last year by ridge regression (Hoerl and
Kennard 1970) at each call. It is LEAR (Lago, Marcjasz, De Schutter and Weron 2021, "Forecasting day-ahead electricity
prices", Applied Energy 293) without its forecasts of load, wind and sun, with ridge in place of LASSO.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DAY, WEEK = 24, 7
LEAST_DAYS = 28
"""With fewer days to learn from there is no forecast."""
_MOST_DAYS = 365
_LEAST_KNOWN = 0.9
_SHRINKAGE = 30.0
"""Weight of the penalty, in days: features have a spread of about 1."""


def forecast(values: Floats, num_hours: int) -> Floats | None:
    """The hours after the last of a series, [num_hours], within the range of the past that was learnt from.

    Args:
        values: [H], the last one finite; gaps are NaN, and are bridged by straight lines.
        num_hours: how many.

    Returns:
        None: too few days are known, or too many of their hours are missing.
    """
    num_ahead = -(-num_hours // DAY)
    first = int(np.isfinite(values).argmax())
    num_days = min((len(values) - first) // DAY, _MOST_DAYS + WEEK + num_ahead)
    if num_days < LEAST_DAYS + WEEK + num_ahead:
        return None
    past = values[len(values) - num_days * DAY :]
    known = np.isfinite(past)
    if known.mean() < _LEAST_KNOWN:
        return None
    days = np.interp(np.arange(len(past)), known.nonzero()[0], past[known]).reshape(-1, DAY)
    last = np.arange(WEEK - 1, num_days)
    total = np.concatenate([np.zeros((1, DAY)), days.cumsum(axis=0)])
    usual = (total[last + 1] - total[last + 1 - WEEK]) / WEEK
    features = np.hstack([days[last] - usual, days[last - 1] - usual, days[last - 6] - usual, usual])
    spread = float(features.std(axis=0).mean()) or 1.0
    features = np.hstack([(features - features.mean(axis=0)) / spread, np.eye(WEEK)[last % WEEK]])
    learnt = features[:-num_ahead]
    followed = np.hstack([days[last[:-num_ahead] + step] - usual[:-num_ahead] for step in range(1, num_ahead + 1)])
    level = followed.mean(axis=0)
    penalty = _SHRINKAGE * np.eye(features.shape[1])
    weights = np.linalg.solve(learnt.T @ learnt + penalty, learnt.T @ (followed - level))
    found: Floats = np.tile(usual[-1], num_ahead) + level + features[-1] @ weights
    return np.clip(found, days.min(), days.max())[:num_hours]
