"""close wakes no thread that waits in recv; shutdown does."""

import os
import socket
import threading
import time

listener = socket.create_server(("127.0.0.1", 0))


def connect_and_receive():
    client = socket.create_connection(listener.getsockname())
    served, _ = listener.accept()
    reader = threading.Thread(target=served.recv, args=(99,))
    reader.start()
    time.sleep(0.5)  # now it waits in recv
    return client, served, reader


client, served, reader = connect_and_receive()
os.close(served.detach())
reader.join(0.3)
print("after close, waits:", reader.is_alive())
client.sendall(b"x")
reader.join()
print("after a byte, waits:", reader.is_alive())

client, served, reader = connect_and_receive()
served.shutdown(socket.SHUT_RDWR)
reader.join(10)
print("after shutdown, waits:", reader.is_alive())
