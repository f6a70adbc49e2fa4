"""Wrong uses, as people make them, and what they are told: what was wrong, and what to type."""

from __future__ import annotations

import os

import pytest

import fastsock
from fastsock.cli import cli, run
from fastsock.cli.load import load

#: What is typed, and what is printed.
TRANSCRIPT = """\
$ fastsock serve 7007
Error: endpoint '7007': no host; write :7007 for loopback or 0.0.0.0:7007 for
  every address
$ fastsock serve --port 7007
Error: --port is not an option of serve; write it in the ENDPOINT: fastsock
  serve :7007
$ fastsock serve -p 7007
Error: -p is not an option of serve; write it in the ENDPOINT: fastsock serve
  :7007
$ fastsock serve --host 0.0.0.0 --port 7007
Error: --host is not an option of serve; write it in the ENDPOINT: fastsock
  serve 0.0.0.0:7007
$ fastsock serve --bind 0.0.0.0:7007
Error: --bind is not an option of serve; write it in the ENDPOINT: fastsock
  serve 0.0.0.0:7007
$ fastsock serve --listen :7007
Error: --listen is not an option of serve; write it in the ENDPOINT: fastsock
  serve :7007
$ fastsock serve localhost
Error: endpoint 'localhost': no port; write localhost:7007
$ fastsock serve 127.0.0.1 7007
Error: endpoint '127.0.0.1': no port; write 127.0.0.1:7007
$ fastsock serve 127.0.0.1:http
Error: endpoint '127.0.0.1:http': port 'http' is not a plain number; write one
  of 0 to 65535
$ fastsock serve 127.0.0.1:70000
Error: endpoint '127.0.0.1:70000': port 70000 is not in 0 to 65535
$ fastsock serve 127.0.0.1:7007/
Error: endpoint '127.0.0.1:7007/': '/' does not go here; write 127.0.0.1:7007
$ fastsock serve *:7007
Error: endpoint '*:7007': host '*' is not an address; write 0.0.0.0:7007
$ fastsock serve ::1:7007
Error: endpoint '::1:7007': IPv6 needs brackets; write [::1]:7007
$ fastsock serve [::1]
Error: endpoint '[::1]': no port; write [::1]:7007
$ fastsock serve http://localhost:8080
Error: endpoint 'http://localhost:8080': fastsock speaks no HTTP; write
  tcp://localhost:8080
$ fastsock serve tpc://127.0.0.1:7007
Error: endpoint 'tpc://127.0.0.1:7007': scheme 'tpc' is unknown; write
  tcp://127.0.0.1:7007
$ fastsock serve unixdgram:///run/echo.sock
Error: endpoint 'unixdgram:///run/echo.sock': scheme 'unixdgram' is unknown;
  write unixgram:///run/echo.sock
$ fastsock serve /run/echo.sock
Error: endpoint '/run/echo.sock': a path needs unix:; write unix:/run/echo.sock
$ fastsock serve unix:echo.sock
Error: endpoint 'unix:echo.sock': path 'echo.sock' is relative; write
  unix:/srv/echo.sock
$ fastsock serve unix:~/echo.sock
Error: endpoint 'unix:~/echo.sock': '~' is not expanded; write
  unix:/home/ann/echo.sock
$ fastsock serve 256.0.0.1:7007
Error: endpoint '256.0.0.1:7007': host '256.0.0.1' is not a dotted quad; write
  four plain numbers of 0 to 255
$ fastsock serve 10.0.0:7007
Error: endpoint '10.0.0:7007': host '10.0.0' is not a dotted quad; write four
  plain numbers of 0 to 255
$ fastsock serve --udp :7007
Error: --udp is not an option of serve; write it in the ENDPOINT: fastsock serve
  udp://127.0.0.1:7007
$ fastsock serve --ipv6
Error: --ipv6 is not an option of serve; write it in the ENDPOINT: fastsock
  serve [::1]:7007
$ fastsock serve --tls
Error: --tls is not an option of serve; fastsock has no TLS
$ fastsock serve --daemon
Error: --daemon is not an option of serve; it stays in the foreground; run it by
  systemd, or with nohup and &
$ fastsock serve --threads 4
Error: --threads is not an option of serve; did you mean --workers?
$ fastsock serve --workers 4k
Error: --workers '4k' is not a whole number; write it without a unit, as in 4000
$ fastsock serve --workers 0
Error: --workers 0 is out of range; expected 1 to 1024
$ fastsock serve --workers
Error: --workers needs a value: --workers N
$ fastsock serve --engine asyncio
Error: --engine 'asyncio' is unknown; expected one of auto, epoll, poll,
  threads, fork, serial, io_uring
$ fastsock serve --engine uring
Error: --engine 'uring' is unknown; did you mean 'io_uring'?
$ fastsock serve --engine EPOLL
Error: --engine 'EPOLL' is unknown; did you mean 'epoll'?
$ fastsock serve --service time
Error: --service 'time' is unknown; expected one of echo, discard, chargen
$ fastsock serve --buffer-size 64kb
Error: --buffer-size '64kb' is not a size; did you mean 64KiB?
$ fastsock serve --buffer-size 1G
Error: --buffer-size 1073741824 is out of range; expected 1B to 16MiB
$ fastsock serve --busy-poll 50
Error: --busy-poll 50s is out of range; expected 0 to 10ms, or auto; a bare
  number is seconds
$ fastsock serve --busy-poll 50usec
Error: --busy-poll '50usec' is not a duration; did you mean 50us?
$ fastsock serve --idle-timeout 5sec
Error: --idle-timeout '5sec' is not a duration; did you mean 5s?
$ fastsock serve --idle-timeout 1d
Error: --idle-timeout '1d' is not a duration; write a number and one of us, ms,
  s, min, h, as in 500us
$ fastsock serve --unix-mode 888
Error: --unix-mode '888' is not octal, 0 to 777; write 600, for example
$ fastsock serve --unix-mode rw-------
Error: --unix-mode 'rw-------' is not octal, 0 to 777; write 600, for example
$ fastsock serve --cpus 0-1
Error: --cpus '0-1' is not a list of numbers; write them with commas, as in 0,1
$ fastsock serve --allow 10.0.0.1/8
Error: --allow '10.0.0.1/8': 10.0.0.1/8 has host bits set; expected a range like
  10.0.0.0/8
$ fastsock serve --max-clients 10
Error: --max-clients is not an option of serve; did you mean --max-connections?
$ fastsock serve --json /no/such/dir/x.json
Error: cannot write /no/such/dir/x.json: its directory is not there; name
  another file
$ fastsock load
Error: load needs an ENDPOINT, as in: fastsock load 127.0.0.1:7007 -c 64 -d 10s
$ fastsock load 127.0.0.1
Error: endpoint '127.0.0.1': no port; write 127.0.0.1:7007
$ fastsock load 127.0.0.1 7007
Error: write host and port as one: fastsock load 127.0.0.1:7007
$ fastsock load :7007 :7008
Error: load takes one ENDPOINT; run it once for :7007 and once for :7008
$ fastsock load :0
Error: tcp://127.0.0.1:0: port 0 cannot be connected to; write the port that the
  server printed
$ fastsock load :7007 -c 1k
Error: --connections '1k' is not a whole number; write it without a unit, as in
  1000
$ fastsock load :7007 -c 0
Error: --connections 0 is out of range; expected 1 to 65536
$ fastsock load :7007 --concurrency 64
Error: --concurrency is not an option of load; did you mean --connections?
$ fastsock load :7007 --requests 1000
Error: --requests is not an option of load; did you mean --messages?
$ fastsock load :7007 --qps 1000
Error: --qps is not an option of load; did you mean --rate?
$ fastsock load :7007 -s 64KB
Error: --size '64KB' is not a size; did you mean 64KiB?
$ fastsock load :7007 -s 1.5
Error: --size '1.5' is not a whole number of bytes; write 2
$ fastsock load :7007 --rate 10k/min
Error: --rate '10k/min' is not a rate; write a number and one of /s, k/s, M/s,
  as in 10k/s
$ fastsock load :7007 --rate 0
Error: --rate 0 is out of range; expected 0.001 to 1e+09 messages per second
$ fastsock load :7007 -d 10 -n 100
Error: --messages does not go with duration or warmup; give one or the other
$ fastsock load :7007 -d 0
Error: --duration 0s is out of range; expected 1ms to 720h
$ fastsock load :7007 -d ten
Error: --duration 'ten' is not a duration; write a number and one of us, ms, s,
  min, h, as in 500us
$ fastsock load :7007 -d
Error: -d needs a value: -d DURATION
$ fastsock load :7007 --depth 4 --rate 1k
Error: --depth does not go with rate or stages, which send whether or not
  answers came
$ fastsock load :7007 --mode upload
Error: --mode 'upload' is unknown; expected one of echo, send, receive
$ fastsock load :7007 --wait sleep
Error: --wait 'sleep' is unknown; expected one of spin, block, auto
$ fastsock load :7007 -t 4
Error: --threads 4 is more than connections 1; each thread needs one
$ fastsock load :7007 --timeout 1d
Error: --timeout '1d' is not a duration; write a number and one of us, ms, s,
  min, h, as in 500us
$ fastsock load udp://:7007 -s 4
Error: --size 4 is no size of a datagram; expected 8 to 65507
$ fastsock load udp://:7007 --mode send
Error: udp://127.0.0.1:7007: mode 'send' goes with streams, not with datagrams
$ fastsock load :7007 --gso
Error: tcp://127.0.0.1:7007: gso goes with udp
$ fastsock load :7007 --nodelay=no
Error: --nodelay takes no value; write --nodelay or --no-nodelay
$ fastsock load :7007 --output x.json
Error: --output is not an option of load; did you mean --json?
$ fastsock bench --engine epoll
Error: --engine is not an option of bench; did you mean --engines?
$ fastsock bench -c 1-10
Error: --connections '1-10' is not a list of numbers; write them with commas, as
  in 1,10,100
$ fastsock bench 127.0.0.1:7007
Error: bench takes options only, not '127.0.0.1:7007'; see fastsock bench -h
$ fastsock bench --rival ./server
Error: --rival './server' has no name; write --rival 'mine=./server'
$ fastsock bench --kind tls
Error: --kind 'tls' is unknown; expected one of tcp, udp, unix, unixgram
$ fastsock bench --picture x.gif
Error: picture 'x.gif' ends with none of .svg, .png; write x.svg
$ fastsock srve
Error: 'srve' is not a command; did you mean fastsock serve?
$ fastsock server
Error: 'server' is not a command; did you mean fastsock serve?
$ fastsock 127.0.0.1:7007
Error: say what to do with it: fastsock serve 127.0.0.1:7007, or fastsock load
  127.0.0.1:7007
$ fastsock frobnicate
Error: 'frobnicate' is not a command; they are serve, load, report, compare,
  merge, bench, info
$ fastsock --port 7007
Error: --port is not an option; name a command first: fastsock serve -h
$ fastsock info --jsn x
Error: --jsn is not an option of info; did you mean --json?
$ fastsock serve --host ::1 --port 8080
Error: --host is not an option of serve; write it in the ENDPOINT: fastsock
  serve [::1]:8080
$ fastsock serve --no-nodelay=3
Error: --no-nodelay takes no value; write --nodelay or --no-nodelay
$ fastsock serve --max-conn 5
Error: --max-conn is not an option of serve; did you mean --max-connections?
$ fastsock load ::1 7007
Error: write host and port as one: fastsock load [::1]:7007
$ fastsock load :7007 --conns 5
Error: --conns is not an option of load; did you mean --connections?
$ fastsock load :7007 -c 1e999k
Error: --connections '1e999k' is not a whole number; too large
$ fastsock bench -d 5s
Error: -d is not an option of bench; did you mean --window?
$ fastsock bench -n 5
Error: -n is not an option of bench; did you mean --windows?
"""
ANSWERS = dict(each.split("\n", 1) for each in TRANSCRIPT.split("$ fastsock ")[1:])

