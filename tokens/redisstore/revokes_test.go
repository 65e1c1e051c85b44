package redisstore

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"gatepost/tokens/redistest"
)

// checkRevokeNotices fails the test unless a notice that one store publishes reaches the follower
// of another.
func checkRevokeNotices(t *testing.T, server *redistest.Server, publisher, follower *Store) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	received, ended := make(chan Revoke, 10), make(chan struct{})
	go func() {
		defer close(ended)
		follower.FollowRevokes(ctx, func(r Revoke) { received <- r })
	}()
	redistest.Eventually(t, "a follower", func() bool {
		return strings.Contains(server.Do("PUBSUB", "NUMSUB", revokesChannel), "1")
	})
	// Invalid notices are dropped.
	for _, notice := range []string{"", "nonsense", `["x"]`, `{"who":"` + strings.Repeat("x", maxNotice) + `"}`} {
		server.Do("PUBLISH", revokesChannel, notice)
	}
	sent := Revoke{Who: "carol@ops", When: time.Unix(1e9, 0).UTC(), User: "ann", Ended: 3}
	if err := publisher.PublishRevoke(ctx, sent); err != nil {
		t.Fatal(err)
	}
	if got := <-received; !reflect.DeepEqual(got, sent) {
		t.Errorf("received %+v, want %+v", got, sent)
	}
	stop()
	<-ended
}

func TestRevokeNoticesAreFollowed(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	one, other := mustOpen(t, server.URL()), mustOpen(t, server.URL())
	defer one.Close()
	defer other.Close()
	checkRevokeNotices(t, server, one, other)
	server.Restart() // a gateway's follower reconnects; this test starts a new one
	checkRevokeNotices(t, server, one, other)
	server.Kill()
	if err := one.PublishRevoke(t.Context(), Revoke{}); err == nil {
		t.Error("publishing succeeded without Redis")
	}
}
