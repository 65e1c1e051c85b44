package gateway

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"

	"gatepost/admin"
	"gatepost/envoy"
	"gatepost/redisconn"
	"gatepost/systemd"
	"gatepost/tracing"
	"gatepost/xds"
)

// Config is what a Gateway needs. An address is host:port, or unix:/path for a Unix socket.
type Config struct {
	// Definitions is the definitions file. Empty: the definitions are the newest revision in Redis.
	Definitions string
	// Listen is the address on which Envoy accepts requests. The zero address is the one in the
	// definitions.
	Listen netip.AddrPort
	// Redis keeps the tokens, and the definitions if they are not in a file. Nil: tokens are in the
	// embedded store in Data.
	Redis *redisconn.Options
	// Data is the folder of the embedded store and of the last good definitions. Required.
	Data string
	// SecretsKeyFile has the key that encrypts private keys in Redis. Without it, there is no ACME
	// with Redis.
	SecretsKeyFile string
	// If NoCache is true, every token is looked up in Redis.
	NoCache bool
	// Module selects whether Envoy checks tokens by itself.
	Module ModuleMode
	// GRPC is the address of ext_authz and xDS, HTTP that of the token handler. Required, except
	// with Envoy: then the default is a socket in a private folder.
	GRPC, HTTP string
	// GRPCTLS is a folder with tls.crt, tls.key and ca.crt, for TLS with client certificates on
	// GRPC and HTTP. Empty: no TLS.
	GRPCTLS string
	// Admin is the address of health, metrics and the admin API. Required.
	Admin string
	// AdminTokenFile is the file with the tokens of operators. Required if Admin is neither loopback nor a Unix socket.
	AdminTokenFile string
	// Profiles serves profiles of the process on Admin.
	Profiles bool
	// CAFile is the file, as Envoy sees it, of the roots that https upstreams are verified against.
	// Empty: the system's.
	CAFile string
	// Envoy is the path of the Envoy that Run starts as a child. If it is empty, Envoy is started
	// by something else.
	Envoy string
	// NameServers returns the name servers of the Envoy that Run starts. Nil: those of the system.
	NameServers func() []netip.AddrPort
	// EnvoyAdmin is the address of the admin interface of an Envoy that something else starts. If it is empty, the
	// state of upstreams is not known.
	EnvoyAdmin string
	// Concurrency is the number of that Envoy's worker threads. Zero: one per CPU.
	Concurrency int
	// Version is the version of this program, for metrics and logs.
	Version string
	// Logger receives all log lines, those of Envoy included. Nil: nothing is logged.
	Logger *slog.Logger
	// AccessLog receives the access log of the Envoy that Run runs, one Write for each line. It must not block. Nil: these
	// lines go to Logger.
	AccessLog io.Writer
	// Tracing is where spans go. Nil: requests are not traced.
	Tracing *tracing.Settings
	// Logs is where Envoy sends the access log, if the definitions send it to a collector. Nil: such definitions are an
	// error.
	Logs *tracing.Settings
	// LogsError is why Logs could not be read. Only definitions that send the access log to a collector fail with it.
	LogsError error
	// Systemd receives the state of the process. Nil: nothing is reported.
	Systemd *systemd.Reporter
	// ShowPage receives the URL of the page for operators when it can be opened. The URL may have a code that makes its
	// reader an operator, so it must go to the person who has started the process alone. It can be nil.
	ShowPage func(url string)
	// DroppedLogLines returns the number of lost log lines, for the metrics. It can be nil.
	DroppedLogLines func() uint64
}

// ModuleMode selects whether Envoy checks tokens by itself, with a module that it loads.
type ModuleMode int

// The zero ModuleMode is ModuleAuto.
const (
	ModuleAuto ModuleMode = iota // if it can
	ModuleOn                     // New fails if it cannot
	ModuleOff                    // never
)

// check returns what is missing.
func (c Config) check() error {
	switch {
	case c.Definitions == "" && c.Redis == nil:
		return errors.New("no definitions: neither a file nor Redis is named")
	case c.Envoy == "" && (c.GRPC == "" || c.HTTP == ""):
		return errors.New("no address for Envoy to reach Gatepost (GRPC, HTTP)")
	case c.Data == "" || c.Admin == "":
		return fmt.Errorf("the configuration of the gateway is not complete: Data %q, Admin %q", c.Data, c.Admin)
	case c.AdminTokenFile == "" && !admin.IsLocal(c.Admin):
		return fmt.Errorf("listening for operators on --admin %s: others than this machine may reach it, so its calls need tokens; "+
			"give --admin-token-file FILE, or use loopback or a Unix socket", c.Admin)
	}
	return nil
}

// XDSOptions returns what the Envoy configuration of this gateway is built with, apart from the
// module.
func (c Config) XDSOptions() xds.Options {
	return xds.Options{
		GRPCCluster: envoy.ClusterGRPC, HTTPCluster: envoy.ClusterHTTP, CAFile: c.CAFile, Listen: c.Listen,
		Tracing: c.Tracing, Logs: c.Logs, LogsError: c.LogsError, ClusterLimits: c.Redis != nil,
	}
}
