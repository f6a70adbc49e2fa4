"""What to type instead: for a name that does not exist, the one that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable

#: Words of other tools for the address, which is an argument here.
_ADDRESS = (
    *("address", "addr", "a", "bind", "b", "connect", "dst", "host", "hostname", "h", "interface"),
    *("ip", "listen", "l", "port", "p", "remote", "server", "socket", "target", "url"),
)
#: Words for a kind of address, and how it is written.
_KINDS = {
    "4": "127.0.0.1:7007",
    "6": "[::1]:7007",
    "ipv4": "127.0.0.1:7007",
    "ipv6": "[::1]:7007",
    "tcp": "tcp://127.0.0.1:7007",
    "u": "udp://127.0.0.1:7007",
    "udp": "udp://127.0.0.1:7007",
    "uds": "unix:/run/echo.sock",
    "unix": "unix:/run/echo.sock",
    "unix-socket": "unix:/run/echo.sock",
}
#: What is not there at all, and what there is.
_ABSENT = {
    "background": "it stays in the foreground; run it by systemd, or with nohup and &",
    "d": "it stays in the foreground; run it by systemd, or with nohup and &",
    "daemon": "it stays in the foreground; run it by systemd, or with nohup and &",
    "http": "fastsock sends bytes, not HTTP",
    "ssl": "fastsock has no TLS",
    "tls": "fastsock has no TLS",
}
#: Words of other tools for options; the first one that the command has is meant.
_SAME = {
    "bufsize": ("buffer-size",),
    "buffer": ("buffer-size",),
    "bytes": ("size",),
    "clients": ("connections", "max-connections"),
    "concurrency": ("connections", "max-connections"),
    "count": ("messages",),
    "d": ("duration", "window"),
    "duration": ("window",),
    "messages": ("windows",),
    "n": ("messages", "windows"),
    "cpu": ("cpus",),
    "engine": ("engines",),
    "fds": ("fd",),
    "idle": ("idle-timeout",),
    "in-flight": ("depth",),
    "length": ("size",),
    "limit": ("max-connections",),
    "max-clients": ("max-connections",),
    "msg-size": ("size",),
    "o": ("json",),
    "out": ("json",),
    "output": ("json",),
    "payload": ("size",),
    "pipeline": ("depth",),
    "processes": ("workers",),
    "prometheus": ("metrics",),
    "qps": ("rate",),
    "requests": ("messages",),
    "rps": ("rate",),
    "silent": ("quiet",),
    "slo": ("target", "targets"),
    "tcp-nodelay": ("nodelay",),
    "threads": ("workers",),
    "threshold": ("target", "targets"),
    "thresholds": ("target", "targets"),
    "time": ("duration",),
    "timeout": ("idle-timeout",),
    "workers": ("threads",),
}


def near(name: str, names: Iterable[str]) -> str:
    """The one of `names` that resembles `name` most, or that it shortens; "" if none does."""
    import difflib  # not at the top: only a mistake needs it

    known, name = list(names), name.lower()
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if len(name) > 2:
        found += [each for each in known if each.startswith(name.rstrip("s"))]
        found += [each for each in known if name in each]
    return found[0] if found else ""


def is_address(name: str) -> bool:
    """Whether other tools take an address, or a part of one, as the option of that name."""
    return name.lower() in _ADDRESS


def for_option(name: str, names: Iterable[str], address: str) -> tuple[str, str]:
    """The option among `names` that was meant by one that does not exist, or a remark.

    Names are without leading hyphens, and with hyphens inside. `address` says where an address is
    given; an example is added.
    """
    known = list(names)
    name = name.lower()
    meant = next((each for each in _SAME.get(name, ()) if each in known), "") or near(name, known)
    if meant and (name not in _ADDRESS or meant == f"{name}s"):  # "target" for "targets"
        return meant, ""
    if name in _ADDRESS:
        return "", f"{address}127.0.0.1:7007"
    if name in _KINDS:
        return "", f"{address}{_KINDS[name]}"
    return "", _ABSENT.get(name, "")
