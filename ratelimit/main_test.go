package ratelimit

import (
	"testing"

	"gatepost/tokens/redistest"
)

func TestMain(m *testing.M) { redistest.VerifyTestMain(m) }
