from fastsock._native.worker import Worker

class UringWorker(Worker):
    def set_sizes(self, entries: int, results: int, buffers: int) -> None: ...
