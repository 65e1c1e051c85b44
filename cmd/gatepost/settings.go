package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"gatepost/definitions"
	"gatepost/gateway"
	"gatepost/logqueue"
	"gatepost/redisconn"
	"gatepost/tracing"
	"gatepost/xds"
)

// settings are the flags that all commands share. Each has an environment variable of the same name
// (--log-level: GATEPOST_LOG_LEVEL); the flag takes precedence. Values can also be read from a file
// that GATEPOST_…_FILE names, as for container secrets.
type settings struct {
	config, redis, data, grpc, http, admin, envoy string
	grpcTLS                                       string
	cache, caFile, module                         string
	adminTokenFile, secretsKeyFile                string
	pprof                                         bool
	listen                                        string
	listenAddr                                    netip.AddrPort // listen, parsed; zero if it is not set
	logLevel, logFormat                           string
	// adminNamed reports whether --admin is on the command line. Only then is it an error if no
	// gateway is there: a container sets the environment variable even if no gateway runs.
	adminNamed bool
}

const (
	defaultGRPC  = "127.0.0.1:18000"
	defaultHTTP  = "127.0.0.1:18001"
	defaultAdmin = "127.0.0.1:18002"
	defaultData  = "./gatepost-data"
)

func (s *settings) register(flags *pflag.FlagSet) {
	flags.StringVar(&s.config, "config", "", "the definitions: a `PATH` of a file or a folder, or redis for the newest revision in Redis")
	flags.StringVar(&s.listen, "listen", "", "the `ADDR` on which Envoy takes requests, as ip:port (none: listen of the definitions)")
	flags.StringVar(&s.redis, "redis", "", "the Redis `URL` for tokens and definitions (none: the embedded store in --data)")
	flags.StringVar(&s.data, "data", defaultData, "the `DIR` of the embedded store and the last good definitions; one for each gateway")
	flags.StringVar(&s.grpc, "grpc", defaultGRPC, "the `ADDR` of ext_authz and xDS (unix:/path too)")
	flags.StringVar(&s.http, "http", defaultHTTP, "the `ADDR` of the token handler, as Envoy reaches it (unix:/path too)")
	flags.StringVar(&s.grpcTLS, "grpc-tls", "", "the `DIR` of tls.crt, tls.key and ca.crt for TLS with client certificates on --grpc and --http (none: no TLS)")
	flags.StringVar(&s.admin, "admin", defaultAdmin, "the `ADDR` of health, readiness, metrics and the admin API")
	flags.StringVar(&s.adminTokenFile, "admin-token-file", "", "the `FILE` with the tokens of operators, each line ROLE NAME TOKEN; ROLE is read or operate")
	flags.StringVar(&s.envoy, "envoy", "", "the `PATH` of the Envoy of run and validate (none: envoy on PATH, then .tools/bin)")
	flags.StringVar(&s.cache, "cache", "on", "whether look-ups of tokens in Redis are answered from memory: `on|off`")
	flags.StringVar(&s.module, "module", "auto", "whether Envoy checks tokens itself: `auto|on|off`; auto is if it can, on is an error if it cannot")
	flags.StringVar(&s.caFile, "ca-file", xds.DefaultCAFile, "the `FILE`, as Envoy sees it, with the roots that verify https upstreams")
	flags.StringVar(&s.secretsKeyFile, "secrets-key-file", "", "the `FILE` of the key that encrypts private keys of tls.acme in Redis, the same for each gateway")
	flags.BoolVar(&s.pprof, "pprof", false, "serve profiles of the process on --admin, under /debug/pprof/")
	flags.StringVar(&s.logLevel, "log-level", "info", "the least `LEVEL` that is logged: debug, info, warn or error")
	flags.StringVar(&s.logFormat, "log-format", "auto", "the `FORMAT` of the log: text, json, or auto, which is text on a terminal")
}

// fromEnvironment sets each missing flag from its environment variable.
func (s *settings) fromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var failed error
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed || failed != nil || flag.Name == "help" {
			return
		}
		name := "GATEPOST_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		value, found := lookup(name)
		if path, inFile := lookup(name + "_FILE"); inFile && !found {
			content, err := os.ReadFile(path)
			if err != nil {
				failed = fmt.Errorf("reading the file that %s_FILE names: %w", name, err)
				return
			}
			value, found = strings.TrimRight(string(content), "\r\n"), true
		}
		if !found {
			return
		}
		if err := flags.Set(flag.Name, value); err != nil {
			failed = usageError{fmt.Errorf("reading %s: %w", name, err)}
		}
	})
	return failed
}

