"""One IPv6 socket that also takes IPv4."""

import errno
import socket

both = socket.socket(socket.AF_INET6)
both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
both.bind(("::", 0))
both.listen()
port = both.getsockname()[1]

client = socket.create_connection(("127.0.0.1", port))
_, address = both.accept()
print("client:", address[0])
try:
    socket.create_server(("0.0.0.0", port))
except OSError as error:
    print("IPv4 listener:", errno.errorcode[error.errno])
