package envoy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Host is an address of a cluster, as Envoy sees it.
type Host struct {
	Cluster string
	// Address is ip:port, and Name the host name that it was looked up for. If there was none, it is empty.
	Address, Name string
	// Zone is the zone of its locality.
	Zone string
	// FailedCheck is whether it fails its health check, Ejected whether it rests because it failed requests. Pending is
	// whether it fails only because its first check is not over.
	FailedCheck, Ejected, Pending bool
	// Requests and Errors are how many requests it got, and how many of them failed or were answered 5xx.
	Requests, Errors uint64
}

// Hosts asks the admin interface of an Envoy for the hosts of its clusters.
func Hosts(ctx context.Context, admin string) ([]Host, error) {
	body, err := callAdmin(ctx, admin, "/clusters?format=json")
	if err != nil {
		return nil, err
	}
	var read struct {
		Clusters []struct {
			Name  string `json:"name"`
			Hosts []struct {
				Address struct {
					Socket struct {
						Address string `json:"address"`
						Port    uint16 `json:"port_value"`
					} `json:"socket_address"`
				} `json:"address"`
				Stats []struct {
					Name  string `json:"name"`
					Value uint64 `json:"value,string"`
				} `json:"stats"`
				Health struct {
					FailedCheck bool `json:"failed_active_health_check"`
					Ejected     bool `json:"failed_outlier_check"`
					Pending     bool `json:"pending_active_hc"`
				} `json:"health_status"`
				Hostname string `json:"hostname"`
				Locality struct {
					Zone string `json:"zone"`
				} `json:"locality"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal([]byte(body), &read); err != nil {
		return nil, fmt.Errorf("reading the clusters of Envoy: %w", err)
	}
	var hosts []Host
	for _, c := range read.Clusters {
		for _, h := range c.Hosts {
			one := Host{
				Cluster: c.Name, Address: net.JoinHostPort(h.Address.Socket.Address, strconv.Itoa(int(h.Address.Socket.Port))),
				Name: h.Hostname, Zone: h.Locality.Zone, FailedCheck: h.Health.FailedCheck, Ejected: h.Health.Ejected,
				Pending: h.Health.Pending,
			}
			for _, stat := range h.Stats {
				switch stat.Name {
				case "rq_total":
					one.Requests = stat.Value
				case "rq_error":
					one.Errors = stat.Value
				}
			}
			hosts = append(hosts, one)
		}
	}
	return hosts, nil
}

// Ready returns the clusters of hosts of which one passes its health check at least, and none waits for its first one.
func Ready(hosts []Host) map[string]bool {
	ready, pending := map[string]bool{}, map[string]bool{}
	for _, h := range hosts {
		ready[h.Cluster] = ready[h.Cluster] || !h.FailedCheck
		pending[h.Cluster] = pending[h.Cluster] || h.Pending
	}
	maps.DeleteFunc(ready, func(cluster string, _ bool) bool { return pending[cluster] })
	return ready
}

// openBreakers matches the gauges of limits that are reached.
const openBreakers = `%5Ecluster%5C..*%5C.circuit_breakers%5C.default%5C..*_open$`

// breakers are the limits by the names of their gauges.
var breakers = map[string]string{"cx_open": "connections", "rq_pending_open": "pending", "rq_open": "requests", "rq_retry_open": "retries"}

// Reached asks the admin interface of an Envoy for the limits that are reached. :: cluster → connections, pending, …
func Reached(ctx context.Context, admin string) (map[string][]string, error) {
	body, err := callAdmin(ctx, admin, "/stats?filter="+openBreakers)
	if err != nil {
		return nil, err
	}
	reached := map[string][]string{}
	lines := bufio.NewScanner(strings.NewReader(body))
	for lines.Scan() {
		name, isOpen := strings.CutSuffix(lines.Text(), ": 1")
		cluster, gauge, isBreaker := strings.Cut(strings.TrimPrefix(name, "cluster."), ".circuit_breakers.default.")
		if limit := breakers[gauge]; isOpen && isBreaker && limit != "" {
			reached[cluster] = append(reached[cluster], limit)
			slices.Sort(reached[cluster])
		}
	}
	return reached, lines.Err()
}

// requestsTotal matches the counters of the requests that were sent to the hosts of a cluster.
const requestsTotal = `%5Ecluster%5C..*%5C.upstream_rq_total$`

// Requests asks the admin interface of an Envoy how many requests each cluster has had, apart from health checks. Names
// of clusters are those of the statistics, and clusters without a request are left out. :: cluster → requests
func Requests(ctx context.Context, admin string) (map[string]uint64, error) {
	body, err := callAdmin(ctx, admin, "/stats?usedonly&filter="+requestsTotal)
	if err != nil {
		return nil, err
	}
	requests := map[string]uint64{}
	for line := range strings.Lines(body) {
		name, count, _ := strings.Cut(strings.TrimSpace(line), ": ")
		cluster, isCounter := strings.CutSuffix(strings.TrimPrefix(name, "cluster."), ".upstream_rq_total")
		if !isCounter {
			continue
		}
		if requests[cluster], err = strconv.ParseUint(count, 10, 64); err != nil {
			return nil, fmt.Errorf("reading the statistics of Envoy: %w", err)
		}
	}
	return requests, nil
}

func callAdmin(ctx context.Context, address, path string) (string, error) {
	addr, err := parseAddress(address)
	if err != nil {
		return "", fmt.Errorf("the address of Envoy's admin interface: %w", err)
	}
	client := adminClient(addr)
	defer client.CloseIdleConnections()
	return call(ctx, client, http.MethodGet, path)
}
