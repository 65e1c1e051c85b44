package admin

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"gatepost/regularfile"
)

// Secret is a token of operators. It prints as [redacted].
type Secret struct{ text *string }

// Reveal returns the text of the token; it is empty if there is none.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// String implements fmt.Stringer.
func (s Secret) String() string { return "[redacted]" }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return "[redacted]" }

// Credential is a line of a token file.
type Credential struct {
	Caller
	Token Secret
	hash  [sha256.Size]byte
}

var (
	callerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)
	tokenForm  = regexp.MustCompile(`^[A-Za-z0-9._~+/=-]{32,512}$`) // RFC 6750, section 2.1
	roles      = map[string]Role{"read": Read, "operate": Operate}
)

// ReadTokenFile reads a file with the tokens of operators: one on each line, after its role (read or operate) and the
// name of its owner. Empty lines and lines that begin with # are left out. Errors name the line and never quote it.
func ReadTokenFile(path string) ([]Credential, error) {
	text, err := regularfile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("reading --admin-token-file: %w", err)
	}
	var all []Credential
	owners := map[[sha256.Size]byte]bool{}
	for i, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		one, wrong := readCredential(fields)
		if wrong == "" && owners[one.hash] {
			wrong = "the token is on another line too"
		}
		if wrong != "" {
			return nil, fmt.Errorf("reading --admin-token-file %s, line %d: %s; want ROLE NAME TOKEN, such as `operate alice $(openssl rand -hex 32)`", path, i+1, wrong)
		}
		owners[one.hash] = true
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("reading --admin-token-file %s: it has no token; want lines of ROLE NAME TOKEN", path)
	}
	return all, nil
}

func readCredential(fields []string) (one Credential, wrong string) {
	switch {
	case len(fields) != 3:
		return one, fmt.Sprintf("it has %d parts", len(fields))
	case roles[fields[0]] == Anonymous:
		return one, "the role is not read or operate"
	case !callerName.MatchString(fields[1]):
		return one, "the name is not letters, digits, `.`, `_`, `@` and `-`, at most 64"
	case !tokenForm.MatchString(fields[2]):
		return one, "the token is not 32 to 512 letters, digits, `.`, `_`, `~`, `+`, `/`, `=` and `-`"
	}
	return Credential{
		Caller: Caller{Name: fields[1], Role: roles[fields[0]]}, Token: Secret{&fields[2]}, hash: sha256.Sum256([]byte(fields[2])),
	}, ""
}

// Strongest returns the first token with the highest role, for a client that has the file.
func Strongest(all []Credential) (best Credential) {
	for _, one := range all {
		if one.Role > best.Role {
			best = one
		}
	}
	return best
}

// tokenFile is a token file that is read again, so that a removed token is refused within readEvery.
type tokenFile struct {
	path   string
	logger *slog.Logger
	failed rate.Sometimes

	mu   sync.Mutex
	last []Credential
	at   time.Time
}

// readEvery limits how often the file is read, because every client can send tokens.
const readEvery = time.Second

// openTokenFile returns an error if the file cannot be used. An empty path is no file.
func openTokenFile(path string, logger *slog.Logger) (*tokenFile, error) {
	if path == "" {
		return nil, nil
	}
	all, err := ReadTokenFile(path)
	if err != nil {
		return nil, err
	}
	return &tokenFile{path: path, logger: logger, failed: rate.Sometimes{Interval: time.Minute}, last: all, at: time.Now()}, nil
}

// current returns the tokens in the file, or those before it became unusable.
func (f *tokenFile) current() []Credential {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.at) < readEvery {
		return f.last
	}
	f.at = time.Now()
	all, err := ReadTokenFile(f.path)
	if err != nil {
		f.failed.Do(func() { f.logger.Error("reading --admin-token-file failed, keeping the previous tokens", "error", err) })
		return f.last
	}
	f.last = all
	return all
}
