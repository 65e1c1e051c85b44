package admin

import (
	"net/http"
	"net/http/pprof"

	"gatepost/convention"
)

// dumpConfig returns the Envoy configuration that is served. The query parameter service selects
// one service.
func (s *Server) dumpConfig(w http.ResponseWriter, r *http.Request) {
	snapshot := s.config.Snapshot()
	if snapshot == nil {
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, "no definitions are served yet")
		return
	}
	dump, err := snapshot.Dump(r.URL.Query().Get("service"))
	if err != nil {
		writeError(w, http.StatusNotFound, err.Error())
		return
	}
	convention.WriteJSON(w, http.StatusOK, dump)
}

// profiles serves the profiles of the Go runtime.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
