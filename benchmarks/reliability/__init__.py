"""What echo servers do when something goes wrong: the probes behind docs/reliability.md.

Every server gets the same probes from the same client (`probes`, `datagrams`), in a process of its
own. ``python -m benchmarks.reliability.run`` measures, ``python -m benchmarks.reliability.table``
writes the page.
"""
