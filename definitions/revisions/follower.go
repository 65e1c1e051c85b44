package revisions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"gatepost/definitions"
)

// FollowerConfig configures a [Follower].
type FollowerConfig struct {
	// Store is what is followed. Required.
	Store *Store
	// Current is the revision that was read before, which is not reported again; nil where none was.
	Current *Revision
	// Read is what was read of it; nil where that is not known.
	Read *definitions.Definitions
	// OnChange is given each revision that is the newest and good, and the same once more when it is so again after an
	// error. Required. It is called by one goroutine.
	OnChange func(context.Context, Revision, *definitions.Definitions)
	// OnError is told why the newest revision cannot be had, once for each reason, and which it is; the zero Revision
	// where that cannot be told. What was served before it is to stay. Required. It is called as OnChange is.
	OnError func(r Revision, err error)
	// Poll is how often the store is asked whatever the notifications say. Default: 2s.
	Poll time.Duration
	// Missing is how long Redis may be away or hold nothing before that is an error. Default: 1s.
	Missing time.Duration
	// Log is told of what is remarkable but no error. Default: none.
	Logger *slog.Logger
}

// Follower follows the newest revision.
type Follower struct {
	config FollowerConfig
	reload chan chan<- struct{} // takes a channel that is closed when the store was asked

	current *Revision                // the last that was read
	last    *definitions.Definitions // what the last one that was good says; nil: not known
	trouble string                   // the reason that was last told; empty: none since
	bad     Revision                 // the last that is not valid here, and why: it is not read again
	badWhy  error
	since   time.Time // since when Redis is away or empty; zero: it is not
}

// NewFollower returns a follower, which does nothing until it runs.
func NewFollower(config FollowerConfig) *Follower {
	if config.Poll <= 0 {
		config.Poll = 2 * time.Second
	}
	if config.Missing <= 0 {
		config.Missing = time.Second
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Follower{config: config, reload: make(chan chan<- struct{}), current: config.Current, last: config.Read}
}

// Reload has Run read the newest revision now, and returns when the result was reported, or when ctx ends. A problem is
// reported even if it was reported before. Reload is safe for concurrent use, also before Run.
func (f *Follower) Reload(ctx context.Context) {
	done := make(chan struct{})
	select {
	case f.reload <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Run follows the store until ctx ends. It returns when all that it started has ended.
func (f *Follower) Run(ctx context.Context) {
	news := f.config.Store.client.Subscribe(ctx, newsChannel) // connects again by itself
	defer news.Close()
	heard := news.Channel()
	poll := time.NewTimer(0)
	defer poll.Stop()
	for {
		var reloaded chan<- struct{}
		select {
		case <-ctx.Done():
			return
		case reloaded = <-f.reload:
		case <-heard:
		case <-poll.C:
		}
		poll.Reset(f.look(ctx, reloaded != nil))
		if reloaded != nil {
			close(reloaded)
		}
	}
}

// look asks the store once, and says after which time to ask again.
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

// read returns the newest revision and its definitions; none where it is the current one and nothing was wrong.
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

// failed tells what is wrong, unless it was told. Redis may be away for a moment, and empty before a first apply.
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
		reason = ErrUnavailable.Error() // its words tell of a port, another each time
		again = min(again, time.Second)
	}
	if reason != f.trouble || force {
		f.trouble = reason
		f.config.OnError(r, err)
	}
	return again
}

// goneBack says that Redis has lost revisions: what it holds now was served before what is served.
type goneBack struct{ from, to Revision }

func (g *goneBack) Error() string {
	return fmt.Sprintf("Redis has gone back from revision %d of %s to revision %d of %s: the later one stays (apply what is to be served)",
		g.from.Number, g.from.Stored.Format(timeForm), g.to.Number, g.to.Stored.Format(timeForm))
}