#: Keywords of `fastsock.Server` and what is raised.
KEYWORDS: list[tuple[dict[str, object], str]] = [
    ({"port": 7007}, "option 'port' is unknown; write it in the endpoint: 127.0.0.1:7007"),
    ({"wokers": 4}, "option 'wokers' is unknown; did you mean 'workers'?"),
    ({"timeout": 5}, "option 'timeout' is unknown; did you mean 'idle_timeout'?"),
    ({"threads": 4}, "option 'threads' is unknown; did you mean 'workers'?"),
    ({"workers": "4"}, "workers '4' is str; expected an int"),
    ({"unix_mode": 600}, "unix_mode 600 is out of range; write 0o600"),
    ({"close_on": "quit"}, "close_on 'quit' is str; expected bytes: b'quit'"),
    (
        {"busy_poll": 50},
        "busy_poll 50s is out of range; expected 0 to 10ms, or auto; a bare number is seconds",
    ),
    ({"buffer_size": "64kb"}, "buffer_size '64kb' is not a size; did you mean 64KiB?"),
]

#: Variables, and the warning.
VARIABLES = {
    "FASTSOCK_LOAD_SIZES": "FASTSOCK_LOAD_SIZES sets nothing; did you mean FASTSOCK_LOAD_SIZE?",
    "FASTSOCK_LOAD_PORT": "FASTSOCK_LOAD_PORT sets nothing; "
    "set FASTSOCK_LOAD_ENDPOINT=127.0.0.1:7007",
    "FASTSOCK_LOAD_NO_VERIFY": "FASTSOCK_LOAD_NO_VERIFY sets nothing; write FASTSOCK_LOAD_VERIFY=0",
    "FASTSOCK_LOAD_COLOUR": "FASTSOCK_LOAD_COLOUR sets nothing; no option has this name",
}
#: What Kubernetes sets for a service of the name fastsock-load, and the build's own.
OTHERS = {
    "FASTSOCK_LOAD_SERVICE_HOST": "10.0.0.7",
    "FASTSOCK_LOAD_SERVICE_PORT": "7007",
    "FASTSOCK_LOAD_SERVICE_PORT_ECHO": "7007",
    "FASTSOCK_LOAD_PORT": "tcp://10.0.0.7:7007",
    "FASTSOCK_LOAD_PORT_7007_TCP": "tcp://10.0.0.7:7007",
    "FASTSOCK_LOAD_PORT_7007_TCP_PROTO": "tcp",
    "FASTSOCK_LOAD_PORT_7007_TCP_PORT": "7007",
    "FASTSOCK_LOAD_PORT_7007_TCP_ADDR": "10.0.0.7",
    "FASTSOCK_CFLAGS": "-O2",
    "FASTSOCK_ABI3": "1",
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/srv")
    monkeypatch.setenv("HOME", "/home/ann")
    for name in [each for each in os.environ if each.startswith("FASTSOCK_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("typed", "answer"), ANSWERS.items(), ids=list(ANSWERS))
def test_the_answer_to_a_wrong_use(
    typed: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is one sentence on stderr, in lines of at most 80 columns; the exit code is 2."""
    assert run(typed.split()) == 2
    assert capsys.readouterr() == ("", answer)
    assert max(map(len, answer.splitlines())) <= 80


@pytest.mark.parametrize(("keywords", "answer"), KEYWORDS, ids=str)
def test_the_answer_in_python(keywords: dict[str, object], answer: str) -> None:
    """The same in one line, as a ValueError or a TypeError."""
    with pytest.raises((ValueError, TypeError)) as caught:
        fastsock.Server(**keywords)  # type: ignore[arg-type]
    assert str(caught.value) == answer


@pytest.mark.parametrize(("name", "answer"), VARIABLES.items(), ids=list(VARIABLES))
def test_a_variable_that_sets_nothing(
    name: str, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is warned about, and changes nothing."""
    monkeypatch.setenv(name, "7")
    run(["load", ":0"])
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith(f"warning: {answer} Error: ")


def test_variables_of_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Kubernetes injects, and what the build reads, is not warned about."""
    for name, value in OTHERS.items():
        monkeypatch.setenv(name, value)
    run(["load", ":0"])
    assert "warning" not in capsys.readouterr().err


def test_a_wrong_value_in_a_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer names the variable, not the option."""
    monkeypatch.setenv("FASTSOCK_LOAD_SIZE", "4kb")
    assert run(["load", ":7007"]) == 2
    assert capsys.readouterr().err == (
        "Error: FASTSOCK_LOAD_SIZE '4kb' is not a size; did you mean 4KiB?\n"
    )


def test_a_wrong_flag_in_a_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTSOCK_SERVE_NODELAY", "maybe")
    assert run(["serve"]) == 2
    assert capsys.readouterr().err == (
        "Error: FASTSOCK_SERVE_NODELAY 'maybe' is neither on nor off; write 1 or 0\n"
    )


def test_warnings_are_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a quiet command nor the shell's completion has them."""
    monkeypatch.setenv("FASTSOCK_LOAD_SIZ", "3")
    run(["load", ":0", "--quiet"])
    assert "warning" not in capsys.readouterr().err
    context = cli.make_context("fastsock", ["load", "--mo"], resilient_parsing=True)
    load.make_context("load", ["--mo"], context, resilient_parsing=True)
    assert capsys.readouterr().err == ""


def test_endpoints_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FASTSOCK_SERVE_ENDPOINTS has several, FASTSOCK_LOAD_ENDPOINT one."""
    monkeypatch.setenv("FASTSOCK_SERVE_ENDPOINTS", "127.0.0.1:0 udp://127.0.0.1:0 zork")
    assert run(["serve"]) == 2
    assert "endpoint 'zork'" in capsys.readouterr().err
    with fastsock.Server("127.0.0.1:0") as server:
        monkeypatch.setenv("FASTSOCK_LOAD_ENDPOINT", str(server.endpoint))
        assert run(["load", "-n", "10"]) in (0, 4)
    assert capsys.readouterr().out.startswith(f"{server.endpoint}: 1 connection, ")
