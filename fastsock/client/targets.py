"""Targets of a load run: what it must keep, as in ``p99<1ms``. What it did keep: target_results.py.

METRIC OPERATOR VALUE, with spaces between them or without. A metric of latency may have the name of
its distribution before it: ``connect.p99``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fastsock.client.percentiles import EXPECTED, is_percentile, name_of
from fastsock.options import Kind
from fastsock.units import parse_count, parse_duration, parse_rate

if TYPE_CHECKING:
    from fastsock.client.options import LoadOptions
    from fastsock.endpoint import Endpoint

#: What stands before a percentile, mean, max or min, and the histogram that it is of.
DISTRIBUTIONS = {
    "": "latency",
    "sent.": "latency_from_send",
    "connect.": "connect",
    "delay.": "send_delay",
}
COUNTS = ("errors", "lost", "corrupt", "retransmits")
_SHARES = ("errors", "lost")
_FIGURES = ("mean", "max", "min")
_LONGEST = 60  # characters; a longer one would not be read

_PARTS = re.compile(r"([^<>=!\s]*)\s*(<=|>=|==|<|>)\s*([^<>=!]*)")
_METRIC = re.compile(
    r"(sent\.|connect\.|delay\.)?(?:p([0-9]{1,2}(?:\.[0-9]{1,3})?)|(mean|max|min))"
)
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?%")

#: Other spellings of an operator, and the one that is meant.
_OPERATORS = {
    "=<": "<=",
    "=>": ">=",
    "\u2264": "<=",
    "\u2265": ">=",
    "\uff1c": "<",
    "\uff1e": ">",
    "===": "==",
}
_UNKNOWN_OPERATOR = re.compile(f"({'|'.join(_OPERATORS)}|(?<![<>=!])=(?![<>=]))")
#: Words of other tools, in lower case.
_MEANT = {
    **dict.fromkeys(("avg", "average"), "mean"),
    **dict.fromkeys(("med", "median"), "p50"),
    **dict.fromkeys(("maximum", "worst", "p100"), "max"),
    **dict.fromkeys(("minimum", "p0"), "min"),
    **dict.fromkeys(("latency", "duration", "http_req_duration", "rtt", "response_time"), "p99"),
    **dict.fromkeys(("rps", "qps", "reqs", "http_reqs", "throughput"), "rate"),
    **dict.fromkeys(("messages", "msgs", "messages_per_s", "iterations"), "rate"),
    **dict.fromkeys(("failed", "failures", "fails", "http_req_failed"), "errors"),
    **dict.fromkeys(("loss", "dropped", "drops", "lost_bytes"), "lost"),
    **dict.fromkeys(("corruption", "corrupted", "corrupt_bytes"), "corrupt"),
    **dict.fromkeys(("retrans", "retransmissions"), "retransmits"),
}
#: Spellings of what stands before a figure, and the one that is meant.
_PREFIXES = {
    **{each: each for each in DISTRIBUTIONS if each},
    "send.": "sent.",
    "send_delay.": "delay.",
    "latency.": "",
    "intended.": "",
}
#: As of other tools: P99, 99th, 95, p99_9, and p999 for p99.9.
_NEAR_PERCENTILE = re.compile("[pq]?_?([0-9]{1,2})(?:[._]?([0-9]{1,3})[0-9]*)?(?:th|p)?")


class Target(str):
    """A target without spaces, taken apart.

    The limit is in seconds, in messages per second or a count; of a share from 0 to 1.
    """

    __slots__ = ("is_share", "limit", "metric", "operator")
    metric: str
    operator: str
    limit: float
    is_share: bool

    def __new__(cls, text: str, name: str = "target") -> Target:
        """Raise ValueError if the text is no target; the error begins with `name`."""
        metric, operator, value = _split(text, name)
        limit, is_share = _limit(metric, value, f"{name} {_quoted(text)}: limit")
        self = super().__new__(cls, f"{metric}{operator}{value.replace(' ', '')}")
        self.metric, self.operator, self.limit, self.is_share = metric, operator, limit, is_share
        return self

    def __getnewargs__(self) -> tuple[str]:
        return (str(self),)

    @property
    def distribution(self) -> str:
        """The histogram that the metric is of; empty for a rate or a count."""
        prefix, dot, _ = self.metric.partition(".")
        if self.metric in ("rate", *COUNTS):
            return ""
        return DISTRIBUTIONS.get(prefix + dot, "latency")

    @property
    def percent(self) -> float | None:
        """Of a percentile."""
        found = _METRIC.fullmatch(self.metric)
        return float(found[2]) if found and found[2] else None


class Targets(Kind):
    """Targets, each once."""

    metavar = "TARGET"
    repeatable = True
    separator = ","  # spaces may stand inside a target
    limits = (
        "METRIC OPERATOR VALUE; metrics p50 to p99.999, mean, max, min (after sent., connect., "
        "delay. too), rate, errors, lost, corrupt, retransmits; operators < <= > >= =="
    )

    def check(self, name: str, value: Any) -> tuple[Target, ...]:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise TypeError(
                f"{name} {value!r} is {type(value).__name__}; expected a list such as ['p99<1ms']"
            )
        found = []
        for each in value:
            if not isinstance(each, str):
                raise TypeError(
                    f"target {each!r} is {type(each).__name__}; expected a str such as 'p99<1ms'"
                )
            found.append(Target(each))
        return tuple(dict.fromkeys(found))

    def parse(self, name: str, text: str) -> Target:
        return Target(text, name)


def metrics_of(targets: Iterable[Target]) -> set[str]:
    """What is decided by targets."""
    return {each.metric for each in targets}


def check_options(options: LoadOptions) -> None:
    """Raise ValueError for a target on what no run with these options has."""
    for each in options.targets:
        for why in _missing(each, options):
            raise ValueError(f"target {str(each)!r}: {why}")


def check_endpoint(targets: Iterable[Target], endpoint: Endpoint) -> None:
    """Raise ValueError for a target on what no run there has."""
    for each in targets:
        for why in _missing_at(each, endpoint):
            raise ValueError(f"{endpoint}: target {str(each)!r}: {why}")


def _missing(target: Target, options: LoadOptions) -> Iterator[str]:
    metric, mode = target.metric, options.mode
    if target.distribution in ("latency", "latency_from_send") and mode != "echo":
        yield f"in mode {mode!r} nothing is answered, so there is no latency"
    if target.distribution == "send_delay" and not options.open_loop:
        yield "without a rate no message is late; give a rate, or leave the target out"
    if metric == "lost" and mode != "echo":
        yield f"in mode {mode!r} nothing comes back, so what is lost is not known"
    if metric == "corrupt" and mode == "send":
        yield "in mode 'send' nothing comes back to compare"
    if metric == "corrupt" and not options.verify:
        yield "nothing is compared without verify"


def _missing_at(target: Target, endpoint: Endpoint) -> Iterator[str]:
    if target.distribution == "connect" and not endpoint.is_stream:
        yield "a datagram socket does not connect to its server"
    if target.metric == "retransmits" and endpoint.scheme != "tcp":
        yield "only TCP retransmits"
    if target.metric == "lost" and target.is_share and endpoint.is_stream:
        yield "a share goes with datagrams; of a stream give lost bytes, as in lost==0"


# --- the grammar --------------------------------------------------------------------------------


def _split(text: str, name: str) -> tuple[str, str, str]:
    """Metric, operator and value."""
    given = text.strip()
    if len(given) > _LONGEST:
        raise ValueError(f"{name} {_quoted(text)} is too long; write one target, as in p99<1ms")
    found = _PARTS.fullmatch(given)
    if found is None or not found[1] or not found[3]:
        raise ValueError(f"{name} {_quoted(text)} is not a target; {_hint(given)}")
    metric, operator, value = found.groups()
    known = _canonical(metric)
    if known is None:
        meant = _corrected(given) if _meant_metric(metric) else ""
        helps = f"did you mean {meant}?" if meant else _metrics(metric)
        raise ValueError(f"{name} {_quoted(text)}: {_quoted(metric)} is no metric; {helps}")
    return known, operator, value.strip()


def _canonical(metric: str) -> str | None:
    """The metric with its percentile in the shortest form; None if there is no such metric."""
    if metric in ("rate", *COUNTS):
        return metric
    found = _METRIC.fullmatch(metric)
    if found is None:
        return None
    prefix, percent, figure = found.groups("")
    if figure:
        return f"{prefix}{figure}"
    return f"{prefix}{name_of(float(percent))}" if is_percentile(float(percent)) else None


def _limit(metric: str, value: str, name: str) -> tuple[float, bool]:
    """The limit, and whether it is a share."""
    if "%" in value:
        if metric not in _SHARES:
            raise ValueError(f"{name} {_quoted(value)} is a share, which {metric} has not")
        found = _SHARE.fullmatch(value)
        share = float(found[1]) / 100 if found else 2.0
        if share > 1:
            raise ValueError(f"{name} {_quoted(value)} is not a share; expected 0% to 100%")
        return share, True
    if metric == "rate":
        return parse_rate(value, name), False
    if metric in COUNTS:
        return parse_count(value, name), False
    return parse_duration(value, name), False


def _hint(text: str) -> str:
    """What to write instead of something that has not the three parts."""
    if len(re.findall("[<>]=?|==", text)) > 1 or re.search("[;&|]", text):
        return "write one comparison in each target"
    candidates = []
    if found := _UNKNOWN_OPERATOR.search(text):
        metric, value = text[: found.start()].strip(), text[found.end() :]
        candidates.append(f"{metric}{_OPERATORS.get(found[0]) or _likely(metric)}{value}")
    if found := re.fullmatch(r"([^<>=!:\s]+)[:\s]+([^<>=!]+)", text):  # without an operator
        candidates.append(f"{found[1]}{_likely(found[1])}{found[2]}")
    for each in candidates:
        if meant := _corrected(each):
            return f"did you mean {meant}?"
    return "write METRIC OPERATOR VALUE, as in p99<1ms, rate>=10k or errors==0"


def _likely(metric: str) -> str:
    """The operator that a metric is most often used with."""
    metric = _canonical(metric) or _meant_metric(metric)
    return ">=" if metric == "rate" else "==" if metric in COUNTS else "<="


def _corrected(candidate: str) -> str:
    """The target that a candidate is, perhaps with another metric; empty if it is none."""
    found = _PARTS.fullmatch(candidate)
    if found is None:
        return ""
    metric = _canonical(found[1]) or _meant_metric(found[1])
    try:  # without a metric there is no correction of the correction
        return str(Target(f"{metric}{found[2]}{found[3]}")) if metric else ""
    except ValueError:
        return ""


def _meant_metric(metric: str) -> str:
    """The metric that is meant by one that does not exist; empty if none is near."""
    name, before = re.sub("[()]", "", metric.lower()), ""
    for spelling, prefix in _PREFIXES.items():
        if name.startswith(spelling):
            name, before = name.removeprefix(spelling), prefix
            break
    if f"{name}." in DISTRIBUTIONS:
        return f"{name}.p99"
    meant = _MEANT.get(name, "")
    if not meant and (found := _NEAR_PERCENTILE.fullmatch(name)):
        meant = f"p{found[1]}.{found[2]}" if found[2] else f"p{found[1]}"
    if not meant:
        import difflib  # not at the top: only a mistake needs it

        names = ("rate", *COUNTS, *_FIGURES)
        meant = next(iter(difflib.get_close_matches(name, names, 1, 0.7)), "")
    return _canonical(f"{before}{meant}") or _canonical(meant) or ""


def _metrics(metric: str) -> str:
    if metric.startswith("p") and metric[1:2].isdigit():
        return f"a percentile is {EXPECTED}"
    return f"the metrics are p50 to p99.999, mean, max, min, rate, {', '.join(COUNTS)}"


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}..."
