package admin

import (
	"fmt"
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newMetrics returns the handler of /metrics. With ?envoy=essential the metrics of Envoy follow Gatepost's own. They
// are copied as they come, without being parsed: there can be megabytes of them.
func newMetrics(config Config) http.Handler {
	own := promhttp.HandlerFor(config.Metrics, promhttp.HandlerOpts{EnableOpenMetrics: true})
	first := promhttp.HandlerFor(config.Metrics, promhttp.HandlerOpts{DisableCompression: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch which := r.URL.Query().Get("envoy"); {
		case which == "":
			own.ServeHTTP(w, r)
		case which != "essential":
			writeError(w, http.StatusBadRequest, "?envoy= has one value: essential")
		case config.EnvoyMetrics == nil:
			writeError(w, http.StatusNotFound, "the admin interface of Envoy is not known: "+
				"turn it on by gatepost bootstrap --envoy-admin, and name it by gatepost serve --envoy-admin")
		default:
			r.Header.Del("Accept") // the format of Envoy, and no other
			first.ServeHTTP(w, r)
			addEnvoyMetrics(w, r, config)
		}
	})
}

// addEnvoyMetrics ends a page of metrics with those of Envoy. If Envoy does not answer, Gatepost's own are what an
// operator needs, so the page is still valid.
func addEnvoyMetrics(w http.ResponseWriter, r *http.Request, config Config) {
	metrics, err := config.EnvoyMetrics(r.Context())
	if err != nil {
		fmt.Fprintf(w, "# Envoy's metrics are missing: %q\n", err)
		return
	}
	defer metrics.Close()
	if _, err := io.Copy(w, metrics); err != nil {
		panic(http.ErrAbortHandler) // half a page would look whole
	}
}
