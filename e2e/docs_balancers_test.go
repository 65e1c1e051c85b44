package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/testcert"
	"gatepost/testlog"
)

// TestLoadBalancersOfTheDocumentation runs the configurations of nginx and HAProxy in docs/howto/load-balancer.md, with
// other ports and files, in front of a gateway. The upstream gets the address of the client, whatever that claims.
func TestLoadBalancersOfTheDocumentation(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/howto/load-balancer.md")
	must(t, err)
	for name, c := range map[string]struct {
		settings string
		config   func(example, dir string) string
		command  func(file, dir string) []string
		places   func(addr, gateway, dir string) []string // in the example → here
		proto    string                                   // that the upstream gets
	}{
		"nginx": {
			settings: "{trusted_proxies: [127.0.0.1]}",
			config: func(example, dir string) string {
				return fmt.Sprintf("daemon off;\npid %[1]s/pid;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\nclient_body_temp_path %[1]s/body;\nproxy_temp_path %[1]s/proxy;\n"+
					"fastcgi_temp_path %[1]s/fastcgi;\nuwsgi_temp_path %[1]s/uwsgi;\nscgi_temp_path %[1]s/scgi;\n%[2]s}\n", dir, example)
			},
			command: func(file, dir string) []string { return []string{"-c", file, "-p", dir} },
			places: func(addr, gateway, dir string) []string {
				return []string{"127.0.0.1:5500", gateway, "listen 443 ", "listen " + addr + " ", "/etc/nginx/tls", filepath.Join(dir, "tls")}
			},
			proto: "https",
		},
		"haproxy": {
			settings: "{trusted_proxies: [127.0.0.1], proxy_protocol: true}",
			config: func(example, _ string) string {
				return "defaults\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n" + example
			},
			command: func(file, _ string) []string { return []string{"-db", "-f", file} },
			places: func(addr, gateway, dir string) []string {
				return []string{"10.0.0.5:5500", gateway, "bind :443 ", "bind " + addr + " ", "/etc/haproxy/shop.pem", filepath.Join(dir, "both.pem")}
			},
			proto: "http",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needPrograms(t, name)
			example := regexp.MustCompile("(?s)```" + name + "\n(.*?)```").FindSubmatch(page)
			if example == nil {
				t.Fatal("the page has no example")
			}
			upstream := envoytest.Upstream(t)
			g := start(t, fmt.Sprintf("client_addresses: %s\nservices:\n  - {name: orders, path: /orders, authenticate: false, upstreams: [%q]}\n", c.settings, upstream.URL()), setup{})
			dir, addr, ca := t.TempDir(), envoytest.Addr(t), testcert.New(t)
			ca.Issue(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
			var both []byte
			for _, file := range []string{"tls.crt", "tls.key"} {
				text, err := os.ReadFile(filepath.Join(dir, file))
				must(t, err)
				both = append(both, text...)
			}
			must(t, os.WriteFile(filepath.Join(dir, "both.pem"), both, 0o600))
			places, text := c.places(addr, g.Addr, dir), string(example[1])
			for i := 0; i < len(places); i += 2 {
				if !strings.Contains(text, places[i]) {
					t.Fatalf("the example has no %q", places[i])
				}
				text = strings.ReplaceAll(text, places[i], places[i+1])
			}
			file := filepath.Join(dir, "conf")
			must(t, os.WriteFile(file, []byte(c.config(text, dir)), 0o600))
			log := new(testlog.Buffer)
			balancer := exec.Command(name, c.command(file, dir)...)
			balancer.Stdout, balancer.Stderr = log, log
			must(t, balancer.Start())
			t.Cleanup(func() {
				_ = balancer.Process.Signal(syscall.SIGTERM) // nginx ends its workers too; SIGINT is ignored if a shell started this in the background
				_ = balancer.Wait()
				if t.Failed() {
					t.Logf("the log of %s:\n%s", name, log)
				}
			})

			dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}}
			client := &http.Client{Timeout: envoytest.Deadline, Transport: &http.Transport{
				DialContext: dialer.DialContext, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: ca.Pool()},
			}}
			envoytest.Eventually(t, "a request through "+name, func() bool {
				got, err := envoytest.Send(t.Context(), client, http.MethodGet, "https://"+addr+"/orders/5", "", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: gopher")
				return err == nil && got.Status == http.StatusOK
			})
			got := only(t, upstream)
			if address, proto := got.Header.Get("X-Envoy-External-Address"), got.Header.Get("X-Forwarded-Proto"); address != "127.0.0.3" || proto != c.proto || !strings.HasPrefix(addr, got.Host) || got.Host == "" {
				t.Errorf("the upstream received %q by %q for %q: %v", address, proto, got.Host, got.Header)
			}
		})
	}
}
