"""close with unread input resets, and loses what was sent."""

import select
import socket

listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
served, _ = listener.accept()

client.sendall(b"something that is not received")
select.select([served], [], [])  # it has arrived
served.settimeout(0.3)
sent = received = 0
try:
    while True:
        sent += served.send(bytes(65536))
except TimeoutError:
    print("all buffers are full")
served.close()

try:
    while data := client.recv(65536):
        received += len(data)
    print("end of the stream")
except ConnectionResetError:
    print("ECONNRESET")
print("received all:", received == sent)
