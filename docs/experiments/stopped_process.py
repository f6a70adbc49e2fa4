"""Stop and continue: epoll_wait fails with EINTR."""

import ctypes
import errno
import os
import select
import subprocess

DEBUGGER = """
state() { grep -q "^State:.$1" /proc/$0/status; }
until state S; do sleep 0.1; done  # asleep in epoll_wait
kill -STOP $0
until state T; do sleep 0.1; done
kill -CONT $0
"""
libc = ctypes.CDLL(None, use_errno=True)
watching = select.epoll()
event = ctypes.create_string_buffer(16)
pid = str(os.getpid())
debugger = subprocess.Popen(["sh", "-c", DEBUGGER, pid])
result = libc.epoll_wait(watching.fileno(), event, 1, 20_000)
print("epoll_wait:", result, errno.errorcode[ctypes.get_errno()])
debugger.wait()
