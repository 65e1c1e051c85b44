package certs

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"gatepost/regularfile"
)

// pollEvery is how often files are read: a change is served within a second. It is the content that counts, so a file
// can be replaced in any way: written in place, renamed over, or by a symbolic link in its path.
const pollEvery = 400 * time.Millisecond

// File is what is made of one or more files together, such as a certificate and its key.
type File struct {
	// Name names it in logs, metrics and errors.
	Name string
	// Paths are the files.
	Paths []string
	// Use takes the content of the files. If it returns an error, it must have changed nothing.
	Use func(texts [][]byte) error
}

// ServerPair is the file of a certificate for servers, which is put into a set under its name.
func ServerPair(set *Set, name, certFile, keyFile string) File {
	return pairFile(set, name, certFile, keyFile, Parse)
}

// ClientPair is the file of a certificate for clients, which is put into a set under its name.
func ClientPair(set *Set, name, certFile, keyFile string) File {
	return pairFile(set, name, certFile, keyFile, ParseClient)
}

// ReadServerPair reads and checks the files of a certificate for servers.
func ReadServerPair(certFile, keyFile string, now time.Time) (Pair, error) {
	return readPair(certFile, keyFile, now, Parse)
}

// ReadClientPair reads and checks the files of a certificate for clients.
func ReadClientPair(certFile, keyFile string, now time.Time) (Pair, error) {
	return readPair(certFile, keyFile, now, ParseClient)
}

// ReadRoots reads and checks the file of a list of CAs.
func ReadRoots(path string, now time.Time) (Roots, error) {
	text, err := readFile(path)
	if err != nil {
		return Roots{}, err
	}
	r, err := ParseRoots(text, now)
	if err != nil {
		return Roots{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func readPair(certFile, keyFile string, now time.Time, parse func(chain, key []byte, now time.Time) (Pair, error)) (Pair, error) {
	texts, err := readAll([]string{certFile, keyFile})
	if err != nil {
		return Pair{}, err
	}
	p, err := parse(texts[0], texts[1], now)
	if err != nil {
		return Pair{}, fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
	}
	return p, nil
}

func pairFile(set *Set, name, certFile, keyFile string, parse func(chain, key []byte, now time.Time) (Pair, error)) File {
	return File{Name: name, Paths: []string{certFile, keyFile}, Use: func(texts [][]byte) error {
		p, err := parse(texts[0], texts[1], time.Now())
		if err != nil {
			return fmt.Errorf("%s with %s: %w", certFile, keyFile, err)
		}
		set.Put(name, p)
		return nil
	}}
}

// CAs is the file of a list of CAs, which is put into a set under its name.
func CAs(set *Set, name, path string) File {
	return File{Name: name, Paths: []string{path}, Use: func(texts [][]byte) error {
		r, err := ParseRoots(texts[0], time.Now())
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		set.PutRoots(name, r)
		return nil
	}}
}

// Files follows files. The zero Files follows none. It is safe for concurrent use.
type Files struct {
	// Logger receives which files were read again or cannot be used. Nil: nothing is logged.
	Logger *slog.Logger

	mu       sync.Mutex
	followed []File
	states   map[string]*state // :: name of a File → what became of it
}

// state is what became of the content of a File.
type state struct {
	content string
	err     error  // why it cannot be used
	logged  string // the last error that was logged since it could be used
}

// Load reads files now, and has them used. The errors are logged, and returned by Problems if the files are followed.
func (f *Files) Load(files []File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range files {
		f.read(one, true)
	}
}

// Follow replaces the list of the files that Run follows.
func (f *Files) Follow(files []File) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.followed = files
	maps.DeleteFunc(f.states, func(name string, _ *state) bool {
		return !slices.ContainsFunc(files, func(one File) bool { return one.Name == name })
	})
}

// Run reads the files until ctx ends.
func (f *Files) Run(ctx context.Context) {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
			f.Poll()
		}
	}
}

// Poll reads the files that are followed once.
func (f *Files) Poll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range f.followed {
		f.read(one, false)
	}
}

// Problems returns why files that are followed cannot be used, by the name of the File.
func (f *Files) Problems() map[string]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]error{}
	for name, s := range f.states {
		if s.logged != "" && s.err != nil {
			out[name] = s.err
		}
	}
	return out
}

// read reads a File. A problem is reported when it is seen for the second time, because a certificate and its key are
// seldom replaced in one step.
func (f *Files) read(one File, atOnce bool) {
	if f.states == nil {
		f.states = map[string]*state{}
	}
	s := f.states[one.Name]
	isNew := s == nil
	if isNew {
		s = &state{}
		f.states[one.Name] = s
	}
	texts, err := readAll(one.Paths)
	content := contentOf(one.Paths, texts, err)
	same := content == s.content
	if same && s.err == nil && !isNew {
		return
	}
	if err == nil {
		err = one.Use(texts) // a bad one again, because it may not have been valid yet
	}
	s.content, s.err = content, err
	logger := cmp.Or(f.Logger, slog.New(slog.DiscardHandler))
	switch {
	case err == nil:
		if !isNew {
			logger.Info("a certificate was read again", "certificate", one.Name)
		}
		s.logged = ""
	case (atOnce || same) && s.logged != err.Error():
		s.logged = err.Error()
		logger.Error("a certificate cannot be used, and what was served before stays", "certificate", one.Name, "error", err)
	}
}

// contentOf names what was read. It is compared alone.
func contentOf(paths []string, texts [][]byte, err error) string {
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for i, text := range texts {
		fmt.Fprintf(&b, "%s %d\n%s\n", paths[i], len(text), text)
	}
	return b.String()
}

func readAll(paths []string) ([][]byte, error) {
	texts := make([][]byte, 0, len(paths))
	for _, path := range paths {
		text, err := readFile(path)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

// readFile reads a file of certificates or of a key.
func readFile(path string) ([]byte, error) {
	text, err := regularfile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	return text, nil
}
