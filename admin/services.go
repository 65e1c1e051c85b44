package admin

import (
	"net/http"
	"time"

	"gatepost/convention"
)

// Service is a service in the admin API, with its upstreams as an Envoy sees them.
type Service struct {
	Name  string   `json:"name"`
	Path  string   `json:"path"`
	Hosts []string `json:"hosts,omitempty"`
	// Methods are the allowed methods. Public reports whether the service needs no token, and Scopes are those that a
	// session needs.
	Methods []string `json:"methods"`
	Public  bool     `json:"public"`
	Scopes  []string `json:"scopes,omitempty"`
	// File and Line are the place of its definition.
	File string `json:"file"`
	Line int    `json:"line"`
	// State is served, former (in an earlier form, because Envoy rejects the newest) or withheld (503).
	State string `json:"state"`
	// Version identifies its definitions and the settings of the gateway. The access log has it as gatepost.version.
	Version string `json:"version"`
	// Upstreams are the addresses that get requests, or would. Without the state of an Envoy there are none.
	Upstreams []Upstream `json:"upstreams"`
	// NoAddress are the names among its upstreams for which there is no address: the name is wrong, or the name server
	// does not have it at the moment.
	NoAddress []string `json:"no_address,omitempty"`
	// LastRequest is when Envoy was last seen to have sent a request to an upstream of the service since Gatepost started:
	// at most 15 s after the request. Denied requests are in the denials instead.
	LastRequest time.Time `json:"last_request,omitzero"`
	// CanaryPercent is the part of the canary. Without a canary it is nil.
	CanaryPercent *int `json:"canary_percent,omitempty"`
	// LimitsReached are the limits above which requests are refused at the moment: connections, pending, requests or
	// retries.
	LimitsReached []string `json:"limits_reached,omitempty"`
}

// Upstream is an address of a service.
type Upstream struct {
	// Address is ip:port. Name is the host name that it was looked up for, or empty.
	Address string `json:"address"`
	Name    string `json:"name,omitempty"`
	Canary  bool   `json:"canary,omitempty"`
	// Health is healthy, unhealthy (it fails its health check), resting (it failed requests) or unchecked (nothing would
	// show that it is dead).
	Health string `json:"health"`
	// Requests and Errors are how many requests it got, and how many failed or were answered 5xx.
	Requests uint64 `json:"requests"`
	Errors   uint64 `json:"errors"`
}

// The values of Service.State.
const (
	StateServed   = "served"
	StateFormer   = "former"
	StateWithheld = "withheld"
)

// The values of Upstream.Health.
const (
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
	HealthResting   = "resting"
	HealthUnchecked = "unchecked"
)

// Services is the response of /api/v1/services.
type Services struct {
	Services []Service `json:"services"`
	// Unknown is why the state of upstreams is not known, or empty.
	Unknown string `json:"unknown,omitempty"`
}

func (s *Server) services(w http.ResponseWriter, r *http.Request) {
	convention.WriteJSON(w, http.StatusOK, s.config.Services(r.Context()))
}
