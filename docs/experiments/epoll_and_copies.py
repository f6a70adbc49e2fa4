"""epoll reports a closed number while a copy is open."""

import errno
import os
import select
import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()
number = served.fileno()

watching = select.epoll()
watching.register(number, select.EPOLLIN)
copy = os.dup(number)
served.close()
client.sendall(b"x")
events = watching.poll()
print("event of the closed number:", events[0][0] == number)
try:
    watching.unregister(number)
except OSError as error:
    print("EPOLL_CTL_DEL:", errno.errorcode[error.errno])
