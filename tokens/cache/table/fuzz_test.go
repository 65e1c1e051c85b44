package table_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"gatepost/tokens/cache/table"
)

// The limits that the module has to respect: of a message, of a request's headers, and of a path in the access log.
const (
	maxMessage     = 4096
	maxHeaders     = 64
	maxHeaderBytes = 16384
	maxPath        = 1024
)

var inputNames = [4]string{"authorization", "origin", "cookie", "sec-websocket-protocol"}

// choices are numbers from the bytes of the fuzzer. After their end each number is 0.
type choices []byte

// below returns a number from 0 to n-1.
func (c *choices) below(n int) int {
	var two [2]byte
	*c = (*c)[copy(two[:], *c):]
	return int(binary.LittleEndian.Uint16(two[:])) % n
}

// near returns a number close to a limit, and at least 0.
func (c *choices) near(limit int) int { return max(0, limit+c.below(25)-12) }

// text returns n bytes that are equal.
func (c *choices) text(n int) string {
	return strings.Repeat(string([]byte{"xt=;, \x00\xff"[c.below(8)]}), n)
}

type header struct{ name, value string }

// trial is a request on a route.
type trial struct {
	route      string
	userHeader string
	headers    []header
	// entry is the decision about the request. If fits is false, the module must not use it.
	entry *table.Entry
	fits  bool
	// forwards and strips are flags of the route.
	forwards, strips bool
}

// newTrial makes a request whose lengths are often close to the limits.
func newTrial(c *choices) *trial {
	flags := ""
	uses := [4]bool{true}
	for i, flag := range "ocsflv" {
		if c.below(2) == 1 {
			flags += string(flag)
			if i < 3 {
				uses[i+1] = true
			}
		}
	}
	if flags == "" {
		flags = "-"
	}
	r := &trial{fits: true, forwards: strings.Contains(flags, "f"), strips: strings.Contains(flags, "v"), userHeader: []string{"x-user-id", "x", "x-" + strings.Repeat("u", 60)}[c.below(3)]}
	longest := []int{0, 1, 300_000, 3_600_000, 18446744073709}[c.below(5)]
	r.route = fmt.Sprintf("1 %x %d %s %s %016x", rule, longest, flags, r.userHeader, table.ServiceID("orders"))
	r.entry = &table.Entry{Rule: rule, Token: hash("alice-token"), User: strings.Repeat("u", min(55, 1+c.below(70)))}
	if c.below(2) == 1 {
		r.entry.Session = uuid.UUID{5: 7}
	}
	message := len(rule) + 2*len(inputNames)
	for i, name := range inputNames {
		value, times := r.input(c, i, maxMessage-message)
		for range times {
			r.add(name, value)
		}
		if !uses[i] {
			continue
		}
		r.entry.Inputs[i] = value
		message += len(value)
		r.fits = r.fits && times <= 1 && message <= maxMessage
	}
	r.fits = r.fits && r.entry.Inputs[0] != ""
	r.addOthers(c)
	return r
}

func (r *trial) add(name, value string) { r.headers = append(r.headers, header{name, value}) }

// input chooses the value of an input, and how often the request has it. left is the room in the message.
func (r *trial) input(c *choices, i, left int) (value string, times int) {
	kind, times := c.below(8), 1
	switch {
	case kind == 0 && i > 0:
		return "", 0
	case kind <= 2:
		return c.text(1 + c.below(60)), 1
	case kind == 3:
		return "", 1
	case kind == 4:
		return c.text(c.below(2 * maxHeaderBytes)), 1
	case kind == 5 && c.below(4) == 0:
		times = 2
	}
	return c.text(c.near(left)), times
}

