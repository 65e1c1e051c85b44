package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"gatepost/certs"
	"gatepost/definitions"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/xds"
)

// remindEvery is how often the ends of certificates are looked at.
const remindEvery = time.Hour

// remindAt are the days before the end of a certificate from which a warning is logged, once for each.
var remindAt = []int{certs.Soon, 7}

// certificates sends Envoy the certificates of the definitions, and follows their files.
type certificates struct {
	g      *Gateway
	logger *slog.Logger
	set    *certs.Set
	files  *certs.Files
	acme   *acmeRunner

	mu      sync.Mutex
	current *definitions.Definitions // those that are published; nil: none yet
	names   map[string][]string      // :: name → the server names when it was last looked at

	reminded map[string]int // :: name and end → the days of the last warning; of run alone
}

func newCertificates(g *Gateway) (_ *certificates, err error) {
	c := &certificates{g: g, logger: g.logger, files: &certs.Files{Logger: g.logger}, reminded: map[string]int{}}
	c.set = certs.NewSet(c.changed)
	if c.acme, err = newACMERunner(g.config, c.set); err != nil {
		return nil, err
	}
	g.registry.MustRegister(c)
	return c, nil
}

// load reads the certificates of definitions, and returns those that can be served. It fails if ACME has no storage.
// After the start it also fails if clients cannot be verified, or if no certificate of the files could be served any
// more: the previous definitions stay. At the start there is no listener for TLS until there is something to serve.
func (c *certificates) load(d *definitions.Definitions) ([]xds.Certificate, error) {
	if err := c.acme.refuse(d); err != nil {
		return nil, err
	}
	c.files.Load(c.filesOf(d))
	if err := c.acme.load(d); err != nil {
		return nil, err
	}
	c.mu.Lock()
	former := c.current
	c.mu.Unlock()
	tls, all := d.Gateway.TLS, serving(d.Gateway.TLS, c.set)
	switch {
	case former == nil || tls == nil || len(all) > 0:
		return all, nil
	case !verifies(tls, c.set):
		return nil, fmt.Errorf("reading the CAs of client certificates: %w", c.files.Problems()[xds.ClientCAs(tls.ClientCertificates)])
	case tls.ACME == nil && (former.Gateway.TLS == nil || len(serving(former.Gateway.TLS, c.set)) > 0):
		return nil, fmt.Errorf("no certificate of the definitions can be served: %w", c.files.Problems()[tls.Certificates[0].CertFile])
	}
	return all, nil
}

// Certificates returns the certificates of definitions that can be served now.
func Certificates(d *definitions.Definitions) []xds.Certificate {
	if d.Gateway.TLS == nil {
		return nil
	}
	set := certs.NewSet(func() {})
	for _, one := range d.Gateway.TLS.Certificates {
		if pair, err := certs.ReadServerPair(d.Path(one.CertFile), d.Path(one.KeyFile), time.Now()); err == nil {
			set.Put(one.CertFile, pair)
		}
	}
	if clients := d.Gateway.TLS.ClientCertificates; clients != nil {
		if roots, err := certs.ReadRoots(d.Path(clients.CAFile), time.Now()); err == nil {
			set.PutRoots(xds.ClientCAs(clients), roots)
		}
	}
	return serving(d.Gateway.TLS, set)
}

// follow has the files of the definitions that are published followed, and no others.
func (c *certificates) follow(d *definitions.Definitions) {
	c.mu.Lock()
	c.current = d
	c.mu.Unlock()
	c.files.Follow(c.filesOf(d))
	c.acme.follow(d)
}

func (c *certificates) filesOf(d *definitions.Definitions) (all []certs.File) {
	if d.Gateway.TLS != nil {
		for _, one := range d.Gateway.TLS.Certificates {
			all = append(all, certs.ServerPair(c.set, one.CertFile, d.Path(one.CertFile), d.Path(one.KeyFile)))
		}
		if clients := d.Gateway.TLS.ClientCertificates; clients != nil {
			all = append(all, certs.CAs(c.set, xds.ClientCAs(clients), d.Path(clients.CAFile)))
		}
	}
	seen := map[string]bool{"": true}
	add := func(name string, file func() certs.File) {
		if !seen[name] {
			all, seen[name] = append(all, file()), true
		}
	}
	for _, s := range d.Gateway.Services {
		u := s.UpstreamTLS
		add(u.CAName(), func() certs.File { return certs.CAs(c.set, u.CAName(), d.Path(u.CAFile)) })
		add(u.PairName(), func() certs.File { return certs.ClientPair(c.set, u.PairName(), d.Path(u.CertFile), d.Path(u.KeyFile)) })
	}
	return all
}

