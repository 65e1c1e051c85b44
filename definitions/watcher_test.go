package definitions

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// followed is a file that a watcher follows, and what it has reported of it, in order: "good orders items" or
// "bad", and what is wrong.
type followed struct {
	t       *testing.T
	path    string
	watcher *Watcher
	reports chan string
}

// follow follows path in the directory dir. With a poll of an hour, only the system reports a change.
func follow(t *testing.T, path string, poll time.Duration, current *Definitions) *followed {
	t.Helper()
	return followWith(t, WatcherConfig{
		Path: path, Current: current, Poll: poll, Debounce: 20 * time.Millisecond, Missing: 60 * time.Millisecond,
	})
}

// newWatcher returns a watcher. If config has no functions, nothing is reported.
func newWatcher(t *testing.T, config WatcherConfig) *Watcher {
	t.Helper()
	if config.OnChange == nil {
		config.OnChange, config.OnError = func(context.Context, *Definitions) {}, func(error) {}
	}
	w, err := NewWatcher(config)
	must(t, err)
	return w
}

func followWith(t *testing.T, config WatcherConfig) *followed {
	t.Helper()
	f := &followed{t: t, path: config.Path, reports: make(chan string, 1000)}
	config.OnChange = func(_ context.Context, d *Definitions) { f.reports <- good(d) }
	config.OnError = func(err error) { f.reports <- "bad " + err.Error() }
	f.watcher = newWatcher(t, config)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.watcher.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

func good(d *Definitions) string {
	report := "good"
	for _, s := range d.Gateway.Services {
		report += " " + s.Name
	}
	return report
}

// wants waits for the next report, which must begin with want.
func (f *followed) wants(want string) {
	f.t.Helper()
	if got := f.next(want); !strings.HasPrefix(got, want) {
		f.t.Fatalf("reported %q, want %q", got, want)
	}
}

// next returns the next report.
func (f *followed) next(want string) string {
	f.t.Helper()
	select {
	case got := <-f.reports:
		return got
	case <-time.After(5 * time.Minute):
		f.t.Fatalf("nothing reported, want %q", want)
		return ""
	}
}

// wantsNothing gives the watcher the time for a good many looks, in none of which it may report anything.
func (f *followed) wantsNothing() {
	f.t.Helper()
	select {
	case got := <-f.reports:
		f.t.Fatalf("reported %q, want nothing", got)
	case <-time.After(300 * time.Millisecond):
	}
}

// write replaces the file in one step: on a busy machine, a file that is written in place may be taken for finished
// while it is empty.
func (f *followed) write(text string) {
	f.t.Helper()
	writeFile(f.t, f.path+"~", text)
	must(f.t, os.Rename(f.path+"~", f.path))
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const (
	byEvent = time.Hour             // a poll that never comes
	byPoll  = 40 * time.Millisecond // one that comes soon
)

// started returns a followed file that says shop("orders") and was reported so.
func started(t *testing.T, poll time.Duration) *followed {
	path := filepath.Join(t.TempDir(), "shop.yaml")
	writeFile(t, path, shop("orders"))
	f := follow(t, path, poll, nil)
	f.wants("good orders")
	return f
}

func TestWatcherSeesTheFileWrittenInPlace(t *testing.T) {
	t.Parallel()
	f := started(t, byEvent)
	for _, names := range [][]string{{"orders", "items"}, {"items"}} {
		writeFile(t, f.path, shop(names...))
		for want := "good " + strings.Join(names, " "); f.next(want) != want; { // it may be read while it is empty
		}
	}
}

func TestWatcherSeesTheFileReplacedByRename(t *testing.T) {
	t.Parallel()
	f := started(t, byEvent)
	for i := range 3 { // more than once: a watch on the file itself would be lost with the first
		name := fmt.Sprintf("items-%d", i)
		f.write(shop(name))
		f.wants("good " + name)
	}
}

func TestWatcherSeesTheFileMovedAwayAndWrittenAnew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shop.yaml") // as vim does with backups
	writeFile(t, path, shop("orders"))
	f := followWith(t, WatcherConfig{Path: path, Poll: byEvent, Debounce: 20 * time.Millisecond, Missing: time.Hour})
	f.wants("good orders")
	must(t, os.Rename(f.path, f.path+".old"))
	f.write(shop("items"))
	f.wants("good items")
	f.wantsNothing() // that it was missing for a moment is no error
}

func TestWatcherSeesALinkThatIsSwapped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() // as Kubernetes mounts a ConfigMap
	for version, name := range map[string]string{"v1": "orders", "v2": "items"} {
		must(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		writeFile(t, filepath.Join(dir, version, "shop.yaml"), shop(name))
	}
	must(t, os.Symlink("v1", filepath.Join(dir, "..data")))
	must(t, os.Symlink("..data/shop.yaml", filepath.Join(dir, "shop.yaml")))
	f := follow(t, filepath.Join(dir, "shop.yaml"), byEvent, nil)
	f.wants("good orders")

	must(t, os.Symlink("v2", filepath.Join(dir, "..tmp")))
	must(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
	f.wants("good items")
}

func TestWatcherSeesWhatTheSystemDoesNotReport(t *testing.T) {
	t.Parallel()
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere.yaml")
	writeFile(t, elsewhere, shop("orders"))
	must(t, os.Symlink(elsewhere, filepath.Join(dir, "shop.yaml")))
	f := follow(t, filepath.Join(dir, "shop.yaml"), byPoll, nil)
	f.wants("good orders")
	writeFile(t, elsewhere, shop("items")) // no event in dir
	f.wants("good items")
}

func TestWatcherSeesTheWholeDirectoryReplaced(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "conf")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "shop.yaml")
	writeFile(t, path, shop("orders"))
	f := follow(t, path, byPoll, nil)
	f.wants("good orders")

	must(t, os.Rename(dir, dir+".old"))
	must(t, os.Mkdir(dir, 0o700))
	writeFile(t, path, shop("items"))
	f.wants("good items")
	must(t, os.RemoveAll(dir))
	f.wants("bad reading definitions")
	must(t, os.Mkdir(dir, 0o700))
	writeFile(t, path, shop("stock"))
	f.wants("good stock")
}

