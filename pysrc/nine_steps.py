"""A TCP echo server (RFC 862) in nine steps: python3 nine_steps.py [PORT | HOST:PORT]

Each step makes the system call of its name, which section 2 of the manual describes.
"""

import errno
import signal
import socket
import sys
import threading
import time

STOP = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; kill(1), service managers
# accept(2): errors of the connection that it would have returned. The next may succeed.
NETWORK = {errno.EPROTO, errno.ENONET, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
NETWORK |= {errno.ECONNABORTED, errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EOPNOTSUPP}
SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # files or memory


def open_listener(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")  # IPv6 stands in brackets (RFC 3986)
    family, *_, (ip, *more) = socket.getaddrinfo(host.strip("[]") or "127.0.0.1", None)[0]
    # 1. Create a socket. Python sets close-on-exec: a child would keep the port open.
    listener = socket.socket(family, socket.SOCK_STREAM)
    # 2. Set options. Without SO_REUSEADDR bind() fails while connections are in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Nagle's algorithm (RFC 896) would delay small answers. Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # 3. Bind it to an address. For port 0 the kernel picks a free one.
    listener.bind((ip, int(port), *more[1:]))
    # 4. Listen: the kernel completes connections and queues them, somaxconn at most.
    listener.listen(4096)
    return listener


def accept_clients(listener: socket.socket, stopped_by: list[int]) -> None:
    while not stopped_by:
        try:
            # 5. Accept the oldest connection of the queue. It gets a socket of its own.
            client, _ = listener.accept()
        except OSError as error:
            if error.errno in SHORTAGE:
                time.sleep(0.1)  # the connection stays in the queue: a retry would spin
            elif error.errno not in NETWORK and not stopped_by:
                raise  # such as EPERM, which would come again for ever
            continue
        try:
            # A daemon, not joined: a stop must not wait for a client that stays for days.
            threading.Thread(target=echo, args=(client,), daemon=True).start()
        except RuntimeError:  # no thread can be made (EAGAIN, pthread_create(3))
            client.close()


def echo(client: socket.socket) -> None:
    buffer = memoryview(bytearray(65536))
    try:
        # 6. Receive what has come. 0 bytes: the client sends no more. It may read.
        while received := client.recv_into(buffer):
            # 7. Send it back. send(2) may take a part; sendall() is this loop. If the
            # client does not read, send() blocks, nothing is received: TCP slows it down.
            unsent = buffer[:received]
            while unsent:
                unsent = unsent[client.send(unsent) :]
    except OSError:
        pass  # ECONNRESET, EPIPE, ETIMEDOUT, ...: the end of this connection alone
    finally:
        # 8. Close the client. The kernel delivers what was sent. Unread bytes: a reset.
        client.close()


def serve(address: str) -> int:
    listener = open_listener(address)
    stopped_by: list[int] = []
    # A handler that runs just before accept() blocks would not wake it. So the signals are
    # blocked in every thread (threads inherit the mask); one waits for them: sigwait(3).
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)

    def wait_for_stop() -> None:
        stopped_by.append(signal.sigwait(STOP))
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() would not do

    waiter = threading.Thread(target=wait_for_stop, daemon=True)
    waiter.start()
    ip, port, *_ = listener.getsockname()
    print(f"listening on {f'[{ip}]' if ':' in ip else ip}:{port}", flush=True)
    accept_clients(listener, stopped_by)
    waiter.join()
    # 9. Close the listener. The port is free at once; clients in its queue are reset.
    listener.close()
    return 130 if stopped_by[0] == signal.SIGINT else 0  # as shells: 128 + 2


if __name__ == "__main__":
    address, *others = sys.argv[1:] or ["127.0.0.1:7007"]
    if others or not address.rpartition(":")[2].isdecimal():
        sys.exit("usage: python3 nine_steps.py [PORT | HOST:PORT]")
    try:
        sys.exit(serve(address))
    except (OSError, ValueError, OverflowError) as error:
        sys.exit(f"nine_steps.py: {error}")
