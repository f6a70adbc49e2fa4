"""send takes a part, also of a socket that blocks."""

import signal
import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()
message = bytes(1 << 24)

served.setblocking(False)
print("took all:", served.send(message) == len(message))
try:
    while True:
        served.send(message)
except BlockingIOError:
    print("then: EAGAIN")

other = socket.create_connection(listener.getsockname())
served, _ = listener.accept()  # this one blocks
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
taken = served.send(message)
signal.setitimer(signal.ITIMER_REAL, 0)
print("blocking, with a signal, took all:", taken == len(message))