// verifies reports whether clients can be verified, if they are to be.
func verifies(tls *definitions.TLS, set *certs.Set) bool {
	if tls == nil || tls.ClientCertificates == nil {
		return true
	}
	_, ok := set.Roots(xds.ClientCAs(tls.ClientCertificates))
	return ok
}

// serving returns the certificates of a listener, which may be nil, that are in a set. A name that two have is served
// by the first. If clients are to be verified and their CAs are missing, nothing can be served.
func serving(tls *definitions.TLS, set *certs.Set) (all []xds.Certificate) {
	if tls == nil || !verifies(tls, set) {
		return nil
	}
	taken := map[string]bool{}
	for _, one := range tls.Certificates {
		pair, ok := set.Pair(one.CertFile)
		if !ok {
			continue
		}
		c := xds.Certificate{Name: one.CertFile, Default: one.CertFile == tls.DefaultCertificate}
		for _, name := range pair.Names {
			if !taken[name] {
				taken[name] = true
				c.ServerNames = append(c.ServerNames, name)
			}
		}
		all = append(all, c)
	}
	if tls.ACME == nil {
		return all
	}
	for _, domain := range tls.ACME.Domains { // each has a certificate, or a placeholder
		c := xds.Certificate{Name: domain, Default: domain == tls.DefaultCertificate}
		if !taken[domain] {
			c.ServerNames = []string{domain}
		}
		all = append(all, c)
	}
	return all
}

// changed sends Envoy what is in the set. If names have changed, the listener follows.
func (c *certificates) changed() {
	pairs, roots := c.set.All()
	names := make(map[string][]string, len(pairs)+len(roots))
	for name, p := range pairs {
		names[name] = p.Names
	}
	for name := range roots {
		names[name] = nil
	}
	c.g.control.SetSecrets(xds.Secrets(pairs, roots))
	c.mu.Lock()
	same := maps.EqualFunc(names, c.names, slices.Equal)
	c.names = names
	c.mu.Unlock()
	if !same && c.g.rollout != nil {
		c.g.rollout.CertificatesChanged()
	}
}

