"""A child process keeps a closed listener open."""

import socket
import subprocess

listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()
listener.set_inheritable(True)  # clears close-on-exec
child = subprocess.Popen(["sleep", "60"], close_fds=False)
listener.close()

socket.create_connection(address).close()
print("listener closed: connected, sleep has a copy")
child.kill()
child.wait()
try:
    socket.create_connection(address)
except ConnectionRefusedError:
    print("child ended: ECONNREFUSED")
