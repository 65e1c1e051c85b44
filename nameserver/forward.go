package nameserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"gatepost/regularfile"
)

const (
	// stagger is how long a name server has to reply before the next one is asked as well.
	stagger = 300 * time.Millisecond
	// lookupTimeout is how long a question takes at most.
	lookupTimeout = 5 * time.Second
	// maxUDP is the size of a reply by UDP that no network divides (DNS flag day 2020).
	maxUDP = 1232
)

// resolvConf has the name servers of the system.
const resolvConf = "/etc/resolv.conf"

// systemServers returns the name servers of resolv.conf(5) as they are now. Without any, it is the one of this machine.
func systemServers() []netip.AddrPort {
	text, _ := regularfile.Read(resolvConf) // without it, the default holds
	return parseServers(string(text))
}

func parseServers(text string) (servers []netip.AddrPort) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "nameserver" {
			if address, err := netip.ParseAddr(fields[1]); err == nil {
				servers = append(servers, netip.AddrPortFrom(address, 53))
			}
		}
	}
	if servers == nil {
		servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))
	}
	return servers
}

// docker is the name server in Docker's networks.
var docker = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// Useful reports whether Serve is better than the name servers of the system. Docker's own is right if it says that
// a container does not exist, and gives its address to another one. On other systems than Linux, resolv.conf does not
// name all name servers, and Envoy does not end with Gatepost.
func Useful() bool {
	return runtime.GOOS == "linux" && !slices.Contains(systemServers(), netip.AddrPortFrom(docker, 53))
}

// forward asks name servers one after the other until one replies, and returns the first reply. The error is that of
// the last server. If one of them is silent, the error is a timeout.
func forward(ctx context.Context, servers []netip.AddrPort, q dnsmessage.Question) (*dnsmessage.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	type result struct {
		reply *dnsmessage.Message
		err   error
	}
	results := make(chan result, len(servers))
	next := time.NewTimer(0)
	defer next.Stop()
	var failed error
	for asked, pending := 0, 0; ; {
		if asked == len(servers) && pending == 0 {
			return nil, failed
		}
		select {
		case <-next.C:
			if asked < len(servers) {
				server := servers[asked].String()
				go func() {
					reply, err := ask(ctx, server, q)
					results <- result{reply, err}
				}()
				asked++
				pending++
				next.Reset(stagger)
			}
		case r := <-results:
			if r.err == nil {
				return r.reply, nil
			}
			pending--
			failed = r.err
			next.Reset(0)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errNoReply means that a name server has replied something else than whether a name has addresses.
var errNoReply = errors.New("the name server failed")

// ask returns a name server's reply, with the addresses and aliases alone.
func ask(ctx context.Context, server string, q dnsmessage.Question) (*dnsmessage.Message, error) {
	reply, err := askOnce(ctx, server, q, true)
	if err == nil && refusesEDNS(reply.RCode) {
		reply, err = askOnce(ctx, server, q, false)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the name server %s: %w", server, err)
	}
	if code := reply.RCode; code != dnsmessage.RCodeSuccess && code != dnsmessage.RCodeNameError {
		return nil, fmt.Errorf("%w: %s: %v", errNoReply, server, code)
	}
	return reply, nil
}

// refusesEDNS reports whether a reply can be that of a name server that does not know EDNS (RFC 6891 §7).
func refusesEDNS(code dnsmessage.RCode) bool {
	return code == dnsmessage.RCodeFormatError || code == dnsmessage.RCodeNotImplemented
}

func askOnce(ctx context.Context, server string, q dnsmessage.Question, edns bool) (*dnsmessage.Message, error) {
	id := uint16(rand.Uint32())
	packed, err := newQuery(id, q, edns)
	if err != nil {
		return nil, err
	}
	reply, err := exchange(ctx, "udp", server, id, q, packed)
	if err == nil && reply.Truncated {
		reply, err = exchange(ctx, "tcp", server, id, q, packed)
	}
	return reply, err
}

func newQuery(id uint16, q dnsmessage.Question, edns bool) ([]byte, error) {
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{q},
	}
	if edns {
		var header dnsmessage.ResourceHeader
		if err := header.SetEDNS0(maxUDP, dnsmessage.RCodeSuccess, false); err != nil {
			return nil, err
		}
		query.Additionals = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.OPTResource{}}}
	}
	return query.Pack()
}

// exchange sends a query and waits for its reply. Other messages are ignored, since anybody can send them by UDP; a
// socket of its own for each query makes its port hard to guess.
func exchange(ctx context.Context, network, server string, id uint16, q dnsmessage.Question, query []byte) (*dnsmessage.Message, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		message, err := readMessage(conn)
		if err != nil {
			return nil, err
		}
		if reply := parseReply(message, id, q); reply != nil && !reply.Truncated {
			return reply, nil
		}
		return nil, errNoReply
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buffer := make([]byte, maxUDP)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, err
		}
		if reply := parseReply(buffer[:n], id, q); reply != nil {
			return reply, nil
		}
	}
}

// parseReply returns the reply to a question, with the addresses and aliases alone, or nil if the message is none. The
// answers of a truncated one may be missing.
func parseReply(message []byte, id uint16, q dnsmessage.Question) *dnsmessage.Message {
	var p dnsmessage.Parser
	header, err := p.Start(message)
	if err != nil || header.ID != id || !header.Response {
		return nil
	}
	reply := &dnsmessage.Message{Header: header, Questions: []dnsmessage.Question{q}}
	questions, err := p.AllQuestions()
	if err == nil && len(questions) == 0 && refusesEDNS(header.RCode) {
		return reply // of a server that has not read the question
	}
	if err != nil || len(questions) != 1 || !same(questions[0], q) {
		return nil
	}
	if header.Truncated {
		return reply
	}
	answers, err := p.AllAnswers()
	if err != nil {
		return nil
	}
	addresses := false
	for _, a := range answers {
		switch a.Header.Type {
		case q.Type:
			addresses = true
			fallthrough
		case dnsmessage.TypeCNAME:
			reply.Answers = append(reply.Answers, a)
		}
	}
	if !addresses {
		reply.Answers = nil // aliases that lead to none
	}
	return reply
}

func same(a, b dnsmessage.Question) bool {
	return a.Type == b.Type && a.Class == b.Class && strings.EqualFold(a.Name.String(), b.Name.String())
}
