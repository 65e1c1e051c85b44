package table

// The layout, as envoy/module/table.h describes it; a test compares every number.
const (
	magic = 0x3130454c42415447

	headerWords     = 16
	headerMagic     = 0
	headerBuckets   = 1
	headerSeq       = 8
	headerKey0      = 9
	headerKey1      = 10
	headerUntilBoot = 11
	headerUntilWall = 12

	bucketSlots = 8
	maxBuckets  = 1048576

	slotWords   = 12
	slotSeq     = 0
	slotTag0    = 1
	slotTag1    = 2
	slotExpires = 3
	slotUntil   = 4
	slotUser    = 5
	userBytes   = 55
	slotSession = 10

	userWithSession = 39

	ruleBytes  = 16
	inputs     = 4
	maxMessage = 4096

	maxLease    = 2000000000
	maxDecision = 61000000000

	hitsSlots  = 32768
	hitsWords  = 2
	hitsProbes = 256
)
