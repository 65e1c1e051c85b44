package ratelimit

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// The keys of a descriptor's entries. The first entry is the limit. A second one names the client; its key is
// KeyAddress, or any other for a value that is counted as it is.
const (
	KeyLimit   = "limit"
	KeyAddress = "remote_address"
)

// maxCounters is the largest number of counters of a request. Definitions have at most 8 limits in one place.
const maxCounters = 32

// Request is a RateLimitRequest of Envoy.
type Request struct {
	// domain names what has the limits: a service, or the gateway.
	domain   string
	counters []counter
}

// counter is what a request is counted in: a limit for one client, or for all of them.
type counter struct {
	limit Limit
	key   string // in Redis
}

// refuses reports whether the request is refused if it cannot be counted.
func (q *Request) refuses() bool {
	return slices.ContainsFunc(q.counters, func(c counter) bool { return c.limit.Refuse })
}

// shows reports whether the response has the headers of a limit.
func (q *Request) shows() bool {
	return slices.ContainsFunc(q.counters, func(c counter) bool { return c.limit.Headers })
}

type entry struct{ key, value []byte }

var errWire = errors.New("malformed protobuf")

// UnmarshalMessage reads a RateLimitRequest from its bytes, without the generated type: that one rejects strings that
// are not UTF-8, so a client could evade all limits by the value of a header.
func (q *Request) UnmarshalMessage(b []byte) error {
	*q = Request{}
	var descriptors [][]byte
	err := eachBytes(b, func(number protowire.Number, value []byte) error {
		switch number {
		case 1: // domain
			q.domain = string(value)
		case 2: // descriptors
			descriptors = append(descriptors, value)
		}
		return nil
	})
	if err == nil && (len(descriptors) == 0 || len(descriptors) > maxCounters) {
		err = fmt.Errorf("%d descriptors", len(descriptors))
	}
	for _, one := range descriptors {
		if err != nil {
			break
		}
		err = q.count(one)
	}
	if err != nil {
		return fmt.Errorf("reading a rate limit request: %w", err)
	}
	return nil
}

// count adds the counter of a descriptor, unless it is there already.
func (q *Request) count(descriptor []byte) error {
	entries, err := entriesOf(descriptor)
	if err != nil {
		return err
	}
	if len(entries) == 0 || string(entries[0].key) != KeyLimit {
		return errors.New("a descriptor does not begin with its limit")
	}
	limit, err := parseLimit(string(entries[0].value))
	if err != nil {
		return err
	}
	c := counter{limit, keyOf(q.domain, limit, entries[1:])}
	if !slices.ContainsFunc(q.counters, func(other counter) bool { return other.key == c.key }) {
		q.counters = append(q.counters, c)
	}
	return nil
}

func entriesOf(descriptor []byte) (entries []entry, err error) {
	err = eachBytes(descriptor, func(number protowire.Number, value []byte) error {
		if number != 1 { // entries
			return nil
		}
		var e entry
		entries = append(entries, e)
		return eachBytes(value, func(number protowire.Number, text []byte) error {
			switch e := &entries[len(entries)-1]; number {
			case 1:
				e.key = text
			case 2:
				e.value = text
			}
			return nil
		})
	})
	return entries, err
}

// eachBytes calls do for each length-delimited field of a message, and skips the others.
func eachBytes(b []byte, do func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		if wire != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, wire, b); n < 0 {
				return errWire
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errWire
		}
		if err := do(number, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// keyOf returns the key of a counter in Redis. It is a hash, so Redis contains no addresses, and a client cannot choose
// the length of a key. The keys of a domain are in one hash slot, because the script needs all keys of a request. Other
// numbers of a limit make another key: a debt to the one means nothing to the other.
func keyOf(domain string, l Limit, client []entry) string {
	l.Refuse, l.Headers = false, false
	h := hashOf([]byte(domain), []byte(l.String()))
	for _, e := range client {
		value := e.value
		if string(e.key) == KeyAddress {
			value = clientOf(value)
		}
		h = hashOf(h, e.key, value)
	}
	return "gatepost:lim:{" + hex.EncodeToString(hashOf([]byte(domain))[:8]) + "}:" + hex.EncodeToString(h)
}

// clientOf returns the address of a client: of IPv6 the /64, which one client owns. An IPv4 address in IPv6 is IPv4.
func clientOf(text []byte) []byte {
	address, err := netip.ParseAddr(string(text))
	if err != nil {
		return text
	}
	address = address.Unmap().WithZone("")
	if address.Is6() {
		of, _ := address.Prefix(64) // 64 bits always fit
		address = of.Addr()
	}
	return address.AsSlice()
}

func hashOf(parts ...[]byte) []byte {
	var text []byte
	for _, p := range parts {
		text = binary.AppendUvarint(text, uint64(len(p)))
		text = append(text, p...)
	}
	sum := sha256.Sum256(text)
	return sum[:16]
}
