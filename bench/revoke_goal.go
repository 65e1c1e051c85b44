package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// trialsPerRound makes a thousand trials in five rounds. trialsAtOnce is the number of
	// concurrent ones.
	trialsPerRound = 200
	trialsAtOnce   = 20
	// after is how long a token is still used after its revoke has returned.
	after = 300 * time.Millisecond
)

// revokeGoal measures G8: two gateways share a Redis, both under load. Tokens are used at both
// repeatedly while one of them revokes them. Requests that are sent after the revoke has returned
// must be rejected by both.
func revokeGoal(ctx context.Context, l *lab, _ func(string) bool) ([]finding, error) {
	first, err := l.subject(ctx, gateDefault)
	if err != nil {
		return nil, err
	}
	other, err := l.gatepost(ctx, "gatepost-2", dataPath(l.stack.upstream), dbGatepost)
	if err != nil {
		return nil, err
	}
	defer l.end(other.process)
	gateways := []*gateway{l.stack.gateways["gatepost"], other}
	if err := first.check(ctx); err != nil {
		return nil, err
	}
	loading, stop := context.WithCancel(ctx)
	var load sync.WaitGroup
	loaded := make(chan error, len(gateways))
	for _, g := range gateways {
		load.Go(func() { loaded <- l.keepLoading(loading, g) })
	}
	trials := l.trials(ctx, gateways, trialsPerRound*l.count)
	stop()
	load.Wait()
	close(loaded)
	for err := range loaded {
		trials.err = errors.Join(trials.err, err)
	}
	if trials.err != nil {
		return nil, trials.err
	}
	note := fmt.Sprintf("%d trials on two gateways under load; %d requests were sent after a revoke had returned", trialsPerRound*l.count, trials.shown.Load())
	return []finding{
		{Goal: "G8", What: whatAccepted, Unit: "acceptances", Bound: atMost(0), Value: float64(trials.accepted.Load()), Note: note},
		{Goal: "G8", What: whatRevoke, Unit: "s", Bound: atMost(0.01), Value: median(trials.took)},
	}, nil
}

// keepLoading puts load on a gateway until ctx is done.
func (l *lab) keepLoading(ctx context.Context, g *gateway) error {
	tokens, err := logins(ctx, g.url(), "Bearer ")
	if err != nil {
		return err
	}
	what := load{method: http.MethodGet, address: g.address, path: "/orders/5", header: "Authorization", values: tokens, connections: 8}
	for ctx.Err() == nil {
		if _, err := l.run(context.WithoutCancel(ctx), what, 2*time.Second); err != nil {
			return fmt.Errorf("putting load on %s: %w", g.name, err)
		}
	}
	return nil
}

// trialsDone are the results of the trials.
type trialsDone struct {
	shown, accepted atomic.Int64 // requests that were sent after a revoke had returned, and those of them that were accepted
	mu              sync.Mutex
	took            []float64 // seconds of each revoke
	err             error
}

func (l *lab) trials(ctx context.Context, gateways []*gateway, count int) *trialsDone {
	done := &trialsDone{}
	next := make(chan int)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var workers sync.WaitGroup
	for range trialsAtOnce {
		workers.Go(func() {
			for n := range next {
				took, err := done.trial(ctx, gateways, n)
				done.mu.Lock()
				done.took = append(done.took, took.Seconds())
				if err != nil && done.err == nil {
					done.err = fmt.Errorf("trial %d of a revoke: %w", n, err)
					cancel()
				}
				done.mu.Unlock()
			}
		})
	}
	for n := range count {
		select {
		case next <- n:
		case <-ctx.Done():
		}
	}
	close(next)
	workers.Wait()
	return done
}

// trial logs a user in, makes the token known to both gateways, and revokes it by one of them while
// it is in use at both.
func (d *trialsDone) trial(ctx context.Context, gateways []*gateway, n int) (time.Duration, error) {
	by := gateways[n%len(gateways)]
	token, err := login(ctx, gateways[n/2%len(gateways)].url(), "revoked-"+strconv.Itoa(n))
	if err != nil {
		return 0, err
	}
	var answered atomic.Pointer[time.Time] // when the revoke returned
	var showing sync.WaitGroup
	ready := make(chan error, 2*len(gateways)) // :: two per client: accepted once, and the final result
	for _, g := range gateways {
		showing.Go(func() { ready <- d.show(ctx, g, token, &answered, ready) })
	}
	for range gateways {
		err = errors.Join(err, <-ready)
	}
	var took time.Duration
	if err == nil {
		time.Sleep(time.Duration(n%50) * 4 * time.Millisecond) // at varying times between two heartbeats
		begin := time.Now()
		var status int
		status, _, _, err = ask(ctx, http.MethodPost, by.url()+"/token/revoke", "", "Authorization: "+token)
		now := time.Now()
		took = now.Sub(begin)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%w: a revoke returned %d", errWrong, status)
		}
		answered.Store(&now)
	} else {
		now := time.Now()
		answered.Store(&now)
	}
	showing.Wait()
	for range gateways {
		err = errors.Join(err, <-ready)
	}
	return took, err
}

// show uses a token repeatedly until some time after the revoke has returned. It sends to ready
// when the token was accepted once, and returns the final result.
func (d *trialsDone) show(ctx context.Context, g *gateway, token string, answered *atomic.Pointer[time.Time], ready chan<- error) error {
	first := true
	for {
		revoked := answered.Load()
		status, text, err := get(ctx, g.url()+"/orders/5", "Authorization: "+token)
		switch {
		case err != nil:
		case revoked == nil && first && status == http.StatusOK:
			first = false
			ready <- nil
		case revoked == nil && first:
			err = fmt.Errorf("%w: a new token got %d: %s", errWrong, status, text)
		case revoked != nil:
			d.shown.Add(1)
			if status == http.StatusOK {
				d.accepted.Add(1)
			} else if status != http.StatusUnauthorized {
				err = fmt.Errorf("%w: a revoked token got %d: %s", errWrong, status, text)
			}
		}
		if err != nil {
			if first {
				ready <- err
			}
			return err
		}
		if revoked != nil && time.Since(*revoked) > after {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}
