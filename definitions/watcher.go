package definitions

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// WatcherConfig says which file a [Watcher] follows and who hears of it.
type WatcherConfig struct {
	// Path is the file. It need not be there yet. Required.
	Path string
	// Current is what was loaded from the file before, which is not reported again; nil where nothing was.
	Current *Definitions
	// OnChange is given the definitions each time the file says something else than it last did and is good,
	// and when it is good again after an error. Required. It is called by one goroutine; while it runs, the
	// file is not looked at.
	OnChange func(context.Context, *Definitions)
	// OnError is given what is wrong, once for each content of the file and not each time that is looked at.
	// What was served before it is to stay. Required. It is called as OnChange is.
	OnError func(error)
	// Poll is how often the file is read whatever the system says of it. Default: 2s.
	Poll time.Duration
	// Settle is how long the file must stay as it is before it counts, for a writer may be in the middle of it.
	// Default: 100ms.
	Settle time.Duration
	// MaxWait bounds Settle: a file that changes all the time is read as it is after this time. Default: 50 × Settle.
	MaxWait time.Duration
	// Missing is how long the file may be away, or unreadable, before that is an error. Default: 1s.
	Missing time.Duration
	// Log hears that the system reports no changes, so that only the poll is left. Default: none.
	Log *slog.Logger
}

// Watcher follows a definitions file: by the system's reports of changes in its directory, and by reading it
// every few seconds, for not every file system reports (network mounts, and files that are a mount themselves).
// It looks at content alone, so it does not matter how the file is replaced: written in place, renamed over, by a
// symbolic link that is swapped, or with the directory around it.
type Watcher struct {
	config WatcherConfig
	reload chan struct{}

	last    *Definitions // the last that were good; nil: none yet
	seen    string       // the state that was last reported
	pending string       // a state that is not it, and waits to settle
	since   time.Time    // since when
	waiting time.Time    // when the first of the states that have not settled was seen
	file    os.FileInfo  // the file that was last read; nil: there was none
	dir     os.FileInfo
}

