from fastsock._native.server.worker import Worker

class UringWorker(Worker):
    def set_sizes(self, entries: int, results: int, buffers: int) -> None: ...
