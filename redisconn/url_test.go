package redisconn

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestParseURL(t *testing.T) {
	password := write(t, "password", "from file\n")
	for raw, want := range map[string]string{
		"redis://localhost":                       "localhost:6379 0 - - -",
		"redis://localhost/":                      "localhost:6379 0 - - -",
		"redis://localhost:7000/3":                "localhost:7000 3 - - -",
		"redis://[::1]":                           "[::1]:6379 0 - - -",
		"redis://[::1]:7000/1":                    "[::1]:7000 1 - - -",
		"redis://:pw@h":                           "h:6379 0 - pw -",
		"redis://ann@h":                           "h:6379 0 ann - -",
		"redis://ann:p%40%2F%3A%25@h:1/2":         "h:1 2 ann p@/:% -",
		"redis://ann:p:w@h":                       "h:6379 0 ann p:w -",
		"redis://ann:p@w@h":                       "h:6379 0 ann p@w -",
		"redis://ann@h?password_file=" + password: "h:6379 0 ann from file -",
		"redis://a,b:7000,[::1]?cluster=true":     "a:6379,b:7000,[::1]:6379 0 - - cluster",
		"redis://a?cluster=true":                  "a:6379 0 - - cluster",
		"redis://a?cluster=false":                 "a:6379 0 - - -",
		"redis://:pw@a,b/4?sentinel=mymaster":     "a:26379,b:26379 4 - pw sentinel mymaster",
		"redis://a?sentinel=m&sentinel_user=u&sentinel_password_file=" + password: "a:26379 0 - - sentinel m u from file",
	} {
		o, err := ParseURL(raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		kind := "-"
		if o.cluster {
			kind = "cluster"
		} else if o.master != "" {
			kind = strings.TrimSpace("sentinel " + o.master + " " + o.sentinelUser + " " + o.sentinelPassword.reveal())
		}
		dash := func(s string) string {
			if s == "" {
				return "-"
			}
			return s
		}
		got := fmt.Sprintf("%s %d %s %s %s", strings.Join(o.hosts, ","), o.db, dash(o.user), dash(o.password.reveal()), kind)
		if got != want {
			t.Errorf("%s: got %s, want %s", raw, got, want)
		}
	}
}

func TestURLErrorsDoNotContainPasswords(t *testing.T) {
	letter := write(t, "letter", "no certificate")
	empty := write(t, "empty", "\n")
	for raw, want := range map[string]string{
		"":                                           "redis:// or rediss://",
		"localhost:6379":                             "redis:// or rediss://",
		"http://:hunter2@h":                          "redis:// or rediss://",
		"redis://":                                   "host 1",
		"redis://:hunter2@":                          "host 1",
		"redis://:hunter2@:6379":                     "host 1",
		"redis://:hunter2@h:x":                       "host 1",
		"redis://:hunter2@h:0":                       "host 1",
		"redis://:hunter2@h:65536":                   "host 1",
		"redis://:hunter2@::1":                       "host 1",
		"redis://:hunter2@a,,b?cluster=true":         "host 2",
		"redis://:hunter2@a,b":                       "cluster=true or ?sentinel",
		"redis://:hun/ter2@h":                        "percent-encode",
		"redis://:hunter2/@h":                        "percent-encode",
		"redis://:hun?ter2@h":                        "percent-encode",
		"redis://:hun#ter2@h":                        "percent-encode",
		"redis://:hunter2%@h":                        "%25",
		"redis://:hunter2@h/x":                       "number of a database",
		"redis://:hunter2@h/-1":                      "number of a database",
		"redis://:hunter2@h/1?cluster=true":          "no database but 0",
		"redis://:hunter2@h?cluster=yes":             "true or false",
		"redis://:hunter2@h?cluster=true&sentinel=m": "exclude",
		"redis://:hunter2@h?sentinel=":               "once, with a value",
		"redis://:hunter2@h?sentinel=a&sentinel=b":   "once, with a value",
		"redis://:hunter2@h?colour=red":              `"colour"`,
		"redis://h?password=hunter2":                 "password_file",
		"redis://h?a;b=%zz":                          "name=value",
		"redis://:hunter2@h?sentinel_user=u":         "sentinel=NAME",
		"redis://:hunter2@h?password_file=" + letter: "one of them",
		"redis://h?password_file=/nowhere":           "password file",
		"redis://h?password_file=" + empty:           "is empty",
		"redis://:hunter2@h?ca_file=" + letter:       "need rediss://",
		"rediss://:hunter2@h?ca_file=" + letter:      "no PEM certificate",
		"rediss://:hunter2@h?ca_file=/nowhere":       "ca_file",
		"rediss://:hunter2@h?cert_file=" + letter:    "go together",
		"rediss://:hunter2@h?cert_file=" + letter + "&key_file=" + letter: "cert_file and key_file",
	} {
		o, err := ParseURL(raw)
		if err == nil {
			t.Errorf("%q was parsed as %v", raw, o)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, without %q", raw, err, want)
		}
		for _, part := range []string{"hunter", "ter2", "hun"} {
			if strings.Contains(err.Error(), part) {
				t.Errorf("%q: the error contains a part of the password: %v", raw, err)
			}
		}
	}
}

func TestOptionsPrintNoPassword(t *testing.T) {
	o, err := ParseURL("redis://ann:hunter2@a,b/2?sentinel=m&sentinel_user=guard&sentinel_password_file=" + write(t, "p", "opensesame"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := o.String(), "redis://a:26379,b:26379/2?sentinel=m"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s := Open(o)
	defer s.Close()
	type holder struct{ o *Options }
	for name, v := range map[string]any{"options": o, "the value": *o, "a holder": holder{o}, "a pointer to one": &holder{o}, "the store": s} {
		var text, structured bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("opened", "redis", v)
		slog.New(slog.NewJSONHandler(&structured, nil)).Info("opened", "redis", v)
		data, _ := json.Marshal(v)
		for _, out := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", v, v, v, v, v, v), fmt.Sprint(v), text.String(), structured.String(), string(data)} {
			for _, secret := range []string{"hunter2", "opensesame", "68756e74657232"} {
				if strings.Contains(out, secret) {
					t.Errorf("%s: %s", name, out)
				}
			}
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, seed := range []string{"redis://u:p@a,b:1/0?cluster=true", "rediss://[::1]:1/2", "redis://a?sentinel=m", "redis://%zz@h", "redis://@/?"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if strings.Contains(raw, "_file") {
			t.Skip("it reads files")
		}
		o, err := ParseURL(raw)
		if err != nil {
			return
		}
		again, err := ParseURL(o.String())
		if err != nil || again.String() != o.String() {
			t.Fatalf("%q prints as %q, which parses as %v, %v", raw, o, again, err)
		}
	})
}
