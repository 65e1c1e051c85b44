package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatepost/devcert"
)

func certsCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "certs",
		Short: "Make certificates for development",
		Args:  onlySubcommands,
		RunE:  showHelp,
	}
	command.AddCommand(certsDevCommand())
	return command
}

func certsDevCommand() *cobra.Command {
	var out string
	command := &cobra.Command{
		Use:   "dev NAME...",
		Short: "Make a certificate for host names or IP addresses, signed by a local CA",
		Long: "Make a certificate for host names or IP addresses, signed by a local CA, for development. The first run makes the CA,\n" +
			"and later ones reuse it. The output explains how to trust it. Files that are not of this CA are never overwritten.",
		Args: arguments(1, math.MaxInt),
		RunE: func(c *cobra.Command, names []string) error {
			issued, err := devcert.Issue(out, names, time.Now())
			if err != nil {
				return fmt.Errorf("making a development certificate: %w", err)
			}
			printIssued(c.OutOrStdout(), names, issued)
			return nil
		},
	}
	command.Flags().StringVar(&out, "out", "gatepost-certs", "the `DIR` of the CA and the certificates")
	return command
}

// printIssued prints the files, and how to trust the root.
func printIssued(w io.Writer, names []string, issued *devcert.Issued) {
	root := "reused"
	if issued.NewCA {
		root = "new"
	}
	fmt.Fprintf(w, "certificate  %s (%s, until %s)\nkey          %s\nroot         %s (%s)\n\n",
		issued.Cert, strings.Join(names, ", "), issued.NotAfter.Format(time.DateOnly), issued.Key, issued.Root, root)
	fmt.Fprintf(w, `Trust the root on machines for development alone. Anyone with ca.key can impersonate any server there.

  curl             curl --cacert %[1]s https://...
  Debian, Ubuntu   sudo cp %[1]s /usr/local/share/ca-certificates/gatepost-dev.crt && sudo update-ca-certificates
  Fedora           sudo cp %[1]s /etc/pki/ca-trust/source/anchors/gatepost-dev.pem && sudo update-ca-trust
  macOS            sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain %[1]s
  Chromium, Linux  certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n gatepost-dev -i %[1]s
  Firefox          certutil -d sql:PROFILE -A -t C,, -n gatepost-dev -i %[1]s (PROFILE: see about:profiles)
`, issued.Root)
}
