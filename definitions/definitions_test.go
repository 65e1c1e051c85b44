package definitions

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// shop returns the text of a good file with the services named, each under its own path.
func shop(names ...string) string {
	var b strings.Builder
	b.WriteString("services:\n")
	for _, name := range names {
		fmt.Fprintf(&b, "  - {name: %[1]s, path: /%[1]s, upstreams: [\"http://%[1]s\"]}\n", name)
	}
	if len(names) == 0 {
		return "services: []\n"
	}
	return b.String()
}

func mustParse(t testing.TB, text string) *Definitions {
	t.Helper()
	d, err := Parse("shop.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestServiceThatDoesNotSaySoIsSecured(t *testing.T) {
	d := mustParse(t, shop("orders"))
	if !d.Gateway.Services[0].Authenticate {
		t.Error("authenticate is false, want true")
	}
}

func TestLifetimeAboveTheDefaultSessionRaisesTheSession(t *testing.T) {
	d := mustParse(t, "tokens: {lifetime: 1000h}\nservices: []\n")
	if got := d.Gateway.Tokens.SessionLifetime.Hours(); got != 1000 {
		t.Errorf("a session lives %v h, want 1000", got)
	}
}

func TestServicesKeepTheFilesOrderAndKnowTheirLines(t *testing.T) {
	d := mustParse(t, "listen: 127.0.0.1:5500\n\nservices:\n  - {name: b, path: /b, upstreams: [\"http://b\"]}\n\n  # the second\n  - name: a\n    path: /a\n    upstreams: [\"http://a\"]\n")
	for i, want := range []struct {
		name string
		line int
	}{{"b", 4}, {"a", 7}} {
		file, line := d.Place(i)
		if got := d.Gateway.Services[i].Name; got != want.name || file != "shop.yaml" || line != want.line {
			t.Errorf("service %d is %s on line %d of %s, want %s on line %d of shop.yaml", i, got, line, file, want.name, want.line)
		}
	}
}

func TestGatewayIsTheSameAfterBeingWrittenAndReadAgain(t *testing.T) {
	for _, path := range archives(t, "testdata/good") {
		d := mustParse(t, string(readArchive(t, path).Files[0].Data))
		again, err := fromGateway("again.yaml", d.Gateway.Message())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(d.Gateway, again.Gateway) {
			t.Errorf("%s: became\n%v\nand was\n%v", path, again.Gateway.Message(), d.Gateway.Message())
		}
	}
}

func TestNoServicesAreWrittenInAFormThatIsReadAgain(t *testing.T) {
	for _, g := range []*gatewayv1.Gateway{{}, {Listen: "127.0.0.1:80"}} {
		d, err := fromGateway("none.yaml", g)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(d.Gateway.Services); n != 0 {
			t.Errorf("%d services, want none", n)
		}
	}
}

func TestWrongGatewayIsRefusedWhereverItComesFrom(t *testing.T) {
	_, err := fromGateway("redis", &gatewayv1.Gateway{Services: []*gatewayv1.Service{{Name: "a", Path: "/a/../b", Upstreams: []string{"http://a"}}}})
	var problems Problems
	if !errors.As(err, &problems) || problems[0].Field != "services[0].path" {
		t.Errorf("got %v, want a problem of services[0].path", err)
	}
}

func TestFileThatIsNotThereIsToldFromOneThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	if _, err := Load(dir); err == nil || !strings.HasPrefix(err.Error(), "reading definitions: ") {
		t.Errorf("got %v for a directory, want an error of reading", err)
	}
}

func TestFileThatIsTooLargeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(path, append([]byte("services: []\n#"), bytes.Repeat([]byte("x"), MaxSize)...), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	if want := path + ":1:1: the file is larger than 16 MiB\nsee docs/troubleshooting.md#the-file"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestFileThatIsNotTextIsRefused(t *testing.T) {
	for name, text := range map[string]string{
		"UTF-16":  "\xff\xfes\x00e\x00",
		"Latin-1": "# M\xfcller\nservices: []\n",
	} {
		if _, err := Parse("f.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), "is not UTF-8 text (save it as UTF-8)") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestDeepNestingIsRefusedAndNotFollowed(t *testing.T) {
	for _, text := range []string{strings.Repeat("[", 1<<20), "services: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000), strings.Repeat("{a: ", 1<<18)} {
		if _, err := Parse("f.yaml", []byte(text)); err == nil {
			t.Errorf("%.20s… was taken", text)
		}
	}
}

func TestErrorOfManyProblemsEndsInACount(t *testing.T) {
	_, err := Parse("f.yaml", []byte("services:\n"+strings.Repeat("  - 1\n", 50)))
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != 50 {
		t.Fatalf("got %d problems, want 50", len(problems))
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 22 || lines[20] != "and 30 more problems" || lines[21] != "see docs/troubleshooting.md#fields-and-values" {
		t.Errorf("got %d lines, the last %q", len(lines), lines[max(0, len(lines)-2):])
	}
}

func TestPasswordInAnAddressIsNeverShown(t *testing.T) {
	for _, address := range []string{
		"http://user:hunter2@orders", "http://user:hunter2@orders:0", "http://user:hunter2@or ders", "ftp://user:hunter2@orders",
		"http://user:hun@ter2@orders", "http://user:hunter2@[::1", "user:hunter2@orders", "http:/user:hunter2@orders", "http://user:hunter2@",
		"http://user:hun/ter2@orders", "http://user:hunter2%zz@orders", "//user:hunter2@orders", "http:user:hunter2@orders",
	} {
		text := fmt.Sprintf("origins: [%[1]q]\nlisten: %[1]q\ntokens: {authenticator: {url: %[1]q}}\nservices:\n  - {name: a, path: /a, upstreams: [%[1]q]}\n  - {name: b, path: /b, upstreams: %[1]q}\n", address)
		_, err := Parse("f.yaml", []byte(text))
		if err == nil {
			t.Errorf("%s was taken", address)
			continue
		}
		if said := err.Error(); strings.Contains(said, "hunter2") || strings.Contains(said, "ter2") {
			t.Errorf("the password is in:\n%s", said)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf("service-%d", i)
		}
		good := []byte(shop(names...))
		b.Run(fmt.Sprintf("good-%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := Parse("f.yaml", good); err != nil {
					b.Fatal(err)
				}
			}
		})
		bad := bytes.ReplaceAll(good, []byte("path: /service-"), []byte("path: /same#"))
		b.Run(fmt.Sprintf("bad-%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, err := Parse("f.yaml", bad); err == nil {
					b.Fatal("taken")
				}
			}
		})
	}
}

// fromGateway reads what Marshal makes of g.
func fromGateway(name string, g *gatewayv1.Gateway) (*Definitions, error) {
	text, err := Marshal(g)
	if err != nil {
		return nil, err
	}
	return Parse(name, text)
}

// The former name of strict is accepted, and means the same.
func TestTheFormerNameOfStrictIsAccepted(t *testing.T) {
	d, err := Parse("gateway.yaml", []byte("tokens: {revocation: proven}\nservices: []"))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Gateway.Tokens.Revocation; got != RevocationStrict {
		t.Errorf("revocation is %q, want %q", got, RevocationStrict)
	}
}

func TestTheQueryOfAnAddressIsRedacted(t *testing.T) {
	for address, want := range map[string]string{
		"http://users/auth?key=SECRET": "http://users/auth?[redacted]",
		"/health?key=SECRET?x":         "/health?[redacted]",
		"/health?":                     "/health?",
		"/health":                      "/health",
	} {
		if got := WithoutQuery(address); got != want {
			t.Errorf("%s becomes %s, want %s", address, got, want)
		}
	}
}