func TestWatcherFollowsEventsInADirectoryThatCameLater(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "conf")
	path := filepath.Join(dir, "shop.yaml")
	f := follow(t, path, byPoll, nil)
	f.wants("bad reading definitions")
	must(t, os.Mkdir(dir, 0o700))
	writeFile(t, path, shop("orders"))
	f.wants("good orders")
}

func TestWatcherReportsAMissingFileOnceAndItsReturn(t *testing.T) {
	t.Parallel()
	f := started(t, byPoll)
	must(t, os.Remove(f.path))
	f.wants("bad reading definitions: open " + f.path)
	f.wantsNothing()
	f.write(shop("orders")) // the same as before: it is good again, which must be reported
	f.wants("good orders")
}

func TestWatcherReportsABrokenFileOnceAndTheGoodOneAfterIt(t *testing.T) {
	t.Parallel()
	f := started(t, byPoll)
	f.write("services: 1\n")
	f.wants("bad " + f.path + `:1:11: services: is "1"`)
	f.wantsNothing()
	f.write("services: 1\n") // written again, and the same
	f.wantsNothing()
	f.write("services: 2\n")
	f.wants("bad " + f.path + `:1:11: services: is "2"`)
	f.write(shop("orders", "items"))
	f.wants("good orders items")
}

func TestWatcherDoesNotTakeATruncatedFileForAnEmptySet(t *testing.T) {
	t.Parallel()
	f := started(t, byPoll)
	for _, text := range []string{"", "# soon\n", "listen: 127.0.0.1:80\n"} {
		f.write(text)
		f.wants("bad ")
	}
	f.write("services: []\n")
	f.wants("good")
}

func TestWatcherSaysNothingOfAFileThatSaysTheSame(t *testing.T) {
	t.Parallel()
	f := started(t, byPoll)
	f.write(shop("orders"))
	must(t, os.Chtimes(f.path, time.Now(), time.Now()))
	f.wantsNothing()
}

