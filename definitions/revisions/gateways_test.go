package revisions

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func report(t *testing.T, s *Store, r Report) {
	t.Helper()
	if err := s.Report(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// gateways are the names of those that are known.
func gateways(t *testing.T, s *Store) string {
	t.Helper()
	all, err := s.Gateways(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range all {
		names = append(names, g.Name+"/"+g.ID)
	}
	return strings.Join(names, " ")
}

// age makes the last report of a gateway this old.
func age(t *testing.T, s *Store, id string, ago time.Duration) {
	t.Helper()
	score := s.client.ZScore(t.Context(), gatewaysKey, id).Val() - float64(ago.Milliseconds())
	if err := s.client.ZAdd(t.Context(), gatewaysKey, redis.Z{Score: score, Member: id}).Err(); err != nil {
		t.Fatal(err)
	}
}

func TestGatewaysAreKnownUntilTheyLeaveOrAreLongSilent(t *testing.T) {
	t.Parallel()
	s, server := start(t)
	for _, id := range []string{"1", "2", "3"} {
		report(t, s, Report{ID: id, Name: "g" + id, Newest: Mark{7, "x"}, Refused: "because"})
	}
	all, err := s.Gateways(t.Context())
	if err != nil || len(all) != 3 || all[0].Newest != (Mark{7, "x"}) || all[0].Refused != "because" {
		t.Fatalf("the gateways are %+v, %v", all, err)
	}
	if err := s.Leave(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	if got := gateways(t, s); got != "g2/2 g3/3" {
		t.Errorf("after one has left: %s", got)
	}
	age(t, s, "2", forgotten/2)
	if got := gateways(t, s); got != "g2/2 g3/3" {
		t.Errorf("after one has been silent for a while: %s", got)
	}
	age(t, s, "2", forgotten)
	if got := gateways(t, s); got != "g3/3" {
		t.Errorf("after one has been silent for long: %s", got)
	}
	report(t, s, Report{ID: "3", Name: "g3"})
	if got := server.Do("HKEYS", reportsKey); got != "3" {
		t.Errorf("the reports are of %q, want 3 alone", got)
	}
}

// A gateway that died is not waited for once another runs in its place; two that run at once are both.
func TestAGatewayFollowsOneThatDied(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	report(t, s, Report{ID: "old", Name: "g"})
	report(t, s, Report{ID: "twin", Name: "g"})
	report(t, s, Report{ID: "old", Name: "g"})
	if got := gateways(t, s); got != "g/old g/twin" {
		t.Errorf("two at once: %s", got)
	}
	age(t, s, "old", 10*time.Second)
	if got := gateways(t, s); got != "g/twin" {
		t.Errorf("one after the other: %s", got)
	}
}

func TestStandings(t *testing.T) {
	r := Revision{Number: 8, Sum: "new"}
	now, before := r.Mark(), Mark{7, "old"}
	for name, c := range map[string]struct {
		gateway         Gateway
		verified, final bool
		why             string
	}{
		"verified":                   {gateway: Gateway{Report: Report{Newest: now, Serving: now, Verified: true}}, verified: true, final: true},
		"published":                  {gateway: Gateway{Report: Report{Newest: now, Serving: now, Pending: "no Envoy"}}, why: "no Envoy"},
		"published, nothing said":    {gateway: Gateway{Report: Report{Newest: now, Serving: now}}, why: "have not answered"},
		"rejected":                   {gateway: Gateway{Report: Report{Newest: now, Serving: before, Verified: true, Refused: "cannot bind"}}, final: true, why: "cannot bind"},
		"not seen":                   {gateway: Gateway{Report: Report{Newest: before, Serving: before, Verified: true}}, why: "serves revision 7"},
		"not seen after a rejection": {gateway: Gateway{Report: Report{Newest: before, Refused: "cannot bind"}}, why: "serves no revision: cannot bind"},
		"the number of another":      {gateway: Gateway{Report: Report{Newest: Mark{8, "lost"}, Serving: Mark{8, "lost"}, Verified: true}}, why: "not seen"},
		"silent":                     {gateway: Gateway{Report: Report{Newest: now, Serving: now, Verified: true}, Quiet: silent}, why: "no report for 5s"},
	} {
		t.Run(name, func(t *testing.T) {
			got := standingsOf([]Gateway{c.gateway}, r, r)[0]
			if got.Verified != c.verified || got.Final != c.final || !strings.Contains(got.Why, c.why) || (got.Why == "") != c.verified {
				t.Errorf("it stands so: verified %v, final %v, %q", got.Verified, got.Final, got.Why)
			}
			later := standingsOf([]Gateway{c.gateway}, r, Revision{Number: 9, Sum: "newer", Note: Note{Who: "bob@desk"}})[0]
			if later.Verified != c.verified || !later.Final || !c.verified && later.Why != "revision 9 was applied meanwhile, by bob@desk" {
				t.Errorf("with a later revision it stands so: verified %v, final %v, %q", later.Verified, later.Final, later.Why)
			}
		})
	}
}

// onSecondList calls end when the gateways are listed for the second time: by then Await has looked once.
type onSecondList struct {
	end   func()
	lists atomic.Int64
}

func (h *onSecondList) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *onSecondList) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if slices.Contains(cmd.Args(), any(listScript.Hash())) && h.lists.Add(1) == 2 {
			h.end()
		}
		return next(ctx, cmd)
	}
}

func (h *onSecondList) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestAwait(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	r := add(t, s, 0, file("orders"))
	if all, err := s.Await(t.Context(), r, func([]Standing) {}); err != nil || len(all) != 0 {
		t.Fatalf("without a gateway: %v, %v", all, err)
	}
	for i := range 2 {
		report(t, s, Report{ID: fmt.Sprint(i), Name: fmt.Sprintf("g%d", i), Newest: r.Mark(), Serving: r.Mark(), Verified: i == 0})
	}
	looked, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.client.AddHook(&onSecondList{end: cancel})
	var seen []Standing
	all, err := s.Await(looked, r, func(states []Standing) { seen = states })
	if err != nil || len(all) != 2 || !all[0].Verified || all[1].Verified {
		t.Fatalf("with one that has not verified it: %+v, %v", all, err)
	}
	if len(seen) != 2 || !seen[0].Verified || seen[1].Verified {
		t.Errorf("the progress is %+v", seen)
	}
	done := make(chan error, 1)
	go func() {
		all, err := s.Await(context.Background(), r, func([]Standing) {})
		if err == nil && (len(all) != 2 || !all[1].Verified) {
			err = fmt.Errorf("it returned with %+v", all)
		}
		done <- err
	}()
	report(t, s, Report{ID: "1", Name: "g1", Newest: r.Mark(), Serving: r.Mark(), Verified: true})
	if err := <-done; err != nil {
		t.Error(err)
	}
}
