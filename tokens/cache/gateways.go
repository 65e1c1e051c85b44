package cache

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What gateways say to each other, on the tracking connection, in Redis' own channels. Whoever may publish there may
// also write the store: what is not understood is passed over.
const (
	// everyone is heard by every gateway: "here", each heartbeat, and "settle", after a revoke.
	everyone = "gatepost:gateways"
	// personal and a gateway's id is heard by that one: "settled".
	personal = "gatepost:gateway:"
)

// notice is one message between gateways.
type notice struct {
	verb string
	// from is the gateway that says it.
	from string
	// node is the master on whose connection it was said: in a cluster, Redis carries it to all others as well,
	// where it is in no order with what they call back.
	node string
	// number says which settling is meant; of "here" it is 0.
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

// gateways is who has been heard on one connection, since when it listens.
type gateways struct {
	since time.Time
	heard map[string]time.Time // :: gateway → when it was last heard
}

// memory is for how long a gateway that fell silent is remembered.
const memory = time.Minute

// maxGateways bounds the memory; where there are more the settling is waited out, for they cannot all be known.
const maxGateways = 4096

func (g *gateways) hear(n notice, now time.Time) {
	if len(g.heard) >= maxGateways {
		for id, at := range g.heard {
			if now.Sub(at) > memory {
				delete(g.heard, id)
			}
		}
	}
	if len(g.heard) <= maxGateways {
		g.heard[n.from] = now
	}
}

// principals returns every gateway that may hold a lease of the length at the time now, or false where they are not all known.
func (g *gateways) principals(now time.Time, lease time.Duration) (map[string]bool, bool) {
	if now.Before(g.since.Add(withMargin(lease))) || len(g.heard) > maxGateways {
		return nil, false
	}
	principals := make(map[string]bool)
	for id, at := range g.heard {
		if now.Before(at.Add(withMargin(lease))) {
			principals[id] = true
		}
	}
	return principals, true
}

// settling is one wait for all gateways to have heard what was changed before it was published.
type settling struct {
	number uint64
	sent   time.Time
	// missing is who has yet to answer; nil until the settling was itself read back, so that all who were there before it are known.
	missing map[string]bool
	done    chan struct{}
}

// answered takes one gateway's answer, and says whether it was the last.
func (s *settling) answered(id string) bool {
	if s.missing == nil {
		return false // nobody can have answered what has not come back yet
	}
	delete(s.missing, id)
	return len(s.missing) == 0
}
