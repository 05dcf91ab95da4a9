"""Row phase: a block of rows forward, to its loss, and back, by itself: rows are independent."""

from .delta import call_output_delta, delta
from .forward import forward
from .jit import Hook
from .simd import look


def take_rows(held, block, first, position, n_rows, key, scale, training, forth, wants_loss, back, thread):
    """Take a block forward through layers ``forth[0]`` to ``forth[1]``, to its loss and output delta if wanted, and
    back through layers ``back[0]`` to ``back[1]``; no layers are (0, 0).

    ``held`` are network, parameters, data and workspace; see `forward`, `output_delta` and `delta` for the rest.
    """
    network, _, _, _ = look(held)
    forward(held, block, first, position, n_rows, key, training, forth, thread)
    if wants_loss:
        call_output_delta(network.at.output_delta, (held, block, first, position, n_rows, scale, thread))
    delta(held, block, n_rows, back, thread)


TAKE_ROWS = Hook(take_rows)
call_take_rows = TAKE_ROWS.call
