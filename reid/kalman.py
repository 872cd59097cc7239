"""Where people are and where they will be: a Kalman filter of constant velocity, for many of them at once.

A box is four numbers: centre x, centre y, width, height. Each of them has a velocity. As the noise of one tells nothing
of the others, SORT's filter of eight numbers (arXiv 1602.00763) falls apart into four filters of two, and no matrix has
to be inverted. A state is (5, 4): value, velocity, variance of the value, covariance of the two, variance of the
velocity. Times are in seconds, whatever the frame rate; noise is in heights of the person, however far away.
"""

import numpy as np

# (centre x, centre y, width, height), all in heights of the person. Somebody of 1.75 m walks 0.8 heights a second.
JITTER = np.array([0.05, 0.05, 0.06, 0.05])  # of a detector: a twentieth of the height, as in ByteTrack; arms swing
SPEED = np.array([1.0, 0.4, 0.2, 0.2])  # of somebody seen for the first time; up and down is seldom as fast as sideways
CHANGE = np.array([0.6, 0.3, 0.15, 0.15])  # of that speed within a second: people turn and stop


def start(boxes):
    """Boxes (N, 4) left, top, right, bottom, seen once -> states (N, 5, 4)."""
    values, zeros = measured(boxes), np.zeros_like(boxes)
    tall = values[:, 3:]
    return np.stack([values, zeros, (JITTER * tall) ** 2, zeros, (SPEED * tall) ** 2], 1)


def predict(states, seconds):
    """States (N, 5, 4) so many seconds (N,) or () later. Velocities wander like a drunkard: two steps are as one."""
    x, v, xx, xv, vv = np.moveaxis(states, 1, 0)  # (N, 4) each
    t = np.broadcast_to(seconds, len(states))[:, None]
    noise = (CHANGE * x[:, 3:]) ** 2
    xx = xx + 2 * t * xv + t**2 * vv + noise * t**3 / 3
    x = x + t * v
    x[:, 2:] = np.maximum(x[:, 2:], 1)  # somebody who goes away stays a pixel wide
    return np.stack([x, v, xx, xv + t * vv + noise * t**2 / 2, vv + noise * t], 1)


def correct(states, boxes):
    """States (N, 5, 4) of now, and the boxes (N, 4) where these people are seen now."""
    x, v, xx, xv, vv = np.moveaxis(states, 1, 0)
    total = xx + (JITTER * x[:, 3:]) ** 2
    gain, push, miss = xx / total, xv / total, measured(boxes) - x
    return np.stack([x + gain * miss, v + push * miss, xx - gain * xx, xv - gain * xv, vv - push * xv], 1)


def boxes(states):
    """States (N, 5, 4) -> boxes (N, 4) left, top, right, bottom."""
    centre, half = states[:, 0, :2], states[:, 0, 2:] / 2
    return np.concatenate([centre - half, centre + half], 1)


def doubt(states):
    """By how much the centre may be wrong, sideways: a standard deviation in pixels, (N,)."""
    return np.sqrt(states[:, 2, 0])


def measured(boxes):
    """Left, top, right, bottom -> centre x, centre y, width, height; both (N, 4)."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], 1)
