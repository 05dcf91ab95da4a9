"""What comes between steps: weights of batches, scalars of the optimizer, averages, and what an epoch leaves behind."""

import math

from ..optimizers import N_SCALARS, OPTIMIZERS
from ..problem import DENSE
from .compat import cuda, device_function, kernel, numba_type, select
from .forward import THREADS
from .layers import over_block
from .layout import BASE, KEY, KIND, N_IN, N_OUT, POSITION, STEP, STRIDE_OUT, W

# Words of the report: the first update of the turn whose loss was not finite, the first epoch after which a parameter
# was not, and when the state was last copied: epochs done, and updates that the optimizer had made.
BAD_UPDATE, BAD_EPOCH, EPOCHS, UPDATES = range(4)
#: More updates than a turn has.
NEVER = 1 << 62

prepare_by_code = select(list(OPTIMIZERS.values()), lambda row: device_function(row.prepare))


def make_begin(dtype, name: str):
    """Set the cursor; one thread."""

    @kernel(1, name)
    def begin(cursor, position, base, key, step):
        cursor[POSITION], cursor[BASE], cursor[KEY], cursor[STEP] = position, base, key, step

    return begin


def make_advance(dtype, name: str):
    """Move the cursor on by updates of so many rows each; one thread."""

    @kernel(1, name)
    def advance(cursor, n_updates, update_rows):
        cursor[POSITION] += n_updates * update_rows
        cursor[STEP] += n_updates

    return advance


def make_prepare(dtype, prepare_of, name: str | None):
    """The optimizer's scalars of all updates of a turn, in double precision; a thread for each and for each group."""
    real = dtype.type
    double = numba_type("float64")

    @kernel(THREADS, name)
    def prepare(code, hyper, rates, learning_rate, step, n_updates, scalars):
        """``step`` updates have been made before; ``learning_rate`` has one for each update, ``rates`` multiply it."""
        i = cuda.grid(1)
        if i < n_updates * len(rates):
            number, group = i // len(rates), i % len(rates)
            h = cuda.local.array(N_SCALARS, double)
            for k in range(N_SCALARS):
                h[k] = 0.0
            prepare_of(code, (h, hyper[group], learning_rate[number] * rates[group], step + number + 1))
            for k in range(N_SCALARS):
                scalars[number, group, k] = real(h[k])

    return prepare


def make_weigh(dtype, name: str):
    """The weight of each update from the cursor on; a block for each."""
    zero, one = dtype.type(0), dtype.type(1)
    real = numba_type(dtype)

    @kernel(THREADS, name)
    def weigh(samples, cursor, update_rows, n_samples, weights):
        shared = cuda.shared.array(THREADS, real)
        first = cursor[POSITION] + cuda.blockIdx.x * update_rows
        own = zero
        for position in range(first + cuda.threadIdx.x, min(first + update_rows, n_samples), THREADS):
            sample = samples.order[position] if samples.ordered else position - cursor[BASE]
            own += samples.weight[sample] if samples.weighted else one
        own = over_block(shared, cuda.threadIdx.x, own)
        if cuda.threadIdx.x == 0:
            weights[cursor[STEP] + cuda.blockIdx.x] = own

    return weigh


def make_sum_losses(dtype, name: str):
    """Each update's loss from its parts and its penalties; a block for each of the updates from ``first`` on."""
    zero = dtype.type(0)
    real = numba_type(dtype)

    @kernel(THREADS, name)
    def sum_losses(parts, penalties, n_penalties, first, loss, report):
        shared = cuda.shared.array(THREADS, real)
        number = first + cuda.blockIdx.x
        own = zero
        for k in range(cuda.threadIdx.x, parts.shape[1], THREADS):
            own += parts[number, k]
        for k in range(cuda.threadIdx.x, n_penalties, THREADS):
            own += penalties[number, k]
        own = over_block(shared, cuda.threadIdx.x, own)
        if cuda.threadIdx.x == 0:
            loss[number] = own
            if own - own != zero:
                cuda.atomic.min(report, BAD_UPDATE, number)

    return sum_losses


def make_check(dtype, name: str):
    """Note the first epoch that leaves a parameter that is not finite."""
    zero = dtype.type(0)

    @kernel(THREADS, name)
    def check(theta, epoch, report):
        for i in range(cuda.grid(1), theta.size, cuda.gridsize(1)):
            if theta[i] - theta[i] != zero:
                cuda.atomic.min(report, BAD_EPOCH, epoch)

    return check


def make_publish(dtype, name: str):
    """Copy the state of an epoch that has gone well."""

    @kernel(THREADS, name)
    def publish(state, published, epochs, updates, report):
        if report[BAD_UPDATE] == NEVER and report[BAD_EPOCH] == NEVER:
            for i in range(cuda.grid(1), state.size, cuda.gridsize(1)):
                published[i] = state[i]
            if cuda.grid(1) == 0:
                report[EPOCHS], report[UPDATES] = epochs, updates

    return publish


def make_limit_norms(dtype, name: str):
    """Bring the columns of each dense layer's W down to a norm; a block row for each layer, a thread for a column."""
    zero = dtype.type(0)

    @kernel(THREADS, name)
    def limit_norms(network, theta, max_norm):
        layer = network.layers[cuda.blockIdx.y]
        column, stride = cuda.grid(1), layer[STRIDE_OUT]
        if layer[KIND] == DENSE and column < layer[N_OUT]:
            square = zero
            for i in range(layer[N_IN]):
                w = theta[layer[W] + i * stride + column]
                square += w * w
            norm = math.sqrt(square)
            if norm > max_norm:
                for i in range(layer[N_IN]):
                    theta[layer[W] + i * stride + column] *= max_norm / norm

    return limit_norms


def make_average(dtype, name: str):
    """Bring the average of the parameters along by each update's share."""

    @kernel(THREADS, name)
    def average(memory, cursor, step, shares):
        share = shares[cursor[STEP] + step]
        for i in range(cuda.grid(1), memory.theta.size, cuda.gridsize(1)):
            memory.average[i] += share * (memory.theta[i] - memory.average[i])

    return average
