package e2e

import "testing"

func TestWhatAResponseMeansToTheChecker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		got  answer
		want verdict
	}{
		{answer{Status: 200}, accepted},
		{answer{Status: 401}, refused},
		{answer{Status: 504, Body: `"The token ended before the service had answered."`}, refused},
		{answer{Status: 504, Body: `"The service took too long to answer."`}, odd},
		{answer{Status: 503}, unsure},
		{answer{Status: 500}, odd},
	} {
		if got, _ := judged(c.got, nil); got != c.want {
			t.Errorf("%d %s: %v, want %v", c.got.Status, c.got.Body, got, c.want)
		}
	}
}
