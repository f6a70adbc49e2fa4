"""Without a free descriptor the listener stays readable."""

import errno
import os
import resource
import select
import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
ready = select.poll()
ready.register(listener, select.POLLIN)

free = os.dup(0)  # the lowest free descriptor
os.close(free)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
for _ in range(3):
    events = ready.poll()
    try:
        listener.accept()
    except OSError as error:
        print(len(events), "ready;", errno.errorcode[error.errno])

resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
served, address = listener.accept()
print("limit raised, accepted:", address == client.getsockname())
