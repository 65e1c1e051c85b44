package redistest

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// MoveSlot moves a hash slot of a cluster, with its keys, to the node with the index to, as
// operators do under load (redis.io/docs/latest/commands/cluster-setslot). between is called after
// each step. It returns false if the node already has the slot.
func MoveSlot(t testing.TB, nodes []*Server, slot, to int, between func()) bool {
	t.Helper()
	from := ownerOf(t, nodes, slot)
	if from == to {
		return false
	}
	number := strconv.Itoa(slot)
	source, target := nodes[from], nodes[to]
	targetID := target.Do("CLUSTER", "MYID")
	target.Do("CLUSTER", "SETSLOT", number, "IMPORTING", source.Do("CLUSTER", "MYID"))
	between()
	source.Do("CLUSTER", "SETSLOT", number, "MIGRATING", targetID)
	between()
	for {
		keys := strings.Fields(source.Do("CLUSTER", "GETKEYSINSLOT", number, "1"))
		if len(keys) == 0 {
			break
		}
		// A key may expire or be deleted meanwhile. MIGRATE replies NOKEY then, which is not an
		// error.
		source.Do(append([]string{"MIGRATE", "127.0.0.1", target.Port(), "", "0", "5000", "KEYS"}, keys...)...)
		between()
	}
	target.Do("CLUSTER", "SETSLOT", number, "NODE", targetID)
	between()
	source.Do("CLUSTER", "SETSLOT", number, "NODE", targetID)
	for _, other := range nodes {
		other.Do("CLUSTER", "SETSLOT", number, "NODE", targetID)
	}
	return true
}

// ownerOf returns the index of the node that has the slot.
func ownerOf(t testing.TB, nodes []*Server, slot int) int {
	t.Helper()
	for i, node := range nodes {
		for line := range strings.Lines(node.Do("CLUSTER", "NODES")) {
			fields := strings.Fields(line)
			if len(fields) < 8 || !strings.Contains(fields[2], "myself") {
				continue
			}
			for _, held := range fields[8:] {
				var first, last int
				if n, _ := fmt.Sscanf(held, "%d-%d", &first, &last); n == 1 {
					last = first
				}
				if !strings.HasPrefix(held, "[") && first <= slot && slot <= last {
					return i
				}
			}
		}
	}
	t.Fatalf("no node holds slot %d", slot)
	return -1
}

// Holds reports whether the node of a cluster has the key and is its master.
func (s *Server) Holds(key string) bool {
	s.t.Helper()
	found, err := s.try("EXISTS", key)
	return err == nil && found == "1"
}
