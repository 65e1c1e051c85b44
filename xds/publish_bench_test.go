package xds

import (
	"fmt"
	"testing"
)

// BenchmarkOneServiceAdded: from the publishing of a change until an Envoy that acknowledges at once has all of it.
func BenchmarkOneServiceAdded(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := startControl(b, quick)
			c.connect("one", acceptAll)
			g := manyServices(b, n)
			var builder Builder
			next := func(i int) *Snapshot {
				addOne(g, i)
				s, err := builder.Build(g, testOptions)
				if err != nil {
					b.Fatal(err)
				}
				return s
			}
			c.serves(next(0))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				b.StopTimer()
				s := next(i + 1)
				b.StartTimer()
				c.serves(s)
			}
		})
	}
}