// addOthers adds a path and headers that are no inputs, often as many and as long as the listener allows.
func (r *trial) addOthers(c *choices) {
	switch c.below(4) {
	case 0:
		r.add(":path", "/orders")
	case 1:
		r.add(":path", "/"+c.text(c.near(maxPath)-1)+"?x")
	case 2:
		r.add(":path", "")
	}
	if c.below(4) == 0 {
		r.add(r.userHeader, c.text(c.below(100)))
	}
	if c.below(4) == 0 {
		r.add([]string{"proxy", "x-envoy-a", "x-forwarded-", "x-method-overrid"}[c.below(4)], "")
	}
	if c.below(4) == 0 {
		for many := c.near(maxHeaders); len(r.headers) < many; {
			r.add(fmt.Sprint("x-", len(r.headers)), "")
		}
	}
	added := len(r.userHeader) + len(r.entry.User) + len("x-envoy-upstream-stream-duration-ms") + len("9223372036854775807\x00")
	if c.below(4) == 0 {
		r.add("x-long", c.text(c.near(max(0, maxHeaderBytes-added-len("x-long")-r.bytes()))))
	}
	r.fits = r.fits && len(r.headers)+2 <= maxHeaders && r.bytes()+added <= maxHeaderBytes
}

// bytes returns the length of the headers.
func (r *trial) bytes() (n int) {
	for _, h := range r.headers {
		n += len(h.name) + len(h.value)
	}
	return n
}

// damage changes the words of a table's file, mostly those of the slot in use. Without choices it changes nothing.
func damage(c *choices, file []byte, slot int, now table.Instant) []byte {
	boot, wall := uint64(now.Boot), uint64(now.Wall.UnixNano())
	values := []uint64{
		0, 1, 2, 5, 6, 1 << 20, 1<<20 + 1, 1 << 32, 1<<63 - 1, 1 << 63, ^uint64(0),
		boot, boot + 1, boot + 2_000_000_000, boot + 2_000_000_001, boot + 61_000_000_000, boot + 61_000_000_001, wall, wall + 1,
	}
	for len(*c) > 0 {
		word := c.below(16) // of the header
		switch c.below(6) {
		case 0, 1:
			word = slot + c.below(12)
		case 2: // a byte of the user and the session
			file[8*(slot+5)+c.below(3)*c.below(28)] = byte(c.below(256)) // often the length
			continue
		case 3:
			word = c.below(len(file) / 8)
		case 4:
			length := c.below(2 * len(file))
			if c.below(2) == 0 { // a header that fits the length, if one does
				length = 8 * (16 + 96*c.below(8))
			}
			file = append(file, make([]byte, 2*len(file))...)[:length]
			if len(file) >= 16 && c.below(2) == 0 {
				binary.NativeEndian.PutUint64(file[8:], uint64(len(file)/(8*96)))
			}
			return file
		}
		binary.NativeEndian.PutUint64(file[8*word:], values[c.below(len(values))])
	}
	return file
}

// used returns the word at which the slot begins in which two files of a table differ.
func used(before, after []byte) int {
	for word := 16; word < len(after)/8; word++ {
		if string(before[8*word:8*word+8]) != string(after[8*word:8*word+8]) {
			return word - (word-16)%12
		}
	}
	return 16
}

