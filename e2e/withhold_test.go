package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatepost/envoy/envoytest"
)

// Envoy rejects the cluster of an https upstream if the CA file is missing, which cannot be
// detected before.
func TestServicesThatEnvoyRejectsAreWithheld(t *testing.T) {
	t.Parallel()
	roots := filepath.Join(t.TempDir(), "roots.pem")
	shop := &shop{users: users(t), orders: envoytest.Upstream(t), items: envoytest.Upstream(t)}
	shop.gateway = start(t, shop.definitions(), setup{Args: []string{"--ca-file", roots}})
	token := shop.Login("alice")

	added := envoytest.Upstream(t)
	public := `  - {name: root, path: /, authenticate: false, upstreams: ["` + added.URL() + `"]}`
	changed := strings.Replace(shop.definitions(
		public,
		`  - {name: fresh, path: /fresh, upstreams: ["https://127.0.0.1:1"]}`,
	), shop.orders.URL(), "https://127.0.0.1:2", 1)
	shop.Define(changed)
	envoytest.Eventually(t, "the service that Envoy accepts", func() bool {
		return shop.Do("GET", "/anything", "").Status == http.StatusOK
	})
	added.Reset()

	want(t, "a refused service in its former form", shop.Do("GET", "/orders", "", "Authorization: "+token), http.StatusOK, "")
	only(t, shop.orders)
	want(t, "and still secured", shop.Do("GET", "/orders", ""), http.StatusUnauthorized, notAllowed)
	want(t, "a refused service that had no former form", shop.Do("GET", "/fresh", "", "Authorization: "+token), http.StatusServiceUnavailable, "")
	want(t, "and secured", shop.Do("GET", "/fresh/5", ""), http.StatusUnauthorized, notAllowed)
	none(t, added) // the public service above received nothing else
	for _, said := range []string{"fresh", "orders"} {
		if told := shop.Status().GetRejected(); !strings.Contains(told, said) {
			t.Errorf("the status does not name %s: %s", said, told)
		}
	}
	shop.explainsWhatItWithholds(t, roots, token)

	// The cause is fixed: the same definitions are accepted when they are read again.
	pem, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		t.Skip("this machine has no roots to verify by (install ca-certificates)")
	}
	if err := os.WriteFile(roots, pem, 0o644); err != nil {
		t.Fatal(err)
	}
	shop.Define(changed + fmt.Sprintf("  - {name: late, path: /late, authenticate: false, upstreams: [%q]}\n", added.URL()))
	envoytest.Eventually(t, "all of it", func() bool {
		return shop.Do("GET", "/late", "").Status == http.StatusOK && shop.Do("GET", "/orders", "", "Authorization: "+token).Status == http.StatusServiceUnavailable
	})
	shop.orders.Reset() // it received requests until the change was active
	want(t, "the new form", shop.Do("GET", "/orders", "", "Authorization: "+token), http.StatusServiceUnavailable, "")
	none(t, shop.orders)
}

// explainsWhatItWithholds compares `gatepost explain` with the gateway for services that Envoy
// rejects.
func (s *shop) explainsWhatItWithholds(t *testing.T, roots, token string) {
	t.Helper()
	ask := []string{"--admin", s.Admin, "--ca-file", roots}
	for _, c := range []struct{ path, header, reason string }{
		{"/fresh/5", "Authorization: " + token, "withheld"}, {"/fresh/5", "Accept: */*", "token_missing"},
		{"/orders/5", "Authorization: " + token, "forwarded"}, {"/orders/5", "Accept: */*", "token_missing"}, {"/anything", "Accept: */*", "forwarded"},
	} {
		a := s.explained(t, ask, "GET", c.path, c.header)
		o, got := a.Outcomes[0], s.Do("GET", c.path, "", c.header)
		if o.Reason != c.reason || !a.Gateway.Serves || `"`+a.Version+`"` != s.Do("GET", "/.gatepost/version", "").Body {
			t.Errorf("%s with %s: explained as %+v by %+v, want %s", c.path, c.header, o, a.Gateway, c.reason)
		}
		if o.Forward == nil {
			want(t, c.path, got, o.Status, o.Body)
		} else if c.path == "/orders/5" && o.Forward.To[0] != s.orders.URL() {
			t.Errorf("%s: explained as sent to %v, want its former upstream", c.path, o.Forward.To)
		}
	}
	why := s.explained(t, ask, "GET", "/fresh", "Authorization: "+token).Outcomes[0].Why
	if !strings.Contains(why, "Envoy rejects") || !strings.Contains(why, "service/fresh") {
		t.Errorf("why /fresh is withheld: %s; want Envoy's message", why)
	}
	status := s.Status()
	if !slices.Equal(status.GetWithheld(), []string{"fresh"}) || len(status.GetFormer()) != 1 || status.GetFormer()[0].GetName() != "orders" {
		t.Errorf("the status: %v is withheld and %v in its former form, want fresh and orders", status.GetWithheld(), status.GetFormer())
	}
	s.wantHealth(t, "serving some services ", 0, 1)
	s.orders.Reset()
}
