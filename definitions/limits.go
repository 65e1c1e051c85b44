package definitions

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	gatewayv1 "gatepost/proto/gatepost/v1"
)

// MaxCounters is how many addresses, users or values of a header a rate limit counts at a time. The one that was not
// seen for the longest time is forgotten first. It bounds the memory of Envoy.
const MaxCounters = 10_000

// counterBytes is what Envoy needs for one of them, apart from long values of a header.
const counterBytes = 610

// byteSize is a number with a unit. Both kinds of units exist: KB is 1000, and KiB 1024.
var byteSize = regexp.MustCompile(`^([1-9][0-9]{0,14}) ?(B|KB|MB|GB|KiB|MiB|GiB)?$`)

// byteUnits are the units of sizes. :: unit → bytes
var byteUnits = map[string]uint64{
	"": 1, "B": 1, "KB": 1000, "MB": 1000_000, "GB": 1000_000_000, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}

// parseMaxRequestBytes parses the size of the largest body of a service's requests.
func parseMaxRequestBytes(f *findings, m *gatewayv1.Service, s *Service, field string) uint64 {
	text := m.GetMaxRequestBytes()
	if text == "" {
		return 0
	}
	field += ".max_request_bytes"
	if s.WebSocket || s.GRPC {
		f.add(field, aboutFields.faultf("remove it, or make two services", "has no effect on a stream, which has no end"))
	}
	match := byteSize.FindStringSubmatch(text)
	if match == nil {
		f.add(field, aboutFields.faultf("write a number of bytes with its unit, such as 10MiB or 500KB", "is %s, not a size", shown(text)))
		return 0
	}
	number, _ := strconv.ParseUint(match[1], 10, 64) // digits that fit
	if unit := byteUnits[match[2]]; number <= math.MaxInt64/unit {
		return number * unit
	}
	f.add(field, aboutFields.faultf("remove the line for any size", "%s is out of range", text))
	return 0
}

// parseRateLimits parses the limits of a service s of g or, if s is nil, those of g.
func parseRateLimits(f *findings, limits []*gatewayv1.RateLimit, s *Service, g *Gateway, field string) (out []RateLimit) {
	for i, m := range limits {
		at := fmt.Sprintf("%s[%d]", field, i)
		l := RateLimit{
			Requests: int(m.GetRequests()), Burst: int(cmp.Or(m.GetBurst(), m.GetRequests())), Per: orDuration(m.GetPer(), defaultPer),
			By: m.GetBy(), Header: strings.ToLower(m.GetHeader()),
			Cluster: m.GetScope() == limitScopeCluster, RefuseWithoutRedis: m.GetWithoutRedis() == withoutRedisRefuses,
		}
		f.add(at+".per", wholeSeconds(l.Per))
		if m.GetWithoutRedis() != "" && !l.Cluster {
			f.add(at+".without_redis", aboutFields.faultf("remove it, or write scope: cluster", "has no effect: each gateway counts by itself"))
		}
		checkCounted(f, l, s, g, at)
		out = append(out, l)
	}
	return out
}

// checkCounted checks what a limit of a service s of g or, if s is nil, of g counts.
func checkCounted(f *findings, l RateLimit, s *Service, g *Gateway, at string) {
	switch {
	case l.By == "" && l.Header == "":
		f.add(at+".by", aboutFields.faultf("write by: address or one of the others, or header: and its name", "is missing"))
	case l.By != "" && l.Header != "":
		f.add(at+".header", aboutFields.faultf("write two limits", "is set beside by (%s)", f.where(at+".by")))
	case strings.Contains(l.Header, "_"):
		f.add(at+".header", aboutFields.faultf("write hyphens; Envoy rejects requests with an underscore", "%s is not a header name", shown(l.Header)))
	case l.Header != "":
		f.add(at+".header", requestHeader(g)(l.Header))
	default:
		checkLimitBy(f, l, s, at)
	}
}

