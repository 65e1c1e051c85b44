package admin

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"gatepost/authz"
)

// openStream opens a live stream, and returns its status and its lines. After a 200 its first line has been read.
func openStream(t *testing.T, url, token string) (status int, lines *bufio.Reader, stop func()) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/api/v1/denials/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	lines = bufio.NewReader(answer.Body)
	if answer.StatusCode == http.StatusOK {
		if line, err := lines.ReadString('\n'); err != nil || line != "\n" {
			t.Fatalf("the stream begins with %q, %v", line, err)
		}
	}
	return answer.StatusCode, lines, func() { _ = answer.Body.Close() }
}

// TestOneCallerCannotHoldAllLiveStreams: another token gets one, and an end makes room. All end with the gateway.
func TestOneCallerCannotHoldAllLiveStreams(t *testing.T) {
	t.Parallel()
	k := newKitWith(t, Config{Local: true, TokenFile: tokensIn(t, twoTokens)})
	k.config.Follow = func() (<-chan authz.Denial, func()) { return nil, func() {} }
	server := httptest.NewServer(k)
	defer server.Close()
	var stops []func()
	for range callerStreams {
		status, _, stop := openStream(t, server.URL, "")
		if status != http.StatusOK {
			t.Fatalf("stream %d: %d", len(stops)+1, status)
		}
		stops = append(stops, stop)
	}
	if status, _, _ := openStream(t, server.URL, ""); status != http.StatusServiceUnavailable {
		t.Errorf("one more without a token: %d, want 503", status)
	}
	status, lines, _ := openStream(t, server.URL, operateToken)
	if status != http.StatusOK {
		t.Errorf("with a token: %d, want 200", status)
	}
	stops[0]()
	for again := 0; again != http.StatusOK; { // the server notices the end of a connection by itself
		again, _, _ = openStream(t, server.URL, "")
	}
	k.Drain()
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("at the end of the gateway the stream has %q, %v", rest, err)
	}
}
