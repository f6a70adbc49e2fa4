// go_echo HOST PORT: a TCP echo server with a goroutine per connection, as Go is written.
//
// A Write takes everything before the next Read, so nothing is read while something is unsent: one
// buffer is the bound. Go sets TCP_NODELAY by itself. Not io.Copy, which between two sockets is
// splice(2) and would be another comparison.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

const bufferSize = 64 * 1024

func die(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func echo(connection net.Conn) {
	defer connection.Close()
	buffer := make([]byte, bufferSize)
	for {
		size, err := connection.Read(buffer)
		// At end of file everything has been written, and the client that shut down its sending
		// half has its whole echo before our FIN.
		if err != nil {
			return
		}
		if _, err = connection.Write(buffer[:size]); err != nil {
			return // the client has reset
		}
	}
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go_echo HOST PORT (numeric IPv4; port 0 picks one)")
		os.Exit(2)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	listener, err := net.Listen("tcp4", net.JoinHostPort(os.Args[1], os.Args[2]))
	if err != nil {
		die(err)
	}
	fmt.Fprintf(os.Stderr, "listening on tcp://%s (%s)\n", listener.Addr(), runtime.Version())
	go func() {
		<-stop
		os.Exit(0)
	}()
	for {
		connection, err := listener.Accept()
		// Such as no descriptors left, which would spoil the measurement: better to stop than to
		// be compared. That a client left before it was accepted Go keeps to itself.
		if err != nil {
			die(err)
		}
		go echo(connection)
	}
}
