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

// Run follows the file until ctx ends. It returns when all that it started has ended.
func (w *Watcher) Run(ctx context.Context) {
	events, rewatch, closeEvents := w.subscribe()
	defer closeEvents()
	poll := time.NewTicker(w.config.Poll)
	defer poll.Stop()
	next := time.NewTimer(0) // the first look is at once: the file may have changed since it was loaded
	defer next.Stop()
	waiting := true // for next
	lookIn := func(d time.Duration) {
		if d > 0 && !waiting { // never put off: a directory where much happens would keep the file unread
			next.Reset(d)
			waiting = true
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.reload:
			w.look(ctx, true)
		case <-events: // any event: it may be a link on the way to the file that was swapped
			if w.pending == "" && w.touched() {
				lookIn(w.look(ctx, false))
			}
			lookIn(w.config.Settle)
		case <-poll.C:
			rewatch()
			lookIn(w.look(ctx, false))
		case <-next.C:
			waiting = false
			lookIn(w.look(ctx, false))
		}
	}
}

// look reads the file once. What differs from what was last reported is reported when it was the same for long
// enough, or at once with force. It returns after which time to look again, or 0 for at the next event.
func (w *Watcher) look(ctx context.Context, force bool) (again time.Duration) {
	w.file, _ = os.Stat(w.config.Path) // an error is that of reading it
	text, err := readFile(w.config.Path)
	state := stateOf(text, err)
	if state == w.seen && !force {
		w.pending = ""
		return 0
	}
	wait := w.config.Settle
	if err != nil {
		wait = w.config.Missing
	}
	if !force {
		if state != w.pending {
			w.pending, w.since = state, time.Now()
			return wait
		}
		if left := wait - time.Since(w.since); left > 0 {
			return left
		}
	}
	unchanged := state == w.seen
	w.seen, w.pending = state, ""
	var d *Definitions
	if err == nil {
		d, err = w.last.Next(w.config.Path, text)
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

// touched says whether there is a file that is another than the one that was last read, or was written to since, by what
// the system tells of it without its being read.
func (w *Watcher) touched() bool {
	now, err := os.Stat(w.config.Path)
	if err != nil || w.file == nil {
		return err == nil
	}
	return !os.SameFile(now, w.file) || now.Size() != w.file.Size() || !now.ModTime().Equal(w.file.ModTime())
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
func (w *Watcher) subscribe() (events <-chan struct{}, rewatch, closeEvents func()) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.config.Log.Warn("following definitions by reading them alone", "poll", w.config.Poll, "error", err)
		return nil, func() {}, func() {}
	}
	dir := filepath.Dir(w.config.Path)
	rewatch = func() { w.watchDir(watcher, dir) }
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
		w.config.Log.Warn("following definitions by reading them alone", "poll", w.config.Poll, "error", fmt.Errorf("watching %s: %w", dir, err))
		return
	}
	w.dir = now
}
