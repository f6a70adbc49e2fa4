"""The processes of a server for Python; the work is in process_tree.pxd."""


def descendants(int pid) -> list:
    """Return `pid` and the processes that descend from it now, parents first; [] if it is gone."""
    cdef ProcessTree tree
    tree.list = NULL
    tree.count = tree.capacity = 0
    try:
        list_processes(&tree, pid)
        return [tree.list[i].pid for i in range(tree.count)]
    finally:
        free_processes(&tree)
