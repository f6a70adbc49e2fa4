class BoundSocket:
    @property
    def fd(self) -> int: ...
    @property
    def where(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def inherited(self) -> bool: ...
    def share_port(self) -> None: ...
    def close(self) -> None: ...

class Listener(BoundSocket):
    def __init__(
        self,
        family: int,
        host: str,
        port: int,
        scope_id: int,
        where: str,
        *,
        backlog: int,
        reuse_port: bool = False,
        dual_stack: bool = False,
        nodelay: bool = True,
        rcvbuf: int = 0,
        sndbuf: int = 0,
    ) -> None: ...

class UnixListener(Listener):
    def __init__(self, path: str, where: str, *, mode: int, backlog: int) -> None: ...

class InheritedListener(Listener):
    def __init__(self, fd: int, family: int, where: str, *, nodelay: bool) -> None: ...
