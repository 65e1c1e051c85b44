package redistest

import (
	"strings"
	"testing"
)

func TestServerIsKilledFrozenAndRestarted(t *testing.T) {
	s := Start(t, "--appendonly", "yes")
	s.Do("SET", "k", "v")
	if got := s.Do("GET", "k"); got != "v" {
		t.Fatalf("read %q", got)
	}
	if n := s.CommandStats()["get"]; n != 1 {
		t.Errorf("GET was counted %d times", n)
	}
	s.Freeze()
	if s.answers() {
		t.Error("a frozen server answers")
	}
	s.Thaw()
	Eventually(t, "an answer after the thaw", s.answers)
	s.Kill()
	if s.answers() {
		t.Error("a killed server answers")
	}
	s.Restart()
	if got := s.Do("GET", "k"); got != "v" {
		t.Errorf("after the restart: %q", got)
	}
	s.Shutdown()
}

func TestServerAsksForItsPassword(t *testing.T) {
	s := StartWithPassword(t, "opensesame")
	if reply, err := s.raw("GET k"); err != nil || !strings.HasPrefix(reply, "-NOAUTH") {
		t.Errorf("%q, %v", reply, err)
	}
}

func TestServerTakesTLSAlone(t *testing.T) {
	s, _ := StartTLS(t)
	if got := s.Do("PING"); got != "PONG" {
		t.Errorf("answered %q", got)
	}
	s.tls = nil
	if s.answers() {
		t.Error("it answers without TLS")
	}
}

func TestClusterAndSentinelComeUp(t *testing.T) {
	nodes := StartCluster(t, 3)
	if got := nodes[1].Do("CLUSTER", "KEYSLOT", "a"); got != "15495" {
		t.Errorf("slot %s", got)
	}
	master := Start(t)
	sentinel := StartSentinel(t, master)
	if got := sentinel.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"); got != "127.0.0.1\n"+master.Port() {
		t.Errorf("the master is %q", got)
	}
}
