"""Which device functions a network wants: those of the tables, or with functions of the user's among them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..activations import ACTIVATIONS, Activation
from ..losses import LOSSES, SMOOTHING, identity_link
from ..losses import Loss as LossRow
from ..optimizers import OPTIMIZERS, Optimizer
from ..problem import Choice, Custom, CustomRule, Layer, Topology
from .compat import device_function, mark, plain, select
from .delta import loss_by_code, with_delta
from .epoch import prepare_by_code
from .forward import activate_by_code, make_finish, with_derivative
from .gradient import update_by_code, with_slots
from .layout import Loss

#: Codes of the user's own functions, from here on.
CUSTOM = 1 << 10


def activations_of(layers: list[Layer], dtype: np.dtype) -> tuple[list[int], Any]:
    """Each layer's code, -1 for none, and the device function that finishes a z."""
    activations = [layer.activation for layer in layers]
    customs = tuple(dict.fromkeys(a for a in activations if isinstance(a, Custom)))
    codes = []
    for activation in activations:
        if isinstance(activation, Custom):
            codes.append(CUSTOM + customs.index(activation))
        else:
            codes.append(-1 if activation is None else ACTIVATIONS[activation.name].code)
    return codes, _finish(dtype, customs)


@cache
def _finish(dtype: np.dtype, customs: tuple[Custom, ...]) -> Any:
    if not customs:
        return make_finish(dtype, activate_by_code)

    def row(code: int, custom: Custom) -> Activation:
        of_user, slope_of_user = (plain(function) for function in custom)
        return Activation(code, lambda z, p: type(z)(of_user(z)), lambda z, a, p: type(z)(slope_of_user(z)))

    rows = [*ACTIVATIONS.values(), *(row(CUSTOM + k, custom) for k, custom in enumerate(customs))]
    activate = select(rows, lambda row: with_derivative(row.value, row.derivative))
    return mark(make_finish(dtype, activate))


def loss_of(topology: Topology) -> tuple[Loss, Any]:
    """The loss as kernels get it, and the device function."""
    number, loss = topology.dtype.type, topology.loss
    if isinstance(loss, Custom):
        return Loss(0, number(0), number(0), number(1), 0, 0), _custom_loss(loss)
    assert isinstance(loss, Choice)
    row = LOSSES[loss.name]
    smoothing = loss.setting if row.setting is SMOOTHING else 0.0
    n_classes = topology.layer_sizes[-1] if row.softmax else 2
    give, keep = number(smoothing / n_classes), number(1 - smoothing)
    return Loss(row.code, number(loss.setting), give, keep, int(row.softmax), int(row.pairs)), loss_by_code


@cache
def _custom_loss(custom: Custom) -> Any:
    of_user, slope_of_user = (plain(function) for function in custom)

    def value(z, t, lse, p):
        return type(z)(of_user(z, t))

    def slope(z, t, lse, p):
        return type(z)(slope_of_user(z, t))

    return mark(select([LossRow(0, value, slope, identity_link)], with_delta))


def rule_of(rule: str | CustomRule) -> tuple[int, Any, Any]:
    """Code, and the device functions that prepare and carry out an update rule."""
    if isinstance(rule, CustomRule):
        return 0, *_custom_rule(rule)
    return OPTIMIZERS[rule].code, prepare_by_code, update_by_code


@cache
def _custom_rule(custom: CustomRule) -> tuple[Any, Any]:
    of_user = plain(custom.update)

    def prepare(h, hyper, learning_rate, step):
        h[0], h[1] = learning_rate, step
        for k in range(hyper.size):
            h[2 + k] = hyper[k]

    def rule(theta, grad, slots, h):
        return of_user(theta, grad, slots, h)

    rows = [Optimizer(0, custom.n_slots, prepare, rule)]
    return mark(select(rows, lambda row: device_function(row.prepare))), mark(select(rows, with_slots))
