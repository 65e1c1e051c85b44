package redisconn

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gatepost/regularfile"
)

// defaultTimeout is the default Timeout of [Options]. docs/operations.md, "A slow Redis", names it.
const defaultTimeout = 500 * time.Millisecond

// Options describes a Redis and how to connect to it; [ParseURL] returns it. It has a password, so
// it prints the hosts only.
type Options struct {
	hosts []string // host:port of the server, of the Sentinels, or of some nodes of the Cluster
	db    int
	user  string

	password secret

	master           string // the name of the master that the Sentinels watch; empty: no Sentinels
	sentinelUser     string
	sentinelPassword secret

	cluster bool
	tls     *tls.Config

	// Timeout limits the dialling of a connection and the wait for a reply. A call with all its
	// commands and retries may take three times as long.
	Timeout time.Duration
}

// secret is a text that is never printed. fmt calls no method on unexported fields, and prints only
// the address of a pointer to a string.
type secret struct{ text *string }

func (s secret) reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// ParseURL parses the URL of a Redis:
//
//	redis://[[user]:password@]host[:port][/database]          one server
//	redis://…@host,host,host/?cluster=true                    a Redis Cluster, by some of its nodes
//	redis://…@host,host,host/[database]?sentinel=NAME         the master NAME, as these Sentinels know it
//
// rediss:// instead of redis:// is TLS, verified against the system's roots. The default port is
// 6379, for Sentinels 26379. User and password are percent-encoded as in every URL. Further
// parameters, joined by "&":
//
//	password_file           a file with the password, instead of the one in the URL
//	sentinel_user           the user at the Sentinels
//	sentinel_password_file  a file with the password of that user
//	ca_file                 PEM certificates to verify the server, instead of the system's roots (rediss)
//	cert_file, key_file     PEM client certificate and its key (rediss)
//	server_name             the name in the server's certificate, if it is not the host (rediss)
//
// A newline at the end of a password file is ignored. An error names the wrong part of the URL and
// never shows a part that may be a password.
func ParseURL(raw string) (*Options, error) {
	o, err := parseURL(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the Redis URL: %w", err)
	}
	return o, nil
}

func parseURL(raw string) (*Options, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	secured := scheme == "rediss"
	if !ok || scheme != "redis" && !secured {
		return nil, errors.New("it must begin with redis:// or rediss://")
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, rest := rest[:end], rest[end:]
	path, query, _ := strings.Cut(rest, "?")
	if strings.ContainsAny(rest, "@#") {
		// A password with one of these characters ends up here, so nothing of it is shown.
		return nil, errors.New(`percent-encode "/" (%2F), "?" (%3F), "#" (%23) and "@" (%40) unless they separate parts of the URL`)
	}
	params, err := url.ParseQuery(query)
	if err != nil {
		return nil, errors.New("its parameters are not in the form name=value&name=value")
	}
	o := &Options{Timeout: defaultTimeout}
	hosts := authority
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		if err := o.readUser(authority[:at]); err != nil {
			return nil, err
		}
		hosts = authority[at+1:]
	}
	if err := o.readParams(params, secured); err != nil {
		return nil, err
	}
	if err := o.readHosts(hosts); err != nil {
		return nil, err
	}
	return o, o.readDatabase(path)
}

func (o *Options) readUser(info string) error {
	user, password, _ := strings.Cut(info, ":")
	var err, errPassword error
	o.user, err = url.PathUnescape(user)
	password, errPassword = url.PathUnescape(password)
	if err != nil || errPassword != nil {
		return errors.New(`the user or the password has a "%" outside of a percent-encoding: write %25`)
	}
	o.password = secret{&password}
	return nil
}

// params are the parameters of a URL, as in [ParseURL]. An empty one is not given.
type params struct {
	cluster, sentinel, sentinelUser, sentinelPasswordFile, passwordFile string
	caFile, certFile, keyFile, serverName                               string
}

// parseParams parses all parameters. An unknown, empty or repeated one is an error.
func parseParams(given url.Values) (p params, err error) {
	known := map[string]*string{
		"cluster":                &p.cluster,
		"sentinel":               &p.sentinel,
		"sentinel_user":          &p.sentinelUser,
		"sentinel_password_file": &p.sentinelPasswordFile,
		"password_file":          &p.passwordFile,
		"ca_file":                &p.caFile,
		"cert_file":              &p.certFile,
		"key_file":               &p.keyFile,
		"server_name":            &p.serverName,
	}
	for name, values := range given {
		value, ok := known[name]
		switch {
		case !ok && strings.Contains(name, "password"):
			return p, fmt.Errorf("unknown parameter %q: give passwords by password_file or sentinel_password_file", name)
		case !ok:
			return p, fmt.Errorf("unknown parameter %q", name)
		case len(values) != 1 || values[0] == "":
			return p, fmt.Errorf("parameter %s must be given once, with a value", name)
		}
		*value = values[0]
	}
	return p, nil
}