// NewWatcher returns a watcher, which does nothing until it runs.
func NewWatcher(config WatcherConfig) *Watcher {
	if config.Poll <= 0 {
		config.Poll = 2 * time.Second
	}
	if config.Settle <= 0 {
		config.Settle = 100 * time.Millisecond
	}
	if config.MaxWait <= 0 {
		config.MaxWait = 50 * config.Settle
	}
	if config.Missing <= 0 {
		config.Missing = time.Second
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{config: config, reload: make(chan struct{}, 1)}
	if config.Current != nil {
		w.last, w.seen = config.Current, stateOf(config.Current.Text, nil)
	}
	return w
}

// Reload has the file read now, as it is, without waiting for it to settle; what is wrong with it is reported
// though it was before. It may be called from anywhere, also before Run.
func (w *Watcher) Reload() {
	select {
	case w.reload <- struct{}{}:
	default: // one is on its way
	}
}

// Run follows the file until ctx ends. It returns when all that it started has ended, but for a call of the file system
// that hangs.
func (w *Watcher) Run(ctx context.Context) {
	events, rewatch, closeEvents := w.subscribe(ctx)
	defer closeEvents()
	poll := time.NewTicker(w.config.Poll)
	defer poll.Stop()
	next := time.NewTimer(0) // the first look is at once: the file may have changed since it was loaded
	defer next.Stop()
	due := time.Now() // of next; zero: it is not set
	lookIn := func(d time.Duration) {
		if at := time.Now().Add(d); d > 0 && (due.IsZero() || at.Before(due)) { // never put off: a directory where much happens would keep the file unread
			next.Reset(d)
			due = at
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.reload:
			w.look(ctx, true)
		case <-events: // any event: it may be a link on the way to the file that was swapped
			if w.pending == "" && w.touched(ctx) {
				lookIn(w.look(ctx, false))
			}
			lookIn(w.config.Settle)
		case <-poll.C:
			rewatch()
			lookIn(w.look(ctx, false))
		case <-next.C:
			due = time.Time{}
			lookIn(w.look(ctx, false))
		}
	}
}

// look reads the file once. What differs from what was last reported is reported when it was the same for long
// enough, or at once with force. It returns after which time to look again, or 0 for at the next event.
func (w *Watcher) look(ctx context.Context, force bool) (again time.Duration) {
	found, ok := await(ctx, func() (r reading) {
		r.file, _ = os.Stat(w.config.Path) // an error is that of reading it
		r.text, r.err = readFile(w.config.Path)
		return r
	})
	if !ok {
		return 0
	}
	w.file = found.file
	state := stateOf(found.text, found.err)
	if state == w.seen && !force {
		w.pending = ""
		return 0
	}
	if !force {
		if left := w.unsettled(state, found.err != nil, time.Now()); left > 0 {
			return left
		}
	}
	unchanged := state == w.seen
	w.seen, w.pending = state, ""
	d, err := (*Definitions)(nil), found.err
	if err == nil {
		d, err = w.last.Next(w.config.Path, found.text)
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

// reading is what one look at the path found.
type reading struct {
	file os.FileInfo // nil: there is none
	text []byte
	err  error
}

// unsettled returns how long a state that was seen now has to wait until it counts; 0 if it counts.
func (w *Watcher) unsettled(state string, missing bool, now time.Time) time.Duration {
	if w.pending == "" {
		w.waiting = now
	}
	if state != w.pending {
		w.pending, w.since = state, now
	}
	if missing {
		return w.config.Missing - now.Sub(w.since)
	}
	return min(w.config.Settle-now.Sub(w.since), w.config.MaxWait-now.Sub(w.waiting))
}

// touched says whether there is a file that is another than the one that was last read, or was written to since, by what
// the system tells of it without its being read.
func (w *Watcher) touched(ctx context.Context) bool {
	now, _ := await(ctx, func() os.FileInfo {
		info, _ := os.Stat(w.config.Path)
		return info
	})
	if now == nil || w.file == nil {
		return now != nil
	}
	return !os.SameFile(now, w.file) || now.Size() != w.file.Size() || !now.ModTime().Equal(w.file.ModTime())
}

// await calls f in a goroutine of its own and returns its result. If ctx ends first, ok is false and f is abandoned: a
// file system that hangs (a network mount without its server) does not keep the process from ending.
func await[T any](ctx context.Context, f func() T) (result T, ok bool) {
	done := make(chan T, 1)
	go func() { done <- f() }()
	select {
	case result = <-done:
		return result, true
	case <-ctx.Done():
		return result, false
	}
}

// stateOf names what was found at the path: some content, or none and why.
func stateOf(text []byte, err error) string {
	if err != nil {
		return "error " + err.Error()
	}
	return "content " + hash(text)
}

// subscribe asks the system to report changes in the file's directory. Where it does not, the poll has to do.
// rewatch is to be called now and then: it asks again after the directory itself was replaced.
func (w *Watcher) subscribe(ctx context.Context) (events <-chan struct{}, rewatch, closeEvents func()) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.config.Log.Warn("following definitions by reading them alone", "poll_seconds", w.config.Poll.Seconds(), "error", err)
		return nil, func() {}, func() {}
	}
	dir := filepath.Dir(w.config.Path)
	rewatch = func() {
		await(ctx, func() struct{} { w.watchDir(watcher, dir); return struct{}{} })
	}
	rewatch()

	changed, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for open := true; open; {
			select {
			case _, open = <-watcher.Events:
			case _, open = <-watcher.Errors: // such as an overflow: something has changed
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, rewatch, func() {
		_ = watcher.Close() // it only ends what is ending
		<-done
	}
}

// watchDir watches the directory that is now at dir, unless it is the one that is watched already.
func (w *Watcher) watchDir(watcher *fsnotify.Watcher, dir string) {
	now, err := os.Stat(dir)
	if err != nil {
		w.dir = nil // it is away; the file in it is missed by reading it
		return
	}
	watched := slices.Contains(watcher.WatchList(), dir) // not so where the directory was removed
	if watched && w.dir != nil && os.SameFile(w.dir, now) {
		return
	}
	_ = watcher.Remove(dir) // the watch on what was there before, if there is one
	if err := watcher.Add(dir); err != nil {
		w.dir = nil
		w.config.Log.Warn("following definitions by reading them alone", "poll_seconds", w.config.Poll.Seconds(), "error", fmt.Errorf("watching %s: %w", dir, err))
		return
	}
	w.dir = now
}
