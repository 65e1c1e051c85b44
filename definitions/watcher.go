package definitions

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// WatcherConfig is the configuration of a [Watcher].
type WatcherConfig struct {
	// Path is the file, or the folder of files. It need not exist yet. Required.
	Path string
	// Current is what was loaded from the file before, which is not reported again. It can be nil.
	Current *Definitions
	// OnChange receives the definitions each time that the content changes and is valid, and when it is valid again
	// after an error. Required. One goroutine calls it. While it runs, the file is not read.
	OnChange func(context.Context, *Definitions)
	// OnError receives the error, once for each content of the file. The former definitions stay active. Required. It is
	// called as OnChange is.
	OnError func(error)
	// Poll is the interval at which the file is read without an event. Default: 2s.
	Poll time.Duration
	// Debounce is how long a changed file must be unchanged before it is parsed. Default: 100ms.
	Debounce time.Duration
	// MaxWait limits the debounce of a file that changes all the time. Default: 50 × Debounce.
	MaxWait time.Duration
	// Missing is how long the file can be missing or unreadable before that is an error. Default: 1s.
	Missing time.Duration
	// Logger receives a warning if the system reports no changes, so that the file is only polled. Nil: nothing is logged.
	Logger *slog.Logger
}

// Watcher follows a definitions file. It reads the file when the system reports a change in its directory, and every
// few seconds, because not every file system reports changes (network mounts, files that are a mount themselves). It
// compares the content, so the file can be replaced in any way: written in place, renamed over, by a symbolic link,
// or with its directory.
type Watcher struct {
	Reloads // read the file without debounce

	config  WatcherConfig
	last    *Definitions           // the last valid ones; nil if there were none
	seen    string                 // the state that was last reported
	pending string                 // another state, which is being debounced
	since   time.Time              // the time at which pending was first seen
	waiting time.Time              // the time at which the first state was seen that was not reported
	stamp   string                 // the stamp of what was last read; empty if there was nothing
	watched map[string]os.FileInfo // :: watched directory → what it was when the watch began
}

// NewWatcher returns a watcher. It does nothing until Run.
func NewWatcher(config WatcherConfig) (*Watcher, error) {
	if config.Path == "" || config.OnChange == nil || config.OnError == nil {
		return nil, errors.New("definitions: a Watcher needs Path, OnChange and OnError")
	}
	if config.Poll <= 0 {
		config.Poll = 2 * time.Second
	}
	if config.Debounce <= 0 {
		config.Debounce = 100 * time.Millisecond
	}
	if config.MaxWait <= 0 {
		config.MaxWait = 50 * config.Debounce
	}
	if config.Missing <= 0 {
		config.Missing = time.Second
	}
	config.Logger = cmp.Or(config.Logger, slog.New(slog.DiscardHandler))
	w := &Watcher{Reloads: make(Reloads), config: config}
	if config.Current != nil {
		w.last, w.seen = config.Current, stateOf(source{text: config.Current.Text, files: config.Current.files}, nil)
	}
	return w, nil
}

// Run follows the file until ctx ends. It returns when its goroutines have ended, except for a call of the file
// system that hangs.
func (w *Watcher) Run(ctx context.Context) {
	events, rewatch, closeEvents := w.subscribe(ctx)
	defer closeEvents()
	poll := time.NewTicker(w.config.Poll)
	defer poll.Stop()
	next := time.NewTimer(0) // the file may have changed since it was loaded
	defer next.Stop()
	due := time.Now() // of next; zero if it is not set
	lookIn := func(d time.Duration) {
		if at := time.Now().Add(d); d > 0 && (due.IsZero() || at.Before(due)) { // never later: frequent events in the directory would delay the read forever
			next.Reset(d)
			due = at
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case done := <-w.Reloads:
			w.look(ctx, true)
			close(done)
		case <-events: // any event, because a link on the path of the file may have been replaced
			if w.pending == "" && w.touched(ctx) {
				lookIn(w.look(ctx, false))
			}
			lookIn(w.config.Debounce)
		case <-poll.C:
			rewatch()
			lookIn(w.look(ctx, false))
		case <-next.C:
			due = time.Time{}
			lookIn(w.look(ctx, false))
		}
	}
}

