package rollout

import (
	"runtime/debug"
	runtimemetrics "runtime/metrics"
)

// muchGarbage is how much garbage is worth a collection, in bytes. A small configuration, or a change of one service
// among ten thousand, leaves less.
const muchGarbage = 4 << 20

// freeMemory returns garbage to the system, if there is much. Reading, building and sending a large configuration
// leaves several times its size as garbage, which an idle runtime keeps. It is called when a version is published,
// when an Envoy has a part of it or all, and when it is saved.
func freeMemory() {
	heap := []runtimemetrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(heap)
	if all, live := heap[0].Value.Uint64(), heap[1].Value.Uint64(); all > live+muchGarbage {
		debug.FreeOSMemory()
	}
}
