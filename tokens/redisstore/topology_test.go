package redisstore

import (
	"errors"
	"fmt"
	"testing"

	"gatepost/tokens"
	"gatepost/tokens/redistest"
	"gatepost/tokens/storetest"
)

// A failed master sends no MOVED. Its tokens, and logins in its slots, must work as soon as its
// replica is promoted, without a call that reads the topology (Ping, Check).
func TestReplicaServesTokensOfFailedMaster(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(master *redistest.Server){
		"killed": (*redistest.Server).Kill,
		"frozen": (*redistest.Server).Freeze,
	} {
		t.Run(name, func(t *testing.T) {
			masters, replicas := redistest.StartReplicatedCluster(t, 3)
			s := mustOpenAsUsed(t, "redis://"+masters[0].Addr+","+masters[1].Addr+","+masters[2].Addr+"/?cluster=true")
			defer s.Close()
			sessions := createOnAll(t, s, masters)
			redistest.AwaitInStep(t, masters[0], replicas[0])
			fail(masters[0])
			redistest.FailOver(t, replicas[0], redistest.Forced)
			awaitServed(t, s, sessions)
		})
	}
}

func TestTokensAreServedAfterPlannedFailover(t *testing.T) {
	t.Parallel()
	masters, replicas := redistest.StartReplicatedCluster(t, 3)
	s := mustOpenAsUsed(t, "redis://"+masters[0].Addr+"/?cluster=true")
	defer s.Close()
	sessions := createOnAll(t, s, masters)
	for i := range masters {
		redistest.FailOver(t, replicas[i], redistest.Agreed)
		redistest.AwaitReplica(t, masters[i], replicas[i])
	}
	awaitServed(t, s, sessions)
	for i := range masters { // the former masters are not needed now
		masters[i].Kill()
	}
	awaitServed(t, s, sessions)
}

// createOnAll creates sessions until each master holds tokens.
func createOnAll(t *testing.T, s *Store, masters []*redistest.Server) (sessions []*tokens.Session) {
	t.Helper()
	redistest.Eventually(t, "tokens on each master", func() bool {
		session := storetest.New(t, fmt.Sprintf("user-%d", len(sessions)))
		if err := s.Create(t.Context(), session, 0); errors.Is(err, tokens.ErrUnavailable) {
			return false // a busy machine may need longer than the store's timeout
		} else if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, session)
		for _, master := range masters {
			if master.Do("SCAN", "0", "MATCH", tokens.RedisPrefix+"*", "COUNT", "1000") == "0\n" {
				return false
			}
		}
		return len(sessions) >= 20
	})
	return sessions
}

// awaitServed waits until each token is accepted and each of its users can log in.
func awaitServed(t *testing.T, s *Store, sessions []*tokens.Session) {
	t.Helper()
	for _, session := range sessions {
		redistest.Eventually(t, "an accepted token", func() bool {
			got, err := s.Lookup(t.Context(), session.Hash)
			if errors.Is(err, tokens.ErrUnknown) {
				t.Fatalf("a live token is unknown")
			}
			return err == nil && got.User == session.User
		})
		redistest.Eventually(t, "a login", func() bool {
			return s.Create(t.Context(), storetest.New(t, session.User), 0) == nil
		})
	}
}
