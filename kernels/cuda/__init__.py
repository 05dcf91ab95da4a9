"""The CUDA engine, of the same shape as that of the CPU.

One thread block computes a tile of a product at a time (``gemm.py``), and finishes it where it stands: bias,
activation, derivative and dropout in ``forward.py``, the derivative of the layer before in ``delta.py``. The gradients
of all layers are one launch, split over the batch into slices of memory that the update adds up in order
(``gradient.py``), so that there are no atomics and the bits are always the same. ``layers.py`` has what is not dense,
``epoch.py`` what comes between steps, ``layout.py`` says where everything lies, ``session.py`` launches.

``compat.py`` and ``ptx.py`` are all that knows numba-cuda.
"""
