package endpoint

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/tokens/shield"
)

func TestTheShieldIsItsDefaultsWithWhatTheDefinitionsSayInTheirPlace(t *testing.T) {
	seconds := func(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }
	some := shield.Defaults()
	some.User.Failures, some.User.Cap = 0, 7*time.Second
	some.Concurrent = 3
	some.Breaker.Pause = 2 * time.Second
	for name, c := range map[string]struct {
		said *gatewayv1.Shield
		want shield.Settings
	}{
		"nothing said": {nil, shield.Defaults()},
		"some said": {&gatewayv1.Shield{
			User:       &gatewayv1.Limit{Failures: proto.Uint32(0), Cap: seconds(7)},
			Concurrent: proto.Uint32(3),
			Breaker:    &gatewayv1.Breaker{Pause: seconds(2)},
		}, some},
	} {
		got, err := SettingsFrom(&gatewayv1.Tokens{Shield: c.said})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got.Shield); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", name, diff)
		}
	}
}
