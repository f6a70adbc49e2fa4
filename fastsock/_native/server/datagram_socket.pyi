from fastsock._native.server.listener import BoundSocket

class DatagramSocket(BoundSocket):
    def __init__(
        self,
        family: int,
        host: str,
        port: int,
        scope_id: int,
        where: str,
        *,
        reuse_port: bool = False,
        dual_stack: bool = False,
        rcvbuf: int = 0,
        sndbuf: int = 0,
    ) -> None: ...

class UnixDatagramSocket(DatagramSocket):
    def __init__(self, path: str, where: str, *, mode: int, sndbuf: int = 0) -> None: ...

class InheritedDatagramSocket(DatagramSocket):
    def __init__(self, fd: int, family: int, where: str, *, dual_stack: bool) -> None: ...
