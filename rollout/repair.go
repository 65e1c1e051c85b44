package rollout

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"gatepost/definitions"
	"gatepost/definitions/revisions"
)

// repair publishes a version in place of a rejected one: without the services that the rejection names or, if it names
// none and no version was acked since the start, the last good one from the disk.
func (r *Rollout) repair(a repair) {
	r.building.Lock()
	defer r.building.Unlock()
	before, kept := a.before, (*definitions.Definitions)(nil)
	if before == nil {
		kept = r.lastGoodOf(a.rejected.definitions.Name)
		before = kept
	}
	if r.publishInPart(a, before) || kept == nil || kept.Hash() == a.rejected.definitions.Hash() {
		return
	}
	v, err := r.build(kept, time.Time{})
	if err == nil {
		v.failure, v.instead = a.why, a.rejected.original()
		err = r.handle(repaired{v, a.rejected})
	}
	if err != nil {
		r.config.Logger.Error("the last good definitions cannot be served", "source", kept.Name, "error", err)
		return
	}
	r.config.Logger.Warn("serving the last good definitions", "source", kept.Name, "error", a.why)
}

// lastGoodOf returns the last good definitions from the disk if they come from the same source, else nil.
func (r *Rollout) lastGoodOf(source string) *definitions.Definitions {
	kept, err := r.config.LastGood.Load()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.config.Logger.Error("reading the last good definitions failed", "error", err)
	}
	if err != nil || !sameSource(kept.Name, source) {
		return nil
	}
	return kept
}

// sameSource reports whether definitions of two names come from the same place: one file, or Redis.
func sameSource(one, other string) bool {
	_, redis := revisions.Number(one)
	_, alsoRedis := revisions.Number(other)
	return one == other || redis && alsoRedis
}

// publishInPart publishes rejected definitions without the services that the rejection names, and reports whether it
// did. Each of these stays as in the definitions before. If that would be less strict, or if it is new, it keeps its
// path and its rule and answers 503, so that no other service takes its requests. This ends, because each time more
// services are in an older form.
func (r *Rollout) publishInPart(a repair, before *definitions.Definitions) bool {
	blamed := a.rejected.snapshot.Blamed(a.why)
	if len(blamed) == 0 {
		return false
	}
	restored, rest := a.rejected.definitions.Restore(blamed, before)
	v, err := r.build(restored, a.rejected.saved, append(rest, a.rejected.withheld...)...)
	if err == nil {
		v.former = subtract(append(slices.Clone(a.rejected.former), blamed...), rest)
		v.failure = fmt.Errorf("not as defined: %s: %w", strings.Join(blamed, ", "), a.why)
		v.instead = a.rejected.original()
		err = r.handle(repaired{v, a.rejected})
	}
	if err != nil {
		r.config.Logger.Error("the other services cannot be served either", "refused", blamed, "error", err)
		return false
	}
	r.metrics.failed.Inc()
	r.config.Logger.Error("Envoy refuses some services; the others are served as they are defined now",
		"former", subtract(blamed, rest), "withheld", v.withheld, "error", a.why)
	return true
}

// rebuild publishes a version without the module.
func (r *Rollout) rebuild(of *version) {
	r.building.Lock()
	defer r.building.Unlock()
	v, err := r.build(of.definitions, of.saved, of.withheld...)
	if err == nil {
		v.former, v.failure, v.instead = of.former, of.failure, of.instead
		err = r.handle(repaired{v, of})
	}
	if err != nil {
		r.config.Logger.Error("the definitions cannot be served without the module either", "error", err)
	}
}

// renew publishes the version that is published with the certificates that there are now.
func (r *Rollout) renew() {
	r.building.Lock()
	defer r.building.Unlock()
	r.mu.Lock()
	of := r.machine.target
	r.mu.Unlock()
	if of == nil || of.definitions.Gateway.TLS == nil {
		return
	}
	v, err := r.build(of.definitions, of.saved, of.withheld...)
	if err == nil && v.id() != of.id() {
		v.former, v.failure, v.instead = of.former, of.failure, of.instead
		err = r.handle(renewed{v, of})
	}
	if err != nil {
		r.config.Logger.Error("the other names of the certificates cannot be served", "error", err)
	}
}

// subtract returns what is in all and not in some.
func subtract(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(one string) bool { return slices.Contains(some, one) })
}
