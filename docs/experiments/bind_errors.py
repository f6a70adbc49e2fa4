"""An address of another machine, and a second bind."""

import errno
import socket

listener = socket.socket()
try:
    listener.bind(("192.0.2.1", 0))  # for documentation (RFC 5737)
except OSError as error:
    print("192.0.2.1:", errno.errorcode[error.errno])
listener.bind(("127.0.0.1", 0))
try:
    listener.bind(("127.0.0.1", 0))
except OSError as error:
    print("second bind:", errno.errorcode[error.errno])
