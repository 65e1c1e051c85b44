package e2e

import "testing"

func TestWhatAResponseMeansToTheChecker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		got        answer
		want, call verdict // of a use, and of a call below /token
	}{
		{answer{Status: 200}, accepted, accepted},
		{answer{Status: 401}, refused, refused},
		{answer{Status: 504, Body: `"The token ended before the service had answered."`}, refused, refused},
		{answer{Status: 504, Body: `"The service took too long to answer."`}, odd, unsure},
		{answer{Status: 503}, unsure, unsure},
		{answer{Status: 500}, odd, odd},
	} {
		got, _ := judged(c.got, nil)
		call, _ := judgedCall(c.got, nil)
		if got != c.want || call != c.call {
			t.Errorf("%d %s: %v and %v, want %v and %v", c.got.Status, c.got.Body, got, call, c.want, c.call)
		}
	}
}
