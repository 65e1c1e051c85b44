package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	manyTokens = 100_000
	manyUsers  = 10_000
	// askers is the number of concurrent clients in the bench itself.
	askers = 32
	// settling is how long a gateway is idle before its memory is read.
	settling = 10 * time.Second
)

// tokensMemoryGoal measures the part of G12 for tokens: a gateway issues them, and each is used
// once.
func tokensMemoryGoal(ctx context.Context, l *lab, wanted func(string) bool) ([]finding, error) {
	up, err := l.upstream(ctx)
	if err != nil {
		return nil, err
	}
	g, err := l.gatepost(ctx, "gatepost-tokens", dataPath(up), dbOther)
	if err != nil {
		return nil, err
	}
	defer l.end(g.process)
	l.say("         issuing %d tokens, and showing each", manyTokens)
	tokens := make([]string, manyTokens)
	err = each(ctx, manyTokens, func(i int) error {
		var err error
		tokens[i], err = login(ctx, g.url(), "user-"+strconv.Itoa(i%manyUsers))
		return err
	})
	if err != nil {
		return nil, err
	}
	err = each(ctx, manyTokens, func(i int) error {
		status, text, err := get(ctx, g.url()+"/orders/5", "Authorization: "+tokens[i])
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("showing a token: %w: %d %s", errWrong, status, text)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	memory, err := l.memory(ctx, g)
	if err != nil {
		return nil, err
	}
	if err := l.stack.redis.client(dbOther).FlushDB(ctx).Err(); err != nil {
		return nil, fmt.Errorf("forgetting the tokens: %w", err)
	}
	return []finding{memory.finding("sidecar's memory with 100,000 tokens, each issued and used once", 80)}, nil
}

// each calls f for 0 to n-1 with several goroutines until one call fails.
func each(ctx context.Context, n int, f func(int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var callers sync.WaitGroup
	for c := range askers {
		callers.Go(func() {
			for i := c; i < n && ctx.Err() == nil; i += askers {
				if err := f(i); err != nil {
					cancel(err)
				}
			}
		})
	}
	callers.Wait()
	return context.Cause(ctx)
}

// footprint is the memory of a sidecar directly after the load and after an idle time.
type footprint struct{ busy, idle resident }

// memory reads the memory of a gateway's sidecar, without its Envoy.
func (l *lab) memory(ctx context.Context, g *gateway) (footprint, error) {
	busy, err := readResident(g.pid())
	if err != nil {
		return footprint{}, err
	}
	select {
	case <-ctx.Done():
		return footprint{}, ctx.Err()
	case <-time.After(settling):
	}
	idle, err := readResident(g.pid())
	return footprint{busy, idle}, err
}

// finding uses the greater of the two.
func (f footprint) finding(what string, most float64) finding {
	return finding{
		Goal: "G12", What: what, Unit: "MiB", Bound: atMost(most), Value: float64(max(f.busy.all, f.idle.all)) / 1024,
		Note: fmt.Sprintf("resident %v at the end of the work, %v after %v", f.busy, f.idle, settling),
	}
}