// run follows the files, and warns of certificates that expire, until ctx ends.
func (c *certificates) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { c.files.Run(ctx) })
	running.Go(func() {
		if err := c.acme.run(ctx); err != nil {
			c.logger.Error("ACME has ended, certificates are not renewed", "error", err)
		}
	})
	tick := time.NewTicker(remindEvery)
	defer tick.Stop()
	for {
		c.remind(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// remind logs the certificates that expire soon, each at 21 days and at 7.
func (c *certificates) remind(now time.Time) {
	for _, one := range c.status(now) {
		if one.GetNotAfter() == nil {
			continue
		}
		key := one.GetName() + " " + one.GetNotAfter().AsTime().String()
		limit := 0 // the smallest that is passed
		for _, days := range remindAt {
			if int(one.GetDaysLeft()) < days {
				limit = days
			}
		}
		if limit != 0 && c.reminded[key] != limit {
			c.reminded[key] = limit
			c.logger.Warn("a certificate expires soon", "certificate", one.GetName(), "days", one.GetDaysLeft())
		}
	}
}

// status returns the certificates of the published definitions.
func (c *certificates) status(now time.Time) (all []*gatewayv1.CertificateStatus) {
	c.mu.Lock()
	d := c.current
	c.mu.Unlock()
	if d == nil {
		return nil
	}
	problems := c.files.Problems()
	all = append(c.listenerStatus(d.Gateway.TLS, problems, now), c.acme.status(d.Gateway.TLS, now)...)
	return append(all, c.upstreamStatus(d.Gateway.Services, problems, now)...)
}

// listenerStatus returns the certificates of the listener for HTTPS.
func (c *certificates) listenerStatus(tls *definitions.TLS, problems map[string]error, now time.Time) (all []*gatewayv1.CertificateStatus) {
	if tls == nil {
		return nil
	}
	served := map[string]xds.Certificate{}
	for _, one := range serving(tls, c.set) {
		served[one.Name] = one
	}
	for _, one := range tls.Certificates {
		pair, _ := c.set.Pair(one.CertFile)
		status := fromFiles(one.CertFile, pair.NotBefore, pair.NotAfter, problems, now)
		status.Names = served[one.CertFile].ServerNames
		if served[one.CertFile].Default {
			for _, addr := range pair.Addresses {
				status.Addresses = append(status.Addresses, addr.String())
			}
		}
		all = append(all, status)
	}
	if clients := tls.ClientCertificates; clients != nil {
		name := xds.ClientCAs(clients)
		roots, _ := c.set.Roots(name)
		status := fromFiles(name, time.Time{}, roots.NotAfter, problems, now)
		status.Ca = true
		all = append(all, status)
	}
	return all
}

// fromFiles returns the status of a certificate, or of CAs, that files have.
func fromFiles(name string, notBefore, notAfter time.Time, problems map[string]error, now time.Time) *gatewayv1.CertificateStatus {
	status := &gatewayv1.CertificateStatus{Name: name, Source: sourceFiles}
	setValidity(status, notBefore, notAfter, now)
	if err := problems[name]; err != nil {
		status.Problem = err.Error()
	}
	return status
}

// The values of CertificateStatus.source.
const (
	sourceFiles = "files"
	sourceACME  = "acme"
)

// setValidity sets from when to when a certificate is valid. Zero times are not known.
func setValidity(status *gatewayv1.CertificateStatus, notBefore, notAfter, now time.Time) {
	if !notBefore.IsZero() {
		status.NotBefore = timestamppb.New(notBefore)
	}
	if !notAfter.IsZero() {
		left, soon := certs.DaysLeft(notAfter, now)
		status.NotAfter, status.DaysLeft, status.ExpiresSoon = timestamppb.New(notAfter), int32(left), soon
	}
}

// upstreamStatus returns the certificates and CAs that services name for their upstreams, each once.
func (c *certificates) upstreamStatus(services []*definitions.Service, problems map[string]error, now time.Time) (all []*gatewayv1.CertificateStatus) {
	pairs, roots := c.set.All()
	byName := map[string]*gatewayv1.CertificateStatus{}
	add := func(service, name string, ca bool) {
		if name == "" {
			return
		}
		status := byName[name]
		if status == nil {
			notBefore, notAfter := pairs[name].NotBefore, pairs[name].NotAfter
			if ca {
				notAfter = roots[name].NotAfter
			}
			status = fromFiles(name, notBefore, notAfter, problems, now)
			status.Ca = ca
			byName[name], all = status, append(all, status)
		}
		status.Services = append(status.Services, service)
	}
	for _, s := range services {
		add(s.Name, s.UpstreamTLS.CAName(), true)
		add(s.Name, s.UpstreamTLS.PairName(), false)
	}
	return all
}

var (
	daysLeftDesc = prometheus.NewDesc("gatepost_certificate_days_left",
		"Whole days until a certificate that is served expires.", []string{"certificate"}, nil)
	unusableDesc = prometheus.NewDesc("gatepost_certificate_unusable",
		"Whether the files of a certificate cannot be used, or a CA does not issue it (1), so that the one before stays.", []string{"certificate"}, nil)
)

// Describe implements [prometheus.Collector].
func (c *certificates) Describe(out chan<- *prometheus.Desc) {
	out <- daysLeftDesc
	out <- unusableDesc
}

// Collect implements [prometheus.Collector].
func (c *certificates) Collect(out chan<- prometheus.Metric) {
	for _, one := range c.status(time.Now()) {
		if one.GetNotAfter() != nil {
			out <- prometheus.MustNewConstMetric(daysLeftDesc, prometheus.GaugeValue, float64(one.GetDaysLeft()), one.GetName())
		}
		unusable := 0.0
		if one.GetProblem() != "" {
			unusable = 1
		}
		out <- prometheus.MustNewConstMetric(unusableDesc, prometheus.GaugeValue, unusable, one.GetName())
	}
}

// message returns the status of the gateway as the admin API shows it.
func (g *Gateway) message() *gatewayv1.Status {
	m := g.rollout.Message()
	m.Certificates = g.certificates.status(time.Now())
	if d := g.definitions(); d != nil {
		m.Listeners = g.listeners(d.Gateway)
	}
	return m
}
