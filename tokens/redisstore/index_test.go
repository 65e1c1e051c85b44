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

// score puts an entry of an index where it is, or at another place, without the store.
func score(t *testing.T, s *Store, user, member string, at int64) {
	t.Helper()
	if err := s.client.ZAdd(t.Context(), userKey(user), redis.Z{Score: float64(at), Member: member}).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatHasExpiredIsDroppedThoughAnEntryLivesLonger(t *testing.T) {
	s := open(t, redistest.Start(t))
	long := storetest.NewLasting(t, "ann", 20*time.Hour) // as before tokens.lifetime was lowered
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
	works(t, s, long)
}

func TestASessionThatWasMarkedAndNotEndedIsEndedByTheNextLogin(t *testing.T) {
	s := open(t, redistest.Start(t))
	marked := create(t, s, "ann")
	score(t, s, "ann", member(marked), -marked.Expires.UnixMilli()) // by a login that was given up then
	works(t, s, marked)
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
