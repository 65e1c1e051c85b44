package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// reloadTimeout limits how long a reload waits for its result.
const reloadTimeout = 10 * time.Second

// supervise reports to systemd that the gateway is ready, as /readyz does, and that it is alive, as
// /healthz on the address admin does, until ctx ends.
func (g *Gateway) supervise(ctx context.Context, admin net.Addr) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // each check is a connection of its own
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, admin.Network(), admin.String())
		},
	}}
	g.config.Systemd.Run(ctx, g.admin.Ready, func(ctx context.Context) error { return isLive(ctx, client) })
}

// isLive returns nil if /healthz responds with 200.
func isLive(ctx context.Context, client *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/healthz", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz responds with %s", response.Status)
	}
	return nil
}

// Reload reads the definitions again, and has Envoy try again a version that it has rejected. It
// returns when the Envoys serve the definitions, when the definitions are refused, or after
// reloadTimeout.
func (g *Gateway) Reload(ctx context.Context) {
	g.config.Systemd.Reload(func() string {
		ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
		defer cancel()
		g.rollout.RetryRejected()
		g.certificates.acme.retry()
		g.source.Reload(ctx)
		if wrong := g.rollout.AwaitResult(ctx).Degraded(); wrong != "" {
			return "reloading failed: " + wrong
		}
		return "reloaded"
	})
}
