package revisions

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Standing is how a gateway stands to a revision.
type Standing struct {
	// Gateway is which.
	Gateway Gateway
	// Proven says whether all its Envoys serve the revision.
	Proven bool
	// Final says whether that will stay so without a change of something else.
	Final bool
	// Why is why the revision is not proven; empty where it is.
	Why string
}

// look is how often Await looks.
const look = 100 * time.Millisecond

// Await waits until every gateway has proven the revision or will not, and returns how each stands then, or when ctx
// ends. A gateway that takes leave meanwhile is not waited for; one that falls silent is. No gateway at all is an empty
// list. An error says that Redis could not be asked to the end.
func (s *Store) Await(ctx context.Context, number int64) ([]Standing, error) {
	var standings []Standing
	for {
		gateways, err := s.Gateways(ctx)
		if err == nil {
			standings = standingsOf(gateways, number)
			if !slices.ContainsFunc(standings, func(s Standing) bool { return !s.Final }) {
				return standings, nil
			}
		}
		select {
		case <-ctx.Done():
			if standings == nil && err != nil {
				return nil, err
			}
			return standings, nil
		case <-time.After(look):
		}
	}
}

func standingsOf(gateways []Gateway, number int64) []Standing {
	standings := make([]Standing, len(gateways))
	for i, g := range gateways {
		standings[i] = standingOf(g, number)
	}
	return standings
}

// standingOf decides how a gateway stands to a revision, by its last report.
func standingOf(g Gateway, number int64) Standing {
	s := Standing{Gateway: g}
	switch {
	case g.Heard >= Silent:
		s.Why = fmt.Sprintf("not heard of for %v; last seen with revision %d", g.Heard.Round(time.Second), g.Serving)
	case g.Serving == number && g.Proven:
		s.Proven, s.Final = true, true
	case g.Newest == number && g.Refused != "":
		s.Final, s.Why = true, g.Refused
	case g.Newest > number:
		s.Final, s.Why = true, fmt.Sprintf("it went on to revision %d", g.Newest)
	case g.Newest != number:
		s.Why = fmt.Sprintf("it has not seen the revision yet and serves revision %d", g.Serving)
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
