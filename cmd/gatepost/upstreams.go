package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gatepost/admin"
)

// printUpstreams prints how the upstreams are, and lists those of services that need a look, or all.
func (s *settings) printUpstreams(c *cobra.Command, all bool) error {
	body, err := s.get(c.Context(), admin.PathServices)
	if refused := (*refusal)(nil); errors.As(err, &refused) && refused.code == http.StatusNotFound {
		return nil // a gateway from before
	}
	if err != nil {
		return err
	}
	var read admin.Services
	if err := json.Unmarshal(body, &read); err != nil {
		return fmt.Errorf("reading the response of %s: %w", s.admin, err)
	}
	w := c.OutOrStdout()
	if read.Unknown != "" {
		_, err := fmt.Fprintf(w, "upstreams  not known: %s\n", read.Unknown)
		return err
	}
	n, rows := summarize(read.Services, all)
	if _, err := fmt.Fprintln(w, n); err != nil || len(rows) == 0 {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SERVICE\tUPSTREAM\tHEALTH\tREQUESTS\tERRORS\tNOTE")
	for _, row := range rows {
		fmt.Fprintln(table, row)
	}
	return table.Flush()
}

// healths counts upstreams by their health. A name without an address is unhealthy.
type healths struct{ healthy, unhealthy, unchecked int }

func healthsOf(s admin.Service) (n healths) {
	n.unhealthy = len(s.NoAddress)
	for _, u := range s.Upstreams {
		switch u.Health {
		case admin.HealthHealthy:
			n.healthy++
		case admin.HealthUnchecked:
			n.unchecked++
		default:
			n.unhealthy++
		}
	}
	return n
}

func (n healths) String() string {
	switch checked := n.healthy + n.unhealthy; {
	case n.unchecked == 0:
		return fmt.Sprintf("%d of %d upstreams are healthy", n.healthy, checked)
	case checked == 0:
		return fmt.Sprintf("0 of %d upstreams are checked (no health_check)", n.unchecked)
	default:
		return fmt.Sprintf("%d of %d checked upstreams are healthy, %d unchecked (no health_check)", n.healthy, checked, n.unchecked)
	}
}

// short is String for a table.
func (n healths) short() string {
	switch checked := n.healthy + n.unhealthy; {
	case n.unchecked == 0:
		return fmt.Sprintf("%d/%d healthy", n.healthy, checked)
	case checked == 0:
		return fmt.Sprintf("%d unchecked", n.unchecked)
	default:
		return fmt.Sprintf("%d/%d healthy, %d unchecked", n.healthy, checked, n.unchecked)
	}
}

// summarize counts upstreams, and returns the rows of services that need a look, or of all.
func summarize(services []admin.Service, all bool) (n healths, rows []string) {
	for _, service := range services {
		one := healthsOf(service)
		n.healthy, n.unhealthy, n.unchecked = n.healthy+one.healthy, n.unhealthy+one.unhealthy, n.unchecked+one.unchecked
		if all || one.unhealthy > 0 || service.CanaryPercent != nil || len(service.LimitsReached) > 0 {
			rows = append(rows, upstreamRows(service)...)
		}
	}
	return n, rows
}

// upstreamRows are the rows of a service, one for each address and each name without one.
func upstreamRows(s admin.Service) (rows []string) {
	for _, u := range s.Upstreams {
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%d\t%d\t%s", s.Name, strings.TrimSpace(u.Address+" "+u.Name), u.Health, u.Requests, u.Errors, orNone(note(s, u))))
	}
	for _, name := range s.NoAddress {
		rows = append(rows, fmt.Sprintf("%s\t%s\tno address\t-\t-\t-", s.Name, name))
	}
	return rows
}

// note is what else there is to say about an upstream.
func note(s admin.Service, u admin.Upstream) string {
	var notes []string
	if u.Canary && s.CanaryPercent != nil {
		notes = append(notes, fmt.Sprintf("canary, %d %%", *s.CanaryPercent))
	}
	if len(s.LimitsReached) > 0 {
		notes = append(notes, "at its limit of "+strings.Join(s.LimitsReached, ", "))
	}
	return strings.Join(notes, "; ")
}
