package apply

import (
	"fmt"
	"slices"
	"strings"

	"gatepost/definitions"
	"gatepost/xds"
)

// withhold serves what the Envoys have rejected without the services that the rejection is about, where it says which:
// the others need not wait for these. Each of them stays in the form that it had before; one that had none keeps its
// path and its rule and answers 503, so that no other service takes its requests. It says whether it did so, and is
// called with mu held. It ends, because each time more services are in an older form.
func (a *Applier) withhold(rejected *applied, before *definitions.Definitions, why *xds.Rejection) bool {
	if *a.withoutModule.Load() == "" && a.config.Options.Module.Refused(why) {
		return a.dropModule(rejected, "Envoy refuses it: "+why.Reason)
	}
	blamed := rejected.snapshot.Blamed(why)
	if len(blamed) == 0 {
		return false
	}
	restored, rest := rejected.definitions.Restore(blamed, before)
	next, err := a.build(restored, rejected.saved, append(rest, rejected.withheld...)...)
	if err == nil {
		next.former = subtract(append(slices.Clone(rejected.former), blamed...), rest)
		err = a.publish(next)
	}
	if err != nil {
		a.config.Log.Error("the other services cannot be served either", "refused", blamed, "error", err)
		return false
	}
	a.failed = fmt.Errorf("not as defined: %s: %w", strings.Join(blamed, ", "), why)
	a.rejectedLast = rejected
	a.metrics.failed.Inc()
	a.config.Log.Error("Envoy refuses some services; the others are served as they are defined now",
		"former", subtract(blamed, rest), "withheld", next.withheld, "error", why)
	return true
}

// subtract returns what is in all and not in some.
func subtract(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(one string) bool { return slices.Contains(some, one) })
}
