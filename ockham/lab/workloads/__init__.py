"""Traffic to measure with: generated from a seed, or read from files."""

from __future__ import annotations

# Importing them makes them known.
from ockham.lab.workloads import contexts, conversations, english  # noqa: F401
from ockham.lab.workloads.arrivals import arrival_times
from ockham.lab.workloads.kinds import Workload, make_workload, workloads
from ockham.lab.workloads.request import Message, Request, write_requests
from ockham.lab.workloads.traces import read_requests

__all__ = [
    "Message",
    "Request",
    "Workload",
    "arrival_times",
    "make_workload",
    "read_requests",
    "workloads",
    "write_requests",
]
