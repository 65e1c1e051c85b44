package apply

import (
	"context"
	"maps"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"gatepost/definitions/revisions"
	"gatepost/proven"
	"gatepost/xds"
)

// Run asks the Envoys for what they serve, and does what follows from it, until ctx ends.
func (a *Applier) Run(ctx context.Context) error {
	saved := make(chan struct{}) // closed when nothing is left to save
	defer a.saver.await(saved)
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() {
		defer close(saved)
		a.saver.run(following)
	}()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { a.prover.Run(ctx); return nil })
	group.Go(func() error { a.follow(ctx); return nil })
	return group.Wait()
}

// follow hears what the Envoys make of what is published, until ctx ends.
func (a *Applier) follow(ctx context.Context) {
	for {
		changed := a.prover.Changed()
		a.Settle()
		a.fallBack()
		a.retryForgotten(ctx)
		a.checkVersions()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// Settle keeps the newest definitions where they are applied, and goes back to those before where the control
// plane has: the token handler obeys what Envoy serves.
func (a *Applier) Settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	status := a.prover.Status()
	switch {
	case a.newest == nil || a.newest == a.proven:
	case status.Version == a.newest.version && status.Applied():
		a.proven = a.newest
		a.tellApplied(status)
		a.saver.save(a.newest.definitions)
		go debug.FreeOSMemory() // the garbage of sending it
	case status.Rejected != nil && status.Rejected.Version == a.newest.version && status.Version != a.newest.version:
		before := a.published[status.Version]
		if before == nil {
			break // the control plane is already further than this
		}
		rejected := a.newest
		a.newest, a.rejectedLast, a.failed = before, rejected, status.Rejected
		a.config.Obey(&a.newest.definitions.Gateway.Tokens)
		a.withhold(rejected, before.definitions, status.Rejected)
	}
	maps.DeleteFunc(a.published, func(version string, one *applied) bool {
		return one != a.newest && version != status.Proven
	})
}

// fallBack serves what was proven before this gateway began, where an Envoy has rejected what it began with and nothing
// was proven since.
func (a *Applier) fallBack() {
	a.mu.Lock()
	_, why := a.rejectedAtStart()
	a.mu.Unlock()
	if why == nil {
		return
	}
	kept, err := a.config.LastGood.Load() // without the lock: a disk may hang
	a.mu.Lock()
	defer a.mu.Unlock()
	rejected, why := a.rejectedAtStart()
	if why == nil {
		return
	}
	if err != nil || !sameSource(kept.Name, rejected.definitions.Name) {
		kept = nil
	}
	if a.withhold(rejected, kept, why) || kept == nil || kept.Hash() == rejected.definitions.Hash() {
		return
	}
	next, err := a.build(kept, time.Time{})
	if err == nil {
		err = a.publish(next)
	}
	if err != nil {
		a.config.Log.Error("the definitions that were last proven cannot be served", "source", kept.Name, "error", err)
		return
	}
	a.failed, a.rejectedLast = why, rejected
	a.config.Log.Warn("serving the definitions that were last proven", "source", kept.Name, "error", why)
}

// retryForgotten applies again what was rejected if the control plane has forgotten the rejection: who sent it is gone.
func (a *Applier) retryForgotten(ctx context.Context) {
	a.mu.Lock()
	again := a.rejectedLast
	a.mu.Unlock()
	if again != nil && !a.config.Control.Rejects(again.version) {
		a.Changed(ctx, again.definitions)
	}
}

// rejectedAtStart returns what the gateway started with and why an Envoy has rejected it, or nil and nil if it has
// not, or if something was proven since. It is called with mu held.
func (a *Applier) rejectedAtStart() (*applied, *xds.Rejection) {
	why := a.prover.Status().Rejected
	if a.newest == nil || a.proven != nil || why == nil || why.Version != a.newest.version {
		return nil, nil
	}
	return a.newest, why
}

// sameSource says whether definitions of two names come from the same place: one file, or Redis.
func sameSource(one, other string) bool {
	_, redis := revisions.Number(one)
	_, alsoRedis := revisions.Number(other)
	return one == other || redis && alsoRedis
}

// tellApplied says that the newest definitions are what clients get, and how long it took. It is called with mu held.
func (a *Applier) tellApplied(status proven.Status) {
	said := []any{"version", a.newest.version, "envoys", len(status.Envoys), "answered", status.Answered()}
	if !a.newest.saved.IsZero() {
		took := time.Since(a.newest.saved)
		a.metrics.applied.Observe(took.Seconds())
		said = append(said, "seconds", took.Round(time.Millisecond).Seconds())
	}
	a.config.Log.Info("applied", said...)
}
