package convention

// The metrics that the overview of the admin API reads.
const (
	MetricDecisions = "gatepost_decisions_total"
	MetricLogins    = "gatepost_logins_total"
	MetricLeaseHeld = "gatepost_cache_lease_held"
)