// FuzzModule sends requests whose lengths are close to the limits to the module under ASan and UBSan, with a table that
// has a decision about each, and may be damaged. The module must always answer. If the table is sound, it must use the
// decision if and only if the request is within the limits. If not, what it passes on must be valid.
//
// The fuzzer does not see which code of the module is reached, because that runs in another process. It sees the code
// that makes the requests, so that makes each case that the module distinguishes.
func FuzzModule(f *testing.F) {
	r := newFixture(f)
	small := filepath.Join(f.TempDir(), "small")
	made, err := table.Create(small, 40, r.clock.now)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = made.Close() })
	made.Extend(r.clock.Add(time.Second))
	plain := strings.TrimPrefix(route(5*time.Minute, "-"), "route ")
	f.Add([]byte{}, []byte{}, "")
	f.Add([]byte{}, []byte{}, plain)
	random := rand.NewChaCha8([32]byte{})
	for n := range 300 {
		request, broken := make([]byte, 80), make([]byte, 6*(n%4))
		_, _ = random.Read(request) // never fails
		_, _ = random.Read(broken)
		f.Add(request, broken, "")
	}
	n := 0
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, request, broken []byte, route string) {
		n++
		path := filepath.Join(dir, strconv.Itoa(n))
		next := newTrial((*choices)(&request))
		next.entry.Expires = r.clock.Wall.Add(time.Hour)
		before, err := os.ReadFile(small)
		made.Put(0, next.entry)
		file, err2 := os.ReadFile(small)
		sound := len(broken) == 0
		if !sound {
			file = damage((*choices)(&broken), slices.Clone(file), used(before, file), r.clock.Instant)
		}
		if err := errors.Join(err, err2, os.WriteFile(path, file, 0o600), os.Link(small+".hits", path+".hits")); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(path)
		defer os.Remove(path + ".hits")
		r.Must("config %s", path)
		if route == "" || strings.ContainsAny(route, "\n\x00") || r.Do("route %s", route) != "ok" {
			r.Must("route %s", next.route)
		} else {
			sound, next.userHeader = false, strings.Fields(route)[4] // a rule of its own
		}
		kept := []string{"none", "none", "none", "none", "none", "none", "authorization", scopeHeader}[(*choices)(&request).below(8)]
		r.Must("fail %s", kept)
		line := "request"
		for _, h := range next.headers {
			line += " " + h.name + "=" + hex.EncodeToString([]byte(h.value))
		}
		answer := r.Do("%s", line)
		want := "miss"
		switch {
		case kept == scopeHeader && next.strips:
			want = "503"
		case next.fits && (kept != "authorization" || next.forwards):
			want = "hit"
		}
		if got, _, _ := strings.Cut(answer, " "); sound && got != want {
			t.Errorf("%s, %d headers of %d bytes, %+v: %s, want %s", next.route, len(next.headers), next.bytes(), next.entry, got, want)
		}
		checkAnswer(t, answer, next)
		if words := len(file) / 8; words > 0 { // the table is mapped, changes while it is read, and is read again
			c := (*choices)(&request)
			r.Must("then %d", c.below([]int{min(16, words), words}[c.below(2)]))
			for range 2 {
				checkAnswer(t, r.Do("%s", line), next)
			}
			r.Must("then -1") // if it was not read
		}
		r.Must("fail none")
		for field := range strings.FieldsSeq(strings.Replace(r.Do("%s", strings.Replace(line, "request", "early", 1)), "ok", "", 1)) {
			name, _, _ := strings.Cut(field, "=")
			if name == "proxy" || strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, "x-forwarded-") && name != scopeHeader {
				t.Errorf("%s is left", name)
			}
		}
	})
}

// checkAnswer checks that a hit has a user and a duration that are valid, and that the access log gets valid fields.
func checkAnswer(t *testing.T, answer string, next *trial) {
	t.Helper()
	for field := range strings.FieldsSeq(answer) {
		name, value, _ := strings.Cut(field, "=")
		raw, _ := hex.DecodeString(value)
		switch name {
		case next.userHeader:
			if strings.HasPrefix(answer, "hit") && (len(raw) == 0 || len(raw) > 55 || strings.ContainsAny(string(raw), "\r\n\x00")) {
				t.Errorf("a user of %q", raw)
			}
		case "x-envoy-upstream-stream-duration-ms":
			if n, err := strconv.ParseUint(string(raw), 10, 63); err != nil || n == 0 {
				t.Errorf("a duration of %q", raw)
			}
		case "@session":
			if uuid.Validate(string(raw)) != nil {
				t.Errorf("a session of %q", raw)
			}
		case "@path":
			if len(raw) > maxPath {
				t.Errorf("a path of %d bytes", len(raw))
			}
		}
	}
}
