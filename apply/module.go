package apply

import (
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// dropModule serves definitions without the module from now on, so Envoy asks about each request. It reports whether it did so,
// and is called with mu held.
func (a *Applier) dropModule(now *applied, why string) bool {
	a.withoutModule.Store(&why)
	a.config.Log.Error("Envoy does not check tokens by itself, it asks about each request", "reason", why)
	next, err := a.build(now.definitions, now.saved, now.withheld...)
	if err == nil {
		next.former = now.former
		err = a.publish(next)
	}
	if err != nil {
		a.config.Log.Error("the definitions cannot be served without the module either", "error", err)
	}
	return err == nil
}

// checkVersions drops the module if an Envoy is connected that must not use it.
func (a *Applier) checkVersions() {
	if a.config.ModuleVersion == nil {
		return
	}
	for _, one := range a.config.Control.Status().Envoys {
		if one.EnvoyVersion == "" || !one.Trusted {
			continue
		}
		if why := a.config.ModuleVersion(one.EnvoyVersion); why != "" {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.newest != nil && *a.withoutModule.Load() == "" {
				a.dropModule(a.newest, why)
			}
			return
		}
	}
}

// moduleStatus tells operators how Envoy checks tokens.
func (a *Applier) moduleStatus() *gatewayv1.ModuleStatus {
	if why := *a.withoutModule.Load(); why != "" {
		return &gatewayv1.ModuleStatus{Reason: why}
	}
	return &gatewayv1.ModuleStatus{Library: a.config.Options.Module.Library, Table: a.config.Options.Module.Table}
}
