"""The kernels: everything that runs once per minibatch, compiled by Numba.

Floor plan
----------
``activations.py``, ``losses.py``, ``optimizers.py``
    The tables. A row holds a name, an integer code and scalar functions in plain Python, which every
    engine compiles for itself. A new activation, loss or optimizer is one pair of functions and one row.
``elementary.py``
    exp, log, tanh and their kin, so written that a loop around them becomes vector instructions.
``random.py``
    The counter-based generator: a value is a hash of where it is used, so it depends on no history.
``problem.py``
    What an engine is given: a network's topology, and samples.
``digest.py``
    What tells the disk caches of compiled kernels apart.
``cpu/``
    The CPU engine: two phases and two barriers per minibatch.
``cuda/``
    The CUDA engine: the same step in launches of tiles.

Imports run one way, engine -> tables. Nothing here imports ``fastbp``, and engines do not see each other.

Scalar functions are generic in the floating-point type: ``type(z)(0.5)`` is a half in the type of ``z``,
where a bare ``0.5`` would turn a float32 expression into double precision.
"""