// An abandoned call may still run when its context has ended, so no other one is made.
func TestEndedWatcherCallsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		called := false
		if _, ok := await(ctx, func() bool { called = true; return called }); ok {
			t.Error("there is a result")
		}
		synctest.Wait() // also for a goroutine of await
		if called {
			t.Error("it was called")
		}
	})
}

func TestWatcherStartsFromWhatWasLoaded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shop.yaml")
	writeFile(t, path, shop("orders"))
	current, err := Load(path)
	must(t, err)
	f := follow(t, path, byEvent, current)
	f.wantsNothing()
	f.write(shop("items"))
	f.wants("good items")
}

func TestWatcherSeesAChangeBetweenLoadingAndFollowing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shop.yaml")
	writeFile(t, path, shop("items"))
	f := follow(t, path, byEvent, mustParse(t, shop("orders")))
	f.wants("good items")
}

// A file that comes is read when it has settled, however long a missing one is waited for.
func TestWatcherSeesAMissingFileCome(t *testing.T) {
	t.Parallel()
	f := followWith(t, WatcherConfig{
		Path: filepath.Join(t.TempDir(), "shop.yaml"), Poll: byEvent, Debounce: 20 * time.Millisecond, Missing: time.Hour,
	})
	f.wantsNothing()
	f.write(shop("orders"))
	f.wants("good orders")
}

func TestWatcherWaitsForAWriterToFinish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "shop.yaml")
		var reports []string
		w := newWatcher(t, WatcherConfig{
			Path: path, MaxWait: time.Hour,
			OnChange: func(_ context.Context, d *Definitions) { reports = append(reports, good(d)) },
			OnError:  func(err error) { reports = append(reports, "bad "+err.Error()) },
		})
		names := make([]string, 20)
		for i := range names {
			names[i] = fmt.Sprintf("service-%d", i)
		}
		file, err := os.Create(path)
		must(t, err)
		for line := range strings.Lines(shop(names...)) { // good after each line, and not what is meant
			_, err := file.WriteString(line)
			must(t, err)
			w.look(t.Context(), false)
			time.Sleep(w.config.Debounce / 2)
			w.look(t.Context(), false)
		}
		must(t, file.Close())
		if len(reports) > 0 {
			t.Fatalf("reported %q while the file was being written", reports)
		}
		time.Sleep(w.config.Debounce / 2)
		w.look(t.Context(), false)
		if want := "good " + strings.Join(names, " "); len(reports) != 1 || reports[0] != want {
			t.Fatalf("reported %q, want %q alone", reports, want)
		}
	})
}

func TestReloadReportsABrokenFileAgain(t *testing.T) {
	t.Parallel()
	f := started(t, byEvent)
	f.write("services: 1\n")
	f.wants("bad ")
	f.watcher.Reload(t.Context())
	f.wants("bad ")
	f.write(shop("orders"))
	f.wants("good orders")
	f.watcher.Reload(t.Context())
	f.wantsNothing() // it is what is served
}

func TestReloadReadsAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "shop.yaml")
	writeFile(t, path, shop("orders"))
	f := followWith(t, WatcherConfig{
		Path: path, Current: mustParse(t, shop("orders")), Poll: time.Hour, Debounce: time.Hour, Missing: time.Hour,
	})
	f.write(shop("items")) // which would settle in an hour
	f.watcher.Reload(t.Context())
	f.wants("good items")
	must(t, os.Remove(path))
	f.watcher.Reload(t.Context())
	f.wants("bad reading definitions: open " + path)
}

// Definitions of ten thousand services have a megabyte. Read into memory at each look, they would be most of what an
// idle gateway allocates.
func TestAnUnchangedFileIsNotReadIntoMemory(t *testing.T) {
	text := shop("orders") + "#" + strings.Repeat("x", 4<<20)
	path := filepath.Join(t.TempDir(), "shop.yaml")
	writeFile(t, path, text)
	w := newWatcher(t, WatcherConfig{
		Path: path, Current: mustParse(t, text),
		OnChange: func(context.Context, *Definitions) { t.Error("the file has not changed") }, OnError: func(err error) { t.Error(err) },
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	w.look(t.Context(), false)
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("a look allocates %d bytes", got)
	}
}
