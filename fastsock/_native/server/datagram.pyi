from fastsock._native.server.datagram_socket import DatagramSocket
from fastsock._native.server.worker import Worker

class DatagramWorker(Worker):
    def __init__(
        self, socket: DatagramSocket, *, loop_guard: bool, busy_poll: int = 0, cpu: int = -1
    ) -> None: ...
