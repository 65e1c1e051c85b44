package ratelimit

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Limit is a limit of the number of requests. It travels with each request, as a text in the first entry of the
// descriptor, so that Envoy and Gatepost cannot differ about it.
type Limit struct {
	// Requests are allowed in the time Per, which is in whole seconds, and Burst at once. All are at least 1, and Requests
	// and Burst at most 1,000,000.
	Requests, Burst int
	Per             time.Duration
	// By is what is counted, as in the definitions, or "header:" and the name of a header. It has no space.
	By string
	// Refuse is whether requests are refused while they cannot be counted. Otherwise they are allowed.
	Refuse bool
	// Headers is whether every response has X-RateLimit-*.
	Headers bool
}

// What a request gets while it cannot be counted, as in the definitions.
const (
	allow  = "allow"
	refuse = "refuse"
)

// headers is the last word of a limit with Headers.
const headers = " headers"

// largest is the largest number of a limit. The script's arithmetic is exact up to it.
const largest = 1_000_000

// String returns the text of a limit.
func (l Limit) String() string {
	otherwise := allow
	if l.Refuse {
		otherwise = refuse
	}
	text := fmt.Sprintf("%d %d %d %s %s", l.Requests, int(l.Per/time.Second), l.Burst, l.By, otherwise)
	if l.Headers {
		text += headers
	}
	return text
}

// parseLimit parses the text of a limit.
func parseLimit(text string) (l Limit, err error) {
	rest, shown := strings.CutSuffix(text, headers)
	words := strings.Split(rest, " ")
	if len(words) != 5 || words[3] == "" || words[4] != allow && words[4] != refuse {
		return l, fmt.Errorf("%q is not a limit", text)
	}
	var numbers [3]int
	for i := range numbers {
		if numbers[i], err = strconv.Atoi(words[i]); err != nil || numbers[i] < 1 || numbers[i] > largest {
			return l, fmt.Errorf("%q is not a limit", text)
		}
	}
	return Limit{
		Requests: numbers[0], Per: time.Duration(numbers[1]) * time.Second, Burst: numbers[2], By: words[3], Refuse: words[4] == refuse,
		Headers: shown,
	}, nil
}
