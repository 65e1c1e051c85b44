package definitions

import (
	"errors"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gatepost/testrun"
)

// FuzzParse holds Parse to its promise for any text: problems with a place in it, or definitions that are the
// same after they are written and read again, and that have every default.
func FuzzParse(f *testing.F) {
	testrun.Plain(f)
	for _, dir := range []string{"testdata", "testdata/good"} {
		for _, path := range archives(f, dir) {
			for _, file := range readArchive(f, path).Files {
				f.Add(string(file.Data))
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Parse("fuzz.yaml", []byte(text))
		if err != nil {
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("an error without problems: %v", err)
			}
			lines := strings.Count(text, "\n") + 1
			for _, p := range problems {
				if p.Line < 1 || p.Line > lines || p.Column < 1 || p.What == "" || strings.Contains(p.What, "panicked") || strings.Contains(p.String(), "\n") {
					t.Fatalf("a problem that cannot be found or read: %#v", p)
				}
			}
			return
		}
		again, err := fromGateway("again.yaml", d.Gateway.Message())
		if err != nil {
			t.Fatalf("is taken once and not twice: %v\n%v", err, d.Gateway.Message())
		}
		if !reflect.DeepEqual(d.Gateway, again.Gateway) {
			t.Fatalf("becomes\n%v\nand was\n%v", again.Gateway.Message(), d.Gateway.Message())
		}
		for _, s := range d.Gateway.Services {
			if len(s.Methods) == 0 || (len(s.Upstreams) == 0) != (s.Redirect != nil) || (s.Timeout <= 0) != s.GRPC || pathFault(s.Path) != nil {
				t.Fatalf("an incomplete service: %v", s)
			}
		}
	})
}

// FuzzParseHost: a host that is taken is one that a request can have, and is its own form. Others get a remedy.
func FuzzParseHost(f *testing.F) {
	for _, seed := range []string{
		"api.shop.example", "*.shop.example", "*", "A.example:80", "10.0.0.7", "[::1]", "bücher.example", "xn--bcher-kva.example", "a..b", "user@a", "a_b", "x.", "0x7f.1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, fault := parseHost(text)
		if fault != nil {
			if host != "" || fault.what == "" || fault.remedy == "" {
				t.Fatalf("%q: %q with %+v", text, host, fault)
			}
			return
		}
		if again, fault := parseHost(host); again != host || fault != nil || !strings.EqualFold(host, text) {
			t.Fatalf("%q becomes %q, and that %q (%v)", text, host, again, fault)
		}
		name := strings.TrimPrefix(host, "*.")
		if u, err := url.Parse("http://" + name + ":80/"); err != nil || u.Hostname() != name || strings.ContainsAny(name, "*@:/ ") {
			t.Fatalf("%q is no host of a URL: %v", host, err)
		}
		wider := slices.Collect(Wider(host))
		if wider[len(wider)-1] != EveryHost || len(wider) != strings.Count(name, ".")+1 {
			t.Fatalf("wider than %q: %q", host, wider)
		}
	})
}

// FuzzParseRange: a range of proxies that is taken has nobody in it but those that it names. Others get a remedy.
func FuzzParseRange(f *testing.F) {
	for _, seed := range []string{
		"10.0.0.0/8", "10.0.0.7", "10.0.0.7/8", "0.0.0.0/0", "::/0", "::1", "2001:db8::/32", "::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.0/08", "10.0.0/8", "010.0.0.1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		prefix, fault := parseRange(text)
		if fault != nil {
			if prefix.IsValid() || fault.what == "" || fault.remedy == "" {
				t.Fatalf("%q: %v with %+v", text, prefix, fault)
			}
			return
		}
		if again, fault := parseRange(prefix.String()); again != prefix || fault != nil || !prefix.Contains(prefix.Addr()) {
			t.Fatalf("%q becomes %v, and that %v (%v)", text, prefix, again, fault)
		}
		address, bits, isRange := strings.Cut(text, "/")
		addr, err := netip.ParseAddr(address)
		if err != nil || addr != prefix.Addr() || isRange && bits != strconv.Itoa(prefix.Bits()) || !isRange && !prefix.IsSingleIP() || prefix.Bits() == 0 {
			t.Fatalf("%q becomes %v (%v)", text, prefix, err)
		}
	})
}
