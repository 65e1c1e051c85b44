package envoy

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBackoffDoublesUntilEnvoyRanForAMinute(t *testing.T) {
	var got []string
	var wait time.Duration
	for _, lived := range []time.Duration{0, 0, time.Second, 0, 0, 0, 0, 0, 0, time.Minute, 0} {
		wait = backoff(wait, lived)
		got = append(got, wait.String())
	}
	want := "100ms 200ms 400ms 800ms 1.6s 3.2s 6.4s 10s 10s 100ms 200ms"
	if strings.Join(got, " ") != want {
		t.Errorf("waits %v, want %v", got, want)
	}
}

func TestEnvoyLogLinesAreLogged(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	w := newLogWriter(log)
	for _, part := range []string{
		"[info][main] starting", " main dispatch loop\n[warn", "ing][config] odd\n",
		"[error][http] request size exceeds maximum (1536 > 1024), client: 192.0.2.1:4321, target: 192.0.2.2:80/\n",
		"[error][http] content length exceeds maximum (1025 > 1024), client: 192.0.2.1:4321, target: 192.0.2.2:80/\n",
		"[error][grpc] bad [thing] here\n[critical][assert] gone\n\n",
		"error while loading shared libraries: libx.so\n",
		"[debug][http] no end",
	} {
		if n, err := fmt.Fprint(w, part); n != len(part) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		`level=DEBUG msg="starting main dispatch loop" from=envoy logger=main`,
		`level=WARN msg=odd from=envoy logger=config`,
		`level=DEBUG msg="request size exceeds maximum (1536 > 1024), client: 192.0.2.1:4321, target: 192.0.2.2:80/" from=envoy logger=http`,
		`level=DEBUG msg="content length exceeds maximum (1025 > 1024), client: 192.0.2.1:4321, target: 192.0.2.2:80/" from=envoy logger=http`,
		`level=ERROR msg="bad [thing] here" from=envoy logger=grpc`,
		`level=ERROR msg=gone from=envoy logger=assert`,
		`level=WARN msg="error while loading shared libraries: libx.so" from=envoy logger=""`,
		`level=DEBUG msg="no end" from=envoy logger=http`,
	}, "\n") + "\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// A crash of Envoy 1.40, cut short. What it shows of the request has the token of a client.
func TestACrashIsLoggedWithoutTheRequest(t *testing.T) {
	var out bytes.Buffer
	w := newLogWriter(slog.New(slog.NewTextHandler(&out, nil)))
	if _, err := io.WriteString(w, `*** stack smashing detected ***: terminated
[critical][backtrace] Caught Aborted, suspect faulting address 0x62a4
[critical][backtrace] #0: [0x7fc104580050]
ActiveStream 0x50d77f609500, stream_id_: 2132869892358805874&filter_manager_:
  filter_manager_callbacks_.requestHeaders():
    ':path', '/orders?token=secret'
    'authorization', 'Bearer secret'
Http1::ConnectionImpl 0x50d77f608010, dispatching_: 1, current_header_field_: , current_header_value_: secret
current_dispatching_buffer_ front_slice length: 12131 contents: "GET /orders HTTP/1.1\r\nauthorization: Bearer secret
`); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Count(got, "\n") != 3 || !strings.Contains(got, "stack smashing") || !strings.Contains(got, "#0: [0x7fc104580050]") {
		t.Errorf("the log has\n%s\nwant what the crash is, and no request", got)
	}
}

func TestLogLineLengthIsLimited(t *testing.T) {
	var out bytes.Buffer
	w := newLogWriter(slog.New(slog.NewTextHandler(&out, nil)))
	for range 100 {
		if _, err := w.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "x"); n != maxLogLine {
		t.Errorf("%d bytes of the line were kept, want %d", n, maxLogLine)
	}
}

func TestActiveRequestsExcludeTheAdminInterface(t *testing.T) {
	stats := "http.admin.downstream_rq_active: 1\nhttp.edge.downstream_rq_active: 2\nhttp.a.b.downstream_rq_active: 3\nhttp.edge.downstream_rq_total: 9\n"
	if sum, err := sumActive(stats); sum != 5 || err != nil {
		t.Errorf("sumActive = %d, %v; want 5", sum, err)
	}
}

// parts records each Write.
type parts []string

func (p *parts) Write(b []byte) (int, error) {
	*p = append(*p, string(b))
	return len(b), nil
}

func TestTheAccessLogIsPassedOnByWholeLines(t *testing.T) {
	var got parts
	w := newAccessLogWriter(&got)
	for _, chunk := range []string{"{\"a\":", "1}\n{\"b\":2}\n{\"c\"", ":3}\n", "half a li"} {
		if n, err := fmt.Fprint(w, chunk); n != len(chunk) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if diff := cmp.Diff(parts{"{\"a\":1}\n", "{\"b\":2}\n", "{\"c\":3}\n"}, got); diff != "" {
		t.Error(diff)
	}
}
