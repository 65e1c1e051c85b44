package gateway

import (
	"context"
	"errors"

	"gatepost/admin"
	"gatepost/authz"
	"gatepost/definitions"
	"gatepost/definitions/history"
	"gatepost/definitions/revisions"
	"gatepost/explain"
	"gatepost/rollout"
	"gatepost/tokens"
)

// explain explains a request with the definitions that are served.
func (g *Gateway) explain(ctx context.Context, r explain.Request, lookup bool) (*explain.Explanation, error) {
	status := g.rollout.Status()
	if status.Definitions == nil {
		return nil, admin.ErrNothingServed
	}
	options := g.config.XDSOptions()
	options.Module = status.Module.Module
	if tls := status.Definitions.Gateway.TLS; tls != nil {
		options.Certificates = serving(tls, g.certificates.set)
	}
	var sessions authz.Sessions
	if lookup {
		sessions = tokens.LookupFunc(g.store.Lookup)
	}
	running := &explain.Gateway{Address: g.config.Admin, Status: g.message(), Named: true}
	explainer, err := explain.New(explain.Config{Definitions: status.Definitions, Options: options, Sessions: sessions, Gateway: running})
	if err != nil {
		return nil, err
	}
	return explainer.Explain(ctx, r)
}

func (g *Gateway) definitions() *definitions.Definitions { return g.rollout.Status().Definitions }

// openHistory opens the history of the definitions file. Without it there are no revisions, and all else works.
func (g *Gateway) openHistory() {
	if g.redis != nil {
		return
	}
	var err error
	if g.history, err = history.Open(g.config.Data); err != nil {
		g.logger.Error("definitions have no history", "error", err)
		return
	}
	g.atClose("the history of the definitions", g.history.Close)
}

// keeper saves definitions for the next start, and as a revision.
type keeper struct {
	rollout.LastGood
	history *history.Store // nil: there is none
}

// Save implements [rollout.LastGood].
func (k keeper) Save(d *definitions.Definitions) error {
	err := k.LastGood.Save(d)
	if k.history != nil {
		err = errors.Join(err, k.history.Add(d))
	}
	return err
}

// revisions returns the earlier definitions, or nil if there are none.
func (g *Gateway) revisions() admin.Revisions {
	switch {
	case g.redis != nil:
		return redisRevisions{g.redis.store}
	case g.history != nil:
		return fileRevisions{g.history, g.config.Definitions}
	}
	return nil
}

// fileRevisions are the revisions of a definitions file. The file stays the truth: a rollback replaces it.
type fileRevisions struct {
	*history.Store
	path string
}

// Rollback implements [admin.Revisions].
func (f fileRevisions) Rollback(ctx context.Context, r revisions.Revision, base int64, note revisions.Note) error {
	newest, err := f.Newest()
	if err != nil {
		return err
	}
	if base != 0 && base != newest.Number {
		return &revisions.Conflict{Base: base, Newest: newest}
	}
	d, err := f.Load(ctx, r)
	if err != nil {
		return err
	}
	f.Expect(d.Text, note)
	return definitions.Replace(f.path, d.Text)
}

// redisRevisions are the revisions in Redis.
type redisRevisions struct{ *revisions.Store }

// Rollback implements [admin.Revisions].
func (s redisRevisions) Rollback(ctx context.Context, r revisions.Revision, base int64, note revisions.Note) error {
	newest, err := s.Newest(ctx)
	if err != nil {
		return err
	}
	if base == 0 {
		base = newest.Number
	}
	d, err := s.Load(ctx, r)
	if err != nil {
		return err
	}
	var before *definitions.Gateway // nil if the newest is damaged or not valid any more: everything counts as new
	if old, err := s.Load(ctx, newest); err == nil {
		before = old.Gateway
	}
	note.Change = revisions.Change(before, d.Gateway)
	_, err = s.Add(ctx, base, d.Text, note)
	return err
}
