package nameserver

import (
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxRemembered is for how many questions a reply is kept, and maxReply how large it may be. Others are not kept.
	maxRemembered = 4096
	maxReply      = 4096
)

// A memory keeps the last replies with addresses for a Moment.
type memory struct {
	now     func() time.Time
	mu      sync.Mutex
	replies map[dnsmessage.Question]kept
	sweep   time.Time // from when on expired replies are removed, if there are too many
}

type kept struct {
	reply []byte
	until time.Time
}

// amend returns the reply to a question: the given one, or, if it has no addresses, one that had some a moment ago.
// The caller may change it.
func (m *memory) amend(q dnsmessage.Question, reply []byte, hasAddresses bool) []byte {
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !hasAddresses {
		if last := m.replies[q]; now.Before(last.until) {
			return slices.Clone(last.reply)
		}
		delete(m.replies, q)
		return reply
	}
	if len(m.replies) >= maxRemembered && !now.Before(m.sweep) {
		m.sweep = now.Add(time.Second)
		maps.DeleteFunc(m.replies, func(_ dnsmessage.Question, last kept) bool { return !now.Before(last.until) })
	}
	if _, known := m.replies[q]; len(reply) > maxReply || !known && len(m.replies) >= maxRemembered {
		delete(m.replies, q)
		return reply
	}
	if m.replies == nil {
		m.replies = map[dnsmessage.Question]kept{}
	}
	m.replies[q] = kept{slices.Clone(reply), now.Add(Moment)}
	return reply
}
