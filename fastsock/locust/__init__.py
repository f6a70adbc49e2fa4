"""Locust (locust.io) with fastsock as its engine: docs/many-machines.md.

Locust starts and stops users, also on many machines; native threads make their load. Each worker
process has one run for each class of users. It is ended, and another begun, when their number
changes. The figures of its intervals are added to Locust's statistics, and its reports travel to
the master with them.
"""

from fastsock.locust import events as events  # it registers what Locust calls
from fastsock.locust.user import EchoUser

__all__ = ["EchoUser"]
