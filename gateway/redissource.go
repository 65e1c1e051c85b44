package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/definitions/revisions"
)

// leaveTimeout bounds the last call of a gateway that ends.
const leaveTimeout = time.Second

// redisSource follows the definitions in Redis, and reports to the other gateways what this one
// serves.
type redisSource struct {
	gateway  *Gateway
	store    *revisions.Store
	close    func() error
	id, name string
	first    *revisions.Revision      // the revision that it started with; nil: it did not come out of Redis itself
	read     *definitions.Definitions // the content of first
	follower *revisions.Follower
	news     chan struct{} // :: one while there is something to report

	mu      sync.Mutex
	newest  revisions.Mark // the newest that was seen
	refused string         // why that cannot be served; empty: it can, as far as is known
}

// openRedisSource opens the definitions in Redis, which need not be there yet.
func openRedisSource(g *Gateway) (*redisSource, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	s := &redisSource{gateway: g, news: make(chan struct{}, 1), id: rand.Text(), name: fmt.Sprintf("%s (%s)", host, g.config.Admin)}
	s.store, s.close, err = OpenRevisions(g.config.Redis)
	return s, err
}

// Definitions returns the definitions to start with: the newest revision, or, if it cannot be read,
// the last good definitions and the error. If there are neither, the gateway waits for a first
// apply, or for Redis.
func (s *redisSource) Definitions(ctx context.Context, lastGood definitions.LastGood) (first *definitions.Definitions, wrong error) {
	newest, wrong := s.store.Newest(ctx)
	if wrong == nil {
		s.note(newest.Mark(), nil)
		if first, wrong = s.store.Load(ctx, newest); wrong == nil {
			s.first, s.read = &newest, first
			return first, nil
		}
		s.note(newest.Mark(), wrong)
	}
	kept, err := lastGood.Load()
	if err == nil {
		if _, fromRedis := revisions.Number(kept.Name); fromRedis {
			return kept, wrong
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		wrong = errors.Join(wrong, err)
	}
	return nil, wrong
}

// Follow makes the follower, once there is a rollout that it reports to.
func (s *redisSource) Follow() (err error) {
	s.follower, err = revisions.NewFollower(revisions.FollowerConfig{
		Store: s.store, Current: s.first, Read: s.read, OnChange: s.changed, OnError: s.failed, Logger: s.gateway.logger,
	})
	return err
}

// Reload has the newest revision read now, and waits until it is.
func (s *redisSource) Reload(ctx context.Context) { s.follower.Reload(ctx) }

// Run follows the revisions and reports what is served, until ctx ends; then this gateway is waited
// for no more.
func (s *redisSource) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { s.follower.Run(ctx) })
	s.reportChanges(ctx)
	all.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := s.store.Leave(ctx, s.id); err != nil {
		s.gateway.logger.Warn("reporting the end of this gateway to the others failed", "error", err)
	}
}

// changed is called by the follower with each new revision.
func (s *redisSource) changed(_ context.Context, r revisions.Revision, d *definitions.Definitions) {
	s.gateway.logger.Info("revision read", "revision", r.Number, "by", r.Who, "message", r.Message, "change", r.Change,
		convention.EventDefinitionsRead.Attr())
	err := s.gateway.rollout.Apply(d, storedAt(r))
	if err != nil {
		s.gateway.rollout.Failed(err)
	}
	s.note(r.Mark(), err)
}

// storedAt returns when a revision was stored, if the clock of Redis agrees with this machine's.
func storedAt(r revisions.Revision) time.Time {
	now := time.Now()
	if r.Stored.After(now) || now.Sub(r.Stored) > time.Minute {
		return now
	}
	return r.Stored
}

// failed is called by the follower if the newest revision cannot be read.
func (s *redisSource) failed(r revisions.Revision, err error) {
	s.gateway.rollout.Failed(err)
	if r.Number != 0 { // otherwise Redis is unreachable, and the last revision may still become verified
		s.note(r.Mark(), err)
	}
}

// note keeps what was seen last, for the reports.
func (s *redisSource) note(newest revisions.Mark, refused error) {
	s.mu.Lock()
	s.newest, s.refused = newest, ""
	if refused != nil {
		s.refused = refused.Error()
	}
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// reportChanges reports what is served at each change of it and with each beat, until ctx ends.
func (s *redisSource) reportChanges(ctx context.Context) {
	beat := time.NewTicker(revisions.Beat)
	defer beat.Stop()
	for {
		changed := s.gateway.rollout.StatusChanged()
		_ = s.store.Report(ctx, s.report()) // the follower is loud about a Redis that is away
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-s.news:
		case <-beat.C:
		}
	}
}

func (s *redisSource) report() revisions.Report {
	status := s.gateway.rollout.Status()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := revisions.Report{ID: s.id, Name: s.name, Newest: s.newest, Refused: s.refused, Envoys: len(status.Envoys)}
	if d := status.Definitions; d != nil {
		r.Serving.Number, _ = revisions.Number(d.Name)
		r.Serving.Sum = d.Hash()
		r.Verified = status.Applied()
	}
	if rejection := status.Rejection(); r.Refused == "" && rejection != nil {
		r.Refused = status.Failure.Error()
	}
	if !r.Verified {
		r.Pending = status.Pending()
	}
	return r
}
