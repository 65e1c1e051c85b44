package envoy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// drainPoll is the interval at which a draining Envoy is polled for active requests.
const drainPoll = 20 * time.Millisecond

// drain makes the Envoy behind an admin socket stop accepting connections and close the open ones
// after their current response. It returns when no request is active or ctx is done.
func drain(ctx context.Context, adminSocket string) error {
	admin := adminClient(address{path: adminSocket})
	defer admin.CloseIdleConnections()
	// A server with a failed health check adds "connection: close" and sends GOAWAY (Envoy docs,
	// "Draining").
	for _, path := range adminDrains {
		if _, err := call(ctx, admin, http.MethodPost, path); err != nil {
			return err
		}
	}
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for active := 0; ; {
		stats, err := call(ctx, admin, http.MethodGet, "/stats?filter="+activeFilter)
		if err != nil && ctx.Err() != nil && active > 0 { // ctx ended during the call
			return unended(active)
		}
		if err != nil {
			return err
		}
		if active, err = sumActive(stats); err != nil {
			return err
		}
		if active == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return unended(active)
		case <-tick.C:
		}
	}
}

func unended(active int) error { return fmt.Errorf("%d requests did not end in time", active) }

// adminClient returns an HTTP client for an admin interface. It ignores the host of a URL.
func adminClient(at address) *http.Client {
	host := at.host
	if at.ip.IsValid() {
		host = at.ip.String()
	}
	network, target := "tcp", net.JoinHostPort(host, strconv.Itoa(int(at.port)))
	if at.path != "" {
		network, target = "unix", at.path
	}
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, target)
	}}}
}

// maxAnswer limits an answer of the admin interface: ten thousand clusters have some ten megabytes.
const maxAnswer = 256 << 20

// call sends one request to the admin interface and returns the body. Any status but 200 is an
// error.
func call(ctx context.Context, admin *http.Client, method, path string) (string, error) {
	res, err := ask(ctx, admin, method, path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return "", fmt.Errorf("asking Envoy for %s: %w", path, err)
	}
	return string(body), nil
}

// ask is call with the body still to be read. The caller must close it.
func ask(ctx context.Context, admin *http.Client, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking Envoy for %s: %w", path, err)
	}
	res, err := admin.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking Envoy for %s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("asking Envoy for %s: it answers %s", path, res.Status)
	}
	return res, nil
}

// Active requests per HTTP connection manager: "http.<prefix>.downstream_rq_active: 3".
const activeFilter = `%5Ehttp%5C..*%5C.downstream_rq_active$`

var activeLine = regexp.MustCompile(`^http\.(.+)\.downstream_rq_active: (\d+)$`)

// sumActive adds up the active requests. Requests to the admin interface are not included.
func sumActive(stats string) (sum int, err error) {
	lines := bufio.NewScanner(strings.NewReader(stats))
	for lines.Scan() {
		m := activeLine.FindStringSubmatch(lines.Text())
		if m == nil || m[1] == "admin" {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return 0, fmt.Errorf("reading %q: %w", lines.Text(), err)
		}
		sum += n
	}
	return sum, lines.Err()
}
