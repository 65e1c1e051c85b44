package explain

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Print writes the explanation as text.
func (a *Explanation) Print(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s\n", a.Method, a.Target)
	for _, s := range a.Steps {
		line(&b, s.Part, s.Text)
	}
	for _, o := range a.Outcomes {
		if o.When != "" {
			fmt.Fprintf(&b, "  if %s:\n", o.When)
		}
		o.print(&b)
	}
	if len(a.Unsure) > 0 {
		line(&b, "unsure", "these settings of Envoy are not followed here: "+strings.Join(a.Unsure, ", "))
	}
	line(&b, "version", a.Version)
	if a.Gateway != nil {
		line(&b, "gateway", a.Gateway.line())
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (o *Outcome) print(b *bytes.Buffer) {
	status := fmt.Sprint(o.Status)
	if o.Status == 0 && o.Forward == nil {
		status = "none"
	}
	if o.Forward != nil {
		status = "the status of the upstream's response"
		if o.Forward.TokenHandler {
			status = "the status of the token handler's response"
		}
		o.Forward.print(b)
	}
	line(b, "response", status)
	for _, h := range o.Headers {
		line(b, "", h.Name+": "+h.Value)
	}
	if o.Body != "" {
		line(b, "", o.Body)
	}
	line(b, "why", o.Why)
	if o.Change != "" {
		line(b, "change", o.Change)
	}
	if o.See != "" {
		line(b, "see", o.See)
	}
}

func (f *Forward) print(b *bytes.Buffer) {
	to := "the token handler"
	if len(f.To) > 0 {
		to = strings.Join(f.To, " or ")
	}
	line(b, "forwarded", fmt.Sprintf("to %s as %s %s", to, f.Method, f.Path))
	if c := f.Canary; c != nil {
		line(b, "", fmt.Sprintf("or, for %d %% by %s, to the canary %s", c.Percent, c.By, strings.Join(c.To, " or ")))
	}
	for _, h := range f.Set {
		line(b, "", "with "+h.Name+": "+h.Value)
	}
	if len(f.Removed) > 0 {
		line(b, "", "without the client's "+strings.Join(f.Removed, ", "))
	}
	if f.Upgrade != "" {
		line(b, "", "which may become a "+f.Upgrade)
	}
	if f.EndsWithToken {
		line(b, "", "until the token ends, at the latest")
	}
}

func line(b *bytes.Buffer, part, text string) { fmt.Fprintf(b, "  %-10s %s\n", part, text) }
