"""Losses: pure functions of `logits` and `target`, found by name. The class axis is 1 everywhere.

Both have the same shape: (N, C) for whole images, (N, C, H, W) for pixels; `target` holds 0 and 1. With `single` the
classes are exclusive (softmax over the class axis; the target is one-hot), else independent (a sigmoid per class).

In the overlap losses (Dice, Tversky) a class that is absent from the batch costs the mean probability given to it.
The usual smoothed ratio has almost no gradient there, so that a batch of clean steel would teach nothing.

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
EPSILON = 1e-7


# --- by class and pixel ---------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, target: Tensor, *, weights: Weights = None, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy; with class weights the mean is weighted, as torch's is."""
    soft = target * (1 - smoothing) + smoothing / target.shape[1]
    terms = _weighted(soft, weights)
    target_weight = _weighted(target, weights).sum(1)
    return -(terms * logits.log_softmax(1)).sum(1).sum() / target_weight.sum().clamp_min(EPSILON)


def bce(logits: Tensor, target: Tensor, *, weights: Weights = None) -> Tensor:
    """Binary cross-entropy per class; `weights` multiply the loss of a class's positives (torch's pos_weight)."""
    return (_weighted(target, weights) * _softplus(-logits) + (1 - target) * _softplus(logits)).mean()


def focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Binary focal loss per class (Lin et al. 2017); `alpha` weighs positives, 1 - alpha negatives."""
    sign = 2 * target - 1
    terms = _softplus(-sign * logits) * (-sign * logits).sigmoid() ** gamma
    if alpha is not None:
        terms = terms * (alpha * target + (1 - alpha) * (1 - target))
    return terms.mean()


def softmax_focal(logits: Tensor, target: Tensor, *, gamma: float = 2.0, weights: Weights = None) -> Tensor:
    """Focal loss over exclusive classes: one softmax instead of one-against-the-rest sigmoids."""
    log_p = (logits.log_softmax(1) * target).sum(1)
    weight = _weighted(target, weights).sum(1)
    return -(weight * (1 - log_p.exp()).clamp_min(EPSILON) ** gamma * log_p).sum() / weight.sum().clamp_min(EPSILON)


def class_balanced(
    logits: Tensor, target: Tensor, *, counts: Sequence[float], single: bool, beta: float = 0.999, gamma: float = 0.0
) -> Tensor:
    """Cross-entropy (or focal) weighted by the effective number of samples (Cui et al. 2019)."""
    weights = effective_weights(counts, beta)
    if single:
        return softmax_focal(logits, target, gamma=gamma, weights=weights)
    sign = 2 * target - 1
    terms = _softplus(-sign * logits) * (-sign * logits).sigmoid() ** gamma
    return _weighted(terms, weights).mean()


def effective_weights(counts: Sequence[float], beta: float) -> list[float]:
    """Return (1 - beta) / (1 - beta^n) per class, scaled to add up to the number of classes."""
    raw = [(1 - beta) / (1 - beta ** max(1.0, count)) for count in counts]
    return [value * len(raw) / sum(raw) for value in raw]


def logit_adjustment(
    logits: Tensor, target: Tensor, *, counts: Sequence[float], total: float, single: bool, tau: float = 1.0
) -> Tensor:
    """Cross-entropy on logits plus tau times the logit of the class prior (Menon et al. 2021)."""
    shares = [min(max(count / total, EPSILON), 1 - EPSILON) for count in counts]
    prior = [math.log(p) if single else math.log(p / (1 - p)) for p in shares]
    raised = logits + tau * _per_class(prior, logits)
    return cross_entropy(raised, target) if single else bce(raised, target)


def balanced_softmax(logits: Tensor, target: Tensor, *, counts: Sequence[float], total: float, single: bool) -> Tensor:
    """Logit adjustment with tau = 1 (Ren et al. 2020)."""
    return logit_adjustment(logits, target, counts=counts, total=total, single=single, tau=1.0)


# --- by overlap -----------------------------------------------------------------------------------------------------


def dice(logits: Tensor, target: Tensor, *, single: bool, smooth: float = 1.0) -> Tensor:
    """1 - 2|PT| / (|P| + |T|) over the batch, per class (Milletari et al. 2016)."""
    return tversky(logits, target, single=single, alpha=0.5, beta=0.5, smooth=smooth / 2)


def tversky(
    logits: Tensor, target: Tensor, *, single: bool, alpha: float = 0.3, beta: float = 0.7, smooth: float = 1.0
) -> Tensor:
    """Tversky loss: `alpha` weighs false alarms, `beta` misses (Salehi et al. 2017)."""
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
    """Mean over classes of the Tversky loss to the power of `gamma` (Abraham and Khan 2019)."""
    by_class = _tversky_by_class(logits, target, single, alpha, beta, smooth)
    return (by_class.clamp_min(EPSILON) ** gamma).mean()


def _tversky_by_class(logits: Tensor, target: Tensor, single: bool, alpha: float, beta: float, smooth: float) -> Tensor:
    p, t = _by_class(_probabilities(logits, single)), _by_class(target)
    hit, alarm, miss = (p * t).sum(1), (p * (1 - t)).sum(1), ((1 - p) * t).sum(1)
    lost = 1 - (hit + smooth) / (hit + alpha * alarm + beta * miss + smooth)
    absent = t.sum(1) == 0
    return lost.where(~absent, p.mean(1))


def lovasz(logits: Tensor, target: Tensor, *, single: bool) -> Tensor:
    """Lovász extension of the Jaccard loss over the batch, per class (Berman et al. 2018).

    For an absent class it is the largest probability given to it.
    """
    p, t = _by_class(_probabilities(logits, single)), _by_class(target)
    errors, order = (t - p).abs().sort(dim=1, descending=True)
    gradient = _lovasz_gradient(t.gather(1, order))
    return (errors * gradient).sum(1).mean()


def _lovasz_gradient(sorted_target: Tensor) -> Tensor:
    """Return how much the Jaccard loss grows with each further error."""
    total = sorted_target.sum(1, keepdim=True)
    left = total - sorted_target.cumsum(1)
    union = total + (1 - sorted_target).cumsum(1)
    loss = 1 - left / union
    return loss.diff(dim=1, prepend=loss.new_zeros(len(loss), 1))


# --- by name --------------------------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        *(cross_entropy, bce, focal, softmax_focal, class_balanced, balanced_softmax, logit_adjustment),
        *(dice, tversky, focal_tversky, lovasz),
    )
}
SOFTMAX_ONLY, SIGMOID_ONLY = ("cross_entropy", "softmax_focal"), ("bce", "focal")
ALTERNATIVE = {"cross_entropy": "bce", "softmax_focal": "focal", "bce": "cross_entropy", "focal": "softmax_focal"}
FROM_DATA = ("single", "counts", "total")  # arguments that come from the data, not from the recipe
AUTO = "auto"  # cross_entropy for exclusive classes, else bce


def check(name: str, options: Mapping[str, Any]) -> None:
    """Raise CurateError where the loss does not exist or does not take these options."""
    name = "bce" if name == AUTO else name
    if name not in LOSSES:
        raise unknown("loss", name, [*LOSSES, AUTO])
    allowed = [key for key in _parameters(name) if key not in FROM_DATA]
    for key, value in options.items():
        if key not in allowed:
            raise unknown(f"option of loss {name}", key, allowed)
        if key == "weights" and not (value == "inverse" or _are_positive_numbers(value)):
            raise CurateError(
                f"weights of loss {name} are {value!r}; allowed: 'inverse', or one positive number per class"
            )
        if key != "weights" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise CurateError(f"option '{key}' of loss {name} is {value!r}; allowed: a number")


def build(name: str, options: Mapping[str, Any], *, single: bool, counts: Sequence[float], total: float) -> Term:
    """Return the loss as a function of logits and target.

    Args:
        name: a key of `LOSSES`, or `auto`.
        options: the loss function's keyword parameters, as the recipe gives them.
        single: whether the classes are exclusive.
        counts: how often each class is seen.
        total: the number of images, or of pixels, among which `counts` were taken.
    """
    check(name, options)
    name = name if name != AUTO else "cross_entropy" if single else "bce"
    if name in (SIGMOID_ONLY if single else SOFTMAX_ONLY):
        kind = "exclude each other" if single else "may occur together"
        raise CurateError(f"loss '{name}' does not fit classes that {kind}; use '{ALTERNATIVE[name]}'")
    data_values: dict[str, Any] = {"single": single, "counts": counts, "total": total}
    keywords = {key: data_values[key] for key in FROM_DATA if key in _parameters(name)} | dict(options)
    if "weights" in options:
        keywords["weights"] = _class_weights(options["weights"], counts, total)
    return lambda logits, target: LOSSES[name](logits, target, **keywords)


def weighted_sum(terms: Sequence[tuple[float, Term]]) -> Term:
    """Return the weighted sum of several losses as one function."""
    return lambda logits, target: sum(share * term(logits, target) for share, term in terms)


def _class_weights(weights: Sequence[float] | Literal["inverse"], counts: Sequence[float], total: float) -> list[float]:
    """Return one weight per class; `inverse` is the factor by which a class is rarer than under equal frequencies."""
    if isinstance(weights, str):
        return [total / (len(counts) * max(1.0, count)) for count in counts]
    if len(weights) != len(counts):
        raise CurateError(f"{len(weights)} loss weights for {len(counts)} classes; give one per class")
    return [float(value) for value in weights]


def _are_positive_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(number, int | float) and number > 0 for number in value)


def _parameters(name: str) -> list[str]:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _probabilities(logits: Tensor, single: bool) -> Tensor:
    return logits.softmax(1) if single else logits.sigmoid()


def _by_class(values: Tensor) -> Tensor:
    """Reshape to (C, everything else)."""
    return values.transpose(0, 1).reshape(values.shape[1], -1)


def _per_class(values: Sequence[float], like: Tensor) -> Tensor:
    """Return one number per class, shaped to broadcast against tensors like this one."""
    return like.new_tensor(list(values)).reshape(1, -1, *[1] * (like.ndim - 2))


def _weighted(values: Tensor, weights: Weights) -> Tensor:
    return values if weights is None else values * _per_class(weights, values)


def _softplus(values: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.softplus(values)
