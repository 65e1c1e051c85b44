package admin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"gatepost/yamlof"
)

// support responds with a .tar.gz of all that helps to find a fault. It has no secret: denials have neither tokens nor
// queries, and of the definitions it has neither comments nor the values of headers for upstreams, which can be keys.
// It has addresses of clients and names of services.
func (s *Server) support(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/gzip")
	w.Header().Set("Content-Disposition", `attachment; filename="gatepost-support.tar.gz"`)
	packed := gzip.NewWriter(w)
	archive := tar.NewWriter(packed)
	for name, handler := range map[string]http.HandlerFunc{
		"readyz.json": s.ready, "overview.json": s.overview, "status.json": s.status, "services.json": s.services,
		"definitions.yaml": s.redactedDefinitions, "envoy-config.json": s.redactedConfig, "denials.json": s.denials, "revisions.json": s.revisions,
		"shield.json": s.shield, "metrics.txt": newMetrics(s.config).ServeHTTP,
	} {
		part := &bodyOf{}
		request := r.Clone(r.Context())
		request.Header, request.URL.RawQuery = http.Header{}, ""
		handler(part, request)
		header := &tar.Header{Name: "gatepost-support/" + name, Mode: 0o600, Size: int64(part.Len()), ModTime: time.Now()}
		if err := archive.WriteHeader(header); err != nil {
			return // the client has gone
		}
		_, _ = archive.Write(part.Bytes())
	}
	_, _ = archive.Close(), packed.Close()
}

// bodyOf keeps the body of a response.
type bodyOf struct{ bytes.Buffer }

// Header implements http.ResponseWriter.
func (*bodyOf) Header() http.Header { return http.Header{} }

// WriteHeader implements http.ResponseWriter.
func (*bodyOf) WriteHeader(int) {}

// redacted stands for a value that can be a secret.
const redacted = "[redacted]"

// redactedDefinitions returns the definitions that are served, with defaults and without the values of headers for
// upstreams and the query of the user service.
func (s *Server) redactedDefinitions(w http.ResponseWriter, r *http.Request) {
	d := s.config.Definitions()
	if d == nil {
		s.definitions(w, r)
		return
	}
	m := d.Gateway.Message()
	for _, service := range m.GetServices() {
		for name := range service.GetRequestHeaders().GetSet() {
			service.RequestHeaders.Set[name] = redacted
		}
	}
	if a := m.GetTokens().GetAuthenticator(); a != nil {
		if url, _, hasQuery := strings.Cut(a.GetUrl(), "?"); hasQuery {
			a.Url = url + "?" + redacted
		}
	}
	text, err := yamlof.Message(m)
	if err != nil {
		s.fail(w, err)
		return
	}
	_, _ = w.Write(text)
}

// redactedConfig returns the configuration of Envoy without the values of headers for upstreams.
func (s *Server) redactedConfig(w http.ResponseWriter, r *http.Request) {
	var whole bodyOf
	s.dumpConfig(&whole, r)
	var config any
	decoder := json.NewDecoder(&whole)
	decoder.UseNumber()
	if err := decoder.Decode(&config); err != nil {
		s.fail(w, err)
		return
	}
	redactHeaders(config)
	text, err := json.Marshal(config)
	if err != nil {
		s.fail(w, err)
		return
	}
	_, _ = w.Write(text)
}

// redactHeaders replaces the values of request headers that Envoy adds, in place, wherever they are in JSON.
func redactHeaders(value any) {
	switch v := value.(type) {
	case []any:
		for _, one := range v {
			redactHeaders(one)
		}
	case map[string]any:
		added, _ := v["request_headers_to_add"].([]any)
		for _, one := range added {
			option, _ := one.(map[string]any)
			if header, isHeader := option["header"].(map[string]any); isHeader {
				header["value"] = redacted
			}
		}
		for _, one := range v {
			redactHeaders(one)
		}
	}
}
