"""The grammar of faults: what is read, and what a mistake is answered with."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from fastsock.endpoint import Endpoint
from fastsock.server.faults import (
    DATAGRAM_KINDS,
    KINDS,
    NEVER,
    STREAM_KINDS,
    Fault,
    Faults,
    check_endpoints,
)

GOOD = {
    "latency:delay=100ms": {"delay": 0.1, "jitter": 0.0, "probability": 1.0},
    "latency:delay=100ms,jitter=.05": {"delay": 0.1, "jitter": 0.05, "probability": 1.0},
    "bandwidth:rate=64k/s": {"rate": 64000.0, "probability": 1.0},
    "slicer:size=64": {"size": 64, "delay": 0.0, "probability": 1.0},
    "limit_data:bytes=4k": {"bytes": 4096, "probability": 1.0},
    "reset_peer:after=4k,probability=0.1": {"after": 4096, "probability": 0.1},
    "reset_peer:after_time=2s": {"after_time": 2.0, "probability": 1.0},
    "timeout": {"probability": 1.0},
    "timeout:after=1": {"after": 1, "probability": 1.0},
    "slow_close:delay=1": {"delay": 1.0, "probability": 1.0},
    "corrupt:probability=1e-3": {"probability": 0.001},
    "no_read": {"probability": 1.0},
    "half_close:after=1M": {"after": 1 << 20, "probability": 1.0},
    "refuse": {"probability": 1.0},
    "accept_delay:delay=1s": {"delay": 1.0, "probability": 1.0},
    "loss:probability=0": {"probability": 0.0},
    "reorder": {"gap": 1, "delay": 0.01, "probability": 1.0},
    "reorder:gap=3,delay=1s": {"gap": 3, "delay": 1.0, "probability": 1.0},
    "truncate:size=10": {"size": 10, "probability": 1.0},
}


@pytest.mark.parametrize("text", GOOD)
def test_a_fault_is_taken_apart(text: str) -> None:
    fault = Fault(text)
    assert fault.kind == text.partition(":")[0]
    assert fault.parameters == GOOD[text]
    assert str(fault) == text
    for again in (copy.copy(fault), pickle.loads(pickle.dumps(fault))):
        assert again == fault
        assert again.parameters == fault.parameters


def test_spaces_are_left_out() -> None:
    assert Fault(" reset_peer : after = 4k , probability = .5 ") == (
        "reset_peer:after=4k,probability=.5"
    )


BAD = {
    "": "'' is no fault; expected one of latency, bandwidth",
    "reset_per:after=4k": "'reset_per' is no fault; did you mean reset_peer?",
    "reset-peer:after=4k": "did you mean reset_peer?",
    "RST": "did you mean reset_peer?",
    "stall": "did you mean timeout?",
    "packet_loss": "did you mean loss?",
    "xyzzy": f"expected one of {', '.join(KINDS)}",
    "latency": "delay is missing; write latency:delay=100ms",
    "latency:": "a parameter is missing; write latency:delay=100ms",
    "latency:delay": "delay has no value; write delay=100ms",
    "latency:delay=": "delay has no value; write delay=100ms",
    "latency:dely=1s": "latency has no parameter 'dely'; did you mean delay?",
    "latency:after=1": "latency has no parameter 'after'; expected some of delay, jitter, probab",
    "latency:100ms": "'100ms' has no name; did you mean delay=100ms?",
    "reset_peer:2s": "'2s' has no name; did you mean after_time=2s?",
    "latency:delay=1s,delay=2s": "delay is given twice",
    "latency:delay=-1s": "delay '-1s' is not a duration",
    "latency:delay=2d": "delay '2d' is not a duration",
    "latency:delay=100000": "delay 100000s is out of range; expected 0 to 24h; a bare number is s",
    "latency:delay=1ms,jitter=2ms": "jitter is longer than delay",
    "bandwidth": "rate is missing; write bandwidth:rate=64k/s",
    "bandwidth:rate=0": "rate 0 is out of range; expected 1/s to 1e12/s",
    "bandwidth:rate=64KB": "rate '64KB' is not a rate",
    "slicer:size=0": "size 0 is out of range; expected 1B to 1GiB",
    "limit_data:after=4k": "limit_data has no parameter 'after'",
    "limit_data:size=4k": "did you mean bytes?",
    "reset_peer": "after or after_time is missing; write reset_peer:after=4k",
    "reset_peer:bytes=4k": "did you mean after?",
    "reset_peer:after=4kb": "after '4kb' is not a size; did you mean 4KiB?",
    "reset_peer:after=4k;probability=1": "after '4k;probability=1' is not a size",
    "corrupt:probability=1.1": "probability 1.1 is no probability; expected 0 to 1",
    "corrupt:probability=-0.1": "probability -0.1 is no probability; expected 0 to 1",
    "corrupt:probability=nan": "probability nan is no probability; expected 0 to 1",
    "corrupt:probability=10%": "probability 10% is no probability; expected 0 to 1, as 0.1",
    "corrupt:toxicity=0.1": "did you mean probability?",
    "truncate:size=70000": "size 70000 is out of range; expected 0 to 65535",
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_answered_in_one_line(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Fault(text)
    message = str(caught.value)
    assert message.startswith(f"fault {text!r}: ")
    assert BAD[text] in message
    assert "\n" not in message


def test_too_long_a_text_is_not_shown_whole() -> None:
    with pytest.raises(ValueError, match="too long; write one fault") as caught:
        Fault("latency:" + "delay=1s," * 1000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("refuse", "faults 'refuse' is str; expected a list such as"),
        (1, "faults 1 is int; expected a list"),
        ([1], "fault 1 is int; expected a str such as"),
        ([b"refuse"], "fault b'refuse' is bytes; expected a str"),
    ],
)
def test_only_a_list_of_text_is_taken(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Faults().check("faults", value)


def test_a_list_keeps_its_order_and_repetitions() -> None:
    texts = ("timeout:after=1k,probability=.5", "refuse", "timeout:after=1k,probability=.5")
    assert Faults().check("faults", iter(texts)) == texts


STREAM, DATAGRAM = Endpoint.parse("tcp://127.0.0.1:0"), Endpoint.parse("udp://127.0.0.1:0")


def test_a_fault_goes_with_its_kind_of_endpoint() -> None:
    both = [Fault("latency:delay=1ms"), Fault("duplicate"), Fault("corrupt")]
    for endpoints in ([STREAM], [DATAGRAM], [STREAM, DATAGRAM]):
        check_endpoints(both, endpoints)
    check_endpoints([Fault("refuse"), Fault("loss")], [STREAM, DATAGRAM])
    with pytest.raises(ValueError, match="'loss' is for datagrams; those of streams are latency"):
        check_endpoints([Fault("loss")], [STREAM])
    with pytest.raises(ValueError, match="'refuse' is for streams; those of datagrams are latency"):
        check_endpoints([*both, Fault("refuse")], [DATAGRAM])


def test_native_code_is_given_plain_numbers() -> None:
    numbers = Fault("latency:delay=100ms,jitter=1us,probability=.5").numbers()
    assert numbers == (KINDS.index("latency"), 0.5, 0, NEVER, 0, 100_000_000, 1000, 0.0)
    assert Fault("limit_data:bytes=4k").numbers()[2:4] == (4096, NEVER)
    assert Fault("reset_peer:after_time=2s").numbers()[2:4] == (NEVER, 2_000_000_000)
    assert Fault("timeout").numbers()[2:4] == (0, NEVER)
    assert {*STREAM_KINDS, *DATAGRAM_KINDS} == {*KINDS}
