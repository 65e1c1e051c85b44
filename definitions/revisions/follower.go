package revisions

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"gatepost/definitions"
)

// FollowerConfig configures a [Follower].
type FollowerConfig struct {
	// Store has the revisions. Required.
	Store *Store
	// Current is the revision that was read before. It is not reported again. Nil: none was read.
	Current *Revision
	// Read has the definitions of Current. Nil: they are unknown.
	Read *definitions.Definitions
	// OnChange receives each newest revision that is valid. It receives a revision once more if an error ended. Required.
	// It is called by one goroutine.
	OnChange func(context.Context, Revision, *definitions.Definitions)
	// OnError receives the reason that the newest revision cannot be read, once for each reason. The revision is zero if
	// it is unknown. The caller keeps serving what it serves. Required. It is called by the goroutine that calls OnChange.
	OnError func(r Revision, err error)
	// Poll is the interval in which the store is asked, with or without notifications. Default: 2s.
	Poll time.Duration
	// Missing is how long Redis may be unreachable or empty before that is an error. Default: 1s.
	Missing time.Duration
	// Logger receives events that are no errors. Nil: nothing is logged.
	Logger *slog.Logger
}

// Follower follows the newest revision.
type Follower struct {
	definitions.Reloads

	config  FollowerConfig
	current *Revision                // the last one that was read
	last    *definitions.Definitions // the definitions of the last valid one; nil: unknown
	trouble string                   // the reason that was last reported; empty: none since
	bad     Revision                 // the last one that is not valid here, which is not read again
	badWhy  error                    // why bad is not valid
	since   time.Time                // since when Redis is unreachable or empty; zero: it is not
}

// NewFollower returns a follower, which does nothing until it runs.
func NewFollower(config FollowerConfig) (*Follower, error) {
	if config.Store == nil || config.OnChange == nil || config.OnError == nil {
		return nil, errors.New("revisions: a Follower needs Store, OnChange and OnError")
	}
	if config.Poll <= 0 {
		config.Poll = 2 * time.Second
	}
	if config.Missing <= 0 {
		config.Missing = time.Second
	}
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	return &Follower{Reloads: make(definitions.Reloads), config: config, current: config.Current, last: config.Read}, nil
}

// Run follows the store until ctx ends. It returns when all that it started has ended.
func (f *Follower) Run(ctx context.Context) {
	news := f.config.Store.client.Subscribe(ctx, newsChannel) // connects again by itself
	defer news.Close()
	notices := news.Channel()
	poll := time.NewTimer(0)
	defer poll.Stop()
	for {
		var reloaded chan<- struct{}
		select {
		case <-ctx.Done():
			return
		case reloaded = <-f.Reloads:
		case <-notices:
		case <-poll.C:
		}
		poll.Reset(f.look(ctx, reloaded != nil))
		if reloaded != nil {
			close(reloaded)
		}
	}
}

// look asks the store once, and returns the time until the next look.
func (f *Follower) look(ctx context.Context, force bool) time.Duration {
	r, d, err := f.read(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		return f.failed(r, err, force)
	case d == nil: // as before, and all is well
		f.since = time.Time{}
	default:
		f.current, f.trouble, f.since = &r, "", time.Time{}
		f.config.OnChange(ctx, r, d)
	}
	return f.config.Poll
}

// read returns the newest revision and its definitions, or no definitions if it is the current one and no error was
// reported since.
func (f *Follower) read(ctx context.Context) (Revision, *definitions.Definitions, error) {
	r, err := f.config.Store.Newest(ctx)
	if err != nil {
		return r, nil, err
	}
	if f.current != nil && r.Stored.Before(f.current.Stored) {
		return r, nil, &goneBack{from: *f.current, to: r}
	}
	if f.current != nil && r == *f.current && f.trouble == "" {
		return r, nil, nil
	}
	if r == f.bad {
		return r, nil, f.badWhy
	}
	d, err := f.config.Store.next(ctx, f.last, r)
	if err == nil {
		f.last = d
	}
	if problems := (definitions.Problems)(nil); errors.As(err, &problems) {
		f.bad, f.badWhy = r, err
	}
	return r, d, err
}

// failed reports an error, once for each reason. Redis may be unreachable for a moment, and empty before a first apply.
func (f *Follower) failed(r Revision, err error, force bool) time.Duration {
	again := f.config.Poll
	reason := err.Error()
	if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNone) {
		if f.since.IsZero() {
			f.since = time.Now()
		}
		if left := f.config.Missing - time.Since(f.since); left > 0 && !force {
			return min(left, again)
		}
	}
	if errors.Is(err, ErrUnavailable) {
		reason = ErrUnavailable.Error() // its text has a port that changes each time
		again = min(again, time.Second)
	}
	if reason != f.trouble || force {
		f.trouble = reason
		f.config.OnError(r, err)
	}
	return again
}

// goneBack reports that Redis has lost revisions: its newest one is older than the one that is served.
type goneBack struct{ from, to Revision }

func (g *goneBack) Error() string {
	return fmt.Sprintf("Redis has gone back from revision %d of %s to revision %d of %s: the later one stays (apply what is to be served)",
		g.from.Number, g.from.Stored.Format(timeForm), g.to.Number, g.to.Stored.Format(timeForm))
}