// look reads the file once, and reports a state that is new and debounced. With force, it reports at once. It returns
// the time until the next look, or 0 if that is at the next event.
func (w *Watcher) look(ctx context.Context, force bool) (again time.Duration) {
	seen := w.seen
	found, ok := await(ctx, func() (r reading) {
		r.stamp = stamp(w.config.Path)
		if !force && seen != "" && contentState(w.config.Path) == seen {
			r.state = seen
			return r
		}
		r.source, r.err = readSource(w.config.Path)
		r.state = stateOf(r.source, r.err)
		return r
	})
	if !ok {
		return 0
	}
	w.stamp = found.stamp
	state := found.state
	if state == w.seen && !force {
		w.pending = ""
		return 0
	}
	if !force {
		if left := w.untilDebounced(state, found.err != nil, time.Now()); left > 0 {
			return left
		}
	}
	unchanged := state == w.seen
	w.seen, w.pending = state, ""
	d, err := (*Definitions)(nil), found.err
	if err == nil {
		d, err = found.source.parse(w.last)
	}
	if err != nil {
		w.config.OnError(err)
		return 0
	}
	w.last = d
	if !unchanged {
		w.config.OnChange(ctx, d)
	}
	return 0
}

// reading is the result of reading the path.
type reading struct {
	stamp  string // empty if there is nothing at the path
	state  string
	source source // empty if the state is the one seen before
	err    error
}

// untilDebounced returns the remaining debounce time of a state that was seen now.
func (w *Watcher) untilDebounced(state string, missing bool, now time.Time) time.Duration {
	if w.pending == "" {
		w.waiting = now
	}
	if state != w.pending {
		w.pending, w.since = state, now
	}
	if missing {
		return w.config.Missing - now.Sub(w.since)
	}
	return min(w.config.Debounce-now.Sub(w.since), w.config.MaxWait-now.Sub(w.waiting))
}

// touched reports whether the file or the folder was replaced or written since it was last read, from its metadata.
func (w *Watcher) touched(ctx context.Context) bool {
	now, _ := await(ctx, func() string { return stamp(w.config.Path) })
	return now != "" && now != w.stamp
}

// await calls f in a goroutine of its own and returns its result. If ctx ends first, ok is false and f is abandoned,
// so that a file system that hangs (a network mount without its server) does not block the exit. If ctx has ended
// before, f is not called, so that no call runs beside an abandoned one.
func await[T any](ctx context.Context, f func() T) (result T, ok bool) {
	if ctx.Err() != nil {
		return result, false
	}
	done := make(chan T, 1)
	go func() { done <- f() }()
	select {
	case result = <-done:
		return result, true
	case <-ctx.Done():
		return result, false
	}
}

// stateOf names the state of the path: its content, or the error of reading it.
func stateOf(found source, err error) string {
	if err != nil {
		return "error " + err.Error()
	}
	return found.state()
}

// subscribe asks the system to report changes in the file's directory. If that fails, the file is only polled. The
// caller must call rewatch regularly: it subscribes again after the directory itself was replaced.
func (w *Watcher) subscribe(ctx context.Context) (events <-chan struct{}, rewatch, closeEvents func()) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.config.Logger.Warn("following definitions by reading them alone", "poll_seconds", w.config.Poll.Seconds(), "error", err)
		return nil, func() {}, func() {}
	}
	w.watched = map[string]os.FileInfo{}
	rewatch = func() {
		await(ctx, func() struct{} {
			w.watchDir(watcher, filepath.Dir(w.config.Path))
			if info, err := os.Stat(w.config.Path); err == nil && info.IsDir() {
				w.watchDir(watcher, w.config.Path)
			}
			return struct{}{}
		})
	}
	rewatch()

	changed, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for open := true; open; {
			select {
			case _, open = <-watcher.Events:
			case _, open = <-watcher.Errors: // such as an overflow, which hides changes
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, rewatch, func() {
		_ = watcher.Close() // the error does not matter any more
		<-done
	}
}

// watchDir watches the directory that is now at dir, unless it is watched already.
func (w *Watcher) watchDir(watcher *fsnotify.Watcher, dir string) {
	now, err := os.Stat(dir)
	if err != nil {
		delete(w.watched, dir) // it is missing; reading the file reports that
		return
	}
	watched := slices.Contains(watcher.WatchList(), dir) // not if the directory was removed
	if before := w.watched[dir]; watched && before != nil && os.SameFile(before, now) {
		return
	}
	_ = watcher.Remove(dir) // the watch on the former directory, if there is one
	if err := watcher.Add(dir); err != nil {
		delete(w.watched, dir)
		w.config.Logger.Warn("following definitions by reading them alone", "poll_seconds", w.config.Poll.Seconds(), "error", fmt.Errorf("watching %s: %w", dir, err))
		return
	}
	w.watched[dir] = now
}
