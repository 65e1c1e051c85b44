package rollout

import (
	"cmp"
	"fmt"
	"net/netip"
	"time"

	"gatepost/definitions"
	"gatepost/xds"
)

// version is definitions with what is made of them.
type version struct {
	definitions *definitions.Definitions
	snapshot    *xds.Snapshot
	hasModule   bool           // Envoy checks tokens by itself
	listen      netip.AddrPort // where Envoys take requests
	saved       time.Time      // when the definitions were saved; zero: before this gateway started
	withheld    []string       // the services that are served without their upstreams
	former      []string       // the services that are served as in earlier definitions
	// failure is why it is served in place of other definitions, and instead the version of these; nil: it is not.
	failure error
	instead *version
}

func (v *version) id() string { return v.snapshot.Version }

// original returns the version of which this one is a repair, or else itself.
func (v *version) original() *version { return cmp.Or(v.instead, v) }

// build makes a version of definitions, with some services withheld. It is called with building held.
func (r *Rollout) build(d *definitions.Definitions, saved time.Time, withheld ...string) (*version, error) {
	options := r.config.Options
	if options.Listen.IsValid() {
		if err := d.CheckListen(options.Listen); err != nil {
			return nil, err
		}
	}
	options.Withheld = withheld
	if r.config.Certificates != nil {
		var err error
		if options.Certificates, err = r.config.Certificates(d); err != nil {
			return nil, err
		}
	}
	if r.Status().Module.Reason != "" {
		options.Module = xds.Module{}
	}
	snapshot, err := r.builder.Build(d.Gateway, options)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Name, err)
	}
	return &version{
		definitions: d, snapshot: snapshot, listen: options.ListenAddress(d.Gateway), saved: saved, withheld: withheld,
		hasModule: options.Module.Library != "",
	}, nil
}
