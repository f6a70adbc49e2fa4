# What TCP measured by itself: TCP_INFO (tcp(7)), read at the end of each connection and summed up.

from libc.stdint cimport UINT32_MAX, uint32_t, uint64_t
from libc.string cimport memset

cimport fastsock._native.posix as posix

cdef extern from * nogil:
    """
    #include <netinet/tcp.h>
    #include <stddef.h>
    #include <stdint.h>

    /* The start of struct tcp_info of <linux/tcp.h>. That header cannot be included together with
       <netinet/tcp.h>; the struct of the latter ends before min_rtt. */
    struct measured_tcp_info {
        uint8_t state_to_options[8];
        uint32_t rto_to_rcv_ssthresh[15];
        uint32_t rtt;
        uint32_t rttvar_to_rcv_space[7];
        uint32_t total_retrans;
        uint64_t pacing_rate_to_bytes_received[4];
        uint32_t segs_out_to_notsent_bytes[3];
        uint32_t min_rtt;
    };
    _Static_assert(offsetof(struct measured_tcp_info, rtt) == offsetof(struct tcp_info, tcpi_rtt),
                   "rtt is at another offset than in struct tcp_info");
    _Static_assert(offsetof(struct measured_tcp_info, total_retrans)
                   == offsetof(struct tcp_info, tcpi_total_retrans),
                   "total_retrans is at another offset than in struct tcp_info");
    """
    struct measured_tcp_info:
        uint32_t rtt                # smoothed, us; 0 before the first measurement
        uint32_t total_retrans      # segments, SYN and FIN too
        uint32_t min_rtt            # us; UINT32_MAX before the first measurement

cdef struct TcpFigures:
    uint64_t connections            # whose rtt was measured
    uint64_t retransmits            # of all connections
    uint64_t rtt_us_sum             # smoothed rtt at the end of each connection
    uint32_t rtt_us_max
    uint32_t min_rtt_us             # 0: not known


cdef inline void read_figures(TcpFigures *figures, int fd) noexcept nogil:
    """Add those of a TCP socket. Without them (not TCP, not open) nothing is added."""
    cdef measured_tcp_info info
    cdef posix.socklen_t size = sizeof(info)
    # An old kernel fills in less: what it does not know stays 0, as before a measurement.
    memset(&info, 0, sizeof(info))
    if posix.getsockopt(fd, posix.IPPROTO_TCP, posix.TCP_INFO, &info, &size) != 0:
        return
    figures.retransmits += info.total_retrans
    if info.rtt == 0:
        return
    figures.connections += 1
    figures.rtt_us_sum += info.rtt
    figures.rtt_us_max = max(figures.rtt_us_max, info.rtt)
    if info.min_rtt != 0 and info.min_rtt != UINT32_MAX:
        figures.min_rtt_us = min(figures.min_rtt_us or UINT32_MAX, info.min_rtt)


cdef inline dict figures_dict(TcpFigures *figures):
    return {
        "connections": figures.connections,
        "retransmits": figures.retransmits,
        "rtt_us_sum": figures.rtt_us_sum,
        "rtt_us_max": figures.rtt_us_max,
        "min_rtt_us": figures.min_rtt_us or None,
    }
