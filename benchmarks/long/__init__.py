"""Runs that take long: what does not show in a minute. Each passes or fails, and keeps its figures.

``make soak``, ``make churn`` and ``make hold``; nothing else should run on the machine meanwhile.
"""
