package cache

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Gateways send each other notices over Redis channels, on the tracking connection. A client that
// may publish there may also write to the store, so unknown messages are ignored, not treated as an
// error.
const (
	// broadcastChannel is the channel of all gateways: "here" with each heartbeat, "settle" after a
	// revoke.
	broadcastChannel = "gatepost:gateways"
	// gatewayChannel, followed by a gateway's id, is the channel of that gateway: "settled".
	gatewayChannel = "gatepost:gateway:"
)

// notice is one message between gateways. The verbs are part of the protocol between versions.
type notice struct {
	verb string
	// from is the id of the sending gateway.
	from string
	// node is the master on whose connection the notice was published. A cluster forwards notices
	// to all nodes, but there they have no order relative to invalidations, so they are ignored.
	node string
	// number identifies the barrier; 0 in "here".
	number uint64
}

func (n notice) String() string {
	return fmt.Sprintf("%s %s %s %d", n.verb, n.from, n.node, n.number)
}

func parseNotice(text string) (notice, bool) {
	parts := strings.Split(text, " ")
	if len(parts) != 4 || parts[1] == "" {
		return notice{}, false
	}
	number, err := strconv.ParseUint(parts[3], 10, 63)
	if err != nil {
		return notice{}, false
	}
	return notice{parts[0], parts[1], parts[2], number}, true
}

// gateways records which gateways have sent a heartbeat on one connection.
type gateways struct {
	since         time.Time            // when the subscription began
	lastHeartbeat map[string]time.Time // gateway → its last heartbeat
}

// memory is how long a silent gateway is remembered.
const memory = time.Minute

// maxGateways bounds the map. With more gateways, a revoke waits until all leases have expired.
const maxGateways = 4096

func (g *gateways) record(n notice, now time.Time) {
	if len(g.lastHeartbeat) >= maxGateways {
		for id, at := range g.lastHeartbeat {
			if now.Sub(at) > memory {
				delete(g.lastHeartbeat, id)
			}
		}
	}
	if len(g.lastHeartbeat) <= maxGateways {
		g.lastHeartbeat[n.from] = now
	}
}

// leaseHolders returns every gateway that may hold a lease at the time now. It returns false if it
// does not know all of them.
func (g *gateways) leaseHolders(now time.Time, lease time.Duration) (map[string]bool, bool) {
	if now.Before(g.since.Add(withMargin(lease))) || len(g.lastHeartbeat) > maxGateways {
		return nil, false
	}
	holders := make(map[string]bool)
	for id, at := range g.lastHeartbeat {
		if now.Before(at.Add(withMargin(lease))) {
			holders[id] = true
		}
	}
	return holders, true
}

// barrier is a barrier: it waits until all gateways have received the earlier invalidations.
type barrier struct {
	number uint64
	sent   time.Time
	// missing holds the gateways that have not answered. It is nil until this gateway has read its
	// own notice back: only then are all earlier gateways known.
	missing map[string]bool
	done    chan struct{}
}

// answered records one gateway's answer and reports whether it was the last.
func (s *barrier) answered(id string) bool {
	if s.missing == nil {
		return false // an answer cannot precede the notice
	}
	delete(s.missing, id)
	return len(s.missing) == 0
}
