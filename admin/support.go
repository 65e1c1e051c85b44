package admin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"net/http"
	"time"

	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/yamlof"
)

// support responds with a .tar.gz of all that helps to find a fault. It has no secret: denials have neither tokens nor
// queries, and of the definitions it has no comments, no values of headers for upstreams, which can be keys, and no
// queries of health checks and of the user service. It has addresses of clients and names of services.
func (s *Server) support(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/gzip")
	w.Header().Set("Content-Disposition", `attachment; filename="gatepost-support.tar.gz"`)
	packed := gzip.NewWriter(w)
	archive := tar.NewWriter(packed)
	for name, handler := range map[string]http.HandlerFunc{
		"readyz.json": s.ready, "overview.json": s.overview, "status.json": s.redactedStatus, "services.json": s.services,
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

// redactedDefinitions returns the definitions that are served, with defaults and redacted.
func (s *Server) redactedDefinitions(w http.ResponseWriter, r *http.Request) {
	d := s.config.Definitions()
	if d == nil {
		s.definitions(w, r)
		return
	}
	m := d.Gateway.Message()
	redactServices(m.GetServices())
	if a := m.GetTokens().GetAuthenticator(); a != nil {
		a.Url = definitions.WithoutQuery(a.GetUrl())
	}
	text, err := yamlof.Message(m)
	if err != nil {
		s.fail(w, err)
		return
	}
	_, _ = w.Write(text)
}

// redactedStatus returns the status. It has definitions too: those of services in a former form.
func (s *Server) redactedStatus(w http.ResponseWriter, _ *http.Request) {
	status := s.config.Status()
	redactServices(status.GetFormer())
	s.writeProto(w, status)
}

// redactServices redacts definitions of services, in place.
func redactServices(services []*gatewayv1.Service) {
	for _, service := range services {
		for name := range service.GetRequestHeaders().GetSet() {
			service.RequestHeaders.Set[name] = redacted
		}
		if h := service.GetHealthCheck(); h != nil {
			h.Path = definitions.WithoutQuery(h.GetPath())
		}
	}
}

// redactedConfig returns the configuration of Envoy, redacted.
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
	redactConfig(config)
	text, err := json.Marshal(config)
	if err != nil {
		s.fail(w, err)
		return
	}
	_, _ = w.Write(text)
}

// redactConfig replaces the values of request headers that Envoy adds and the queries of health checks, in place,
// wherever they are in JSON.
func redactConfig(value any) {
	switch v := value.(type) {
	case []any:
		for _, one := range v {
			redactConfig(one)
		}
	case map[string]any:
		added, _ := v["request_headers_to_add"].([]any)
		for _, one := range added {
			option, _ := one.(map[string]any)
			if header, isHeader := option["header"].(map[string]any); isHeader {
				header["value"] = redacted
			}
		}
		if check, isCheck := v["http_health_check"].(map[string]any); isCheck {
			if path, hasPath := check["path"].(string); hasPath {
				check["path"] = definitions.WithoutQuery(path)
			}
		}
		for _, one := range v {
			redactConfig(one)
		}
	}
}
