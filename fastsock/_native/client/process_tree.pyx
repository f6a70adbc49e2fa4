"""The processes of a server as Python sees them; the work is in processes.pxd."""

cimport fastsock._native.client.process_tree as processes
from fastsock._native.client.process_tree cimport Processes


def descendants(int pid) -> list:
    """Return `pid` and the processes that descend from it now, parents first; [] if it is gone."""
    cdef Processes tree
    tree.list = NULL
    tree.count = tree.room = 0
    try:
        processes.list_processes(&tree, pid)
        return [tree.list[i].pid for i in range(tree.count)]
    finally:
        processes.free_processes(&tree)
