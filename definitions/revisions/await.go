package revisions

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Standing is the state of a revision at a gateway.
type Standing struct {
	Gateway Gateway
	// Verified reports whether all Envoys of the gateway serve the revision.
	Verified bool
	// Final reports whether waiting longer changes nothing.
	Final bool
	// Why is the reason that the revision is not verified. It is empty if the revision is verified.
	Why string
}

// look is the interval in which Await asks Redis.
const look = 100 * time.Millisecond

// Await waits until the state of the revision is final at every gateway, or until ctx ends, and returns the states. It
// does not wait for a gateway that leaves, but it waits for one that stops reporting. Without gateways the list is
// empty. An error means that Redis could not be asked. Each time that it has looked, it calls progress with the states.
func (s *Store) Await(ctx context.Context, r Revision, progress func([]Standing)) (standings []Standing, err error) {
	began := time.Now()
	for {
		var gateways []Gateway
		var newest Revision
		gateways, err = s.Gateways(ctx)
		if err == nil {
			newest, err = s.Newest(ctx)
		}
		if err == nil {
			standings = standingsOf(gateways, r, newest)
			if everyoneKnown(gateways, began) && !slices.ContainsFunc(standings, func(s Standing) bool { return !s.Final }) {
				return standings, nil
			}
			progress(standings)
		}
		select {
		case <-ctx.Done():
			if standings != nil { // the last look may have been cut off
				return standings, nil
			}
			return nil, err
		case <-time.After(look):
		}
	}
}

// everyoneKnown reports whether every live gateway has had the time to report: Redis may have just restarted empty.
func everyoneKnown(gateways []Gateway, began time.Time) bool {
	const enough = 2 * Beat
	return time.Since(began) >= enough || slices.ContainsFunc(gateways, func(g Gateway) bool { return g.Known >= enough })
}

func standingsOf(gateways []Gateway, r, newest Revision) []Standing {
	standings := make([]Standing, len(gateways))
	for i, g := range gateways {
		standings[i] = standingOf(g, r)
		if s := &standings[i]; newest.Mark() != r.Mark() && !s.Verified {
			s.Final, s.Why = true, fmt.Sprintf("revision %d was applied meanwhile, by %s", newest.Number, newest.Who)
		}
	}
	return standings
}

// standingOf returns the state of a revision at a gateway, by the gateway's last report.
func standingOf(g Gateway, r Revision) Standing {
	s := Standing{Gateway: g}
	switch mark := r.Mark(); {
	case g.Quiet >= silent:
		s.Why = fmt.Sprintf("no report for %v, the last one with %v", g.Quiet.Round(time.Second), g.Serving)
	case g.Serving == mark && g.Verified:
		s.Verified, s.Final = true, true
	case g.Newest == mark && g.Refused != "":
		s.Final, s.Why = true, g.Refused
	case g.Newest != mark:
		s.Why = fmt.Sprintf("it has not seen the revision yet and serves %v", g.Serving)
		if g.Refused != "" {
			s.Why += ": " + g.Refused
		}
	case g.Pending != "":
		s.Why = g.Pending
	default:
		s.Why = "its Envoys have not answered yet"
	}
	return s
}

// String is the revision for a sentence.
func (m Mark) String() string {
	if m.Number == 0 {
		return "no revision"
	}
	return fmt.Sprintf("revision %d", m.Number)
}