// check finds parameters that do not go together, or with the rest of the URL.
func (p *params) check(secured, hasPassword bool) error {
	switch {
	case p.cluster != "" && p.cluster != "true" && p.cluster != "false":
		return errors.New("parameter cluster must be true or false")
	case p.cluster == "true" && p.sentinel != "":
		return errors.New("parameters cluster and sentinel exclude each other")
	case p.sentinel == "" && p.sentinelUser+p.sentinelPasswordFile != "":
		return errors.New("sentinel_user and sentinel_password_file need sentinel=NAME")
	case p.passwordFile != "" && hasPassword:
		return errors.New("it has a password and a password_file: give one of them")
	case !secured && p.caFile+p.certFile+p.keyFile+p.serverName != "":
		return errors.New("ca_file, cert_file, key_file and server_name need rediss://")
	}
	return nil
}

// readParams sets what the parameters give, and reads the files that they name.
func (o *Options) readParams(given url.Values, secured bool) error {
	p, err := parseParams(given)
	if err != nil {
		return err
	}
	if err := p.check(secured, o.password.reveal() != ""); err != nil {
		return err
	}
	o.cluster, o.master, o.sentinelUser = p.cluster == "true", p.sentinel, p.sentinelUser
	if err := readSecret(p.passwordFile, &o.password); err != nil {
		return err
	}
	if err := readSecret(p.sentinelPasswordFile, &o.sentinelPassword); err != nil {
		return err
	}
	if secured {
		o.tls, err = readTLS(p.caFile, p.certFile, p.keyFile, p.serverName)
	}
	return err
}

// readSecret reads a password file, if there is one.
func readSecret(path string, into *secret) error {
	if path == "" {
		return nil
	}
	data, err := regularfile.Read(path)
	if err != nil {
		return fmt.Errorf("reading the password file: %w", err)
	}
	text := strings.TrimRight(string(data), "\r\n")
	if text == "" {
		return fmt.Errorf("the password file %s is empty", path)
	}
	*into = secret{&text}
	return nil
}

func readTLS(caFile, certFile, keyFile, serverName string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	if caFile != "" {
		data, err := regularfile.Read(caFile)
		if err != nil {
			return nil, fmt.Errorf("reading ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("ca_file %s holds no PEM certificate", caFile)
		}
	}
	if (certFile == "") != (keyFile == "") {
		return nil, errors.New("cert_file and key_file go together")
	}
	if certFile != "" {
		chain, certErr := regularfile.Read(certFile)
		key, keyErr := regularfile.Read(keyFile)
		pair, err := tls.X509KeyPair(chain, key)
		if err = cmp.Or(errors.Join(certErr, keyErr), err); err != nil {
			return nil, fmt.Errorf("reading cert_file and key_file: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

func (o *Options) readHosts(list string) error {
	port := "6379"
	if o.master != "" {
		port = "26379"
	}
	for i, host := range strings.Split(list, ",") {
		addr, ok := withPort(host, port)
		if !ok {
			// The text may be a part of a password, so it is not shown.
			return fmt.Errorf("host %d is not a host or host:port", i+1)
		}
		o.hosts = append(o.hosts, addr)
	}
	if len(o.hosts) > 1 && !o.cluster && o.master == "" {
		return errors.New("several hosts need ?cluster=true or ?sentinel=NAME")
	}
	return nil
}

// withPort returns host:port for host, host:port, [v6] and [v6]:port.
func withPort(host, port string) (string, bool) {
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	} else if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, p
	} else if strings.ContainsAny(host, ":[]") {
		return "", false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || host == "" || strings.ContainsAny(host, " \t@%\"'\\<>") {
		return "", false
	}
	return net.JoinHostPort(host, port), true
}

func (o *Options) readDatabase(path string) error {
	number := strings.TrimPrefix(path, "/")
	if number == "" {
		return nil
	}
	db, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return errors.New("the path must be the number of a database, such as /0")
	}
	if db != 0 && o.cluster {
		return errors.New("a Redis Cluster has no database but 0")
	}
	o.db = int(db)
	return nil
}

// String returns the URL without user, password and files, for logs.
func (o Options) String() string {
	scheme, suffix := "redis", ""
	if o.tls != nil {
		scheme = "rediss"
	}
	if o.cluster {
		suffix = "?cluster=true"
	}
	if o.master != "" {
		suffix = "?sentinel=" + url.QueryEscape(o.master)
	}
	return fmt.Sprintf("%s://%s/%d%s", scheme, strings.Join(o.hosts, ","), o.db, suffix)
}

// Format prints the result of String for every verb.
func (o Options) Format(s fmt.State, _ rune) { _, _ = s.Write([]byte(o.String())) }

// LogValue returns the result of String.
func (o Options) LogValue() slog.Value { return slog.StringValue(o.String()) }
