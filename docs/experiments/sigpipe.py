"""With EPIPE comes a signal, unless MSG_NOSIGNAL is set."""

import os
import signal
import socket


def send_to_closed_socket(flags):
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    here, there = socket.socketpair()
    there.close()
    try:
        here.send(b"x", flags)
    except BrokenPipeError:
        os._exit(7)


for flags in 0, socket.MSG_NOSIGNAL:
    child = os.fork()
    if child == 0:
        send_to_closed_socket(flags)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        print("no flag: ended by", name)
    else:
        exit_code = os.WEXITSTATUS(status)
        print("MSG_NOSIGNAL: EPIPE, exit code", exit_code)
