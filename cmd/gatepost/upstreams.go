package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gatepost/admin"
)

// printUpstreams prints how the upstreams are, and lists those of services that need a look, or all.
func (s *settings) printUpstreams(c *cobra.Command, all bool) error {
	body, err := s.get(c.Context(), "/api/v1/services")
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
	total, healthy := 0, 0
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	listed := false
	for _, service := range read.Services {
		bad := slices.ContainsFunc(service.Upstreams, func(u admin.Upstream) bool { return u.Health != admin.HealthHealthy })
		show := all || bad || service.CanaryPercent != nil || len(service.LimitsReached) > 0
		for _, u := range service.Upstreams {
			total++
			if u.Health == admin.HealthHealthy {
				healthy++
			}
			if show {
				if !listed {
					fmt.Fprintln(table, "SERVICE\tUPSTREAM\tHEALTH\tREQUESTS\tERRORS\tNOTE")
				}
				listed = true
				fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%s\n", service.Name, strings.TrimSpace(u.Address+" "+u.Name), u.Health, u.Requests, u.Errors, orNone(note(service, u)))
			}
		}
	}
	if _, err := fmt.Fprintf(w, "%d of %d upstreams are healthy\n", healthy, total); err != nil {
		return err
	}
	return table.Flush()
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
