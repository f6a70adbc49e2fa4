from typing import Any

from fastsock._native.server.datagram_socket import DatagramSocket
from fastsock._native.server.worker import Worker

class FaultyDatagramWorker(Worker):
    def __init__(self, socket: DatagramSocket, options: Any, *, cpu: int = -1) -> None: ...