// readListen parses --listen.
func (s *settings) readListen() (err error) {
	if s.listenAddr, err = definitions.ParseListen(s.listen); err != nil {
		return usageError{fmt.Errorf("reading --listen: %w", err)}
	}
	return nil
}

// configRedis is the value of --config for definitions in Redis. A file of that name is ./redis.
const configRedis = "redis"

// modes are the values of --module.
var modes = map[string]gateway.ModuleMode{"auto": gateway.ModuleAuto, "on": gateway.ModuleOn, "off": gateway.ModuleOff}

// gatewayConfig returns the gateway configuration, without a logger.
func (s *settings) gatewayConfig() (gateway.Config, error) {
	config := gateway.Config{
		Definitions: s.config, Listen: s.listenAddr, Data: s.data, NoCache: s.cache == "off", GRPC: s.grpc, HTTP: s.http,
		GRPCTLS: s.grpcTLS, Admin: s.admin, AdminTokenFile: s.adminTokenFile, Profiles: s.pprof, CAFile: s.caFile,
		SecretsKeyFile: s.secretsKeyFile, Version: version,
	}
	if err := s.requireConfig(); err != nil {
		return config, err
	}
	if s.cache != "on" && s.cache != "off" {
		return config, usageError{fmt.Errorf("reading --cache %q: want on or off", s.cache)}
	}
	var known bool
	if config.Module, known = modes[s.module]; !known {
		return config, usageError{fmt.Errorf("reading --module %q: want auto, on or off", s.module)}
	}
	if s.config == configRedis {
		config.Definitions = ""
		if s.redis == "" {
			return config, errNoRedis
		}
	}
	var err error
	if s.redis != "" {
		config.Redis, err = s.redisOptions()
	}
	return config, err
}

// requireConfig returns an error if --config is missing.
func (s *settings) requireConfig() error {
	if s.config == "" {
		return usageError{fmt.Errorf("no definitions: give --config FILE or set GATEPOST_CONFIG")}
	}
	return nil
}

var errNoRedis = usageError{errors.New("no Redis: give --redis URL or set GATEPOST_REDIS")}

// redisOptions parses --redis.
func (s *settings) redisOptions() (*redisconn.Options, error) {
	options, err := redisconn.ParseURL(s.redis)
	if err != nil {
		return nil, usageError{fmt.Errorf("reading --redis: %w", err)}
	}
	return options, nil
}

// xdsOptions returns the options with which a gateway with these settings builds Envoy's
// configuration. The environment of that gateway is not known, so a collector with an example's
// name takes the place of the one that may be set there. If the definitions need Redis, it has one.
func (s *settings) xdsOptions(d *definitions.Definitions) xds.Options {
	example := &tracing.Settings{Host: "otel-collector", Port: tracing.DefaultPort, Service: tracing.DefaultService}
	options := gateway.Config{CAFile: s.caFile, Listen: s.listenAddr, Logs: example}.XDSOptions()
	options.ClusterLimits = s.redis != "" || d.Gateway.HasClusterLimits()
	return options
}

// startLog returns the logger for these settings, and the queue through which it writes to out. The
// caller closes the queue after the last log line.
func (s *settings) startLog(out io.Writer) (*slog.Logger, *logqueue.Queue, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.logLevel)); err != nil {
		return nil, nil, usageError{fmt.Errorf("reading --log-level %q: want debug, info, warn or error", s.logLevel)}
	}
	format := s.logFormat
	if format == "auto" {
		format = "json"
		if isTerminal(out) {
			format = "text"
		}
	}
	if format != "text" && format != "json" {
		return nil, nil, usageError{fmt.Errorf("reading --log-format %q: want text, json or auto", s.logFormat)}
	}
	surviveBrokenLog()
	// net/http logs protocol errors of peers to the standard logger and quotes their bytes, which
	// may contain secrets.
	log.SetOutput(io.Discard)
	queue, options := logqueue.New(out), &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewJSONHandler(queue, options)
	if format == "text" {
		handler = slog.NewTextHandler(queue, options)
	}
	return slog.New(explainedErrors{handler}), queue, nil
}

// isTerminal reports whether a person reads what is written to out.
func isTerminal(out io.Writer) bool {
	file, isFile := out.(*os.File)
	return isFile && term.IsTerminal(int(file.Fd()))
}

// surviveBrokenLog makes writes to a closed standard error return an error. By default the runtime
// ends the process (os/signal, "SIGPIPE").
func surviveBrokenLog() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }
