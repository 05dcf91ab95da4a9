"""Predictions: latency of one row, throughput of many."""

from __future__ import annotations

from .timing import seconds_each
from .workloads import WORKLOADS


class Inference:
    params = (list(WORKLOADS),)
    param_names = ("workload",)

    def setup(self, name):
        self.net = WORKLOADS[name].network()
        self.X, _ = WORKLOADS[name].data()
        self.net.predict(self.X)

    def time_one_row(self, name):
        self.net.predict(self.X[:1])

    def track_samples_per_second(self, name):
        def predict(times):
            for _ in range(times):
                self.net.predict(self.X)

        return len(self.X) / seconds_each(predict)

    track_samples_per_second.unit = "samples/s"
