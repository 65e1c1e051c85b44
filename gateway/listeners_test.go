package gateway_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"gatepost/envoy/envoytest"
	"gatepost/gateway"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/testcert"
)

func TestTheStatusHasTheListenersAndCertificatesAsTheyAreServed(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), testcert.New(t)
	cert, key, missing := filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key"), filepath.Join(dir, "missing.pem")
	ca.Issue(cert, key)
	secure := envoytest.Addr(t)
	for name, c := range map[string]struct{ definitions, want string }{
		"http alone": {"services: []\n", "[http LISTEN]"},
		"behind a proxy": {
			"services: []\nclient_addresses: {trusted_proxies: [10.0.0.0/8], proxy_protocol: true}\n", "[http LISTEN, PROXY protocol]",
		},
		"all of https": {
			fmt.Sprintf("services: []\nclient_addresses: {trusted_proxies: [127.0.0.0/8], proxy_protocol: true}\n"+
				"tls: {listen: %q, http3: true, certificates: [{cert_file: %q, key_file: %q}], client_certificates: {ca_file: %q, mode: optional}}\n",
				secure, cert, key, ca.Write(filepath.Join(dir, "ca.pem"))),
			"[http LISTEN redirects, PROXY protocol] [https " + secure + " 1.2 optional, PROXY protocol] [http3 " + secure + " 1.3 optional] [localhost]",
		},
		"a default certificate": {
			fmt.Sprintf("services: []\ntls: {listen: %q, certificates: [{cert_file: %q, key_file: %q}], default_certificate: %q}\n", secure, cert, key, cert),
			"[http LISTEN redirects] [https " + secure + " 1.2] [localhost 127.0.0.1]",
		},
		"no certificate": {
			fmt.Sprintf("services: []\ntls: {listen: %q, redirect: false, min_version: \"1.3\", certificates: [{cert_file: %q, key_file: %q}]}\n", secure, missing, key),
			"[http LISTEN] [https " + secure + " 1.3: no certificate can be used]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var listen string
			_, operators := startWith(t, c.definitions, slog.NewTextHandler(t.Output(), nil), func(config *gateway.Config) { listen = config.Listen.String() })
			status := new(gatewayv1.Status)
			if err := protojson.Unmarshal([]byte(request(t, http.MethodGet, operators+"/api/v1/status", "", "").Body), status); err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, l := range status.GetListeners() {
				address := l.GetAddress()
				if address == listen {
					address = "LISTEN"
				}
				got += " [" + l.GetProtocol() + " " + address
				for _, text := range []string{l.GetMinVersion(), l.GetClientCertificates()} {
					if text != "" {
						got += " " + text
					}
				}
				if l.GetRedirect() {
					got += " redirects"
				}
				if l.GetProxyProtocol() {
					got += ", PROXY protocol"
				}
				if l.GetProblem() != "" {
					got += ": " + l.GetProblem()
				}
				got += "]"
			}
			for _, one := range status.GetCertificates() {
				if names := append(one.GetNames(), one.GetAddresses()...); len(names) > 0 {
					got += fmt.Sprint(" ", names)
				}
			}
			if got != " "+c.want {
				t.Errorf("got%s, want %s", got, c.want)
			}
		})
	}
}
