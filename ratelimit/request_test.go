package ratelimit

import (
	"slices"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"
)

// ten allows ten requests a second from each client.
var ten = Limit{Requests: 10, Per: time.Second, Burst: 10, By: "address"}

// asking is a request of Envoy's with one descriptor, of a limit and pairs of keys and values.
func asking(domain string, l Limit, client ...string) *ratelimitv3.RateLimitRequest {
	entries := []*commonv3.RateLimitDescriptor_Entry{{Key: KeyLimit, Value: l.String()}}
	for i := 0; i < len(client); i += 2 {
		entries = append(entries, &commonv3.RateLimitDescriptor_Entry{Key: client[i], Value: client[i+1]})
	}
	return &ratelimitv3.RateLimitRequest{Domain: domain, Descriptors: []*commonv3.RateLimitDescriptor{{Entries: entries}}}
}

func bytesOf(t testing.TB, m *ratelimitv3.RateLimitRequest) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read reads requests into one.
func read(t testing.TB, all ...*ratelimitv3.RateLimitRequest) *Request {
	t.Helper()
	var b []byte
	for _, m := range all {
		b = append(b, bytesOf(t, m)...)
	}
	q := new(Request)
	if err := q.UnmarshalMessage(b); err != nil {
		t.Fatal(err)
	}
	return q
}

func keyFor(t *testing.T, domain string, l Limit, client ...string) string {
	t.Helper()
	return read(t, asking(domain, l, client...)).counters[0].key
}

func TestWhichRequestsShareACounter(t *testing.T) {
	address := func(a string) string { return keyFor(t, "service a", ten, KeyAddress, a) }
	refusing, shown, slower, byKey := ten, ten, ten, ten
	refusing.Refuse, shown.Headers, slower.Per, byKey.By = true, true, time.Minute, "x-key"
	for _, same := range [][2]string{
		{address("192.0.2.1"), address("::ffff:192.0.2.1")},
		{address("2001:db8:0:1::1"), address("2001:db8:0:1:ffff::2")},
		{address("fe80::1%eth0"), address("fe80::1")},
		{address("192.0.2.1"), keyFor(t, "service a", refusing, KeyAddress, "192.0.2.1")},
		{address("192.0.2.1"), keyFor(t, "service a", shown, KeyAddress, "192.0.2.1")},
	} {
		if same[0] != same[1] {
			t.Errorf("%s and %s differ", same[0], same[1])
		}
	}
	differ := []string{
		address("192.0.2.1"), address("192.0.2.2"), address("2001:db8:0:1::1"), address("2001:db8:0:2::1"), address("/run/socket"),
		keyFor(t, "service b", ten, KeyAddress, "192.0.2.1"), keyFor(t, "service a", slower, KeyAddress, "192.0.2.1"),
		keyFor(t, "service a", ten), keyFor(t, "service a", byKey, "value", "192.0.2.1"), keyFor(t, "service a", ten, "value", "192.0.2.1"),
		keyFor(t, "service a", ten, "valu", "e192.0.2.1"), keyFor(t, "service a", ten, "value", ""),
	}
	for i, key := range differ {
		if slices.Contains(differ[:i], key) {
			t.Errorf("case %d shares its counter", i)
		}
	}
	slot := func(key string) string { return key[strings.Index(key, "{"):strings.Index(key, "}")] }
	if slot(differ[0]) != slot(differ[1]) || slot(differ[0]) == slot(differ[5]) {
		t.Error("the hash slot must be that of the domain")
	}
}

func TestEqualDescriptorsAreCountedOnce(t *testing.T) {
	if n := len(read(t, asking("a", ten), asking("a", ten), asking("a", ten, "value", "x")).counters); n != 2 {
		t.Errorf("%d counters, want 2", n)
	}
}

func TestUnusableRequestsAreErrors(t *testing.T) {
	noLimit := asking("a", ten)
	noLimit.Descriptors[0].Entries[0].Key = "rate"
	tooMany := &ratelimitv3.RateLimitRequest{Domain: "a"}
	for range maxCounters + 1 {
		tooMany.Descriptors = append(tooMany.Descriptors, asking("a", ten).GetDescriptors()...)
	}
	cases := map[string][]byte{
		"no protobuf": []byte("\x0a\xff"), "cut off": bytesOf(t, asking("a", ten))[:8], "nothing": nil, "no limit": bytesOf(t, noLimit), "many": bytesOf(t, tooMany),
		"no entries": bytesOf(t, &ratelimitv3.RateLimitRequest{Descriptors: []*commonv3.RateLimitDescriptor{{}}}),
	}
	for _, text := range []string{
		"", "10 1 10 address", "10 1 10  allow", "10 1 10 address no", "0 1 10 address allow", "10 0 10 address allow", "10 1 0 address allow",
		"-1 1 10 address allow", "1000001 1 10 address allow", "1.5 1 10 address allow", "10 1 10 address allow ", "10 1 10 address headers", "10 1 10 address refuse x",
	} {
		m := asking("a", ten)
		m.Descriptors[0].Entries[0].Value = text
		cases["limit "+text] = bytesOf(t, m)
	}
	for name, b := range cases {
		if err := new(Request).UnmarshalMessage(b); err == nil || !strings.HasPrefix(err.Error(), "reading a rate limit request: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzRequest compares what is read of any bytes with what the generated type reads.
func FuzzRequest(f *testing.F) {
	f.Add(bytesOf(f, asking("service a", ten, KeyAddress, "192.0.2.1")))
	f.Add(append(bytesOf(f, asking("gateway", ten)), bytesOf(f, asking("b", ten, "value", "x"))...))
	f.Add([]byte("\x0a\x01a\x12\x02\x0a\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q Request
		err := q.UnmarshalMessage(b)
		m := new(ratelimitv3.RateLimitRequest)
		if other := proto.Unmarshal(b, m); other != nil {
			return // among others, strings that are not UTF-8
		}
		var want []string
		for _, d := range m.GetDescriptors() {
			var entries []entry
			for _, e := range d.GetEntries() {
				entries = append(entries, entry{[]byte(e.GetKey()), []byte(e.GetValue())})
			}
			var limit Limit
			bad := len(entries) == 0 || string(entries[0].key) != KeyLimit
			if !bad {
				var unreadable error
				limit, unreadable = parseLimit(string(entries[0].value))
				bad = unreadable != nil
			}
			if bad {
				if err == nil {
					t.Errorf("%q is no error", b)
				}
				return
			}
			if key := keyOf(m.GetDomain(), limit, entries[1:]); !slices.Contains(want, key) {
				want = append(want, key)
			}
		}
		if n := len(m.GetDescriptors()); n == 0 || n > maxCounters {
			if err == nil {
				t.Errorf("%q is no error", b)
			}
			return
		}
		var got []string
		for _, c := range q.counters {
			got = append(got, c.key)
		}
		if err != nil || q.domain != m.GetDomain() || !slices.Equal(got, want) {
			t.Errorf("%q: %q %v, %v; want %q %v", b, q.domain, got, err, m.GetDomain(), want)
		}
	})
}
