"""How fast fastbp is.

``python -m benchmarks.compare``
    Side by side with its peers, on this machine.
``python benchmarks/gpu_check.py``
    On a GPU: whether its results are right, and how fast they come.
``asv run`` in this folder
    The history of ``benchmarks/bench_*.py``, commit by commit.

What both share lies in the inner package, because that is all that asv can see.
"""
