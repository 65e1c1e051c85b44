package admin

import (
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"gatepost/convention"
	"gatepost/explain"
)

// OpenAPI describes the API, in OpenAPI 3.1.
//
//go:embed openapi.yaml
var OpenAPI []byte

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(OpenAPI)
}

// Overview is the state of a gateway in a few numbers. The counts are since the start.
type Overview struct {
	GatepostVersion string    `json:"gatepost_version"`
	Now             time.Time `json:"now"`
	Ready           bool      `json:"ready"`
	// Checks are those of /readyz.
	Checks map[string]string `json:"checks"`
	// Version and Source are those of the definitions that are published. Envoys may still serve others.
	Version string `json:"version"`
	Source  string `json:"source"`
	// Services and Envoys are how many there are. Verified are the Envoys that answer with this version.
	Services int `json:"services"`
	Envoys   int `json:"envoys"`
	Verified int `json:"verified"`
	// Decisions are by decision: allow, deny, error. Logins are by outcome.
	Decisions map[string]float64 `json:"decisions"`
	Logins    map[string]float64 `json:"logins"`
	// InEnvoy reports whether Envoy checks tokens by itself. FromMemory reports whether Gatepost, which checks the others,
	// answers from memory.
	InEnvoy    bool `json:"in_envoy"`
	FromMemory bool `json:"from_memory"`
	// Caller is the name of the caller's token; empty without one.
	Caller string `json:"caller,omitempty"`
	// May is the role of the caller: read or operate; and end, if only sessions can be ended.
	May string `json:"may"`
}

func (s *Server) overview(w http.ResponseWriter, r *http.Request) {
	checks, notReady := s.check(r.Context())
	status := s.config.Status()
	o := Overview{
		GatepostVersion: s.config.Version, Now: time.Now().UTC(), Ready: notReady == nil, Checks: checks,
		Version: status.GetVersion(), Source: status.GetSource(), Envoys: len(status.GetEnvoys()),
		Decisions: map[string]float64{}, Logins: map[string]float64{}, May: s.access.may(r), Caller: callerOf(r).Name,
		InEnvoy: status.GetModule().GetLibrary() != "",
	}
	for _, e := range status.GetEnvoys() {
		if e.GetProven() && e.GetAcked() == status.GetVersion() {
			o.Verified++
		}
	}
	if d := s.config.Definitions(); d != nil {
		o.Services = len(d.Gateway.Services)
	}
	families, err := s.config.Metrics.Gather()
	if err != nil {
		s.fail(w, err)
		return
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			o.count(family.GetName(), m)
		}
	}
	convention.WriteJSON(w, http.StatusOK, o)
}

// count adds a metric, if it is one that is shown.
func (o *Overview) count(name string, m *dto.Metric) {
	switch name {
	case convention.MetricDecisions:
		o.Decisions[labelOf(m, "decision")] += m.GetCounter().GetValue()
	case convention.MetricLogins:
		o.Logins[labelOf(m, "outcome")] += m.GetCounter().GetValue()
	case convention.MetricLeaseHeld:
		o.FromMemory = m.GetGauge().GetValue() == 1
	}
}

// labelOf returns the value of a label of a metric, or "".
func labelOf(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// definitions returns the definitions that are served, as YAML.
func (s *Server) definitions(w http.ResponseWriter, _ *http.Request) {
	d := s.config.Definitions()
	if d == nil {
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, "no definitions are served yet")
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(d.Text)
}

// maxStreams limits live streams, and callerStreams those of one caller: no process keeps all others out. All callers
// without a token are one. streamWrite limits one write to a stream, and streamBeat is how often an empty
// line shows that it is alive.
const (
	maxStreams    = 32
	callerStreams = 8
	streamWrite   = 10 * time.Second
	streamBeat    = 15 * time.Second
)

// streams counts live streams, in all and by caller.
type streams struct {
	mu  sync.Mutex
	all int
	by  map[string]int
}

// begin counts a stream, unless there are too many.
func (s *streams) begin(caller string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == maxStreams || s.by[caller] == callerStreams {
		return false
	}
	if s.by == nil {
		s.by = map[string]int{}
	}
	s.all++
	s.by[caller]++
	return true
}

func (s *streams) end(caller string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.by[caller]--; s.by[caller] == 0 {
		delete(s.by, caller) // names change with the token file
	}
}

// follow sends each denial from now on as a line of JSON, and an empty line now and then.
func (s *Server) follow(w http.ResponseWriter, r *http.Request) {
	caller := callerOf(r).Name
	if !s.streams.begin(caller) {
		w.Header().Set("Retry-After", "10")
		writeError(w, http.StatusServiceUnavailable, "too many live streams; close one")
		return
	}
	defer s.streams.end(caller)
	denied, stop := s.config.Follow()
	defer stop()
	to := http.NewResponseController(w)
	send := func(line []byte) error {
		_ = to.SetWriteDeadline(time.Now().Add(streamWrite)) // not supported by recorders of tests
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
		return to.Flush()
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	beat := time.NewTicker(streamBeat)
	defer beat.Stop()
	for err := send(nil); err == nil; {
		select {
		case <-r.Context().Done():
			return
		case <-s.draining:
			return
		case <-beat.C:
			err = send(nil)
		case one := <-denied:
			var line []byte
			if line, err = json.Marshal(one); err == nil {
				err = send(line)
			}
		}
	}
}

// maxExplain limits the body of an explain request, in bytes. Envoy takes headers of 60 KiB.
const maxExplain = 128 << 10

// ExplainRequest asks for the explanation of a request.
type ExplainRequest struct {
	// Method is the method. Default: GET.
	Method string `json:"method"`
	// URL is a path, or a whole URL.
	URL     string          `json:"url"`
	Headers []explain.Field `json:"headers"`
	// AnyToken adds a token that is not looked up: the explanation has an outcome for each state of the token.
	AnyToken bool `json:"any_token"`
}

// anyToken has the form of a token and is none.
const anyToken = "00000000-0000-4000-8000-000000000000"

// ErrNothingServed is the error of Config.Explain if there are no definitions yet.
var ErrNothingServed = errors.New("no definitions are served yet")

func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	q := ExplainRequest{Method: http.MethodGet}
	if !readBody(w, r, maxExplain, &q) {
		return
	}
	if q.AnyToken {
		q.Headers = append(q.Headers, explain.Field{Name: "Authorization", Value: "Bearer " + anyToken})
	}
	request, err := explain.NewRequest(q.Method, q.URL, q.Headers)
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	answer, err := s.config.Explain(r.Context(), request, !q.AnyToken)
	switch {
	case errors.Is(err, ErrNothingServed):
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, err.Error())
	case err != nil: // it cannot be sent, or is not modelled
		writeError(w, http.StatusUnprocessableEntity, err.Error())
	default:
		convention.WriteJSON(w, http.StatusOK, answer)
	}
}

// readBody reads a JSON body of at most limit bytes, or responds with an error. Errors do not quote the body.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, into any) bool {
	body, err := wholeBody(w, r, limit)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		writeError(w, http.StatusRequestEntityTooLarge, "the body is too large")
	case err != nil:
		writeError(w, http.StatusBadRequest, "the body is not the JSON that /api/v1/openapi.yaml describes")
	}
	return err == nil
}
