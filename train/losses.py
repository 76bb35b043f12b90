"""Losses: pure functions of `logits` and `target`, found by name. The class axis is 1 everywhere.

Both have one shape: (N, C) for whole images, (N, C, H, W) for pixels; `target` holds 0 and 1. With `single` the classes
exclude each other (softmax over the class axis; the target is one-hot), else each class stands alone (sigmoid).

A class that is absent from the batch costs, in the overlap losses (Dice, Tversky), the mean probability given to it.
The usual smoothed ratio would leave next to no gradient there, and a batch of clean steel would teach nothing.

    term = build("tversky", {"alpha": 0.3}, single=False, counts=[90, 3], total=1000)
    term(logits, target)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from curate.errors import CurateError, unknown

Tensor = Any
Term = Callable[[Tensor, Tensor], Tensor]
Weights = Sequence[float] | None
CORRECTING = ("class_balanced", "balanced_softmax", "logit_adjustment")
TINY = 1e-7


# --- by class and pixel ---------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, target: Tensor, *, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy; with class weights the mean is weighted, as torch's is."""
    soft = target * (1 - smoothing) + smoothing / target.shape[1]
    each = _weighted(soft, weights)
    own = _weighted(target, weights).sum(1)
    return -(each * logits.log_softmax(1)).sum(1).sum() / own.sum().clamp_min(TINY)


def bce(logits: Tensor, target: Tensor, *, weights: Weights = None) -> Tensor:
    """A sigmoid a class; `weights` multiply what a class's positives cost (torch's pos_weight)."""
    return (_weighted(target, weights) * _softplus(-logits) + (1 - target) * _softplus(logits)).mean()


def focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Binary focal loss, a sigmoid a class (Lin et al. 2017); `alpha` weighs positives, 1 - alpha negatives."""
    sign = 2 * target - 1
    each = _softplus(-sign * logits) * (-sign * logits).sigmoid() ** gamma
    if alpha is not None:
        each = each * (alpha * target + (1 - alpha) * (1 - target))
    return each.mean()


def softmax_focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0, weights: Weights = None) -> Tensor:
    """Focal loss over classes that exclude each other: one softmax, not one-against-the-rest sigmoids."""
    log_p = (logits.log_softmax(1) * target).sum(1)
    weight = _weighted(target, weights).sum(1)
    return -(weight * (1 - log_p.exp()).clamp_min(TINY) ** gamma * log_p).sum() / weight.sum().clamp_min(TINY)


def class_balanced(
    logits: Tensor, target: Tensor, *, counts: Sequence[float], single: bool, beta: float = 0.999, gamma: float = 0.0
) -> Tensor:
    """Cross-entropy (or focal) weighted by the effective number of samples (Cui et al. 2019)."""
    weights = effective_weights(counts, beta)
    if single:
        return softmax_focal(logits, target, gamma=gamma, weights=weights)
    sign = 2 * target - 1
    each = _softplus(-sign * logits) * (-sign * logits).sigmoid() ** gamma
    return _weighted(each, weights).mean()


def effective_weights(counts: Sequence[float], beta: float) -> list[float]:
    """(1 - beta) / (1 - beta^n), scaled so that they add up to the number of classes."""
    raw = [(1 - beta) / (1 - beta ** max(1.0, count)) for count in counts]
    return [value * len(raw) / sum(raw) for value in raw]


def logit_adjustment(
    logits: Tensor, target: Tensor, *, counts: Sequence[float], total: float, single: bool, tau: float = 1.0
) -> Tensor:
    """Cross-entropy on logits raised by tau times the prior's own (Menon et al. 2021)."""
    shares = [min(max(count / total, TINY), 1 - TINY) for count in counts]
    prior = [math.log(p) if single else math.log(p / (1 - p)) for p in shares]
    raised = logits + tau * _along(prior, logits)
    return cross_entropy(raised, target) if single else bce(raised, target)


def balanced_softmax(logits: Tensor, target: Tensor, *, counts: Sequence[float], total: float, single: bool) -> Tensor:
    """Logit adjustment with the prior itself (Ren et al. 2020)."""
    return logit_adjustment(logits, target, counts=counts, total=total, single=single, tau=1.0)


# --- by overlap -----------------------------------------------------------------------------------------------------


def dice(logits: Tensor, target: Tensor, *, single: bool, smooth: float = 1.0) -> Tensor:
    """1 - 2|PT| / (|P| + |T|), over the batch, a class at a time (Milletari et al. 2016)."""
    return tversky(logits, target, single=single, alpha=0.5, beta=0.5, smooth=smooth / 2)


def tversky(
    logits: Tensor, target: Tensor, *, single: bool, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0
) -> Tensor:
    """`alpha` weighs false alarms, `beta` misses (Salehi et al. 2017)."""
    return _tversky_by_class(logits, target, single, alpha, beta, smooth).mean()


def focal_tversky(
    logits: Tensor,
    target: Tensor,
    *,
    single: bool,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 0.75,
    smooth: float = 1.0,
) -> Tensor:
    """The Tversky loss of each class to the power of `gamma`, then the mean (Abraham and Khan 2019)."""
    by_class = _tversky_by_class(logits, target, single, alpha, beta, smooth)
    return (by_class.clamp_min(TINY) ** gamma).mean()


