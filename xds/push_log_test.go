package xds

import (
	"log/slog"
	"strings"
	"testing"

	"gatepost/testlog"
)

// At debug level, a push names the resources that it changes and removes, and of many the first ones.
func TestPushesAreLoggedAtDebugLevel(t *testing.T) {
	t.Parallel()
	for level, logged := range map[slog.Level]bool{slog.LevelDebug: true, slog.LevelInfo: false} {
		var log testlog.Buffer
		c := startControl(t, quick)
		c.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level}))
		c.connect("edge", acceptAll)
		first := withServices(t, "a")
		c.servesAll(first)
		c.eventually("the Envoy has it", func(now progress) bool { return len(now.Envoys) == 1 && now.Envoys[0].Acked == first.Version })
		before := len(log.String())
		c.servesAll(withServices(t, "b"))
		pushes := log.String()[before:]
		for _, want := range []string{
			`msg="sending an Envoy resources" node=edge`, `type=cluster`, `changed=[service/b] removed=[]`,
			`type=route`, `changed="[/.gatepost /b]" removed=[]`, `changed=[] removed=[/a]`,
		} {
			if strings.Contains(pushes, want) != logged {
				t.Errorf("at level %v, a line with %s: %v, want %v\n%s", level, want, !logged, logged, pushes)
			}
		}
	}
}

func TestAPushOfManyResourcesIsAShortLine(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range 300 {
		names = append(names, "service-with-a-long-name-"+strings.Repeat("x", i%10)+string(rune('a'+i%26))+strings.Repeat("y", i/26))
	}
	var log testlog.Buffer
	c := startControl(t, quick)
	c.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c.connect("edge", acceptAll)
	c.eventually("the Envoy is there", func(now progress) bool { return len(now.Envoys) == 1 })
	c.servesAll(withServices(t, names...))
	for line := range strings.Lines(log.String()) {
		if len(line) > 2<<10 {
			t.Errorf("a line has %d bytes", len(line))
		}
	}
	if !strings.Contains(log.String(), "type=cluster") || !strings.Contains(log.String(), " count=301 ") {
		t.Errorf("the number of clusters is not logged:\n%s", log.String())
	}
}
