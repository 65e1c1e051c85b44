package redisstore

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

// score sets the score of an index entry directly.
func score(t *testing.T, s *Store, user, member string, at int64) {
	t.Helper()
	if err := s.client.ZAdd(t.Context(), userKey(user), redis.Z{Score: float64(at), Member: member}).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredEntriesArePruned(t *testing.T) {
	t.Parallel()
	s := open(t, redistest.Start(t))
	long := storetest.NewLasting(t, "ann", 20*time.Hour) // as if tokens.lifetime was lowered since
	if err := s.Create(t.Context(), long, 0); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour).UnixMilli()
	for i := range int64(50) {
		score(t, s, "ann", fmt.Sprintf("%048d", i), past+i)
		score(t, s, "ann", fmt.Sprintf("%048d", 100+i), -(past + i)) // marked
	}
	create(t, s, "ann")
	n, err := s.client.ZCard(t.Context(), userKey("ann")).Result()
	if err != nil || n != 2 {
		t.Errorf("%d entries, want those of the two live sessions (%v)", n, err)
	}
	assertWorks(t, s, long)
}

func TestNextLoginEndsMarkedSessions(t *testing.T) {
	t.Parallel()
	s := open(t, redistest.Start(t))
	marked := create(t, s, "ann")
	// as if a login crashed after marking it
	score(t, s, "ann", member(marked), -marked.Expires.UnixMilli())
	assertWorks(t, s, marked)
	if err := s.Create(t.Context(), storetest.New(t, "ann"), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup(t.Context(), marked.Hash); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("its token: %v", err)
	}
	if list, err := s.Sessions(t.Context(), "ann"); err != nil || len(list) != 1 {
		t.Errorf("%d sessions, want one (%v)", len(list), err)
	}
}