// checkLimitBy checks that there is what a limit counts.
func checkLimitBy(f *findings, l RateLimit, s *Service, at string) {
	switch {
	case s == nil && (l.By == LimitByService || l.By == LimitByUser):
		f.add(at+".by", aboutFields.faultf("write gateway or address, or make it a limit of a service", "is %s, and the limit is that of the gateway", shown(l.By)))
	case s != nil && l.By == LimitByGateway:
		f.add(at+".by", aboutFields.faultf("write service, or make it a limit of the gateway", "is %s, and the limit is that of a service", shown(l.By)))
	case s != nil && l.By == LimitByUser && !s.Authenticate:
		f.add(at+".by", aboutOrigins.faultf("write address", "counts the requests of users, and the service %q is public", s.Name))
	}
}

// Counts returns what the limit counts, for a sentence.
func (l RateLimit) Counts() string {
	switch l.By {
	case LimitByService, LimitByGateway:
		return "all clients together"
	case "":
		return "each value of the header " + l.Header
	}
	return "each " + l.By
}

// Period returns Per as definitions have it: 1h, not 1h0m0s.
func (l RateLimit) Period() string {
	text := l.Per.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// LimitWarnings returns the rate limits of less than one request for each of a number of gateways, except those that
// all count together. Each gateway counts alone, and allows one request at least, so together they allow more than the
// limit.
func (d *Definitions) LimitWarnings(gateways int) Problems {
	f := d.read()
	if len(f.found) > 0 {
		return nil // not reached: the same text was parsed before
	}
	check := func(field string, limits []RateLimit) {
		for i, l := range limits {
			if l.Requests < gateways && !l.Cluster {
				f.add(fmt.Sprintf("%s[%d].requests", field, i), aboutNotes.faultf(fmt.Sprintf("write %d or more", gateways),
					"%d in %s is less than one for each of %d gateways: each counts alone, so together they allow %d",
					l.Requests, l.Period(), gateways, l.Requests*gateways))
			}
		}
	}
	check("rate_limits", d.Gateway.RateLimits)
	for i, s := range d.Gateway.Services {
		check(fmt.Sprintf("services[%d].rate_limits", i), s.RateLimits)
	}
	return f.sorted()
}

// FilterChains returns how many filter chains of Envoy serve requests, at most. The gateway's own limits are counted in
// each of them apart, if their scope is not the cluster. A certificate has no chain if others have all its names.
func (g *Gateway) FilterChains() int {
	plain, secured := 1, 0
	if tls := g.TLS; tls != nil {
		if tls.Redirect {
			plain = 0
		}
		secured = len(tls.Certificates)
		if tls.ACME != nil {
			secured += len(tls.ACME.Domains)
		}
		if tls.DefaultCertificate != "" {
			secured++ // for other names
		}
		if tls.HTTP3 {
			secured *= 2
		}
	}
	if len(g.ClientAddresses.TrustedProxies) > 0 {
		return 2 * (plain + secured)
	}
	return plain + secured
}

// HasClusterLimits reports whether all gateways count together for one of the limits, which needs Redis.
func (g *Gateway) HasClusterLimits() bool {
	return HasLimits(g.RateLimits, true) ||
		slices.ContainsFunc(g.Services, func(s *Service) bool { return HasLimits(s.RateLimits, true) })
}

// HasLimits reports whether some of the limits are counted by all gateways together, or by each gateway.
func HasLimits(limits []RateLimit, cluster bool) bool {
	return slices.ContainsFunc(limits, func(l RateLimit) bool { return l.Cluster == cluster })
}

// counterNotes reports how much memory the rate limits can take, if that is much.
func (d *Definitions) counterNotes() Problems {
	const much = 256 << 20
	counters, last, gateways := 0, 0, ""
	for i, l := range d.Gateway.RateLimits {
		if l.By != LimitByGateway && !l.Cluster {
			counters, gateways = counters+MaxCounters*d.Gateway.FilterChains(), fmt.Sprintf("rate_limits[%d]", i)
		}
	}
	ofGateway := counters
	for i, s := range d.Gateway.Services {
		for _, l := range s.RateLimits {
			if l.By != LimitByService && !l.Cluster {
				last, counters = i, counters+MaxCounters
			}
		}
	}
	if counters*counterBytes <= much {
		return nil
	}
	fault := aboutNotes.faultf("see that this is meant", "with this one, rate limits can take %d MiB of memory in each Envoy", counters*counterBytes>>20)
	if counters > ofGateway {
		return Problems{d.note(last, "rate_limits", fault)}
	}
	f := d.read()
	f.add(gateways, fault)
	return f.found
}