def _tversky_by_class(logits: Tensor, target: Tensor, single: bool, alpha: float, beta: float, smooth: float) -> Tensor:
    p, t = _by_class(_probabilities(logits, single)), _by_class(target)
    hit, alarm, miss = (p * t).sum(1), (p * (1 - t)).sum(1), ((1 - p) * t).sum(1)
    lost = 1 - (hit + smooth) / (hit + alpha * alarm + beta * miss + smooth)
    absent = t.sum(1) == 0
    return lost.where(~absent, p.mean(1))


def lovasz(logits: Tensor, target: Tensor, *, single: bool) -> Tensor:
    """The Lovász extension of the Jaccard loss, a class at a time over the batch (Berman et al. 2018).

    For an absent class it is the largest probability given to it.
    """
    p, t = _by_class(_probabilities(logits, single)), _by_class(target)
    errors, order = (t - p).abs().sort(dim=1, descending=True)
    gradient = _lovasz_gradient(t.gather(1, order))
    return (errors * gradient).sum(1).mean()


def _lovasz_gradient(sorted_target: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each further error."""
    total = sorted_target.sum(1, keepdim=True)
    left = total - sorted_target.cumsum(1)
    union = total + (1 - sorted_target).cumsum(1)
    loss = 1 - left / union
    return loss.diff(dim=1, prepend=loss.new_zeros(len(loss), 1))


# --- by name --------------------------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[..., Tensor]] = {
    one.__name__: one
    for one in (
        *(cross_entropy, bce, focal, softmax_focal, class_balanced, balanced_softmax, logit_adjustment),
        *(dice, tversky, focal_tversky, lovasz),
    )
}
SOFTMAX_ONLY, SIGMOID_ONLY = ("cross_entropy", "softmax_focal"), ("bce", "focal")
INSTEAD = {"cross_entropy": "bce", "softmax_focal": "focal", "bce": "cross_entropy", "focal": "softmax_focal"}
GIVEN = ("single", "counts", "total")  # what the data say, not the recipe
AUTO = "auto"  # cross_entropy or bce, as the classes want it


def check(name: str, options: Mapping[str, Any]) -> None:
    """Whether the loss exists and takes these options."""
    name = "bce" if name == AUTO else name
    if name not in LOSSES:
        raise unknown("loss", name, [*LOSSES, AUTO])
    allowed = [key for key in _parameters(name) if key not in GIVEN]
    for key, value in options.items():
        if key not in allowed:
            raise unknown(f"option of loss {name}", key, allowed)
        if key == "weights" and not (value == "inverse" or _numbers(value)):
            raise CurateError(f"weights of loss {name} are {value!r}; allowed: 'inverse', or one number a class")
        if key != "weights" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise CurateError(f"option '{key}' of loss {name} is {value!r}; allowed: a number")


def build(name: str, options: Mapping[str, Any], *, single: bool, counts: Sequence[float], total: float) -> Term:
    """The loss as a function of logits and target alone; `counts` say how often each class is seen among `total`."""
    check(name, options)
    name = name if name != AUTO else "cross_entropy" if single else "bce"
    if name in (SIGMOID_ONLY if single else SOFTMAX_ONLY):
        kind = "exclude each other" if single else "may stand together"
        raise CurateError(f"loss '{name}' does not fit classes that {kind}; use '{INSTEAD[name]}'")
    known: dict[str, Any] = {"single": single, "counts": counts, "total": total}
    given = {key: known[key] for key in GIVEN if key in _parameters(name)} | dict(options)
    if "weights" in options:
        given["weights"] = _class_weights(options["weights"], counts, total)
    return lambda logits, target: LOSSES[name](logits, target, **given)


def summed(terms: Sequence[tuple[float, Term]]) -> Term:
    """The weighted sum of several losses."""
    return lambda logits, target: sum(share * term(logits, target) for share, term in terms)


def _class_weights(wanted: Sequence[float] | Literal["inverse"], counts: Sequence[float], total: float) -> list[float]:
    """`inverse`: how many times a class is rarer than if all were equally frequent."""
    if isinstance(wanted, str):
        return [total / (len(counts) * max(1.0, count)) for count in counts]
    if len(wanted) != len(counts):
        raise CurateError(f"{len(wanted)} loss weights for {len(counts)} classes; give one a class")
    return [float(value) for value in wanted]


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, int | float) and one > 0 for one in value)


def _parameters(name: str) -> list[str]:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]


def _probabilities(logits: Tensor, single: bool) -> Tensor:
    return logits.softmax(1) if single else logits.sigmoid()


def _by_class(values: Tensor) -> Tensor:
    """(C, everything else)."""
    return values.transpose(0, 1).reshape(values.shape[1], -1)


def _along(values: Sequence[float], like: Tensor) -> Tensor:
    """One number a class, so that it multiplies tensors of this shape."""
    return like.new_tensor(list(values)).reshape(1, -1, *[1] * (like.ndim - 2))


def _weighted(values: Tensor, weights: Weights) -> Tensor:
    return values if weights is None else values * _along(weights, values)


def _softplus(values: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.softplus(values)
