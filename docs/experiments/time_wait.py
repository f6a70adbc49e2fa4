"""Listen, close a connection first, and listen again."""

import errno
import socket


def listen(port, reuse):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def restart(first, second):
    with listen(0, reuse=first) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = listener.accept()
    served.close()  # the server closes first: TIME_WAIT
    client.close()
    try:
        with listen(port, reuse=second):
            return "listening"
    except OSError as error:
        return errno.errorcode[error.errno]


print("SO_REUSEADDR in the first and the second run:")
for first, second in (0, 0), (0, 1), (1, 0), (1, 1):
    print(first, second, restart(first, second))
