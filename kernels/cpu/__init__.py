"""The CPU engine.

A minibatch is two phases, each ended by a barrier of the team of threads:

1. *Rows.* Each thread owns blocks of the minibatch's rows and takes them through the forward pass, the loss and
   the delta recursion (``rows.py``, ``forward.py``, ``delta.py``).
2. *Parameters.* Each thread owns tiles of every grad_W, sums them over the minibatch in registers and applies
   the optimizer on the spot (``gradient.py``).

Units are the lanes of vectors, in panels of a cache line; ``narrow.py`` does both phases for networks of so few units
that samples make better lanes. ``epoch.py`` strings the phases together and holds the entry points. It calls them, as
they call their products, by address (``jit.Hook``): each is compiled once, whoever calls it. ``layout.py`` says where
everything lies in memory; ``simd.py`` is the only file that emits LLVM IR.
"""
