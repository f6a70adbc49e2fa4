"""An event of a closed connection names a new one."""

import select
import socket

one, client_of_one = socket.socketpair()
two, client_of_two = socket.socketpair()
watching = select.epoll()
watching.register(one, select.EPOLLIN)
watching.register(two, select.EPOLLIN)
client_of_one.sendall(b"for one")
client_of_two.sendall(b"for two")

batch = watching.poll()
print("events in the batch:", len(batch))
closed_number = two.fileno()
two.close()  # while the event of `one` is handled
stranger = socket.socket()
print("same number again:", stranger.fileno() == closed_number)
print("the batch names it:", closed_number in dict(batch))
