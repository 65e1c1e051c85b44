package lastseen

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"gatepost/tokens"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store records its touches. While held is set, each touch blocks until its context ends.
type store struct {
	mu      sync.Mutex
	touches []string
	held    bool
	err     error
}

func (s *store) Touch(ctx context.Context, of tokens.Principal, at time.Time, address string) error {
	s.mu.Lock()
	held, err := s.held, s.err
	if !held && err == nil {
		s.touches = append(s.touches, of.User()+" "+at.UTC().Format("15:04:05")+" "+address)
	}
	s.mu.Unlock()
	if held {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (s *store) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	took := s.touches
	s.touches = nil
	return took
}

func sampler(t *testing.T, s *store) *Sampler {
	t.Helper()
	made, err := New(Config{Store: s, Registerer: prometheus.NewPedanticRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(made.Close)
	return made
}

func session(n uint32, user string) tokens.Principal {
	s := &tokens.Session{User: user}
	binary.BigEndian.PutUint32(s.Hash[2:], n)
	return s.Principal()
}

func TestSessionIsSampledOncePerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := &store{}
		s := sampler(t, kept)
		ann, bob := session(1, "ann"), session(2, "bob")
		for range 180 {
			s.Record(ann, "192.0.2.1")
			s.Record(ann, "192.0.2.2")
			time.Sleep(time.Second)
		}
		s.Record(bob, "192.0.2.3")
		synctest.Wait()
		want := []string{"ann 00:00:00 192.0.2.1", "ann 00:01:00 192.0.2.1", "ann 00:02:00 192.0.2.1", "bob 00:03:00 192.0.2.3"}
		if got := kept.took(); !slices.Equal(got, want) {
			t.Errorf("kept %q, want %q", got, want)
		}
	})
}

func TestHangingStoreBlocksNoCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := &store{held: true}
		s := sampler(t, kept)
		start := time.Now()
		for n := range uint32(3 * queued) {
			s.Record(session(n<<16, "ann"), "192.0.2.1")
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("the uses took %v", took)
		}
		synctest.Wait()
		if n := testutil.ToFloat64(s.leftOut); n < queued {
			t.Errorf("%v of %d samples were left out, with a queue of %d", n, 3*queued, queued)
		}
		time.Sleep(writeTimeout)
		synctest.Wait()
		if n := testutil.ToFloat64(s.failed); n != 1 {
			t.Errorf("%v writes have failed, want 1", n)
		}
		s.Close() // while a write hangs and more are queued
		s.Record(session(1, "bob"), "192.0.2.1")
		if got := kept.took(); len(got) != 0 {
			t.Errorf("kept %q", got)
		}
	})
}

func TestStoreErrorLosesOneSample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := &store{err: errors.New("down")}
		s := sampler(t, kept)
		s.Record(session(1, "ann"), "192.0.2.1")
		synctest.Wait()
		kept.mu.Lock()
		kept.err = nil
		kept.mu.Unlock()
		time.Sleep(time.Minute)
		s.Record(session(1, "ann"), "192.0.2.1")
		synctest.Wait()
		if got := kept.took(); !slices.Equal(got, []string{"ann 00:01:00 192.0.2.1"}) {
			t.Errorf("kept %q", got)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sampler(t, &store{})
		for n := range uint32(2 * perShard) { // all in one shard
			s.Record(session(n, "ann"), "192.0.2.1")
		}
		remembered := func() int { return len(s.shards[0].young) + len(s.shards[0].old) }
		if n := remembered(); n != perShard {
			t.Errorf("%d tokens are stored, want %d", n, perShard)
		}
		for range 2 {
			time.Sleep(time.Minute)
			s.Record(session(2*perShard, "ann"), "192.0.2.1")
		}
		if n := remembered(); n != 2 {
			t.Errorf("two minutes later %d entries are stored, want one in each generation", n)
		}
	})
}

func TestUnsampledUseDoesNotAllocate(t *testing.T) {
	s := sampler(t, &store{})
	ann := session(1, "ann")
	s.Record(ann, "192.0.2.1")
	if n := testing.AllocsPerRun(1000, func() { s.Record(ann, "192.0.2.1") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestConcurrentUses(t *testing.T) {
	kept := &store{}
	s := sampler(t, kept)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for n := range uint32(500) {
				s.Record(session(n, "ann"), "192.0.2.1")
			}
		})
	}
	all.Go(s.Close)
	all.Wait()
	s.Close()
	if n := len(kept.took()); n > 500 {
		t.Errorf("%d samples of 500 tokens", n)
	}
}

func BenchmarkSeen(b *testing.B) {
	s, err := New(Config{Store: &store{}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ann := session(1, "ann")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			s.Record(ann, "192.0.2.1")
		}
	})
}
