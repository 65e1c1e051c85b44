package redisstore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// revokesChannel carries a notice of each revoke that was made without a gateway. The ACL pattern
// of gateways (gatepost:gateway*) covers its name.
const revokesChannel = "gatepost:gateways:revokes"

// maxNotice bounds a notice, in bytes: every client that may publish in this Redis can send one.
const maxNotice = 4 << 10

// Revoke is a revoke that was made directly in Redis, for the logs of the gateways.
type Revoke struct {
	// Who is user@host of the operator, When the time by the operator's clock.
	Who  string    `json:"who"`
	When time.Time `json:"when"`
	// User is the id of the affected user; empty if one Session was named by its public
	// id.
	User    string `json:"user,omitempty"`
	Session string `json:"session,omitempty"`
	// Ended is the number of sessions that ended.
	Ended int `json:"ended"`
}

// PublishRevoke sends a notice to the connected gateways. The revoke does not depend on it.
func (s *Store) PublishRevoke(ctx context.Context, r Revoke) error {
	ctx, cancel := s.conn.Bound(ctx)
	defer cancel()
	notice, err := json.Marshal(r)
	if err == nil {
		err = s.client.Publish(ctx, revokesChannel, notice).Err()
	}
	if err != nil {
		return fmt.Errorf("publishing a notice of a revoke: %w", err)
	}
	return nil
}

// FollowRevokes calls onRevoke with each notice until ctx ends. It misses notices that are sent
// while Redis is unavailable, and drops malformed ones.
func (s *Store) FollowRevokes(ctx context.Context, onRevoke func(Revoke)) {
	notices := s.client.Subscribe(ctx, revokesChannel) // reconnects automatically
	defer notices.Close()
	for received := notices.Channel(); ; {
		select {
		case <-ctx.Done():
			return
		case notice, open := <-received:
			if !open {
				return
			}
			var r Revoke
			if len(notice.Payload) <= maxNotice && json.Unmarshal([]byte(notice.Payload), &r) == nil {
				onRevoke(r)
			}
		}
	}
}
